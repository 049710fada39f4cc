//! A call site and its counters.

/// The interface by which something was allocated.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `kmalloc` and its relatives.
    Kmalloc = 1,
    /// `kmem_cache_alloc`.
    KmemCache = 2,
    /// `malloc` and its relatives in a process.
    Malloc = 3,
    /// `vmalloc` and its relatives.
    Vmalloc = 4,
    /// `alloc_percpu` and its relatives.
    Percpu = 5,
    /// `alloc_pages` and its relatives.
    Pages = 6,
    /// `mmap`, `mremap` and `brk` of a process; counted by the loader, never in `SITES`.
    Mmap = 7,
    /// An object of a pair of functions that the user named (`--pair`), see [`crate::PairCookie`].
    Pair = 8,
}

impl Kind {
    /// The kind's name in a report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kmalloc => "kmalloc",
            Self::KmemCache => "kmem_cache",
            Self::Malloc => "malloc",
            Self::Vmalloc => "vmalloc",
            Self::Percpu => "percpu",
            Self::Pages => "pages",
            Self::Mmap => "mmap",
            Self::Pair => "pair",
        }
    }

    /// Whether allocations of this kind are always memory of a process.
    pub const fn is_of_process(self) -> bool {
        matches!(self, Self::Malloc | Self::Mmap)
    }

    /// The kind with this number; `None` if there is none.
    pub const fn from_u32(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Kmalloc),
            2 => Some(Self::KmemCache),
            3 => Some(Self::Malloc),
            4 => Some(Self::Vmalloc),
            5 => Some(Self::Percpu),
            6 => Some(Self::Pages),
            7 => Some(Self::Mmap),
            8 => Some(Self::Pair),
            _ => None,
        }
    }
}

/// Identity of a call site.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteKey {
    /// A [`Kind`].
    pub kind: u16,
    /// For a call site in a module, the latest load number there, see [`crate::ModuleEvent`]; else
    /// 0.
    pub generation: u16,
    /// The address space, see [`crate::AllocKey::space`].
    pub space: u32,
    /// Depends on the kind. `kmem_cache_alloc`: address of the `struct kmem_cache`, 0 if the
    /// tracepoint does not pass it. `kmalloc`: bytes of the slab object, with the GFP flags that
    /// choose the slab cache above bit 32. `malloc`: a [`crate::AllocFunction::cookie`]. A pair: a
    /// [`crate::PairCookie`].
    pub detail: u64,
    /// Return address of the allocating call; 0 where the kernel does not report it, and where it
    /// is the first frame of a user stack.
    pub call_site: u64,
    /// A [`crate::StackId`], [`crate::StackId::NOT_TAKEN`] or [`crate::StackId::LOST`].
    pub stack: u64,
}

/// Number of buckets in [`SiteRecord::lifetimes`].
pub const LIFETIME_BUCKETS: usize = 32;

/// Bucket of a block that lived for `age_ns`: log2 of whole microseconds. The last bucket has no
/// upper limit.
#[inline(always)]
pub const fn lifetime_bucket(age_ns: u64) -> usize {
    // A shift by 10 stands for the division by 1000: 2.4 % off, and free in a BPF program.
    let mut micros = age_ns >> 10;
    let mut bucket = 0;
    let mut step = 16;
    while step > 0 {
        if micros >> step != 0 {
            micros >>= step;
            bucket += step;
        }
        step /= 2;
    }
    // 16 + 8 + 4 + 2 + 1 = 31 at most; the mask tells the verifier so.
    bucket & (LIFETIME_BUCKETS - 1)
}

/// Counters of a call site; they never decrease.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiteRecord {
    /// The call site that the counters belong to; `kind` is 0 in an unused slot.
    pub key: SiteKey,
    /// Number of tracked allocations.
    pub allocated_count: u64,
    /// Bytes that those allocations asked for.
    pub allocated_bytes: u64,
    /// Bytes that the freed blocks had asked for.
    pub freed_bytes: u64,
    /// Bytes of the largest single allocation.
    pub largest_bytes: u64,
    /// `CLOCK_MONOTONIC` of the latest allocation.
    pub last_ns: u64,
    /// Set by the loader: take a stack for every allocation of this call site.
    pub suspect: u32,
    /// Allocations of this call site that the stack policy has seen; wraps around.
    pub calls: u32,
    /// A [`SiteVerdict`].
    pub verdict: u32,
    /// Number of frees that were asked whether their place is to be noted; wraps around. See
    /// [`crate::frees_noted`].
    pub frees: u32,
    /// Freed blocks by age, see [`lifetime_bucket`].
    pub lifetimes: [u64; LIFETIME_BUCKETS],
    /// Estimates by sampling; all zero unless blocks are sampled.
    pub weights: Weights,
}

/// Estimates for all blocks of a call site, from the recorded ones. Only the variances can shrink.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// Estimated allocations, with [`crate::sampling::WEIGHT_BITS`] fractional bits.
    pub allocated_count: u64,
    /// Estimated bytes that those allocations asked for.
    pub allocated_bytes: u64,
    /// Estimated frees, with the same fractional bits.
    pub freed_count: u64,
    /// Estimated bytes that the freed blocks had asked for.
    pub freed_bytes: u64,
    /// Sum of [`crate::sampling::count_variance`] over the recorded blocks that are outstanding.
    pub count_variance: u64,
    /// Sum of [`crate::sampling::bytes_variance`] over the same blocks.
    pub bytes_variance: u64,
}

impl SiteRecord {
    /// Number of tracked blocks that were freed: the sum over `lifetimes`. A counter of its own
    /// would cost each free another atomic addition.
    pub fn freed_count(&self) -> u64 {
        self.lifetimes.iter().sum()
    }
}

/// Whether the filters want a call site (`--cache`, `--module`, `--not-cache`, `--not-module`).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteVerdict {
    /// No program has decided yet.
    Unknown = 0,
    /// The filters want it.
    Wanted = 1,
    /// The filters do not want it.
    Unwanted = 2,
    /// The call lies in no module that the filter names, but its callers may: each allocation's
    /// stack decides.
    ByStack = 3,
}

/// Name of a slab cache, NUL-padded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheName {
    /// The first 31 bytes of the name.
    pub bytes: [u8; 32],
}

const _: () = assert!(size_of::<SiteKey>() == 32);
const _: () = assert!(size_of::<SiteRecord>() == 32 + 5 * 8 + 4 * 4 + LIFETIME_BUCKETS * 8 + 6 * 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetime_buckets_double() {
        assert_eq!(lifetime_bucket(0), 0);
        assert_eq!(lifetime_bucket(2047), 0);
        assert_eq!(lifetime_bucket(2048), 1);
        assert_eq!(lifetime_bucket(4096), 2);
        assert_eq!(lifetime_bucket(1 << 30), 20);
        assert_eq!(lifetime_bucket(u64::MAX), 31);
    }

    #[test]
    fn kinds_survive_their_number() {
        let known = || (0..100).filter_map(Kind::from_u32);
        assert_eq!(known().count(), 8);
        assert!(known().all(|kind| Kind::from_u32(kind as u32) == Some(kind)));
    }
}
