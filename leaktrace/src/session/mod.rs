//! The loop of a tracing session: it owns every handle, and a closed set of events drives it.

mod budget;
mod filters;
mod follow;
pub mod launch;
mod loader;
mod mapped;
mod missed;
mod named;
mod notes;
mod overhead;
mod processes;
mod ring;
mod silence;
pub mod spec;
mod wait;

use std::{collections::BTreeMap, os::fd::OwnedFd};

use leaktrace_common::{Config, Event as BpfEvent, Kind, MapEvent};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, Interval, MissedTickBehavior},
};

use self::{
    follow::Rules,
    launch::{Child, Ended, Suspended},
    notes::{describe, note_memory, note_probes, note_tables},
    overhead::Overhead,
    processes::{LONGEST_WAIT, Processes},
    ring::{Ring, drain, watch},
    spec::{By, KernelFilters, KernelKind, Spec, Target, Wanted},
    wait::{
        Signals, wait_for_child, wait_for_exit, wait_for_records, wait_for_ring, wait_for_tick,
        wait_until,
    },
};
use crate::{
    attach::{kernel, user::Way},
    bpf::{Loaded, Maps, Sizes},
    collect::{
        Collector, CollectorOptions, Wants,
        kmalloc::{GfpFlags, KmallocNames},
    },
    error::Error,
    host::{features::HostFacts, layout::KernelLayout, objects::ObjectTable, page_owners, proc},
    snapshot::{Mode, Snapshot},
};

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Time was up, it was stopped, or every traced process ended.
    Done,
    /// `leaktrace run`: the command ended.
    CommandEnded {
        /// Its exit code; 128 and the signal's number if a signal ended it.
        code: u8,
    },
}

/// What wakes the session.
enum Event {
    /// A report is due.
    Tick,
    /// The session's time is up.
    TimeUp,
    /// SIGINT or SIGTERM.
    Stop,
    /// The command that leaktrace started has ended.
    CommandEnded(Ended),
    /// The last traced process has ended.
    ProcessesEnded,
    /// A traced process is due for a look at what it maps.
    Look,
    /// The cost of the probes is due for a look.
    Cost,
    /// The traced processes are due for a look for allocations that no probe sees.
    Hear,
}

/// Traces as `spec` says and gives each due snapshot to `sink`.
///
/// `note` takes lines for the person at the terminal.
///
/// # Errors
///
/// [`Error::Usage`] for a target that cannot be traced, [`Error::Host`] and [`Error::Kernel`]
/// where the host does not allow it, and whatever `sink` fails with.
pub fn run(
    spec: &Spec,
    facts: &HostFacts,
    sink: &mut dyn FnMut(&Snapshot) -> Result<(), Error>,
    note: &mut dyn FnMut(&str),
) -> Result<Outcome, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::kernel("cannot start the event loop", error))?;
    runtime.block_on(async {
        // Before anything is attached: from here on Ctrl-C ends with a report.
        let mut signals = Signals::new()?;
        let mut session = Session::start(spec, facts, note)?;
        let outcome = session.follow(spec, &mut signals, sink, note).await;
        if spec.output.verbose > 0
            && let Some(processes) = &session.processes
        {
            // With what has come since the start.
            note_tables(processes, note);
            note_probes(processes, &session.collector, note);
        }
        session.end();
        outcome
    })
}

/// Everything that must be let go when the session ends, in the order of letting go.
struct Session {
    processes: Option<Processes>,
    /// Which processes are traced beside those that are named.
    rules: Rules,
    loaded: Loaded,
    collector: Collector,
    child: Option<Child>,
    /// Watched for their end, with their process IDs.
    pidfds: Vec<(u32, AsyncFd<OwnedFd>)>,
    ring: Option<AsyncFd<Ring>>,
    map_ring: Option<AsyncFd<Ring>>,
    /// Readable once there are many records of what processes map.
    records: Vec<AsyncFd<OwnedFd>>,
    overhead: Option<Overhead>,
    unseen: Vec<String>,
}

