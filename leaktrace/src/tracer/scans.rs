//! Scans of the traced processes for addresses of their blocks: which processes, and when.

use std::time::{Duration, Instant};

use leaktrace_common::LossReason;

use super::processes::{Processes, Traced};
use crate::{
    collect::Collector,
    error::Error,
    host::proc,
    reach::{Reach, Running, blocks::Layout, look::Target, objects::LoadedAt, view::ThreadState},
    session::spec::Reachability,
    snapshot::{
        Process, Snapshot,
        reach::{Scan, Way},
    },
    units::format_bytes,
    unwind::tables::ProcessMapping,
};

/// Most processes that are looked at in one report.
const MAX_PROCESSES: usize = 64;
/// Most memory that is looked at in one report, unless one process alone has more.
const MAX_BYTES: u64 = 8 << 30;
/// What a scan reads in a second, at least where nothing else runs: for the time that is left to it.
const BYTES_A_SECOND: u64 = 512 << 20;
/// The time that three scans take besides reading, with the pauses between them.
const LEAST_LEAD: Duration = Duration::from_millis(2400);

/// Reasons for which a block may be there that is not tracked.
const MISSED: [LossReason; 6] = [
    LossReason::OutstandingFull,
    LossReason::OutstandingRefused,
    LossReason::SitesFull,
    LossReason::InFlightFull,
    LossReason::ResultUnreadable,
    LossReason::SkippedReturn,
];

/// The scans of a tracer.
pub(super) struct Scans {
    way: Reachability,
    running: Option<Running>,
    /// What the scans have found, until the report takes it.
    found: Option<Reach>,
    /// Processes that are not looked at.
    left_out: Vec<Scan>,
    /// The command of `run`.
    command: Option<Command>,
}

/// A command that is looked at at its exit.
pub(super) struct Command {
    pub(super) pid: u32,
    /// The space of its first image.
    pub(super) space: u32,
    /// Whether every allocation of that image is tracked.
    pub(super) is_whole: bool,
    /// Its first thread, once it is at its exit.
    pub(super) thread: Option<ThreadState>,
}

impl Scans {
    pub(super) fn new(way: Reachability) -> Self {
        Self { way, running: None, found: None, left_out: Vec::new(), command: None }
    }

    /// Whether memory is looked at at all.
    pub(super) fn is_on(&self) -> bool {
        self.way != Reachability::Off
    }

    /// Looks at a command once it is at its exit.
    pub(super) fn await_exit(&mut self, command: Command) {
        self.command = Some(command);
    }

    /// Says why a command is not looked at.
    pub(super) fn refuse(&mut self, pid: u32, space: u32, why: String) {
        self.left_out.push(Scan { way: Way::AtExit, ..left_out(pid, space, why) });
        self.found = Some(Reach::default());
    }

    /// Takes in that the command is at its exit.
    pub(super) fn is_leaving(&mut self, thread: ThreadState) {
        if let Some(command) = &mut self.command {
            command.thread = Some(thread);
        }
    }

    /// Adds what was found to the final snapshot.
    pub(super) fn add_to(&mut self, snapshot: &mut Snapshot) {
        if let Some(command) = &self.command
            && self.found.is_none()
        {
            self.left_out.push(Scan {
                pid: command.pid,
                space: command.space,
                way: Way::AtExit,
                bytes: 0,
                threads: 0,
                refused: Some(
                    "it did not stop at its exit (it was killed, or its first thread ended before \
                     others)"
                        .into(),
                ),
                limits: Vec::new(),
            });
            self.found = Some(Reach::default());
        }
        if let Some(mut found) = self.found.take() {
            found.scans.append(&mut self.left_out);
            found.add_to(snapshot);
        }
    }
}

impl Scans {
    /// As [`super::Tracer::scan_time`].
    pub(super) fn time(&self, processes: &Processes) -> Option<Duration> {
        if self.way == Reachability::Off || !processes.traces_malloc {
            return None;
        }
        let bytes: u64 = processes.traced.keys().filter_map(|pid| bytes(*pid)).sum();
        Some(LEAST_LEAD + Duration::from_millis(bytes.min(MAX_BYTES) * 3000 / BYTES_A_SECOND))
    }

    /// As [`super::Tracer::begin_scans`].
    pub(super) fn begin(
        &mut self,
        processes: &Processes,
        collector: &Collector,
        until: Option<Instant>,
    ) -> Result<Option<String>, Error> {
        if self.time(processes).is_none() || self.running.is_some() || self.found.is_some() {
            return Ok(None);
        }
        let (targets, bytes) = self.targets(processes, collector);
        let ended = collector.images().filter(|(_, process)| process.exited);
        self.left_out.extend(ended.map(|(space, process)| {
            left_out(process.pid, space, "it ended before it was looked through".into())
        }));
        let about = match targets.as_slice() {
            [] => None,
            [one] => Some(format!("process {}", one.pid)),
            several => Some(format!("{} processes", several.len())),
        };
        let reader = collector.maps.block_reader()?;
        self.running = Some(Running::start(self.way, targets, reader, until));
        Ok(about.map(|about| {
            format!(
                "looking through {} of {about} for addresses of the outstanding blocks; Ctrl-C \
                 skips that",
                format_bytes(bytes)
            )
        }))
    }

