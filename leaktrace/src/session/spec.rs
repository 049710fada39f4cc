//! What the user wants, with every value checked and every unit resolved; this module knows no
//! clap.

pub mod gfp;
pub mod pairs;
pub mod suppressions;

use std::{ffi::OsString, path::PathBuf, time::Duration};

pub use leaktrace_common::StackMode;

pub use self::{pairs::NamedPair, suppressions::Suppressions};

/// A whole tracing session.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What is traced.
    pub target: Target,
    /// How it is traced.
    pub trace: TraceOptions,
    /// When reports are due.
    pub schedule: Schedule,
    /// What a report shows.
    pub view: View,
    /// Rules for what is not to be shown.
    pub suppressions: Suppressions,
    /// How and where it is printed.
    pub output: Output,
    /// Directories with debug information, besides those of packages.
    pub debug_dirs: Vec<PathBuf>,
}

/// What is traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Kernel allocations of the whole host, or of some processes and commands.
    Kernel {
        /// The allocators to trace; empty only where pairs of functions are traced.
        kinds: Vec<KernelKind>,
        /// Whether to trace the pages of processes, of files and of other allocators as well.
        all_pages: bool,
        /// Which of the allocations to trace.
        filters: KernelFilters,
    },
    /// Allocations of processes.
    Processes(Wanted),
    /// Allocations of a command that leaktrace starts.
    Command {
        /// The program and its arguments; never empty.
        argv: Vec<OsString>,
        /// Exit code to return when there are leaks at the command's end.
        error_exitcode: Option<u8>,
        /// What counts as a leak.
        leak_kinds: LeakKinds,
    },
}

/// Which processes are traced: those that any of the fields names; never empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Running processes, by process ID.
    pub pids: Vec<u32>,
    /// Processes with these command names, running now or started later.
    pub comms: Vec<String>,
    /// Processes in or below these control groups, running now or started later; at most as many
    /// groups as the BPF object tests.
    pub cgroups: Vec<PathBuf>,
    /// Whether to trace all processes.
    pub all: bool,
}

impl Wanted {
    /// Whether processes that are started later may be traced.
    pub fn is_open(&self) -> bool {
        self.all || !self.comms.is_empty() || !self.cgroups.is_empty()
    }
}

/// Which kernel allocations are traced; an empty list leaves out none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelFilters {
    /// Only objects of these slab caches.
    pub caches: Vec<String>,
    /// Only calls with code of these modules in their stack.
    pub modules: Vec<String>,
    /// No objects of these slab caches.
    pub not_caches: Vec<String>,
    /// No calls with code of these modules in their stack, as far as it is known.
    pub not_modules: Vec<String>,
    /// No objects of slab caches that the kernel takes back under pressure.
    pub unreclaimable: bool,
    /// Only allocations with one of these GFP flags; at most as many as the BPF object tests.
    pub gfp: Vec<gfp::GfpName>,
    /// Only allocations made while one of these processes runs.
    pub pids: Vec<u32>,
    /// Only allocations made while a process, or a thread, of one of these command names runs.
    pub comms: Vec<String>,
    /// Only allocations made while a process in or below one of these control groups runs; at
    /// most as many as the BPF object tests.
    pub cgroups: Vec<PathBuf>,
}

/// An allocator of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelKind {
    /// kmalloc and slab caches.
    Slab,
    /// vmalloc and its relatives.
    Vmalloc,
    /// Percpu memory.
    Percpu,
    /// Pages that no other allocator owns.
    Pages,
}

impl KernelKind {
    /// The allocator's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Slab => "slab",
            Self::Vmalloc => "vmalloc",
            Self::Percpu => "percpu",
            Self::Pages => "pages",
        }
    }
}