impl Session {
    fn start(spec: &Spec, facts: &HostFacts, note: &mut dyn FnMut(&str)) -> Result<Self, Error> {
        match &spec.target {
            Target::Kernel { kinds, all_pages, filters } => {
                Self::start_kernel(spec, kinds, *all_pages, filters, note)
            }
            Target::Processes(wanted) => {
                for pid in &wanted.pids {
                    proc::check_traceable(*pid)?;
                }
                Self::start_user(spec, facts, Mode::User, wanted, None, note)
            }
            Target::Command { argv, .. } => {
                let suspended = Suspended::start(argv)?;
                let wanted = Wanted { pids: vec![suspended.pid()], ..Wanted::default() };
                Self::start_user(spec, facts, Mode::Run, &wanted, Some(suspended), note)
            }
        }
    }

    fn start_kernel(
        spec: &Spec,
        kinds: &[KernelKind],
        all_pages: bool,
        filters: &KernelFilters,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        let layout = KernelLayout::of_running_kernel()?;
        let [irq_start, irq_end, softirq_start, softirq_end] = layout.interrupts;
        let config = Config {
            irq_start,
            irq_end,
            softirq_start,
            softirq_end,
            kmalloc_size_arg: layout.slab.kmalloc_size,
            cache_arg: layout.slab.cache.unwrap_or(0),
            cache_size_arg: layout.slab.cache_size.unwrap_or(0),
            rcu: layout.rcu.unwrap_or_default(),
            rcu_call_offset: u32::from(layout.rcu_call_offset),
            percpu_size_arg: layout.percpu_size.unwrap_or(0),
            possible_cpus: crate::bpf::object::possible_cpus(),
            all_pages: u32::from(all_pages),
            gfp_movable: layout.gfp_movable,
            page_struct_shift: layout.page_struct_shift.unwrap_or(0),
            cache_name_offset: layout.cache_name_offset,
            cache_object_size_offset: layout.cache_object_size_offset,
            gfp_cache_mask: layout.gfp_dma | layout.gfp_reclaimable | layout.gfp_account,
            ..config(spec)
        };
        let mut config = filters::constants(filters, config)?;
        if kinds.contains(&KernelKind::Pages) {
            config.page_owners = page_owners::ranges().unwrap_or_default();
        }
        let sizes = Sizes::new(spec.trace.max_outstanding, false, false);
        let mut loaded = Loaded::load(&config, sizes)?;
        let map_bytes = loaded.map_bytes();
        let mut maps = loaded.maps()?;
        maps.set_filters(&filters.pids, &filters.comms)?;
        let gfp = GfpFlags {
            dma: layout.gfp_dma,
            reclaimable: layout.gfp_reclaimable,
            account: layout.gfp_account,
        };
        let kmalloc_names = KmallocNames::read(gfp);
        let caches = &filters.caches;
        maps.set_cache_filters(caches, &kmalloc_names.details(caches))?;
        for cache in caches.iter().filter(|cache| !kmalloc_names.exists(cache)) {
            note(&format!(
                "no slab cache has the name `{cache}` now (see /proc/slabinfo; of merged caches \
                 only one name is there)"
            ));
        }
        let unfiltered = *filters == KernelFilters::default() && takes_all(spec);
        let mut collector =
            collector(maps, spec, Mode::Kernel, unfiltered, kmalloc_names, Vec::new());
        let unseen = kernel::attach(&mut loaded, kinds, &config, &layout)?;
        collector.start();
        note_memory(map_bytes, spec, note);
        let kinds: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        let kinds = kinds.join(", ");
        note(&format!("tracing kernel allocations ({kinds}); Ctrl-C ends with a report"));
        Ok(Self {
            processes: None,
            rules: Rules::default(),
            loaded,
            collector,
            child: None,
            pidfds: Vec::new(),
            ring: None,
            map_ring: None,
            records: Vec::new(),
            overhead: None,
            unseen,
        })
    }

