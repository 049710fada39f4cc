//! Reads the memory that people watch: at the start, and for each report.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::processes::Processes;
use crate::{
    host::memory::{self, HostMemory, ProcessMemory},
    snapshot::{HostFigure, HostGrowth, ProcessBytes, Snapshot, Watched, WatchedProcess},
};

/// Most processes that are read for a report, at some 30 microseconds each.
const PROCESSES_MOST: usize = 256;
/// Least growth that is told of.
const LEAST_BYTES: u64 = 2 << 20;
/// What each CPU may keep of a count to itself: a batch of 32 pages (lib/percpu_counter.c, for
/// `mm->rss_stat` from 6.2).
const KEPT_BY_CPU: u64 = 32 * 4096;
/// A process that may end is read again once the time since the start has grown by this part of it,
/// so that the last reading before its end is not much older.
const AGAIN_PART: u32 = 20;
const SHORTEST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Watches the memory of the traced process images.
pub(super) struct ProcessWatch {
    seen: BTreeMap<u32, Seen>,
    started: Instant,
    /// When they are due to be read; `None` where those that end leave the report.
    due: Option<Instant>,
}

struct Seen {
    then: ProcessBytes,
    now: ProcessBytes,
    read: Instant,
}

impl ProcessWatch {
    /// Reads the processes for the first time; the probes are on.
    pub(super) fn start(processes: &Processes) -> Self {
        let now = Instant::now();
        let due = processes.keeps_ended.then_some(now + SHORTEST_WAIT);
        let mut watch = Self { seen: BTreeMap::new(), started: now, due };
        watch.look(processes);
        watch
    }

    /// When the next reading is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Reads the memory of the running processes. A process image that is seen for the first time
    /// begins with what it has, or with nothing if it has begun by exec since the start.
    pub(super) fn look(&mut self, processes: &Processes) {
        let now = Instant::now();
        for (pid, traced) in processes.traced.iter().take(PROCESSES_MOST) {
            let Some(bytes) = memory::of_process(*pid).map(bytes) else { continue };
            match self.seen.get_mut(&traced.space) {
                Some(seen) => {
                    seen.now = bytes;
                    seen.read = now;
                }
                None => {
                    let then = if traced.is_new_image { ProcessBytes::default() } else { bytes };
                    self.seen.insert(traced.space, Seen { then, now: bytes, read: now });
                }
            }
        }
        let wait = (self.started.elapsed() / AGAIN_PART).clamp(SHORTEST_WAIT, LONGEST_WAIT);
        self.due = self.due.map(|_| now + wait);
    }

    /// Puts the readings into a snapshot, and forgets images that have left it.
    pub(super) fn fill(&mut self, processes: &Processes, snapshot: &mut Snapshot) {
        self.look(processes);
        self.seen.retain(|space, _| snapshot.processes.contains_key(space));
        let of = |(space, seen): (&u32, &Seen)| {
            let ended = snapshot.processes.get(space).is_some_and(|process| process.exited);
            let age_ms = ended.then(|| seen.read.elapsed().as_millis() as u64);
            (*space, WatchedProcess { then: seen.then, now: seen.now, age_ms })
        };
        snapshot.watched.processes = self.seen.iter().map(of).collect();
        snapshot.watched.least_bytes = least_bytes();
    }
}

/// The host's memory at the start; `None` where the kernel does not tell.
pub(super) struct HostWatch {
    then: Option<HostMemory>,
}

impl HostWatch {
    /// Reads the host's memory for the first time; the probes are on.
    pub(super) fn start() -> Self {
        Self { then: memory::of_host() }
    }

    /// What a snapshot holds of it.
    pub(super) fn watched(&self) -> Watched {
        let host = match (&self.then, memory::of_host()) {
            (Some(then), Some(now)) => growth(then, &now).to_vec(),
            _ => Vec::new(),
        };
        Watched { host, least_bytes: least_bytes(), ..Watched::default() }
    }
}

fn growth(then: &HostMemory, now: &HostMemory) -> [HostGrowth; 5] {
    let of = |figure, read: fn(&HostMemory) -> u64| HostGrowth {
        figure,
        then: read(then),
        now: read(now),
    };
    [
        of(HostFigure::UnreclaimableSlab, |memory| memory.unreclaimable_slab_bytes),
        of(HostFigure::Percpu, |memory| memory.percpu_bytes),
        of(HostFigure::Vmalloc, |memory| memory.vmalloc_bytes),
        of(HostFigure::KernelStack, |memory| memory.kernel_stack_bytes),
        of(HostFigure::PageTables, |memory| memory.page_table_bytes),
    ]
}

fn bytes(memory: ProcessMemory) -> ProcessBytes {
    ProcessBytes { own: memory.anonymous_bytes + memory.swapped_bytes, shared: memory.shared_bytes }
}

fn least_bytes() -> u64 {
    let cpus = aya::util::online_cpus().map_or(1, |cpus| cpus.len() as u64);
    LEAST_BYTES.max(cpus * KEPT_BY_CPU)
}
