//! The traced processes: how each begins, how it ends, and when its mappings are read.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use leaktrace_common::Event;
use tokio::time::Instant;

use super::{
    growth::GrowthWatch, pairs::TracedPairs, requested::RequestedObjects,
    seccomp_guard::SeccompGuard,
};
use crate::{
    attach::{
        allocator::Allocator,
        user::{UserProbes, Way},
    },
    bpf::{
        Loaded,
        spaces::{Added, too_many},
    },
    collect::{Collector, monotonic_ns},
    error::{self, Error},
    host::{
        objects::ObjectId,
        proc,
        records::{Records, Whose},
    },
    session::spec::{ProbeAt, TraceOptions, UserKinds},
    snapshot::Process,
    unwind::tables::{ProcessMapping, TableUse, Tables},
};

/// The traced processes and their probes; detaches when dropped.
pub(super) struct Processes {
    pub(super) probes: UserProbes,
    pub(super) probe_at: ProbeAt,
    pub(super) tables: Tables,
    pub(super) traced: BTreeMap<u32, Traced>,
    /// The allocator of each object, looked up once.
    pub(super) allocators: HashMap<ObjectId, Option<Allocator>>,
    /// Objects with probes, each with the process that the probes are for (0 for all): the time at
    /// which they were attached, in nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) attached: HashMap<(u32, ObjectId), u64>,
    /// Allocators that could not be probed, by process: a sentence for each.
    pub(super) failed: BTreeMap<u32, String>,
    /// As `failed`, for probes that serve all processes.
    pub(super) unprobed: Vec<String>,
    /// Path and number of rows of each object's unwind table.
    pub(super) rows: Vec<(String, u64)>,
    pub(super) counts: Counts,
    /// Whether leaktrace probes allocators.
    pub(super) traces_malloc: bool,
    pub(super) requested: RequestedObjects,
    /// The pairs of functions that the user named.
    pub(super) pairs: Option<TracedPairs>,
    /// Functions without probes, as their return instructions cannot be found.
    pub(super) without_return: Vec<String>,
    /// Watches for growth that no probe sees; `None` unless every allocation is wanted.
    pub(super) growth: Option<GrowthWatch>,
    /// Whether probes serve all processes that map an object, so that processes that begin later
    /// hit them from their start on.
    pub(super) shares_probes: bool,
    /// The kernel's records of what processes map, for processes that end at once. `None` where the
    /// kernel refuses to record, or where no process can begin.
    pub(super) records: Option<Records>,
    /// Whether what an ended process held stays in the report.
    pub(super) keeps_ended: bool,
    pub(super) seccomp: SeccompGuard,
}

/// Counts of the processes that could not be followed well.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Processes in the report that were traced only from some time after their start, or their
    /// allocator's, on.
    pub(super) late: u64,
    /// Processes that ended before their mappings could be read.
    pub(super) unread: u64,
    /// Processes that ended and had no allocator that leaktrace could find.
    pub(super) without: u64,
    /// Processes that found no room in the table of processes.
    pub(super) refused: HashSet<u32>,
    /// Processes whose image found no space.
    pub(super) images: u64,
}

/// One traced process.
#[derive(Debug, Default)]
pub(super) struct Traced {
    pub(super) space: u32,
    /// Since when the process has its present image, in nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) since_ns: u64,
    pub(super) mappings: Vec<ProcessMapping>,
    /// The lines of /proc/PID/maps behind `mappings`: files are opened only where a line has
    /// changed.
    pub(super) lines: Vec<proc::Mapping>,
    /// Allocators that the process maps and that are in the report.
    pub(super) allocators: Vec<ObjectId>,
    is_late: bool,
    /// Whether the image began by exec while the process was traced.
    pub(super) is_new_image: bool,
    /// When the process' mappings are to be read again.
    pub(super) due: Option<Instant>,
    /// Wait before the next reading; it gets longer while readings bring nothing new.
    wait: Duration,
}

/// Wait between the report of a mapping and its reading: a loader maps a library's text right after
/// it has reserved the addresses.
const FIRST_WAIT: Duration = Duration::from_millis(1);
/// Longest wait, for a process that maps memory all the time but no library.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Longest wait once stacks are cut because mappings are unknown.
const LONGEST_BLIND: Duration = Duration::from_millis(50);

impl Traced {
    fn new(space: u32, since_ns: u64) -> Self {
        Self { space, since_ns, wait: FIRST_WAIT, ..Self::default() }
    }
}