    fn start_user(
        spec: &Spec,
        facts: &HostFacts,
        mode: Mode,
        wanted: &Wanted,
        suspended: Option<Suspended>,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        let kinds = spec.trace.user_kinds;
        let sizes = Sizes::new(spec.trace.max_outstanding, true, kinds.mmap);
        let rules = Rules::new(wanted)?;
        let config = follow::constants(wanted, spec.trace.children, config(spec))?;
        if rules.is_open() || spec.trace.children || suspended.is_some() {
            proc::raise_file_limit();
        }
        let mut loaded = Loaded::load(&config, sizes)?;
        let map_bytes = loaded.map_bytes();
        let way = Way::best(facts);
        let command = suspended.as_ref().map(Suspended::pid);
        let mut processes = Processes::new(&mut loaded, way, spec, rules.is_open(), command)?;
        let mut maps = loaded.maps()?;
        maps.set_filters(&[], &wanted.comms)?;
        let unfiltered = takes_all(spec);
        let mut user_kinds = Vec::new();
        user_kinds.extend(kinds.malloc.then_some(Kind::Malloc));
        user_kinds.extend(kinds.mmap.then_some(Kind::Mmap));
        let names = KmallocNames::default();
        let mut collector = collector(maps, spec, mode, unfiltered, names, user_kinds);
        collector.maps.set_sample_bytes(spec.trace.sample_bytes)?;
        let ring = collector.maps.take_events().map(watch).transpose()?;
        let mut map_ring = None;
        if kinds.mmap {
            collector.follow_mappings((spec.trace.min_size_bytes, spec.trace.max_size_bytes));
            map_ring = collector.maps.take_map_events().map(watch).transpose()?;
        }
        let mut pidfds = Vec::new();
        for pid in &wanted.pids {
            pidfds.push((*pid, wait::pidfd(*pid)?));
            processes.add(*pid, true, &mut loaded, &mut collector)?;
        }
        processes.add_present(&rules, &mut loaded, &mut collector)?;
        if suspended.is_none() && !rules.is_open() {
            // A command, or a process that is yet to come, may map them later.
            processes.check_named()?;
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
        let overhead = Overhead::start(&spec.trace, &processes)?;
        let unseen = suspended.as_ref().and_then(Suspended::unseen).map(str::to_owned);
        let child = suspended.map(Suspended::resume).transpose()?;
        collector.start();
        if spec.output.verbose > 0 {
            note_tables(&processes, note);
            note_probes(&processes, &collector, note);
        }
        note_memory(map_bytes, spec, note);
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
            processes: Some(processes),
            rules,
            loaded,
            collector,
            child,
            pidfds,
            ring,
            map_ring,
            records,
            overhead,
            unseen: unseen.into_iter().collect(),
        })
    }

    async fn follow(
        &mut self,
        spec: &Spec,
        signals: &mut Signals,
        sink: &mut dyn FnMut(&Snapshot) -> Result<(), Error>,
        note: &mut dyn FnMut(&str),
    ) -> Result<Outcome, Error> {
        let schedule = spec.schedule;
        let start = Instant::now();
        let mut ticks = schedule.interval.map(|interval| {
            let mut ticks = tokio::time::interval_at(start + interval, interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            ticks
        });
        let deadline = schedule.duration.map(|duration| start + duration);
        let mut reports = 0;
        let is_run = matches!(spec.target, Target::Command { .. });
        loop {
            let event = self.next_event(&mut ticks, deadline, signals, is_run).await?;
            match event {
                Event::Look => self.look(Instant::now()),
                Event::Cost => self.look_at_cost(note)?,
                Event::Hear => {
                    if let Some(processes) = &mut self.processes {
                        processes.hear(&self.collector).iter().for_each(|line| note(line));
                    }
                }
                Event::Tick => {
                    reports += 1;
                    let is_final = schedule.count.is_some_and(|count| reports >= count);
                    sink(&self.snapshot(spec, is_final)?)?;
                    if is_final {
                        return Ok(Outcome::Done);
                    }
                }
                Event::TimeUp | Event::Stop => {
                    sink(&self.snapshot(spec, true)?)?;
                    return Ok(Outcome::Done);
                }
                Event::ProcessesEnded => {
                    note("the traced process has ended");
                    sink(&self.snapshot(spec, true)?)?;
                    return Ok(Outcome::Done);
                }
                Event::CommandEnded(ended) => {
                    if let Some(child) = &self.child {
                        self.collector.exited(child.pid());
                    }
                    sink(&self.snapshot(spec, true)?)?;
                    return Ok(Outcome::CommandEnded { code: ended.exit_code() });
                }
            }
        }
    }

    async fn next_event(
        &mut self,
        ticks: &mut Option<Interval>,
        deadline: Option<Instant>,
        signals: &mut Signals,
        is_run: bool,
    ) -> Result<Event, Error> {
        loop {
            let look = self.processes.as_ref().and_then(Processes::next_look);
            let cost = self.overhead.as_mut().map(|overhead| &mut overhead.ticks);
            let hear = self.processes.as_ref().and_then(Processes::next_hearing);
            tokio::select! {
                biased;
                number = signals.next() => {
                    // `run` passes signals on and ends when its command does.
                    match (&self.child, is_run) {
                        (Some(child), true) => child.forward(number),
                        _ => return Ok(Event::Stop),
                    }
                }
                ended = wait_for_child(self.child.as_mut()) => {
                    return Ok(Event::CommandEnded(ended?));
                }
                pid = wait_for_exit(&self.pidfds) => {
                    self.pidfds.retain(|(watched, _)| *watched != pid);
                    // What it told before its end comes first.
                    self.drain_ring()?;
                    if let Some(processes) = &mut self.processes {
                        processes.ended(pid, &mut self.collector);
                    }
                    if self.is_over() {
                        return Ok(Event::ProcessesEnded);
                    }
                }
                () = wait_for_ring(self.ring.as_ref()) => {
                    self.drain_ring()?;
                    if self.is_over() {
                        return Ok(Event::ProcessesEnded);
                    }
                }
                () = wait_for_ring(self.map_ring.as_ref()) => self.drain_ring()?,
                () = wait_for_records(&mut self.records) => {
                    if let Some(records) = self.processes.as_mut().and_then(|it| it.records.as_mut())
                    {
                        records.read();
                    }
                }
                () = wait_until(look) => return Ok(Event::Look),
                () = wait_for_tick(cost) => return Ok(Event::Cost),
                () = wait_until(hear) => return Ok(Event::Hear),
                () = wait_until(deadline) => return Ok(Event::TimeUp),
                () = wait_for_tick(ticks.as_mut()) => return Ok(Event::Tick),
            }
        }
    }

    /// Whether no process is left that is traced, and none can come.
    fn is_over(&self) -> bool {
        let is_empty = self.processes.as_ref().is_some_and(|processes| processes.is_empty());
        is_empty && self.child.is_none() && !self.rules.is_open()
    }

    fn snapshot(&mut self, spec: &Spec, is_final: bool) -> Result<Snapshot, Error> {
        // What has happened to the processes up to now, whatever the order of the events.
        self.drain_ring()?;
        self.collector.clean_up(true)?;
        self.look(Instant::now() + LONGEST_WAIT);
        // Whose ends it finds is cleaned up once the rings have been read again.
        if let Some(processes) = &mut self.processes
            && processes.follows()
        {
            processes.check(&self.rules, &mut self.loaded, &mut self.collector)?;
        }
        let mut misses: BTreeMap<String, u64> = kernel::unhealed(self.loaded.recursion_misses());
        let mut unseen = self.unseen.clone();
        if let Some(processes) = &self.processes {
            misses.extend(processes.probes.recursion_misses());
            unseen.extend(processes.unseen(&self.collector));
        }
        let wants = Wants {
            is_final,
            older_ns: spec.view.older.as_nanos() as u64,
            blocks: spec.view.show_allocs,
            holders: spec.view.by == By::Process,
        };
        let mut snapshot = self.collector.snapshot(wants, misses, &unseen)?;
        snapshot.budget = self.overhead.as_ref().map(Overhead::budget);
        Ok(snapshot)
    }

    /// Handles what the ring tells of traced processes.
    fn drain_ring(&mut self) -> Result<(), Error> {
        let mut events: Vec<BpfEvent> = Vec::new();
        if let Some(ring) = &mut self.ring {
            // SAFETY: the ring holds events of this repr(C) type of integers.
            unsafe { drain(ring, |event| events.push(event)) };
        }
        let Some(processes) = &mut self.processes else { return Ok(()) };
        for event in events {
            processes.take_in(&event, &mut self.loaded, &mut self.collector);
        }
        // After the images that are gone or new are known.
        if let Some(ring) = &mut self.map_ring {
            let collector = &mut self.collector;
            // SAFETY: as above.
            unsafe { drain(ring, |event: MapEvent| collector.apply_mapping(&event)) };
        }
        self.collector.clean_up(false)
    }

    /// Looks at what the processes that are due by `now` have mapped.
    fn look(&mut self, now: Instant) {
        if let Some(processes) = &mut self.processes {
            processes.look(now, &mut self.loaded, &mut self.collector);
        }
    }

    /// Looks at what the probes cost, and keeps to what they may.
    fn look_at_cost(&mut self, note: &mut dyn FnMut(&str)) -> Result<(), Error> {
        let (Some(overhead), Some(processes)) = (&mut self.overhead, &mut self.processes) else {
            return Ok(());
        };
        let steps = overhead.budget().steps.len();
        let unseen = overhead.look(processes, &mut self.loaded, &mut self.collector)?;
        self.unseen.extend(unseen);
        if overhead.budget().steps.len() > steps
            && let Some(step) = overhead.last_step()
        {
            note(&step);
        }
        Ok(())
    }

    /// Lets go of everything: links first, so that no program runs on maps that are gone.
    fn end(self) {
        let Self { processes, loaded, collector, child, pidfds, ring, map_ring, records, .. } =
            self;
        drop(processes);
        drop(loaded);
        drop((collector, child, pidfds, ring, map_ring, records));
    }
}

