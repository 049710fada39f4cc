//! The reasons for which leaktrace could not record something.

/// A reason. Each has one counter in `LOSS` and one sentence in the report.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LossReason {
    /// `BLOCKS` and `OVERFLOW` had no room.
    OutstandingFull = 0,
    /// `OVERFLOW` refused an insert (contention).
    OutstandingRefused = 1,
    /// `SITES` was full.
    SitesFull = 2,
    /// `STACKS` was full.
    StacksFull = 3,
    /// A stack could not be read at all.
    StackUnreadable = 4,
    /// No scratch memory was free to take a stack.
    ScratchBusy = 5,
    /// An address was allocated again while it was still outstanding.
    MissedFree = 6,
    /// A process freed a block that was not tracked. The block is older than the session; or it is
    /// a child's copy of its parent's block; or a thread ends and glibc frees the blocks in the
    /// thread's cache, which the thread had freed before (tcache_thread_shutdown, malloc/malloc.c,
    /// 2.36).
    UntrackedFree = 7,
    /// A tracked block's record could not be deleted (contention).
    DeleteRefused = 8,
    /// A call could not be followed to its return: `IN_FLIGHT` had no room.
    InFlightFull = 9,
    /// A call never returned (longjmp, an exception, a killed thread), or no probe saw the return:
    /// the kernel keeps room for a limited number of kretprobes.
    SkippedReturn = 10,
    /// A function returned whose call was not known.
    UnknownReturn = 11,
    /// The result of `posix_memalign` could not be read.
    ResultUnreadable = 12,
    /// The event ring was full.
    EventsFull = 13,
    /// The ring of mappings was full.
    MappingsFull = 14,
    /// A call of a function that throws where it fails (see [`crate::AllocFunction::throws`]) did
    /// not return: the call has failed.
    Thrown = 15,
    /// The ring of module events was full.
    ModuleEventsFull = 16,
    /// A pair's function released something that no function of the pair has given since the
    /// session began.
    UntrackedRelease = 17,
    /// A thread nested more acquiring calls of pairs than leaktrace follows.
    PairsTooDeep = 18,
}

impl LossReason {
    /// Number of reasons.
    pub const COUNT: usize = 19;

    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::OutstandingFull,
        Self::OutstandingRefused,
        Self::SitesFull,
        Self::StacksFull,
        Self::StackUnreadable,
        Self::ScratchBusy,
        Self::MissedFree,
        Self::UntrackedFree,
        Self::DeleteRefused,
        Self::InFlightFull,
        Self::SkippedReturn,
        Self::UnknownReturn,
        Self::ResultUnreadable,
        Self::EventsFull,
        Self::MappingsFull,
        Self::Thrown,
        Self::ModuleEventsFull,
        Self::UntrackedRelease,
        Self::PairsTooDeep,
    ];

    /// What happened, to follow a count ("12 allocations missed: ...").
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::OutstandingFull => {
                "allocations missed: the table of outstanding blocks was full (raise --max-outstanding)"
            }
            Self::OutstandingRefused => {
                "allocations missed: the table of outstanding blocks was contended"
            }
            Self::SitesFull => "allocations missed: the table of call sites was full",
            Self::StacksFull => "allocations without their stack: the table of stacks was full",
            Self::StackUnreadable => "allocations without their stack: it could not be read",
            Self::ScratchBusy => "allocations without their stack: no scratch memory was free",
            Self::MissedFree => "frees missed: the address was allocated again (record replaced)",
            Self::UntrackedFree => {
                "frees of blocks that are not tracked (allocated before tracing began or by a \
                 parent, or a C library emptying the cache of a thread that ends)"
            }
            Self::DeleteRefused => "frees missed: the table of outstanding blocks was contended",
            Self::InFlightFull => "allocations missed: too many threads inside the allocator",
            Self::SkippedReturn => {
                "allocator calls never returned (longjmp, exception or a thread that ended)"
            }
            Self::UnknownReturn => "allocator returns without a known call",
            Self::ResultUnreadable => {
                "allocations missed: the result of posix_memalign, or of a function of --pair, could \
                 not be read"
            }
            Self::EventsFull => "process events missed: the event ring was full",
            Self::MappingsFull => {
                "calls of mmap, munmap, mremap or brk missed: their ring was full (a shorter \
                 --interval empties it more often)"
            }
            Self::UntrackedRelease => {
                "releases of what the functions of --pair have not given (acquired before tracing \
                 began, by a parent, or by a function that is not named)"
            }
            Self::PairsTooDeep => {
                "acquisitions missed: too many functions of --pair called each other"
            }
            Self::Thrown => {
                "calls of operator new, or of functions of --pair, failed (they threw an exception)"
            }
            Self::ModuleEventsFull => {
                "loads and unloads of modules missed: their ring was full (their functions may have \
                 no names)"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_number_and_a_sentence() {
        for (number, reason) in LossReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
            assert!(reason.sentence().len() > 20, "{reason:?} has no sentence");
        }
    }
}
