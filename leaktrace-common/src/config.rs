//! Constants that the loader writes into the BPF object before it is loaded.

/// When a full stack is taken.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StackMode {
    /// For the first allocations of a call site, a sample after that, and all once suspect.
    Adaptive = 0,
    /// For every allocation.
    All = 1,
    /// Never: the call site alone.
    Site = 2,
}

/// Read-only data of the BPF object: the verifier folds it and drops branches not taken.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Allocations smaller than this are not tracked.
    pub min_size_bytes: u64,
    /// Allocations larger than this are not tracked.
    pub max_size_bytes: u64,
    /// A [`StackMode`].
    pub stack_mode: u32,
    /// Most frames taken of a stack, up to [`crate::MAX_FRAMES`].
    pub max_frames: u32,
    /// Slots in `SITES`.
    pub max_sites: u32,
    /// Process whose own kernel allocations are left out: leaktrace itself.
    pub own_tgid: u32,
    /// 1: kernel allocations of the processes in `FILTER_TGIDS` only.
    pub filter_tgids: u32,
    /// 1: kernel allocations of the commands in `FILTER_COMMS` only.
    pub filter_comms: u32,
    /// Index of the `bytes_req` argument of the `kmalloc` tracepoint.
    pub kmalloc_size_arg: u32,
    /// Index of the `struct kmem_cache *` argument of `kmem_cache_alloc`, 0 if there is none.
    pub cache_arg: u32,
    /// Index of the `bytes_req` argument of `kmem_cache_alloc`, 0 if there is none.
    pub cache_size_arg: u32,
    /// Offset of `name` in `struct kmem_cache`.
    pub cache_name_offset: u32,
    /// Offset of `object_size` in `struct kmem_cache`.
    pub cache_object_size_offset: u32,
    /// GFP flags that choose a kmalloc cache (`__GFP_RECLAIMABLE`, `__GFP_ACCOUNT`, `__GFP_DMA`).
    pub gfp_cache_mask: u32,
}

const _: () = assert!(size_of::<Config>() == 2 * 8 + 12 * 4);
