//! The raw state of one interval as plain data, between collecting and reporting.
//!
//! The steps before a [`Snapshot`] need root and BPF; those after it are pure. A snapshot holds no
//! handle, makes no judgement and knows no format.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use leaktrace_common::{
    AllocFunction, KERNEL_SPACE, Kind, LIFETIME_BUCKETS, LossReason, MapCall, StackEnd, StackMode,
};
use serde::{Deserialize, Serialize};

mod budget;
mod counts;
mod holder;
mod modules;
mod names;
pub mod reach;
mod reclaimable;
mod sampled;
mod watched;

pub use budget::{Budget, BudgetAction, BudgetStep};
pub use counts::{Counts, SiteCounts};
pub use holder::Holder;
pub use modules::Module;
pub use names::{Names, Resolved, RootName, Symbol, Unknown};
pub use reclaimable::Reclaimable;
pub use sampled::Sampled;
pub use watched::{HostFigure, HostGrowth, ProcessBytes, Watched, WatchedProcess};

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

/// Number of equal parts of the time since the start, in which outstanding blocks were allocated.
pub const GENERATIONS: usize = 16;

/// Everything that is known at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Wall clock, in milliseconds since the epoch.
    pub unix_ms: u64,
    /// Host name.
    pub host: String,
    /// What is being traced.
    pub mode: Mode,
    /// Whether it is the last snapshot of its session.
    pub is_final: bool,
    /// Time since the probes were attached.
    pub elapsed_ms: u64,
    /// When stacks were taken.
    pub stack_mode: StackMode,
    /// The kinds of user allocations that are traced; empty in kernel mode.
    pub user_kinds: Vec<Kind>,
    /// Every call site seen since the start.
    pub sites: Vec<Site>,
    /// The stacks that the sites refer to.
    pub stacks: BTreeMap<u64, Stack>,
    /// Objects (executables, libraries) that frames refer to by index.
    pub objects: Vec<Object>,
    /// Traced processes by space, in user mode.
    pub processes: BTreeMap<u32, Process>,
    /// Number of traced processes that have ended and left the report, with everything that they
    /// held.
    pub processes_ended: u64,
    /// What is known to be missing.
    pub loss: Loss,
    /// Number of outstanding blocks that there is room for (`--max-outstanding`).
    pub max_outstanding: u64,
    /// Sampling interval: leaktrace records one user allocation in every so many bytes; 0 if it
    /// records every one.
    pub sample_bytes: u64,
    /// What `--max-overhead` allows, and what leaktrace did to keep to it.
    pub budget: Option<Budget>,
    /// Whether single blocks were read; if not, ages, holders and blocks are unknown.
    pub blocks_read: bool,
    /// Every load of a kernel module that was seen; frames refer to the loads by index.
    pub modules: Vec<Arc<Module>>,
    /// Indices of the loads whose module has been unloaded since.
    pub gone_modules: BTreeSet<u32>,
    /// The growth of each slab cache since the start, by the kernel's own count; empty where the
    /// kernel does not show it, and in user mode.
    pub cache_growth: BTreeMap<String, CacheGrowth>,
    /// The other names of merged slab caches (mm/slab_common.c merges caches of a size), by the
    /// name that the cache's blocks have.
    pub cache_aliases: BTreeMap<String, Vec<String>>,
    /// The slab caches among those of the sites that the kernel takes back under pressure.
    pub reclaimable: Reclaimable,
    /// The memory that people watch.
    pub watched: Watched,
    /// With `--older`: the age from which on blocks count as outstanding.
    pub older_ms: u64,
    /// How the memory of processes was looked at; empty where it was not.
    pub scans: Vec<reach::Scan>,
}

/// How a slab cache has grown since the start, by the kernel's own count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheGrowth {
    /// Objects in use now, less those at the start.
    pub objects: i64,
    /// Objects that the kernel may count as in use though nobody has them: CPUs keep them for their
    /// next allocations.
    pub at_hand: i64,
    /// Bytes of slab for each object, with its share of what is left over in a slab.
    pub object_bytes: u64,
}

/// A number of blocks and the bytes asked for by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Number of blocks.
    pub count: u64,
    /// Number of bytes.
    pub bytes: u64,
}

impl Amount {
    /// The sum of both amounts.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { count: self.count + other.count, bytes: self.bytes + other.bytes }
    }

    /// The difference; never below zero, as the counters change while they are read.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            count: self.count.saturating_sub(other.count),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