impl Processes {
    pub(super) fn new(
        loaded: &mut Loaded,
        way: Way,
        trace: &TraceOptions,
        is_open: bool,
        command: Option<u32>,
        seccomp: SeccompGuard,
    ) -> Result<Self, Error> {
        let follows = trace.children || is_open;
        let probes = UserProbes::new(loaded, way, trace, follows)?;
        // Before maps are taken out.
        let pairs = TracedPairs::new(loaded, way, trace)?;
        let UserKinds { malloc: traces_malloc, .. } = trace.user_kinds;
        let keeps_ended = !is_open;
        let whose = match command {
            Some(pid) => Some(Whose::Family(pid)),
            None => (trace.children && keeps_ended).then_some(Whose::All),
        };
        let watches = traces_malloc && trace.takes_all();
        Ok(Self {
            probes,
            probe_at: trace.probe_at,
            tables: Tables::new(loaded.unwind_maps()?, trace.unwind),
            traced: BTreeMap::new(),
            allocators: HashMap::new(),
            attached: HashMap::new(),
            failed: BTreeMap::new(),
            unprobed: Vec::new(),
            rows: Vec::new(),
            counts: Counts::default(),
            traces_malloc,
            requested: RequestedObjects::new(&trace.objects),
            pairs,
            without_return: Vec::new(),
            growth: watches.then(GrowthWatch::new),
            shares_probes: follows,
            // Without them, the report tells of processes that ended too early.
            records: whose.and_then(|whose| Records::open(whose).ok()),
            keeps_ended,
            seccomp,
        })
    }

    /// Starts tracing a process, unless it is traced already or there is no room; returns whether
    /// it did. A process that the user has `named` is traced whatever it executes.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when the process has ended or, if the user named it, has no known
    /// allocator.
    pub(super) fn add(
        &mut self,
        pid: u32,
        named: bool,
        loaded: &mut Loaded,
        collector: &mut Collector,
    ) -> Result<bool, Error> {
        // Known to the programs and to the collector, with its unwind tables, before the first
        // probe fires.
        let heap_end = proc::mappings(pid)?
            .iter()
            .find(|mapping| mapping.path.as_deref() == Some("[heap]"))
            .map(|heap| heap.end);
        let space = match collector.maps.add_target(pid, named)? {
            Added::Space(space) => space,
            Added::Full if named => {
                let most = too_many();
                return Err(Error::Usage(format!("process {pid} is one too many: {most} traced")));
            }
            Added::Full => {
                self.counts.refused.insert(pid);
                return Ok(false);
            }
            // Its beginning has not been read from the ring yet.
            Added::Known => return Ok(false),
        };
        if proc::is_ending(pid) {
            // What was traced already is not there any more once it ends.
            collector.maps.undo_target(pid, space);
            return Err(Error::Usage(format!("process {pid} has ended")));
        }
        if let Some(end) = heap_end {
            collector.set_heap_end(space, end);
        }
        collector.add_process(space, describe(pid, String::new()));
        self.traced.insert(pid, Traced::new(space, monotonic_ns()));
        self.read_mappings(pid, collector)?;
        self.attach_new(pid, loaded, collector)?;
        if named && self.traces_malloc && !self.has_allocator(pid) {
            return Err(Error::Usage(format!(
                "process {pid} maps no libc or other allocator that leaktrace can find: no symbol \
                 table of its objects has malloc and free (a stripped static executable?); if one \
                 has an allocator under other names, name it with -O"
            )));
        }
        Ok(true)
    }

    /// Takes in a new process that is to be traced. The programs have traced it since its start,
    /// and it has hit the probes of its parent.
    pub(super) fn forked(&mut self, event: &Event, loaded: &mut Loaded, collector: &mut Collector) {
        let Event { tgid: pid, old_space, new_space, time_ns, .. } = *event;
        if new_space == 0 {
            self.counts.refused.insert(pid);
            return;
        }
        // /proc shows a child before the program of its fork has run.
        if let Some(before) = self.traced.remove(&pid) {
            self.counts.late -= u64::from(before.is_late);
            if !self.is_in_use(before.space) {
                self.tables.forget(before.space);
                collector.forget_image(before.space);
            }
        }
        let parent = self.traced.values().find(|traced| traced.space == old_space);
        let traced = match parent {
            Some(parent) => Traced {
                mappings: parent.mappings.clone(),
                lines: parent.lines.clone(),
                allocators: parent.allocators.clone(),
                ..Traced::new(new_space, time_ns)
            },
            None => Traced::new(new_space, time_ns),
        };
        let is_copy = parent.is_some();
        self.traced.insert(pid, traced);
        if new_space != old_space {
            collector.add_child(old_space, new_space, describe(pid, String::new()));
        }
        if !is_copy {
            self.look_at(pid, loaded, collector);
        }
    }

