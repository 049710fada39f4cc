//! Kernel modules that come and go: how leaktrace tells one load from a later one at the same
//! address.
//!
//! Each load and each unload has a number, which counts up. The BPF programs divide the address
//! range of modules into parts and keep the latest number of each part. A call site or a stack in
//! module code holds that number. So leaktrace never mistakes the allocations of one module for
//! those of another that lay at the same addresses before or after.

/// Bytes of a module's name (`MODULE_NAME_LEN`, include/linux/moduleparam.h, 5.15 to 7.2).
pub const MODULE_NAME_BYTES: usize = 56;

/// log2 of the bytes of one part of the modules' address range.
pub const PART_SHIFT: u32 = 16;
/// Number of parts; a power of two. The parts cover 1 GiB, which is the address range of modules on
/// x86 with KASLR. Without KASLR the range is 1.5 GiB: there two parts may share a number, which
/// splits call sites needlessly.
pub const PARTS: u32 = 1 << 14;
/// Most parts that one module may cover.
pub const PARTS_OF_MODULE: u32 = 512;

/// The largest number: leaktrace cannot tell later loads apart.
pub const LAST_GENERATION: u64 = u16::MAX as u64;

/// What a [`ModuleEvent`] reports.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleEventKind {
    /// The kernel has loaded a module, and has not run its init yet.
    Loaded = 1,
    /// The kernel is about to free a module, after its exit has run or its init has failed.
    Freed = 2,
}

/// The load or the end of a module.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleEvent {
    /// A [`ModuleEventKind`].
    pub kind: u32,
    /// The number of this load or unload.
    pub generation: u32,
    /// Where the module's code lies.
    pub text: crate::TextRange,
    /// Where the module's init code lies, which the kernel frees once init has run.
    pub init_text: crate::TextRange,
    /// The module's name, padded with zeros.
    pub name: [u8; MODULE_NAME_BYTES],
}

/// The offsets in `struct module` of what a [`ModuleEvent`] reports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModuleLayout {
    /// Offset of the name.
    pub name: u32,
    /// Offset of the address of the code.
    pub text_base: u32,
    /// Offset of the size of the code.
    pub text_bytes: u32,
    /// Offset of the address of the init code.
    pub init_base: u32,
    /// Offset of the size of the init code.
    pub init_bytes: u32,
    /// 1: the programs follow modules that come and go, and the offsets above are known.
    pub is_known: u32,
}

const _: () = assert!(size_of::<ModuleEvent>() == 8 + 2 * 16 + MODULE_NAME_BYTES);
const _: () = assert!(size_of::<ModuleLayout>() == 6 * 4);