    /// As [`super::Tracer::begin_exit_scan`].
    pub(super) fn begin_exit_scan(
        &mut self,
        processes: &Processes,
        collector: &Collector,
    ) -> Result<(), Error> {
        let Some(command) = &mut self.command else { return Ok(()) };
        let (pid, space, is_whole) = (command.pid, command.space, command.is_whole);
        let (Some(thread), Some(traced)) = (command.thread.take(), processes.traced.get(&pid))
        else {
            return Ok(());
        };
        // Another image than the first was not traced from its first allocation on.
        let target = target(pid, traced, collector);
        // Nor may the rest of its heap be passed over if blocks were missed, or if another allocator
        // may have taken it.
        let missed = MISSED.iter().any(|reason| collector.maps.loss(*reason) > 0);
        let is_whole =
            is_whole && traced.space == space && !missed && target.layout == Layout::Glibc;
        let reader = collector.maps.block_reader()?;
        self.found = None;
        self.running = Some(Running::at_exit(target, reader, thread, is_whole));
        Ok(())
    }

    /// As [`super::Tracer::skip_scans`].
    pub(super) fn skip(&self) {
        if let Some(running) = &self.running {
            running.skip();
        }
    }

    /// As [`super::Tracer::take_scans`].
    pub(super) fn take(&mut self) -> Option<Running> {
        self.running.take()
    }

    /// As [`super::Tracer::give_scans`].
    pub(super) fn give(&mut self, found: Reach) {
        self.found = Some(found);
    }

    /// The processes that are looked at, and the memory that they have.
    fn targets(&mut self, processes: &Processes, collector: &Collector) -> (Vec<Target>, u64) {
        let mut alive: Vec<(u64, u32)> =
            processes.traced.keys().filter_map(|pid| Some((bytes(*pid)?, *pid))).collect();
        alive.sort_unstable_by(|a, b| b.cmp(a));
        let (mut targets, mut sum) = (Vec::new(), 0);
        for (bytes, pid) in alive {
            let Some(traced) = processes.traced.get(&pid) else { continue };
            if targets.len() >= MAX_PROCESSES || (!targets.is_empty() && sum + bytes > MAX_BYTES) {
                let why = format!(
                    "{MAX_PROCESSES} processes or {} are looked through in one report, the largest \
                     first",
                    format_bytes(MAX_BYTES)
                );
                self.left_out.push(left_out(pid, traced.space, why));
                continue;
            }
            sum += bytes;
            targets.push(target(pid, traced, collector));
        }
        (targets, sum)
    }
}

fn target(pid: u32, traced: &Traced, collector: &Collector) -> Target {
    let process = collector.processes().find(|process| process.pid == pid);
    Target {
        pid,
        space: traced.space,
        layout: process.map_or(Layout::Unknown, layout),
        loaded: loaded_at(traced, collector),
    }
}

/// A process that is not looked at.
fn left_out(pid: u32, space: u32, why: String) -> Scan {
    Scan {
        pid,
        space,
        way: Way::Live { scans: 0, time_ms: 0 },
        bytes: 0,
        threads: 0,
        refused: Some(why),
        limits: Vec::new(),
    }
}

/// The objects of a process, with their files.
fn loaded_at(traced: &Traced, collector: &Collector) -> Vec<LoadedAt> {
    let at = |mapping: &ProcessMapping| {
        let id = mapping.object?;
        let held = collector.objects.get(id)?;
        Some(LoadedAt {
            object: id.0,
            path: held.path.clone(),
            file: held.file.as_ref().ok().cloned(),
            start: mapping.start,
            end: mapping.end,
            file_offset: mapping.file_offset,
        })
    };
    traced.mappings.iter().filter_map(at).collect()
}

/// Anonymous memory of a process; `None` if it has ended.
fn bytes(pid: u32) -> Option<u64> {
    proc::memory(pid).map(|memory| memory.anonymous_bytes).filter(|bytes| *bytes > 0)
}

/// How the allocator of a process lays out blocks, where it has only one.
fn layout(process: &Process) -> Layout {
    let is_glibc = process.allocator.starts_with("glibc (") && !process.allocator.contains("), ");
    if is_glibc { Layout::Glibc } else { Layout::Unknown }
}
