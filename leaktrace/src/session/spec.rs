//! What the user wants, with every value checked and every unit resolved; no trace of clap.

pub mod gfp;
pub mod pairs;

use std::{ffi::OsString, path::PathBuf, time::Duration};

pub use leaktrace_common::StackMode;

pub use self::pairs::NamedPair;

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
    /// How and where it is printed.
    pub output: Output,
    /// Folders with debug information, besides where packages put it.
    pub debug_dirs: Vec<PathBuf>,
}

/// What is traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Kernel allocations of the whole host, or of some processes and commands.
    Kernel {
        /// By these allocators; empty only where pairs of functions are traced.
        kinds: Vec<KernelKind>,
        /// Also pages of processes, of files and of the other allocators.
        all_pages: bool,
        /// Only these allocations.
        filters: KernelFilters,
    },
    /// Processes.
    Processes(Wanted),
    /// A command to start.
    Command {
        /// Program and arguments; never empty.
        argv: Vec<OsString>,
        /// Exit code to return when blocks are outstanding at its end.
        error_exitcode: Option<u8>,
    },
}

/// Which processes are traced: those that any of it names; never empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// These, which are running.
    pub pids: Vec<u32>,
    /// Those of these command names, running or not yet.
    pub comms: Vec<String>,
    /// Those in or below these control groups, running or not yet; at most as many as the BPF
    /// object tests.
    pub cgroups: Vec<PathBuf>,
    /// All of them.
    pub all: bool,
}

impl Wanted {
    /// Whether processes that do not run yet are among them.
    pub fn is_open(&self) -> bool {
        self.all || !self.comms.is_empty() || !self.cgroups.is_empty()
    }
}

/// Which kernel allocations are traced; what is empty leaves out none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelFilters {
    /// Only objects of these slab caches.
    pub caches: Vec<String>,
    /// Only calls with code of these modules in their stack.
    pub modules: Vec<String>,
    /// Only allocations with one of these GFP flags; at most as many as the BPF object tests.
    pub gfp: Vec<gfp::GfpName>,
    /// Only allocations made while one of these processes runs.
    pub pids: Vec<u32>,
    /// Only allocations made while a process of this command name runs.
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
    /// Pages that no other allocator has.
    Pages,
}

impl KernelKind {
    /// Its name.
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
    /// Room for outstanding blocks.
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
    /// What of a process is traced.
    pub user_kinds: UserKinds,
    /// Record one allocation of a process in every so many bytes that are asked for; 0: every one.
    pub sample_bytes: u32,
    /// The share of one CPU that the probes may cost, in millionths; without it, whatever they do.
    pub max_overhead_ppm: Option<u32>,
    /// Objects whose allocator functions are probed whatever they are.
    pub objects: Vec<PathBuf>,
    /// Functions that are traced by their names.
    pub pairs: Vec<NamedPair>,
    /// Notes on the tracing itself: 0, or 1 for tables, probes and what a verifier said, or 2 for
    /// what the BPF programs log as well.
    pub verbose: u8,
}

impl TraceOptions {
    /// Whether blocks may be left out that belong to the whole.
    pub fn is_sampled(&self) -> bool {
        self.sample_bytes != 0 || self.max_overhead_ppm.is_some()
    }

    /// Whether no allocation of what is traced is left out.
    pub fn takes_all(&self) -> bool {
        self.min_size_bytes == 0 && self.max_size_bytes == u64::MAX && !self.is_sampled()
    }
}

/// What of a process is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserKinds {
    /// Blocks of malloc and its relatives.
    pub malloc: bool,
    /// Memory that it maps itself: costs every system call of the host.
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

/// Where a uprobe is placed in its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeAt {
    /// On the first instruction that costs one trap, where that is safe.
    Cheapest,
    /// On the function's first instruction.
    Entry,
}

/// When reports are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Time between two reports; not zero. Without it there is only the final report.
    pub interval: Option<Duration>,
    /// End after this many reports.
    pub count: Option<u64>,
    /// End after this time.
    pub duration: Option<Duration>,
}

/// What a report shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Number of call sites.
    pub top: usize,
    /// By what they are sorted.
    pub sort: Sort,
    /// Count only blocks at least this old as outstanding.
    pub older: Duration,
    /// List the outstanding blocks of each site.
    pub show_allocs: bool,
    /// What sums are shown by.
    pub by: By,
}

/// What sums are shown by.
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
    /// Its name.
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
    /// Its format.
    pub format: Format,
    /// A file instead of standard output.
    pub write: Option<PathBuf>,
    /// No notes and progress on standard error.
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