/// How allocations are traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceOptions {
    /// When stacks are taken.
    pub stacks: StackMode,
    /// Most frames of a stack, 1 to 127.
    pub max_depth: u32,
    /// Number of outstanding blocks to have room for.
    pub max_outstanding: u32,
    /// Smaller allocations are not tracked.
    pub min_size_bytes: u64,
    /// Larger allocations are not tracked.
    pub max_size_bytes: u64,
    /// Where uprobes are placed.
    pub probe_at: ProbeAt,
    /// How user stacks are unwound.
    pub unwind: Unwind,
    /// Whether children of traced processes are traced as well.
    pub children: bool,
    /// The kinds of user allocations that are traced.
    pub user_kinds: UserKinds,
    /// Sampling interval: record one user allocation in every so many bytes; 0: record every one.
    pub sample_bytes: u32,
    /// The share of one CPU that the probes may cost, in millionths; `None` for no limit.
    pub max_overhead_ppm: Option<u32>,
    /// Objects whose allocator functions are probed, whatever the objects are.
    pub objects: Vec<PathBuf>,
    /// The pairs of functions that the user named.
    pub pairs: Vec<NamedPair>,
    /// How the memory of processes is looked at for addresses of outstanding blocks.
    pub reachability: Reachability,
    /// How much to note about the tracing itself. 0: nothing; 1: tables, probes and the verifier's
    /// words; 2: what the BPF programs log as well.
    pub verbose: u8,
}

impl TraceOptions {
    /// Whether blocks of the traced allocations may be left unrecorded, by sampling.
    pub fn is_sampled(&self) -> bool {
        self.sample_bytes != 0 || self.max_overhead_ppm.is_some()
    }

    /// Whether every allocation of what is traced is recorded: no limit of size and no sampling
    /// leaves one out.
    pub fn takes_all(&self) -> bool {
        self.min_size_bytes == 0 && self.max_size_bytes == u64::MAX && !self.is_sampled()
    }
}

/// Which outstanding blocks count as leaks of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeakKinds {
    /// Those that no address leads to.
    pub definite: bool,
    /// Those that only lost blocks lead to.
    pub indirect: bool,
    /// Those that only addresses inside them lead to.
    pub possible: bool,
    /// Those that can be reached: with them every outstanding block counts, judged or not.
    pub reachable: bool,
}

/// How the memory of a process is looked at for addresses of its outstanding blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// While it runs, several times.
    Live,
    /// In a copy-on-write fork of it.
    Snapshot,
    /// While it is stopped, if that is short.
    Stop,
    /// Not at all.
    Off,
}

/// The kinds of user allocations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserKinds {
    /// Blocks of malloc and its relatives.
    pub malloc: bool,
    /// Memory that a process maps itself; tracing it costs every system call of the host.
    pub mmap: bool,
}

/// How user stacks are unwound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwind {
    /// By call frame information; by frame pointers where there is none.
    Auto,
    /// By call frame information alone.
    Tables,
    /// By frame pointers alone.
    FramePointers,
}

/// Where in a function a uprobe is placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeAt {
    /// On the first instruction that costs only one trap, where that is safe.
    Cheapest,
    /// On the function's first instruction.
    Entry,
}

/// When reports are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Time between two reports; not zero. `None`: there is only the final report.
    pub interval: Option<Duration>,
    /// Number of reports after which to end.
    pub count: Option<u64>,
    /// Time after which to end.
    pub duration: Option<Duration>,
}

/// What a report shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Number of call sites shown.
    pub top: usize,
    /// The order of the call sites.
    pub sort: Sort,
    /// Age from which on blocks count as outstanding.
    pub older: Duration,
    /// Whether to list the outstanding blocks of each site.
    pub show_allocs: bool,
    /// The criterion of the sums.
    pub by: By,
}

/// The criterion of the sums in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The call site.
    Site,
    /// The kernel module that the memory is for.
    Module,
    /// The slab cache.
    Cache,
    /// The process that allocated.
    Process,
}

impl By {
    /// The criterion's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Module => "module",
            Self::Cache => "cache",
            Self::Process => "process",
        }
    }
}

/// The order of call sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Certain leaks first, then likely ones, then what cannot be told yet, then what is healthy;
    /// within these by growth, then by bytes. Of what cannot be told yet, that goes first which only
    /// lacks time, and the rest goes by bytes.
    Leak,
    /// Most growth of outstanding bytes first.
    Growth,
    /// Most outstanding bytes first.
    Bytes,
    /// Most outstanding blocks first.
    Count,
    /// Oldest outstanding block first.
    Age,
}

/// How and where a report is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The report's format.
    pub format: Format,
    /// A file to write to instead of standard output.
    pub write: Option<PathBuf>,
    /// Whether to write rules for what the last report shows, for `--suppressions`.
    pub gen_suppressions: bool,
    /// Whether to print no notes and no progress on standard error.
    pub quiet: bool,
}

/// A report's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// Schema 1, one object a line.
    Json,
}