    /// Takes in that a process has ended or is not traced any more: another process may get its
    /// process ID.
    pub(super) fn ended(&mut self, pid: u32, collector: &mut Collector) {
        if self.keeps_ended {
            self.take_recorded(pid, collector);
        }
        let Some(traced) = self.traced.remove(&pid) else { return };
        // There only if its end was not told.
        collector.maps.remove_target(pid, traced.space);
        if !self.shares_probes {
            self.probes.detach(pid);
            self.attached.retain(|(owner, _), _| *owner != pid);
        }
        if let Some(pairs) = &mut self.pairs {
            pairs.left(pid, !self.shares_probes);
        }
        if !self.keeps_ended {
            // What was not seen of it leaves the report with it.
            self.counts.late -= u64::from(traced.is_late);
            self.failed.remove(&pid);
        } else {
            collector.exited(pid);
            if traced.mappings.is_empty() {
                self.counts.unread += 1;
            } else if traced.allocators.is_empty() {
                self.counts.without += 1;
            }
        }
        // A child of vfork leaves its parent's image to the parent.
        if !self.is_in_use(traced.space) {
            self.tables.forget(traced.space);
            if !self.keeps_ended {
                collector.left(traced.space);
            }
        }
    }

    /// Whether no process is traced.
    pub(super) fn is_empty(&self) -> bool {
        self.traced.is_empty()
    }

    /// Whether processes are traced from their start on.
    pub(super) fn follows(&self) -> bool {
        self.shares_probes
    }

    /// Whether processes that are not traced hit probes too, and pay for them.
    pub(super) fn shares_probes(&self) -> bool {
        self.shares_probes && (self.traces_malloc || self.pairs.is_some())
    }

    /// Whether a space is that of a traced process.
    fn is_in_use(&self, space: u32) -> bool {
        self.traced.values().any(|traced| traced.space == space)
    }

