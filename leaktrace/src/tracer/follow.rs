//! Which processes are traced: those that the user names, and those that a rule takes in.
//!
//! The programs of fork, exec and exit follow processes from their start to their end. /proc shows
//! the processes that were there before, and those that the programs could not report.

use std::path::{Path, PathBuf};

use leaktrace_common::{Config, Event, EventKind, Follow};

use super::{filters, processes::Processes};
use crate::{
    bpf::Loaded,
    collect::Collector,
    error::{self, Error},
    host::{cgroup, layout::TaskLayout, proc},
    session::spec::{Unwind, Wanted},
    snapshot::Process,
    unwind::tables,
};

/// Most passes over /proc at the start: a process may begin while a pass has gone past it.
const PASSES: u32 = 10;

/// Rules by which processes are traced that the user does not name.
#[derive(Debug, Default)]
pub(super) struct Rules {
    comms: Vec<String>,
    /// The control groups, as paths in /proc/PID/cgroup.
    groups: Vec<PathBuf>,
    all: bool,
}

impl Rules {
    pub(super) fn new(wanted: &Wanted) -> Result<Self, Error> {
        let groups: Result<Vec<PathBuf>, Error> =
            wanted.cgroups.iter().map(|path| cgroup::path(path)).collect();
        Ok(Self { comms: wanted.comms.clone(), groups: groups?, all: wanted.all })
    }

    /// Whether processes that start later may come under a rule.
    pub(super) fn is_open(&self) -> bool {
        self.all || !self.comms.is_empty() || !self.groups.is_empty()
    }

    fn takes(&self, pid: u32) -> bool {
        pid != std::process::id()
            && (self.all
                || (!self.comms.is_empty()
                    && proc::comm(pid).is_some_and(|comm| self.has_comm(&comm)))
                || (!self.groups.is_empty()
                    && proc::cgroup(pid).is_some_and(|group| self.has_group(&group))))
    }

    fn has_comm(&self, comm: &str) -> bool {
        self.comms.iter().any(|wanted| wanted == comm)
    }

    fn has_group(&self, group: &str) -> bool {
        self.groups.iter().any(|wanted| Path::new(group).starts_with(wanted))
    }

    /// Rules that no process matches yet, for the person at the terminal.
    pub(super) fn waiting<'a>(
        &self,
        processes: impl Iterator<Item = &'a Process> + Clone,
    ) -> Vec<String> {
        let mut notes = Vec::new();
        for comm in &self.comms {
            if !processes.clone().any(|process| process.comm == *comm) {
                notes
                    .push(format!("no process has the command name `{comm}` now: waiting for one"));
            }
        }
        for group in &self.groups {
            let is_in = |process: &Process| {
                process.cgroup.as_ref().is_some_and(|path| Path::new(path).starts_with(group))
            };
            if !processes.clone().any(is_in) {
                let group = group.display();
                notes.push(format!(
                    "no process is in the control group {group} now: waiting for one"
                ));
            }
        }
        notes
    }
}

/// The constants by which the programs follow processes.
pub(super) fn constants(
    wanted: &Wanted,
    children: bool,
    unwind: Unwind,
    config: Config,
) -> Result<Config, Error> {
    let follows = children || wanted.is_open();
    let task = match TaskLayout::of_running_kernel() {
        Ok(task) => task,
        // Named processes can be traced without.
        Err(_) if !follows => return Ok(config),
        Err(error) => return Err(error),
    };
    let mut follow = 0;
    if children {
        follow |= Follow::CHILDREN;
    }
    if wanted.all {
        follow |= Follow::ALL;
    }
    Ok(Config {
        task_tgid_offset: task.tgid_offset,
        task_mm_offset: task.mm_offset,
        areas: task.areas.map(|areas| tables::in_areas(unwind, areas)).unwrap_or_default(),
        task_signal_offset: task.signal_offset,
        signal_live_offset: task.live_offset,
        signal_flags_offset: task.flags_offset,
        signal_exec_offset: task.exec_offset.unwrap_or(0),
        follow,
        filter_comms: u32::from(!wanted.comms.is_empty()),
        filter_cgroups: u32::from(!wanted.cgroups.is_empty()),
        cgroups: filters::cgroup_tests(&wanted.cgroups)?,
        ..config
    })
}

impl Processes {
    /// Starts tracing all present processes that come under a rule.
    ///
    /// # Errors
    ///
    /// Fails when /proc cannot be read, or the kernel refuses a map update.
    pub(super) fn add_present(
        &mut self,
        rules: &Rules,
        loaded: &mut Loaded,
        collector: &mut Collector,
    ) -> Result<(), Error> {
        for _ in 0..PASSES {
            if self.add_untraced(rules, loaded, collector)?.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Corrects what the programs could not report: processes that got another command name or
    /// control group, and ends of processes that found no room in the ring.
    ///
    /// # Errors
    ///
    /// As for [`Processes::add_present`].
    pub(super) fn check(
        &mut self,
        rules: &Rules,
        loaded: &mut Loaded,
        collector: &mut Collector,
    ) -> Result<(), Error> {
        let gone: Vec<u32> =
            self.traced.keys().copied().filter(|pid| proc::comm(*pid).is_none()).collect();
        for pid in gone {
            self.ended(pid, collector);
        }
        for pid in self.add_untraced(rules, loaded, collector)? {
            self.came_late(pid);
        }
        Ok(())
    }

    fn add_untraced(
        &mut self,
        rules: &Rules,
        loaded: &mut Loaded,
        collector: &mut Collector,
    ) -> Result<Vec<u32>, Error> {
        let mut added = Vec::new();
        if !rules.is_open() {
            return Ok(added);
        }
        for pid in proc::all()? {
            if self.traced.contains_key(&pid)
                || !rules.takes(pid)
                || proc::check_traceable(pid).is_err()
            {
                continue;
            }
            match self.add(pid, false, loaded, collector) {
                Ok(true) => added.push(pid),
                Ok(false) => {}
                // It has ended.
                Err(Error::Usage(_)) => self.ended(pid, collector),
                Err(error) => {
                    self.failed.insert(pid, error::one_line(&error));
                }
            }
        }
        Ok(added)
    }

    /// Takes in an event of a process that the programs have reported.
    pub(super) fn take_in(
        &mut self,
        event: &Event,
        loaded: &mut Loaded,
        collector: &mut Collector,
    ) {
        const FORKED: u32 = EventKind::Forked as u32;
        const EXEC: u32 = EventKind::Exec as u32;
        const ENDED: u32 = EventKind::Ended as u32;
        const UNMAPPED: u32 = EventKind::Unmapped as u32;
        match event.kind {
            FORKED => self.forked(event, loaded, collector),
            EXEC => self.exec(event, loaded, collector),
            ENDED => {
                // Its number may be another's by now.
                let traced = self.traced.get(&event.tgid);
                if traced.is_some_and(|traced| traced.space == event.old_space) {
                    self.ended(event.tgid, collector);
                }
            }
            UNMAPPED => self.met_unmapped(event.tgid),
            _ => self.mapped(event.tgid),
        }
    }
}
