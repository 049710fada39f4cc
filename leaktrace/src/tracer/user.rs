//! The tracer of user allocations, including those of a command that leaktrace starts.

use std::{collections::BTreeMap, ffi::OsString, os::fd::OwnedFd, time::Duration};

use leaktrace_common::{Event as ProcessEvent, Kind, MapEvent};
use tokio::{io::unix::AsyncFd, time::Instant};

use super::{
    constants::constants,
    follow::{self, Rules},
    launch::{Child, Happened, Suspended, wait_for_child},
    log::ProgramLog,
    notes::{describe, note_memory, note_probes, note_tables},
    overhead::Overhead,
    processes::{LONGEST_WAIT, Processes},
    ring::{self, Ring, drain},
    sanitizer,
    scans::{self, Scans},
    seccomp_guard::SeccompGuard,
    step::{End, Step},
    wait::{self, wait_for_exit, wait_for_records, wait_for_ring, wait_for_tick, wait_until},
    watched::ProcessWatch,
};
use crate::{
    attach::user::Way,
    bpf::{Loaded, Sizes},
    collect::{Collector, CollectorOptions, Wants, kmalloc::KmallocNames},
    error::Error,
    host::{features::HostFacts, objects::ObjectTable, proc},
    session::spec::{TraceOptions, Wanted},
    snapshot::{Counts, Mode, Snapshot},
};

/// Traces user allocations.
pub struct UserTracer {
    processes: Processes,
    /// Rules for the processes that are traced besides those that the user names.
    rules: Rules,
    loaded: Loaded,
    collector: Collector,
    /// The command that leaktrace has started.
    child: Option<Child>,
    /// The command's exit code, once it has ended.
    ended: Option<u8>,
    /// Process IDs, with descriptors that become readable when the process ends.
    pidfds: Vec<(u32, AsyncFd<OwnedFd>)>,
    ring: Option<AsyncFd<Ring>>,
    map_ring: Option<AsyncFd<Ring>>,
    /// Readable once there are many records of mappings.
    records: Vec<AsyncFd<OwnedFd>>,
    overhead: Option<Overhead>,
    watch: ProcessWatch,
    log: ProgramLog,
    pub(super) scans: Scans,
    unseen: Vec<String>,
    /// Whether to print notes about tables and probes.
    is_verbose: bool,
}

impl UserTracer {
    /// Starts tracing processes. The caller must be in the event loop.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for a process that cannot be traced; [`Error::Host`], [`Error::Refused`]
    /// and [`Error::Kernel`] where the host does not allow it.
    pub(super) fn of_processes(
        wanted: &Wanted,
        trace: &TraceOptions,
        facts: &HostFacts,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        for pid in &wanted.pids {
            proc::check_traceable(*pid)?;
        }
        Self::start(Mode::User, wanted, None, trace, facts, note)
    }

    /// Starts a command and traces it. The caller must be in the event loop.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when the command cannot be run; else as [`UserTracer::of_processes`].
    pub(super) fn of_command(
        argv: &[OsString],
        trace: &TraceOptions,
        facts: &HostFacts,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        let suspended = Suspended::start(argv)?;
        let wanted = Wanted { pids: vec![suspended.pid()], ..Wanted::default() };
        Self::start(Mode::Run, &wanted, Some(suspended), trace, facts, note)
    }