/// The constants that all modes share.
fn config(spec: &Spec) -> Config {
    let trace = &spec.trace;
    Config {
        min_size_bytes: trace.min_size_bytes,
        max_size_bytes: trace.max_size_bytes,
        stack_mode: trace.stacks as u32,
        max_frames: trace.max_depth,
        own_tgid: std::process::id(),
        sampling: u32::from(is_sampled(spec)),
        count_calls: u32::from(trace.max_overhead_ppm.is_some()),
        ..Config::default()
    }
}

/// Whether blocks may be left out that belong to the whole.
fn is_sampled(spec: &Spec) -> bool {
    spec.trace.sample_bytes != 0 || spec.trace.max_overhead_ppm.is_some()
}

/// Whether no allocation of what is traced is left out.
fn takes_all(spec: &Spec) -> bool {
    let trace = &spec.trace;
    trace.min_size_bytes == 0 && trace.max_size_bytes == u64::MAX && !is_sampled(spec)
}

fn collector(
    maps: Maps,
    spec: &Spec,
    mode: Mode,
    unfiltered: bool,
    kmalloc_names: KmallocNames,
    user_kinds: Vec<Kind>,
) -> Collector {
    Collector::new(
        maps,
        ObjectTable::default(),
        CollectorOptions {
            mode,
            stack_mode: spec.trace.stacks,
            max_outstanding: u64::from(spec.trace.max_outstanding),
            unfiltered,
            kmalloc_names,
            user_kinds,
            is_sampled: is_sampled(spec),
        },
    )
}
