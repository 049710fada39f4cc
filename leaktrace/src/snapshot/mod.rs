//! One interval's raw state as plain data: the waist of the hourglass.
//!
//! What comes before a [`Snapshot`] needs root and BPF; what comes after it is pure. A snapshot
//! holds no handle, makes no judgement and knows no format.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use leaktrace_common::{
    AllocFunction, KERNEL_SPACE, Kind, LIFETIME_BUCKETS, LossReason, MapCall, StackEnd, StackMode,
};
use serde::{Deserialize, Serialize};

mod budget;
mod holder;
mod modules;
mod names;
mod sampled;

pub use budget::{Budget, BudgetAction, BudgetStep};
pub use holder::Holder;
pub use modules::Module;
pub use names::{Names, Resolved, Symbol, Unknown};
pub use sampled::Sampled;

/// What is being traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Kernel allocations.
    Kernel,
    /// Running processes.
    User,
    /// A command that leaktrace started.
    Run,
}

/// Everything known at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Wall clock, in milliseconds since the epoch.
    pub unix_ms: u64,
    /// Host name.
    pub host: String,
    /// What is being traced.
    pub mode: Mode,
    /// Whether it is the last one of its session.
    pub is_final: bool,
    /// Time since the probes were on.
    pub elapsed_ms: u64,
    /// When stacks were taken.
    pub stack_mode: StackMode,
    /// What of a process is traced; empty in kernel mode.
    pub user_kinds: Vec<Kind>,
    /// Every call site seen since the start.
    pub sites: Vec<Site>,
    /// The stacks that the sites refer to.
    pub stacks: BTreeMap<u64, Stack>,
    /// Objects (executables, libraries) that frames refer to by index.
    pub objects: Vec<Object>,
    /// Processes by space (user modes).
    pub processes: BTreeMap<u32, Process>,
    /// Traced processes that have ended and left the report, with all that they held.
    pub processes_ended: u64,
    /// What was not seen.
    pub loss: Loss,
    /// Room for outstanding blocks (`--max-outstanding`).
    pub max_outstanding: u64,
    /// Allocations of processes are sampled: one in every so many bytes that are asked for; 0 if
    /// every one is recorded.
    pub sample_bytes: u64,
    /// What `--max-overhead` allows, and what was done to keep to it.
    pub budget: Option<Budget>,
    /// Whether single blocks were read: without it ages, holders and blocks are unknown.
    pub blocks_read: bool,
    /// Every load of a kernel module that was seen; frames refer to them by index.
    pub modules: Vec<Arc<Module>>,
    /// Those that have been unloaded since.
    pub gone_modules: BTreeSet<u32>,
    /// Objects in use in each slab cache now, less those at the start, by the kernel's own count;
    /// empty where it does not tell, and but in kernel mode.
    pub cache_growth: BTreeMap<String, CacheGrowth>,
    /// Other names of slab caches that share one (mm/slab_common.c merges those of a size): each cache
    /// by the name that its blocks have.
    pub cache_aliases: BTreeMap<String, Vec<String>>,
    /// With `--older`: outstanding figures count only blocks at least this old.
    pub older_ms: u64,
}

/// How a slab cache has changed since the start, by the kernel's own count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheGrowth {
    /// Objects in use now, less those at the start.
    pub objects: i64,
    /// Objects that may be counted as in use though nobody has them: what CPUs keep at hand.
    pub at_hand: i64,
}

/// A number of blocks and the bytes asked for by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Blocks.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    /// Sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { count: self.count + other.count, bytes: self.bytes + other.bytes }
    }

    /// What is left of `self`; never below zero, as counters are read while they change.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            count: self.count.saturating_sub(other.count),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

/// Where a call site's stack is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StackRef {
    /// Key into [`Snapshot::stacks`].
    Known(u64),
    /// None was taken, on purpose (`--stacks adaptive|site`): the call site alone is known.
    NotTaken,
    /// One was wanted but could not be had: the call site alone is known.
    Lost,
}