    fn start(
        mode: Mode,
        wanted: &Wanted,
        suspended: Option<Suspended>,
        trace: &TraceOptions,
        facts: &HostFacts,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        let kinds = trace.user_kinds;
        let command = suspended.as_ref().map(Suspended::pid);
        let seccomp = SeccompGuard::new(trace, wanted, command, &facts.kernel_release, note)?;
        let mut sizes = Sizes::new(trace.max_outstanding, true, kinds.mmap);
        if !trace.pairs.is_empty() {
            sizes = sizes.with_pairs();
        }
        let rules = Rules::new(wanted)?;
        let config = follow::constants(wanted, trace.children, trace.unwind, constants(trace))?;
        if rules.is_open() || trace.children || suspended.is_some() {
            proc::raise_file_limit();
        }
        let mut loaded = Loaded::load(&config, sizes)?;
        let map_bytes = loaded.map_bytes();
        let way = Way::best(facts);
        let mut processes =
            Processes::new(&mut loaded, way, trace, rules.is_open(), command, seccomp)?;
        let log = ProgramLog::open(trace, &mut loaded)?;
        let mut maps = loaded.maps()?;
        maps.set_filters(&[], &wanted.comms)?;
        let mut user_kinds = Vec::new();
        user_kinds.extend(kinds.malloc.then_some(Kind::Malloc));
        user_kinds.extend(kinds.mmap.then_some(Kind::Mmap));
        user_kinds.extend((!trace.pairs.is_empty()).then_some(Kind::Pair));
        let options = CollectorOptions {
            mode,
            stack_mode: trace.stacks,
            max_outstanding: u64::from(trace.max_outstanding),
            unfiltered: trace.takes_all(),
            kmalloc_names: KmallocNames::default(),
            user_kinds,
            pairs: super::constants::pair_names(trace),
            counts_slabs: false,
            is_sampled: trace.is_sampled(),
        };
        let mut collector = Collector::new(maps, ObjectTable::default(), options);
        collector.maps.set_sample_bytes(trace.sample_bytes)?;
        let ring = collector.maps.take_events().map(ring::watch).transpose()?;
        let mut map_ring = None;
        if kinds.mmap {
            collector.follow_mappings((trace.min_size_bytes, trace.max_size_bytes));
            map_ring = collector.maps.take_map_events().map(ring::watch).transpose()?;
        }
        let mut pidfds = Vec::new();
        for pid in &wanted.pids {
            pidfds.push((*pid, wait::pidfd(*pid)?));
            processes.add(*pid, true, &mut loaded, &mut collector)?;
        }
        processes.add_present(&rules, &mut loaded, &mut collector)?;
        if suspended.is_none() && !rules.is_open() {
            // A command, or a process that is yet to come, may map them later.
            processes.check_requested(&collector)?;
        }
        let records = match processes.records.as_ref().map(wait::descriptors) {
            Some(Ok(records)) => records,
            // Unread they would overflow: as if the kernel had none.
            Some(Err(_)) => {
                processes.records = None;
                Vec::new()
            }
            None => Vec::new(),
        };
        let overhead = Overhead::start(trace, &processes)?;
        let watch = ProcessWatch::start(&processes);
        let unseen = suspended.as_ref().and_then(Suspended::unseen).map(str::to_owned);
        let mut scans = Scans::new(trace.reachability);
        let mut looks_at_exit = kinds.malloc && scans.is_on();
        if let Some(suspended) = suspended.as_ref().filter(|_| looks_at_exit)
            && let Some(own) = sanitizer::of(suspended.pid())
        {
            looks_at_exit = false;
            let pid = suspended.pid();
            let space = processes.traced.get(&pid).map_or(0, |traced| traced.space);
            scans.refuse(pid, space, format!("{own} is in it, which fails in a traced process"));
        }
        if let Some(suspended) = suspended.as_ref().filter(|_| looks_at_exit) {
            let pid = suspended.pid();
            scans.await_exit(scans::Command {
                pid,
                space: processes.traced.get(&pid).map_or(0, |traced| traced.space),
                is_whole: trace.takes_all() && unseen.is_none(),
                thread: None,
            });
        }
        let child = suspended.map(|suspended| suspended.resume(looks_at_exit)).transpose()?;
        collector.start();
        let is_verbose = trace.verbose > 0;
        if is_verbose {
            note_tables(&processes, note);
            note_probes(&processes, &collector, note);
        }
        note_memory(map_bytes, trace, note);
        for line in rules.waiting(collector.processes()) {
            note(&line);
        }
        if processes.shares_probes() {
            note(
                "probes are shared: while this runs, each call of malloc or free costs about a \
                 microsecond in processes that are not traced and map the same files",
            );
        }
        note(&format!("tracing {}; Ctrl-C ends with a report", describe(&collector)));
        if child.is_some() {
            // Its end is seen through the child itself.
            pidfds.clear();
        }
        Ok(Self {
            processes,
            rules,
            loaded,
            collector,
            child,
            ended: None,
            pidfds,
            ring,
            map_ring,
            records,
            overhead,
            watch,
            log,
            scans,
            unseen: unseen.into_iter().collect(),
            is_verbose,
        })
    }

    /// As [`super::Tracer::step`].
    pub(super) async fn step(&mut self) -> Result<Step, Error> {
        if let Some(code) = self.ended {
            return Ok(End::Command { code }.into());
        }
        let look = self.processes.next_look();
        let cost = self.overhead.as_mut().map(|overhead| &mut overhead.ticks);
        let growth = self.processes.next_growth_check();
        let memory = self.watch.due();
        let mut step = Step::default();
        tokio::select! {
            biased;
            happened = wait_for_child(self.child.as_mut()), if self.ended.is_none() => {
                return match happened? {
                    Happened::Leaving(thread) => {
                        // What it told before its end comes first.
                        self.drain_rings()?;
                        self.scans.is_leaving(*thread);
                        Ok(End::Leaving.into())
                    }
                    Happened::Ended(ended) => {
                        if let Some(child) = &self.child {
                            self.collector.exited(child.pid());
                        }
                        self.ended = Some(ended.exit_code());
                        Ok(Step::default())
                    }
                };
            }
            pid = wait_for_exit(&self.pidfds) => {
                self.pidfds.retain(|(watched, _)| *watched != pid);
                // What it told before its end comes first.
                self.drain_rings()?;
                self.processes.ended(pid, &mut self.collector);
                step.end = self.is_over().then_some(End::Processes);
            }
            () = wait_for_ring(self.ring.as_ref()) => {
                self.drain_rings()?;
                step.end = self.is_over().then_some(End::Processes);
            }
            () = wait_for_ring(self.map_ring.as_ref()) => self.drain_rings()?,
            () = wait_for_records(&mut self.records) => {
                if let Some(records) = &mut self.processes.records {
                    records.read();
                }
            }
            () = self.log.wait() => step.notes = self.log.lines(),
            () = wait_until(look) => self.look(Instant::now()),
            () = wait_for_tick(cost) => step.notes.extend(self.look_at_cost()?),
            () = wait_until(memory) => self.watch.look(&self.processes),
            () = wait_until(growth) => step.notes = self.processes.check_growth(&self.collector),
        }
        Ok(step)
    }