    /// Takes in that a process has replaced its image. Reads its mappings until its C library is
    /// mapped, which takes the loader some hundred microseconds, so that its first stacks find
    /// their unwind tables.
    pub(super) fn exec(&mut self, event: &Event, loaded: &mut Loaded, collector: &mut Collector) {
        const LOOKS: u32 = 25;
        const PAUSE: Duration = Duration::from_micros(100);

        let Event { tgid: pid, old_space, new_space, time_ns, .. } = *event;
        if new_space == 0 {
            self.counts.images += 1;
            self.ended(pid, collector);
            return;
        }
        // First what the new image needs, then what the old one left.
        collector.add_process(new_space, describe(pid, String::new()));
        let new = Traced { is_new_image: true, ..Traced::new(new_space, time_ns) };
        if let Some(old) = self.traced.insert(pid, new) {
            self.counts.late -= u64::from(old.is_late);
        }
        if let Some(pairs) = &mut self.pairs {
            pairs.left(pid, false);
        }
        for _ in 0..LOOKS {
            self.look_at(pid, loaded, collector);
            // A process that has ended meanwhile has nothing to look at.
            if self.has_allocator(pid) || proc::comm(pid).is_none() {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        self.mapped(pid);
        // A child of vfork leaves its parent's image to the parent.
        if old_space != 0 && !self.is_in_use(old_space) {
            self.tables.forget(old_space);
            collector.forget_image(old_space);
        }
    }

    /// Reads what a process maps; a process that has ended maps nothing.
    fn look_at(&mut self, pid: u32, loaded: &mut Loaded, collector: &mut Collector) {
        if self.read_mappings(pid, collector).is_ok() {
            self.attach_or_note(pid, loaded, collector);
        }
    }

    fn has_allocator(&self, pid: u32) -> bool {
        self.traced.get(&pid).is_some_and(|traced| !traced.allocators.is_empty())
    }

    /// Takes in that a process has mapped something: its mappings will be read soon.
    pub(super) fn mapped(&mut self, pid: u32) {
        if let Some(traced) = self.traced.get_mut(&pid)
            && traced.due.is_none()
        {
            let wait = if traced.wait == FIRST_WAIT { Duration::ZERO } else { traced.wait };
            traced.due = Some(Instant::now() + wait);
        }
    }

    /// Takes in that a walk met an address in no known mapping: the mappings will be read sooner
    /// than for [`Self::mapped`].
    pub(super) fn met_unmapped(&mut self, pid: u32) {
        if let Some(traced) = self.traced.get_mut(&pid) {
            let soon = Instant::now() + traced.wait.min(LONGEST_BLIND);
            traced.due = Some(traced.due.map_or(soon, |due| due.min(soon)));
        }
    }

    /// When the mappings of the next process are due to be read.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.traced.values().filter_map(|traced| traced.due).min()
    }

    /// Looks at the processes that are due by `now`: reads their mappings, and attaches to
    /// allocators that have come (exec into another C library, dlopen).
    pub(super) fn look(&mut self, now: Instant, loaded: &mut Loaded, collector: &mut Collector) {
        let due: Vec<u32> = self
            .traced
            .iter()
            .filter(|(_, traced)| traced.due.is_some_and(|due| due <= now))
            .map(|(pid, _)| *pid)
            .collect();
        for pid in due {
            let changed = self.read_mappings(pid, collector);
            if let Some(traced) = self.traced.get_mut(&pid) {
                // A library comes with several mappings: after a change, look once more.
                let wait = match changed {
                    Ok(true) => FIRST_WAIT,
                    _ => (traced.wait * 2).min(LONGEST_WAIT),
                };
                traced.wait = wait;
                traced.due = matches!(changed, Ok(true)).then(|| Instant::now() + wait);
            }
            if changed.is_ok() {
                self.attach_or_note(pid, loaded, collector);
            }
        }
    }

    /// Attaches to new allocators of a running process. A failure is noted for the report, and so
    /// are allocations that may have come before the probes.
    fn attach_or_note(&mut self, pid: u32, loaded: &mut Loaded, collector: &mut Collector) {
        match self.attach_new(pid, loaded, collector) {
            Ok(false) => {}
            Ok(true) => self.came_late(pid),
            Err(_) if self.shares_probes => {}
            // It was quicker, whatever the kernel calls that.
            Err(_) if proc::is_ending(pid) => self.came_late(pid),
            Err(error) => {
                self.failed.insert(pid, error::one_line(&error));
            }
        }
    }

    /// Notes that some allocations of a process may not have been seen.
    pub(super) fn came_late(&mut self, pid: u32) {
        if let Some(traced) = self.traced.get_mut(&pid) {
            self.counts.late += u64::from(!traced.is_late);
            traced.is_late = true;
        }
    }

    /// Path and number of rows of each object's unwind table.
    pub(super) fn table_rows(&self) -> impl Iterator<Item = (&str, u64)> {
        self.rows.iter().map(|(path, rows)| (path.as_str(), *rows))
    }

    /// The probes of each allocator: its path, its number of probes on emulated instructions, and
    /// its number of probes on single-stepped ones.
    pub(super) fn probe_costs<'a>(
        &'a self,
        collector: &'a Collector,
    ) -> impl Iterator<Item = (&'a str, usize, usize)> {
        self.allocators
            .iter()
            .filter_map(|(id, allocator)| {
                let (object, allocator) = (collector.objects.get(*id)?, allocator.as_ref()?);
                let dear = allocator.probes().filter(|probe| probe.single_steps).count();
                Some((object.path.as_str(), allocator.probes().count() - dear, dear))
            })
            .filter(|_| self.traces_malloc)
            .chain(self.pairs.iter().flat_map(|pairs| pairs.probe_costs(collector)))
    }

    /// Refuses objects of `-O` that no process maps, and functions of `--pair` that no object has.
    pub(super) fn check_requested(&self, collector: &Collector) -> Result<(), Error> {
        if let Some(pairs) = &self.pairs {
            pairs.check(collector)?;
        }
        match self.requested.missing().next() {
            Some(missing) => Err(Error::Usage(format!("{missing}: see /proc/PID/maps"))),
            None => Ok(()),
        }
    }

    /// When the next check for growth that no probe sees is due.
    pub(super) fn next_growth_check(&self) -> Option<Instant> {
        self.growth.as_ref().map(GrowthWatch::due)
    }

    /// Checks for growth that no probe sees; returns a sentence for each newly found process.
    pub(super) fn check_growth(&mut self, collector: &Collector) -> Vec<String> {
        let processes = self.traced.iter().map(|(pid, traced)| (*pid, traced.space));
        self.growth.as_mut().map(|growth| growth.check(processes, collector)).unwrap_or_default()
    }

    /// The room that the unwind tables take.
    pub(super) fn table_use(&self) -> TableUse {
        self.tables.used()
    }
}

/// What is known of a process; unknown parts are empty.
pub(super) fn describe(pid: u32, allocator: String) -> Process {
    Process {
        pid,
        comm: proc::comm(pid).unwrap_or_default(),
        exe: proc::exe(pid).unwrap_or_default(),
        cgroup: proc::cgroup(pid),
        exited: false,
        allocator,
    }
}
