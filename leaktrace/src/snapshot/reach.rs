//! What the scans of a process's memory found out about its outstanding blocks: which are held by
//! an address in memory, and by whom.

use super::Amount;

/// What scans said of the outstanding blocks of one call site.
///
/// Each block is in one of the sums, but for `leads`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Blocks that no address in the process's memory leads to.
    pub definitely_lost: Amount,
    /// Blocks that only lost blocks lead to.
    pub indirectly_lost: Amount,
    /// Blocks that only addresses inside them lead to, not their first address.
    pub possibly_lost: Amount,
    /// Blocks that can still be reached.
    pub still_reachable: Amount,
    /// Blocks that nothing can be said of: too young, changed meanwhile, unreadable.
    pub not_judged: Amount,
    /// Blocks of any call site that only the definitely lost blocks of this one lead to.
    pub leads: Amount,
    /// Who holds the reachable blocks, most bytes first.
    pub held_by: Vec<HeldBy>,
}

/// What holds blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBy {
    /// The root that the way to the blocks begins at.
    pub root: Root,
    /// The blocks held, over all ways that begin there.
    pub held: Amount,
    /// The most usual number of tracked blocks between the root and the held blocks; 64 stands for
    /// 64 or more.
    pub through: u32,
}

impl HeldBy {
    /// Blocks on a way beyond which the exact number means nothing: a list.
    pub const LONG: u32 = 64;
}

/// Where an address was found that leads to blocks and lies in no tracked block itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Root {
    /// A variable of an object: `.data`, `.bss` and the like.
    Global {
        /// Index into [`super::Snapshot::objects`].
        object: u32,
        /// The variable's address in the object, as its symbol table has it.
        address: u64,
    },
    /// Thread-local memory of a thread.
    ThreadLocal {
        /// The object of the variable, if it is known: an index into [`super::Snapshot::objects`].
        object: Option<u32>,
        /// The variable's offset in the object's thread-local segment.
        offset: u64,
    },
    /// The stack of a thread, in the frame of a function.
    Stack {
        /// Thread ID.
        thread: u32,
        /// A return address into the function that owns the frame, if it is known.
        frame: Option<super::Frame>,
    },
    /// A register of a thread.
    Register {
        /// Thread ID.
        thread: u32,
    },
    /// A mapping that is none of the others.
    Mapping {
        /// The mapping's name in /proc/PID/maps; empty for anonymous memory.
        name: String,
    },
    /// Heap memory that was allocated before tracing began, or by nobody who is traced.
    OlderHeap,
    /// The kernel: the data of an epoll descriptor or a timer.
    Kernel,
}

impl Root {
    /// The kind of root, as JSON has it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Global { .. } => "global",
            Self::ThreadLocal { .. } => "thread_local",
            Self::Stack { .. } => "stack",
            Self::Register { .. } => "register",
            Self::Mapping { .. } => "mapping",
            Self::OlderHeap => "older_heap",
            Self::Kernel => "kernel",
        }
    }
}

/// How the memory of a process was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Process ID.
    pub pid: u32,
    /// Key into [`super::Snapshot::processes`].
    pub space: u32,
    /// The way.
    pub way: Way,
    /// Bytes of memory that one scan read.
    pub bytes: u64,
    /// Threads of which the registers were read.
    pub threads: u64,
    /// Why there is no verdict on this process, in one line.
    pub refused: Option<String>,
    /// What the scan could not read, or does not know, in lines.
    pub limits: Vec<String>,
}

/// A way to look at the memory of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// While the process runs: a block counts as lost if no scan has seen an address of it.
    Live {
        /// Number of scans.
        scans: u32,
        /// Time from the first to the last, in milliseconds.
        time_ms: u64,
    },
    /// In a copy-on-write fork of the process.
    Snapshot,
    /// While the process was stopped.
    Stopped {
        /// How long it was stopped, in milliseconds.
        time_ms: u64,
    },
    /// At the exit of the command that leaktrace started.
    AtExit,
}
