//! The user side: traced processes and calls that have not returned yet.

/// An allocator function that is probed; the number is the probe's cookie.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AllocFunction {
    /// `void *malloc(size_t size)`
    Malloc = 1,
    /// `void *calloc(size_t count, size_t size)`
    Calloc = 2,
    /// `void *realloc(void *old, size_t size)`
    Realloc = 3,
    /// `void *reallocarray(void *old, size_t count, size_t size)`
    Reallocarray = 4,
    /// `int posix_memalign(void **out, size_t alignment, size_t size)`
    PosixMemalign = 5,
    /// `void *aligned_alloc(size_t alignment, size_t size)`
    AlignedAlloc = 6,
    /// `void *memalign(size_t alignment, size_t size)`
    Memalign = 7,
    /// `void *valloc(size_t size)`
    Valloc = 8,
    /// `void *pvalloc(size_t size)`
    Pvalloc = 9,
    /// `void free(void *pointer)`
    Free = 10,
}

impl AllocFunction {
    /// Every function, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Malloc,
        Self::Calloc,
        Self::Realloc,
        Self::Reallocarray,
        Self::PosixMemalign,
        Self::AlignedAlloc,
        Self::Memalign,
        Self::Valloc,
        Self::Pvalloc,
        Self::Free,
    ];

    /// Its name in a C library.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malloc => "malloc",
            Self::Calloc => "calloc",
            Self::Realloc => "realloc",
            Self::Reallocarray => "reallocarray",
            Self::PosixMemalign => "posix_memalign",
            Self::AlignedAlloc => "aligned_alloc",
            Self::Memalign => "memalign",
            Self::Valloc => "valloc",
            Self::Pvalloc => "pvalloc",
            Self::Free => "free",
        }
    }

    /// The function with this number, if there is one.
    pub fn from_u64(raw: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|function| *function as u64 == raw)
    }
}

/// Most processes that are traced at once.
pub const MAX_PROCESSES: u32 = 4096;

/// A traced process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Space of its present image, see [`crate::AllocKey::space`].
    pub space: u32,
    /// 1: it is traced whatever it executes; 0: while its command or its control group is one that
    /// is asked for.
    pub stays: u32,
}

/// The outermost allocator call of a thread that has not returned yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Stack pointer at the function's entry; 0 when no call is in flight.
    pub stack_pointer: u64,
    /// Space of the process image that made the call.
    pub space: u32,
    /// An [`AllocFunction`].
    pub function: u32,
    /// Bytes asked for.
    pub size_bytes: u64,
    /// Return address of the call.
    pub caller: u64,
    /// A [`crate::StackId`] or one of its special values.
    pub stack: u64,
    /// `posix_memalign`: where the result goes. `realloc`: the old block.
    pub pointer: u64,
    /// `realloc`: the old block's record, taken out of `BLOCKS` for the time of the call.
    pub old: crate::Outstanding,
    /// Whether `old` holds a record.
    pub old_tracked: u64,
}

/// What an [`Event`] tells.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A traced process replaced its image, or one that is traced from now on.
    Exec = 1,
    /// A traced process is about to map memory.
    Mapped = 2,
    /// A walk met an address in no known mapping.
    Unmapped = 3,
    /// A process has begun that is to be traced.
    Forked = 4,
    /// A process is not traced any more: it has ended, or executed something that is not asked for.
    Ended = 5,
}

/// A rare happening in a traced process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// An [`EventKind`].
    pub kind: u32,
    /// The process; [`EventKind::Forked`]: the child.
    pub tgid: u32,
    /// [`EventKind::Exec`]: the space that ended, 0 if the process was not traced.
    /// [`EventKind::Forked`]: the parent's, 0 if that is not traced. [`EventKind::Ended`]: the last.
    pub old_space: u32,
    /// The present space; 0 if there is none left or no room for another process, and the process
    /// is not traced any more. [`EventKind::Forked`]: the parent's own if both share their memory
    /// (vfork).
    pub new_space: u32,
}

const _: () = assert!(size_of::<InFlight>() == 8 + 8 + 4 * 8 + 24 + 8);
const _: () = assert!(size_of::<Target>() == 8 && size_of::<Event>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_survive_their_number() {
        for function in AllocFunction::ALL {
            assert_eq!(AllocFunction::from_u64(function as u64), Some(function));
        }
        assert_eq!(AllocFunction::from_u64(0), None);
    }
}