/// A call site: a kind of allocation, a cache or process, and a stack.
#[derive(Clone, Debug)]
pub struct Site {
    /// Stable within a session.
    pub id: u64,
    /// What was allocated.
    pub kind: Kind,
    /// Key into [`Snapshot::processes`]; 0 for the kernel.
    pub space: u32,
    /// Slab cache, if known.
    pub cache: Option<String>,
    /// The stack by which that cache was made, if that was seen.
    pub cache_made: Option<StackRef>,
    /// Memory that vmalloc got for arrays of its own pages: no caller's.
    pub is_page_array: bool,
    /// The allocator function that was called, for [`Kind::Malloc`].
    pub function: Option<AllocFunction>,
    /// The pair of functions that it is of, for [`Kind::Pair`].
    pub pair: Option<Pair>,
    /// How the memory was mapped and what for, for [`Kind::Mmap`].
    pub mapping: Option<Mapping>,
    /// The call itself: the innermost frame, known even when there is no stack.
    pub call_site: Frame,
    /// Its stack.
    pub stack: StackRef,
    /// Allocated since the start.
    pub allocated: Amount,
    /// Of these, freed.
    pub freed: Amount,
    /// Allocated and not freed, now (with `--older`: those old enough).
    pub outstanding: Amount,
    /// What was recorded of `outstanding`, where the figures are estimates of what was sampled.
    pub sampled: Option<Sampled>,
    /// Age of the oldest outstanding block; unknown unless blocks were read.
    pub oldest_ms: Option<u64>,
    /// Largest single allocation, in bytes.
    pub largest_bytes: u64,
    /// Time since the latest allocation.
    pub last_ms: u64,
    /// Freed blocks by age: bucket n holds those that lived 2^n to 2^(n+1) microseconds.
    pub lifetimes: [u64; LIFETIME_BUCKETS],
    /// Kernel modes: outstanding by the process that allocated; empty unless blocks were read.
    pub holders: Vec<Holder>,
    /// The outstanding blocks themselves (`--show-allocs`), oldest first.
    pub blocks: Vec<Block>,
}

/// A pair of functions that was named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    /// Its name, as `fopen,fdopen:fclose`.
    pub name: String,
    /// The function that was called, as `fopen`.
    pub function: String,
}

impl Site {
    /// Whether it is a process', and not the kernel's.
    pub fn is_of_process(&self) -> bool {
        self.kind.is_of_process() || self.space != KERNEL_SPACE
    }
}

/// How a process mapped memory, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// The system call.
    pub call: MapCall,
    /// Whose memory it is.
    pub role: Role,
}

/// Whose memory a mapping is. Only [`Role::Program`] can be a leak of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The program's own.
    Program,
    /// An allocator's, which gives it out as blocks that are counted themselves.
    Allocator,
    /// A thread's stack.
    Stack,
    /// The dynamic loader's.
    Loader,
    /// Addresses that were reserved without access to them.
    Reserved,
    /// Not known: what the process had mapped could not be read before it ended.
    Unknown,
}

impl Role {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Allocator => "allocator",
            Self::Stack => "stack",
            Self::Loader => "loader",
            Self::Reserved => "reserved",
            Self::Unknown => "unknown",
        }
    }
}

/// One outstanding block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its address.
    pub address: u64,
    /// Bytes asked for.
    pub size_bytes: u64,
    /// Time since its allocation.
    pub age_ms: u64,
}

/// The frames of one stack, innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Return addresses; the call is at the instruction before each.
    pub frames: Vec<Frame>,
    /// Why there is no further frame.
    pub end: StackEnd,
}

/// A return address, with what is needed to name it after its process has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frame {
    /// The return address itself.
    pub address: u64,
    /// Where it lies.
    pub place: Place,
    /// How it was found.
    pub found: Found,
}

impl Frame {
    /// A return address as the tables, or the kernel, have it.
    pub fn new(address: u64, place: Place) -> Self {
        Self { address, place, found: Found::Return }
    }
}

/// How a frame was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Found {
    /// By call frame information, or by the kernel.
    Return,
    /// By frame pointer, as nothing better was there: callers may be missing before it.
    FramePointer,
    /// In a signal's frame: no call, and the address is the one behind the interrupted
    /// instruction's first byte.
    Interrupted,
}

/// Where a frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Place {
    /// Kernel text, or code made at run time there.
    Kernel,
    /// In a kernel module.
    Module {
        /// Index into [`Snapshot::modules`].
        load: u32,
    },
    /// In a mapped file.
    Object {
        /// Index into [`Snapshot::objects`].
        object: u32,
        /// Offset of the return address in the file.
        file_offset: u64,
    },
    /// In memory that no file backs (code made at run time), of the process with this PID.
    Anonymous {
        /// Process ID.
        pid: u32,
    },
    /// In no mapping that was known when the frame was first seen.
    Unmapped,
}