    /// As [`super::Tracer::snapshot`].
    pub(super) fn snapshot(&mut self, wants: Wants) -> Result<Snapshot, Error> {
        // What has happened to the processes up to now, whatever the order of the events.
        self.drain_rings()?;
        self.collector.clean_up(true)?;
        self.look(Instant::now() + LONGEST_WAIT);
        // Whose ends it finds is cleaned up once the rings have been read again.
        if self.processes.follows() {
            self.processes.check(&self.rules, &mut self.loaded, &mut self.collector)?;
        }
        let mut misses: BTreeMap<String, u64> = self.loaded.misses();
        misses.extend(self.processes.probes.recursion_misses());
        let of_pairs = self.processes.pairs.as_ref().map(|pairs| pairs.probes.recursion_misses());
        misses.extend(of_pairs.unwrap_or_default());
        let mut unseen = self.unseen.clone();
        unseen.extend(self.processes.unseen(&self.collector));
        let mut snapshot = self.collector.snapshot(wants, misses, true, &unseen)?;
        snapshot.budget = self.overhead.as_ref().map(Overhead::budget);
        self.watch.fill(&self.processes, &mut snapshot);
        if wants.is_final {
            self.scans.add_to(&mut snapshot);
        }
        Ok(snapshot)
    }

    /// As [`super::Tracer::sample`].
    pub(super) fn sample(&mut self) -> Result<Counts, Error> {
        // Process images that are gone, and mappings.
        self.drain_rings()?;
        Ok(self.collector.counts())
    }

    /// As [`super::Tracer::forward`].
    pub(super) fn forward(&self, signal: i32) -> bool {
        let Some(child) = &self.child else { return false };
        child.forward(signal);
        true
    }

    /// As [`super::Tracer::begin_exit_scan`].
    pub(super) fn begin_exit_scan(&mut self) -> Result<(), Error> {
        self.scans.begin_exit_scan(&self.processes, &self.collector)
    }

    /// As [`super::Tracer::let_go`].
    pub(super) fn let_go(&mut self) {
        if let Some(child) = &mut self.child {
            child.let_go();
        }
    }

    /// As [`super::Tracer::end`].
    pub(super) fn end(mut self, note: &mut dyn FnMut(&str)) {
        if self.is_verbose {
            // With what has come since the start.
            note_tables(&self.processes, note);
            note_probes(&self.processes, &self.collector, note);
        }
        self.log.lines().iter().for_each(|line| note(line));
        // Links first, so that no program runs on maps that are gone.
        drop(self.processes);
        drop(self.loaded);
    }

    /// As [`super::Tracer::scan_time`].
    pub(super) fn scan_time(&self) -> Option<Duration> {
        self.scans.time(&self.processes)
    }

    /// As [`super::Tracer::begin_scans`].
    pub(super) fn begin_scans(
        &mut self,
        until: Option<std::time::Instant>,
    ) -> Result<Option<String>, Error> {
        self.scans.begin(&self.processes, &self.collector, until)
    }

    /// Whether no traced process is left and none can come.
    fn is_over(&self) -> bool {
        self.processes.is_empty() && self.child.is_none() && !self.rules.is_open()
    }

    /// Takes in the events in the rings.
    fn drain_rings(&mut self) -> Result<(), Error> {
        let mut events: Vec<ProcessEvent> = Vec::new();
        if let Some(ring) = &mut self.ring {
            // SAFETY: the ring holds events of this repr(C) type of integers.
            unsafe { drain(ring, |event| events.push(event)) };
        }
        for event in events {
            self.processes.take_in(&event, &mut self.loaded, &mut self.collector);
        }
        // After the images that are gone or new are known.
        if let Some(ring) = &mut self.map_ring {
            let collector = &mut self.collector;
            // SAFETY: as above.
            unsafe { drain(ring, |event: MapEvent| collector.apply_mapping(&event)) };
        }
        self.collector.clean_up(false)
    }

    /// Reads the mappings of the processes that are due by `now`.
    fn look(&mut self, now: Instant) {
        self.processes.look(now, &mut self.loaded, &mut self.collector);
    }

    /// Looks at the cost of the probes and keeps it within the budget; returns a note on what was
    /// done, if anything.
    fn look_at_cost(&mut self) -> Result<Option<String>, Error> {
        let Some(overhead) = &mut self.overhead else { return Ok(None) };
        let steps = overhead.budget().steps.len();
        let unseen = overhead.look(&mut self.processes, &mut self.loaded, &mut self.collector)?;
        self.unseen.extend(unseen);
        Ok(overhead.last_step().filter(|_| overhead.budget().steps.len() > steps))
    }
}
