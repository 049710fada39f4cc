//! The loop of a tracing session: it owns every handle, and a closed set of events drives it.

mod budget;
mod filters;
mod follow;
pub mod launch;
mod loader;
mod log;
mod mapped;
mod missed;
mod named;
mod notes;
mod overhead;
mod processes;
mod ring;
mod silence;
mod spared;
pub mod spec;
mod start;
mod wait;

use std::{collections::BTreeMap, os::fd::OwnedFd, time::Duration};

use leaktrace_common::{Event as BpfEvent, MapEvent};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, Interval, MissedTickBehavior},
};

use self::{
    follow::Rules,
    launch::{Child, Ended},
    notes::{note_probes, note_tables},
    overhead::Overhead,
    processes::{LONGEST_WAIT, Processes},
    ring::{Ring, drain},
    spec::{By, Spec, Target},
    wait::{
        Signals, wait_for_child, wait_for_exit, wait_for_records, wait_for_ring, wait_for_tick,
        wait_until,
    },
};
use crate::{
    bpf::{Loaded, Log},
    collect::{Collector, Wants},
    error::Error,
    host::features::HostFacts,
    snapshot::Snapshot,
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
    /// The BPF programs have logged something.
    Logged,
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
        log::tell(&mut session.log, note);
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
    /// Readable once a kernel module comes or goes.
    modules: Option<AsyncFd<OwnedFd>>,
    /// Readable once there are many records of what processes map.
    records: Vec<AsyncFd<OwnedFd>>,
    overhead: Option<Overhead>,
    /// What the BPF programs log, under `-vv`.
    log: Option<AsyncFd<Log>>,
    unseen: Vec<String>,
    /// Slab caches that are asked for, and were not there at the start.
    awaited_caches: Vec<String>,
    /// When the ends of processes are read, in kernel mode.
    ends: Option<Interval>,
}

/// The kernel side keeps the last 16,384 ends of processes: some 3,000 a second.
const ENDS_READ: Duration = Duration::from_secs(5);

impl Session {
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
                Event::Logged => log::tell(&mut self.log, note),
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
                () = wait_for_ring(self.modules.as_ref()) => self.collector.read_modules(),
                () = wait_for_records(&mut self.records) => {
                    if let Some(records) = self.processes.as_mut().and_then(|it| it.records.as_mut())
                    {
                        records.read();
                    }
                }
                () = wait_for_tick(self.ends.as_mut()) => self.collector.read_ends(),
                () = wait_for_ring(self.log.as_ref()) => return Ok(Event::Logged),
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
        let mut misses: BTreeMap<String, u64> = self.loaded.misses();
        let mut unseen = self.unseen.clone();
        unseen.extend(filters::merged_since(&self.awaited_caches));
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
        drop(self.processes);
        drop(self.loaded);
    }
}