/// An executable or a library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its path as the process saw it.
    pub path: String,
    /// Where its contents can be read now: a descriptor held open by this leaktrace, as
    /// `/proc/self/fd/N`, which works for deleted files and in other mount namespaces.
    pub readable_at: String,
}

/// A traced process image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process ID.
    pub pid: u32,
    /// Command name.
    pub comm: String,
    /// Path of the executable.
    pub exe: String,
    /// Control group path.
    pub cgroup: Option<String>,
    /// Whether the process has ended.
    pub exited: bool,
    /// The C library or other allocator that was probed.
    pub allocator: String,
}

/// Probes that this kernel does not permit, and without which figures mean less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blind {
    /// Objects that `kmem_cache_alloc_bulk` gives.
    pub bulk_allocations: bool,
    /// Objects that `kmem_cache_free_bulk` takes.
    pub bulk_frees: bool,
    /// Who takes heads of packets out of the cache that a CPU keeps.
    pub skb_cache: bool,
}

/// What is known to be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Reasons with their counts; zero counts are left out.
    pub reasons: BTreeMap<LossReason, u64>,
    /// Runs of each BPF program that the kernel refused because the program was already running
    /// on that CPU, by program name; zero counts are left out.
    pub recursion_misses: BTreeMap<String, u64>,
    /// Stacks in this snapshot that are cut short.
    pub stacks_truncated: u64,
    /// What could not be hooked, each with its reason.
    pub unseen: Vec<String>,
    /// Of that, what changes the meaning of figures.
    pub blind: Blind,
    /// Whether a filter leaves out allocations: frees of unknown blocks then mean nothing and
    /// are not among the reasons.
    pub filtered: bool,
}

impl Loss {
    /// Count of one reason.
    pub fn count(&self, reason: LossReason) -> u64 {
        self.reasons.get(&reason).copied().unwrap_or(0)
    }

    /// Allocations that are missing from the figures.
    pub fn missed_allocs(&self) -> u64 {
        [
            LossReason::OutstandingFull,
            LossReason::OutstandingRefused,
            LossReason::SitesFull,
            LossReason::InFlightFull,
            LossReason::ResultUnreadable,
            LossReason::MappingsFull,
            LossReason::PairsTooDeep,
        ]
        .into_iter()
        .map(|reason| self.count(reason))
        .sum()
    }

    /// Frees that are missing from the figures, so that freed blocks may show as outstanding.
    pub fn missed_frees(&self) -> u64 {
        self.count(LossReason::MissedFree) + self.count(LossReason::DeleteRefused)
    }

    /// Allocations whose stack could not be had.
    pub fn stacks_lost(&self) -> u64 {
        [LossReason::StacksFull, LossReason::StackUnreadable, LossReason::ScratchBusy]
            .into_iter()
            .map(|reason| self.count(reason))
            .sum()
    }

    /// Whether every allocation and free since the start is in the figures, each with its stack
    /// where one was wanted.
    ///
    /// Frees of older blocks, and stacks that are marked as truncated, take nothing away from
    /// the figures. What could not be hooked does.
    pub fn is_complete(&self) -> bool {
        self.missed_allocs() == 0
            && self.missed_frees() == 0
            && self.stacks_lost() == 0
            && self.count(LossReason::UnknownReturn) == 0
            && self.count(LossReason::SkippedReturn) == 0
            && self.count(LossReason::EventsFull) == 0
            && self.count(LossReason::ModuleEventsFull) == 0
            && self.recursion_misses.is_empty()
            && self.unseen.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_never_goes_below_zero() {
        let less = Amount { count: 1, bytes: 10 }.minus(Amount { count: 2, bytes: 5 });
        assert_eq!(less, Amount { count: 0, bytes: 5 });
    }

    /// Every reason but frees of older blocks makes the report incomplete.
    #[test]
    fn each_reason_but_untracked_frees_and_failures_is_a_loss() {
        for reason in LossReason::ALL {
            let loss = Loss { reasons: [(reason, 1)].into(), ..Loss::default() };
            let is_none = matches!(
                reason,
                LossReason::UntrackedFree | LossReason::UntrackedRelease | LossReason::Thrown
            );
            assert_eq!(loss.is_complete(), is_none, "{reason:?}");
        }
    }
}