/// The stack of a call site, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StackRef {
    /// Key into [`Snapshot::stacks`].
    Known(u64),
    /// leaktrace took no stack on purpose (`--stacks adaptive|site`): only the call site is known.
    NotTaken,
    /// A stack was wanted, but taking it failed: only the call site is known.
    Lost,
}

/// A call site: a kind of allocation, a slab cache or process, and a stack.
#[derive(Clone, Debug)]
pub struct Site {
    /// The site's ID, which is stable within a session.
    pub id: u64,
    /// The kind of allocation.
    pub kind: Kind,
    /// Key into [`Snapshot::processes`]; 0 for the kernel.
    pub space: u32,
    /// The slab cache, if known.
    pub cache: Option<String>,
    /// The stack of the call that made that slab cache, if it was seen.
    pub cache_made: Option<StackRef>,
    /// Whether the memory is an array of page pointers that vmalloc allocated from itself: no
    /// caller's.
    pub is_page_array: bool,
    /// The allocator function that was called, for [`Kind::Malloc`].
    pub function: Option<AllocFunction>,
    /// The pair of functions, for [`Kind::Pair`].
    pub pair: Option<Pair>,
    /// How the memory was mapped and what for, for [`Kind::Mmap`].
    pub mapping: Option<Mapping>,
    /// The call itself: the innermost frame, known even when there is no stack.
    pub call_site: Frame,
    /// The site's stack.
    pub stack: StackRef,
    /// Allocated since the start.
    pub allocated: Amount,
    /// The freed part of `allocated`.
    pub freed: Amount,
    /// Allocated and not freed now (with `--older`: the blocks that are old enough).
    pub outstanding: Amount,
    /// The recorded blocks behind `outstanding`, where the figures are estimates.
    pub sampled: Option<Sampled>,
    /// Age of the oldest outstanding block; unknown unless blocks were read.
    pub oldest_ms: Option<u64>,
    /// Largest single allocation, in bytes.
    pub largest_bytes: u64,
    /// Time since the latest allocation.
    pub last_ms: u64,
    /// Freed blocks by age: bucket n holds those that lived 2^n to 2^(n+1) microseconds.
    pub lifetimes: [u64; LIFETIME_BUCKETS],
    /// Where its freed blocks were freed, as far as that was noted; most frees first.
    pub freed_at: Vec<FreedAt>,
    /// About how many frees there were whose place might have been noted: those of `freed_at`, of
    /// other places, and of unknown ones.
    pub frees: u64,
    /// The outstanding blocks by when they were allocated: number n by those in the nth part of the
    /// time since the start. Where blocks are sampled, the recorded ones. Unknown unless blocks were
    /// read.
    pub born: Option<[u64; GENERATIONS]>,
    /// What scans of the process's memory said of the outstanding blocks, if there were any.
    pub reached: Option<reach::Reached>,
    /// In kernel mode, the outstanding memory by the process that allocated it; empty unless blocks
    /// were read.
    pub holders: Vec<Holder>,
    /// The outstanding blocks themselves (`--show-allocs`), oldest first.
    pub blocks: Vec<Block>,
}

/// A place that frees blocks of a call site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreedAt {
    /// The call that freed them.
    pub frame: Frame,
    /// About how many: only some frees have their place noted.
    pub count: u64,
}

/// A pair of functions that the user named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    /// The pair's name, as `fopen,fdopen:fclose`.
    pub name: String,
    /// The function that was called, as `fopen`.
    pub function: String,
}

impl Site {
    /// Whether the site's memory is that of a process, and not of the kernel.
    pub fn is_of_process(&self) -> bool {
        self.kind.is_of_process() || self.space != KERNEL_SPACE
    }
}

/// How a process mapped memory, and for whom.
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
    /// The program's own memory.
    Program,
    /// Memory of an allocator, which gives it out in blocks that are counted themselves.
    Allocator,
    /// A thread's stack.
    Stack,
    /// Memory of the dynamic loader.
    Loader,
    /// Reserved addresses, which nobody may access.
    Reserved,
    /// Unknown: the process ended before its mappings could be read.
    Unknown,
}

