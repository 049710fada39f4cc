//! A call site and its counters.

/// What was allocated, and by which interface.
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
    /// What a pair of functions that was named acquires, see [`crate::PairCookie`].
    Pair = 8,
}

impl Kind {
    /// Its name in a report.
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

    /// Whether it is memory of a process, always.
    pub const fn is_of_process(self) -> bool {
        matches!(self, Self::Malloc | Self::Mmap)
    }

    /// The kind with this number, if there is one.
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
    /// Where the call lies in a module: the latest number there, see [`crate::ModuleEvent`]; else 0.
    pub generation: u16,
    /// The address space, see [`crate::AllocKey::space`].
    pub space: u32,
    /// `kmem_cache_alloc`: address of the `struct kmem_cache`, 0 if the kernel does not tell.
    /// `kmalloc`: bytes of the slab object, with the GFP flags that choose the cache above bit 32.
    /// `malloc`: a [`crate::AllocFunction::cookie`]. A pair: a [`crate::PairCookie`].
    pub detail: u64,
    /// Return address of the allocating call; 0 where the kernel does not tell it, and where it is
    /// the first frame of a process' stack.
    pub call_site: u64,
    /// A [`crate::StackId`], [`crate::StackId::NOT_TAKEN`] or [`crate::StackId::LOST`].
    pub stack: u64,
}

/// Number of buckets in [`SiteRecord::lifetimes`].
pub const LIFETIME_BUCKETS: usize = 32;

/// Bucket of a block that lived for `age_ns`: log2 of whole microseconds, the last one open.
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

/// Counters of a call site; they only ever grow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiteRecord {
    /// Whose counters these are; `kind` 0 in a slot that is not in use.
    pub key: SiteKey,
    /// Allocations tracked.
    pub allocated_count: u64,
    /// Bytes asked for by them.
    pub allocated_bytes: u64,
    /// Bytes asked for by the blocks that were freed.
    pub freed_bytes: u64,
    /// Largest single allocation.
    pub largest_bytes: u64,
    /// `CLOCK_MONOTONIC` of the latest allocation.
    pub last_ns: u64,
    /// Set by the loader: take a stack for every allocation of this call site.
    pub suspect: u32,
    /// Allocations of this call site seen by the stack policy; wraps.
    pub calls: u32,
    /// A [`SiteVerdict`].
    pub verdict: u32,
    /// Always zero.
    pub zero: u32,
    /// Freed blocks by age, see [`lifetime_bucket`].
    pub lifetimes: [u64; LIFETIME_BUCKETS],
    /// What the recorded blocks stand for; all zero unless some are sampled.
    pub weights: Weights,
}

/// Estimates of all blocks of a call site from those recorded; all but the variances only grow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// Allocations, with [`crate::sampling::WEIGHT_BITS`] fractional bits.
    pub allocated_count: u64,
    /// Bytes asked for by them.
    pub allocated_bytes: u64,
    /// Of these, freed, as `allocated_count`.
    pub freed_count: u64,
    /// Bytes asked for by them.
    pub freed_bytes: u64,
    /// Sum of [`crate::sampling::count_variance`] over the recorded blocks that are outstanding.
    pub count_variance: u64,
    /// Sum of [`crate::sampling::bytes_variance`] over the same.
    pub bytes_variance: u64,
}

impl SiteRecord {
    /// Tracked blocks that were freed: the sum of their ages' buckets, as a counter of its own
    /// would cost each free another atomic addition.
    pub fn freed_count(&self) -> u64 {
        self.lifetimes.iter().sum()
    }
}

/// Whether a call site is asked for (`--cache`, `--module`).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteVerdict {
    /// Nobody has looked yet.
    Unknown = 0,
    /// It is.
    Wanted = 1,
    /// It is not.
    Unwanted = 2,
    /// It lies in no module asked for, but its callers may: the stack decides, each time.
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
