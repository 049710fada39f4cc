//! Kernel modules that come and go: what tells one load from a later one at the same address.
//!
//! Each load and each unload has a number, which counts up. The programs keep, for each part of
//! the addresses that modules lie at, the number of the latest one there. A call site or a stack
//! in such code holds that number, so that what a module allocates is never taken for what another
//! one has allocated, before or after it, at the same addresses.

/// Bytes of a module's name (`MODULE_NAME_LEN`, include/linux/moduleparam.h, 5.15 to 7.2).
pub const MODULE_NAME_BYTES: usize = 56;

/// log2 of the bytes of a part of the addresses.
pub const PART_SHIFT: u32 = 16;
/// Parts; a power of two. They cover 1 GiB, what x86 gives to modules where it moves the kernel
/// (1.5 GiB elsewhere: there two parts may share a number, which splits call sites needlessly).
pub const PARTS: u32 = 1 << 14;
/// Most parts of one module.
pub const PARTS_OF_MODULE: u32 = 512;

/// The largest number: later loads cannot be told apart.
pub const LAST_GENERATION: u64 = u16::MAX as u64;

/// What a [`ModuleEvent`] tells.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleEventKind {
    /// A module has been loaded; its init has not run yet.
    Loaded = 1,
    /// A module is about to go, after its exit, or after its init has failed.
    Freed = 2,
}

/// A module comes or goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleEvent {
    /// A [`ModuleEventKind`].
    pub kind: u32,
    /// Its number.
    pub generation: u32,
    /// Where its code lies.
    pub text: crate::TextRange,
    /// Where the code of its init lies, which is freed once that has run.
    pub init_text: crate::TextRange,
    /// Its name, with zeros behind.
    pub name: [u8; MODULE_NAME_BYTES],
}

/// Where `struct module` keeps what a [`ModuleEvent`] tells, as offsets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModuleLayout {
    /// Its name.
    pub name: u32,
    /// The address of its code.
    pub text_base: u32,
    /// The bytes of its code.
    pub text_bytes: u32,
    /// The address of its init's code.
    pub init_base: u32,
    /// The bytes of its init's code.
    pub init_bytes: u32,
    /// 1: modules that come and go are followed, and the members above are known.
    pub is_known: u32,
}

const _: () = assert!(size_of::<ModuleEvent>() == 8 + 2 * 16 + MODULE_NAME_BYTES);
const _: () = assert!(size_of::<ModuleLayout>() == 6 * 4);
