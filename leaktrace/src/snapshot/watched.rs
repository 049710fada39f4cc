//! The memory that people watch, when tracing began and now, as the kernel counts it.

use std::collections::BTreeMap;

/// Readings of what people watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Traced process images by space, in user mode; those that could be read.
    pub processes: BTreeMap<u32, WatchedProcess>,
    /// The host's memory, in kernel mode.
    pub host: Vec<HostGrowth>,
    /// Growth below this many bytes means nothing: the kernel adds such counts up from parts that
    /// each CPU keeps.
    pub least_bytes: u64,
}

/// The memory of a traced process image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchedProcess {
    /// At the start of tracing; nothing for an image that began later by exec.
    pub then: ProcessBytes,
    /// Now, or when it was last read before its end.
    pub now: ProcessBytes,
    /// Time since `now` was read, for a process that has ended.
    pub age_ms: Option<u64>,
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessBytes {
    /// Its own memory, resident (RssAnon) or swapped (VmSwap).
    pub own: u64,
    /// Resident memory that may be shared: shared mappings, System V, tmpfs (RssShmem).
    pub shared: u64,
}

/// One of the host's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostGrowth {
    /// Which one.
    pub figure: HostFigure,
    /// Bytes at the start.
    pub then: u64,
    /// Bytes now.
    pub now: u64,
}

/// A figure of /proc/meminfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostFigure {
    /// Slabs that the kernel cannot take back.
    UnreclaimableSlab,
    /// Percpu memory.
    Percpu,
    /// Memory of vmalloc.
    Vmalloc,
    /// Stacks of threads in the kernel.
    KernelStack,
    /// Page tables.
    PageTables,
}

impl HostFigure {
    /// Its name in /proc/meminfo.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnreclaimableSlab => "SUnreclaim",
            Self::Percpu => "Percpu",
            Self::Vmalloc => "VmallocUsed",
            Self::KernelStack => "KernelStack",
            Self::PageTables => "PageTables",
        }
    }
}