impl Role {
    /// The role's name.
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
    /// The block's address.
    pub address: u64,
    /// Bytes that the caller asked for.
    pub size_bytes: u64,
    /// Time since the block was allocated.
    pub age_ms: u64,
}

/// The frames of one stack, innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The return addresses; each call is at the instruction before its return address.
    pub frames: Vec<Frame>,
    /// Why there is no further frame.
    pub end: StackEnd,
}

/// A return address, with everything that is needed to name it after its process is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frame {
    /// The return address itself.
    pub address: u64,
    /// Where the address lies.
    pub place: Place,
    /// How the frame was found.
    pub found: Found,
}

impl Frame {
    /// A return address that unwind tables or the kernel have given.
    pub fn new(address: u64, place: Place) -> Self {
        Self { address, place, found: Found::Return }
    }
}

/// How a frame was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Found {
    /// The frame was found by call frame information, or by the kernel.
    Return,
    /// The frame was found by frame pointer, for lack of anything better: callers may be missing
    /// before it.
    FramePointer,
    /// A signal interrupted the frame. It has made no call, and the address is that behind the
    /// first byte of the interrupted instruction.
    Interrupted,
}

/// Where an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Place {
    /// In the kernel's text, or in code that the kernel made at run time.
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
    /// In memory that no file backs (code made at run time).
    Anonymous {
        /// The process that maps the memory.
        pid: u32,
    },
    /// In no mapping that was known when the frame was first seen.
    Unmapped,
}

/// An executable or a library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The file's path, as the process saw it.
    pub path: String,
    /// A path at which the contents can be read now: a descriptor that this leaktrace holds open,
    /// as `/proc/self/fd/N`. It works for deleted files and in other mount namespaces.
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
    /// No probe sees the objects that `kmem_cache_alloc_bulk` allocates.
    pub bulk_allocations: bool,
    /// No probe sees the objects that `kmem_cache_free_bulk` frees.
    pub bulk_frees: bool,
    /// No probe sees who takes packet buffer heads out of a CPU's cache.
    pub skb_cache: bool,
}

/// What is known to be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Reasons with their counts; zero counts are left out.
    pub reasons: BTreeMap<LossReason, u64>,
    /// Number of runs of each BPF program that the kernel refused because the program was already
    /// running on that CPU, by program name; zero counts are left out.
    pub recursion_misses: BTreeMap<String, u64>,
    /// Number of stacks in this snapshot that are cut short.
    pub stacks_truncated: u64,
    /// What leaktrace could not hook, each with its reason.
    pub unseen: Vec<String>,
    /// The part of `unseen` that changes the meaning of figures.
    pub blind: Blind,
    /// Whether a filter leaves out allocations: then frees of unknown blocks mean nothing and are
    /// not among the reasons.
    pub filtered: bool,
}

impl Loss {
    /// The count of one reason.
    pub fn count(&self, reason: LossReason) -> u64 {
        self.reasons.get(&reason).copied().unwrap_or(0)
    }

    /// Number of allocations that are missing from the figures.
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

    /// Number of frees that are missing from the figures, so that freed blocks may show as
    /// outstanding.
    pub fn missed_frees(&self) -> u64 {
        self.count(LossReason::MissedFree) + self.count(LossReason::DeleteRefused)
    }

    /// Number of allocations whose stack was wanted and could not be taken.
    pub fn stacks_lost(&self) -> u64 {
        [LossReason::StacksFull, LossReason::StackUnreadable, LossReason::ScratchBusy]
            .into_iter()
            .map(|reason| self.count(reason))
            .sum()
    }

    /// Whether every free of a tracked block was seen, as far as is known. What makes a report
    /// incomplete without hiding a free, such as a stack that was not taken, does not matter here.
    pub fn sees_all_frees(&self) -> bool {
        let harmless = [
            LossReason::StacksFull,
            LossReason::StackUnreadable,
            LossReason::ScratchBusy,
            LossReason::OutstandingFull,
            LossReason::OutstandingRefused,
            LossReason::SitesFull,
            LossReason::ResultUnreadable,
        ];
        let mut others = self.clone();
        others.reasons.retain(|reason, _| !harmless.contains(reason));
        others.is_complete()
    }

    /// Whether every allocation and free since the start is in the figures, each with its stack
    /// where a stack was wanted.
    ///
    /// Frees of older blocks, and stacks that are marked as truncated, take nothing away from the
    /// figures. Probes that could not be attached do.
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
