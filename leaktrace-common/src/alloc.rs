//! One live allocation: its identity and what is remembered of it.

/// The [`AllocKey::space`] of kernel memory; processes count from 1.
pub const KERNEL_SPACE: u32 = 0;

/// Identity of a live allocation.
///
/// The space keeps apart what may share an address: the kernel, and each process image (a
/// process gets a new space when it execs).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocKey {
    /// Address of the block.
    pub address: u64,
    /// [`KERNEL_SPACE`], or the space of a traced process image.
    pub space: u32,
    /// Always zero.
    pub zero: u32,
}

impl AllocKey {
    /// The key of the block at `address` in `space`.
    #[inline(always)]
    pub const fn new(space: u32, address: u64) -> Self {
        Self { address, space, zero: 0 }
    }
}

/// What is remembered of a live allocation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// Bytes that were asked for.
    pub size_bytes: u64,
    /// `CLOCK_MONOTONIC` at the allocation.
    pub timestamp_ns: u64,
    /// Index into `SITES`.
    pub site: u32,
    /// Process that was running when a kernel allocation was made.
    pub tgid: u32,
}

// A tracked block costs 40 bytes of key and value; the kernel's hash table adds 48 bytes of
// element header (struct htab_elem, kernel/bpf/hashtab.c, 6.1 and 6.18) and its bucket array.
const _: () = assert!(size_of::<AllocKey>() == 16 && size_of::<Outstanding>() == 24);
