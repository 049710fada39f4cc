//! Tracers: each one traces the kernel or some processes, and owns everything that this takes.
//!
//! A tracer starts from its part of the user's wishes, waits for events ([`Tracer::step`]), takes
//! snapshots, and ends. It knows neither when reports are due nor what becomes of its snapshots, so
//! that one loop can run several tracers.

mod budget;
mod constants;
mod filters;
mod follow;
mod growth;
mod kernel;
mod launch;
mod leave_out;
mod loader;
mod log;
mod mapped;
mod notes;
mod overhead;
mod pairs;
mod processes;
mod requested;
mod ring;
mod sanitizer;
mod scans;
mod seccomp_guard;
mod step;
mod unseen;
mod user;
pub(crate) mod wait;
mod watched;

use std::time::{Duration, Instant};

pub use self::step::{End, Step};
use self::{kernel::KernelTracer, user::UserTracer};
use crate::{
    collect::Wants,
    error::Error,
    host::features::HostFacts,
    reach::{Reach, Running},
    session::spec::{By, Target, TraceOptions, View},
    snapshot::{Counts, Snapshot},
};

/// A running tracer. Its probes are gone when it is dropped.
pub enum Tracer {
    /// Kernel allocations.
    Kernel(Box<KernelTracer>),
    /// User allocations, including those of a command that leaktrace has started.
    User(Box<UserTracer>),
}

impl Tracer {
    /// Starts tracing. The caller must be in the event loop. `note` takes lines for the person at
    /// the terminal.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for a target that cannot be traced; [`Error::Host`], [`Error::Refused`] and
    /// [`Error::Kernel`] where the host does not allow it.
    pub fn start(
        target: &Target,
        trace: &TraceOptions,
        facts: &HostFacts,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        Ok(match target {
            Target::Kernel { kinds, all_pages, filters } => Self::Kernel(Box::new(
                KernelTracer::start(kinds, *all_pages, filters, trace, note)?,
            )),
            Target::Processes(wanted) => {
                Self::User(Box::new(UserTracer::of_processes(wanted, trace, facts, note)?))
            }
            Target::Command { argv, .. } => {
                Self::User(Box::new(UserTracer::of_command(argv, trace, facts, note)?))
            }
        })
    }

    /// Waits for the next event of the traced target, and takes it in. The caller may drop the
    /// future while it waits, and call again.
    ///
    /// # Errors
    ///
    /// The kernel's error on reading the maps, or on waiting for the command.
    pub async fn step(&mut self) -> Result<Step, Error> {
        match self {
            Self::Kernel(tracer) => Ok(tracer.step().await),
            Self::User(tracer) => tracer.step().await,
        }
    }

    /// Takes a snapshot of what is outstanding now.
    ///
    /// # Errors
    ///
    /// The kernel's error on reading the maps.
    pub fn snapshot(&mut self, view: &View, is_final: bool) -> Result<Snapshot, Error> {
        let wants = Wants {
            is_final,
            older_ns: view.older.as_nanos() as u64,
            blocks: view.show_allocs,
            holders: view.by == By::Process,
        };
        match self {
            Self::Kernel(tracer) => tracer.snapshot(wants),
            Self::User(tracer) => tracer.snapshot(wants),
        }
    }

    /// The counters of all call sites now: cheap enough for every second.
    ///
    /// # Errors
    ///
    /// The kernel's error on reading the maps.
    pub fn sample(&mut self) -> Result<Counts, Error> {
        match self {
            Self::Kernel(tracer) => Ok(tracer.sample()),
            Self::User(tracer) => tracer.sample(),
        }
    }

    /// How long it takes to look through the traced memory for addresses of outstanding blocks;
    /// `None` if that is not to be done.
    pub fn scan_time(&self) -> Option<Duration> {
        match self {
            Self::Kernel(_) => None,
            Self::User(tracer) => tracer.scan_time(),
        }
    }

    /// Begins to look through the traced memory, in a thread of its own, for what the final snapshot
    /// is to say of it; does nothing if that has begun or is not to be done. After `until`, nothing
    /// is begun that can be left out. Returns a line for the person at the terminal.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when no descriptor is left.
    pub fn begin_scans(&mut self, until: Option<Instant>) -> Result<Option<String>, Error> {
        match self {
            Self::Kernel(_) => Ok(None),
            Self::User(tracer) => tracer.begin_scans(until),
        }
    }

    /// Begins to look through the memory of a command that is at its exit, as
    /// [`Self::begin_scans`] does.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when no descriptor is left.
    pub fn begin_exit_scan(&mut self) -> Result<(), Error> {
        match self {
            Self::Kernel(_) => Ok(()),
            Self::User(tracer) => tracer.begin_exit_scan(),
        }
    }

    /// Lets a command end that is at its exit.
    pub fn let_go(&mut self) {
        match self {
            Self::Kernel(_) => {}
            Self::User(tracer) => tracer.let_go(),
        }
    }

    /// Has the scans that have begun end soon, without verdicts.
    pub fn skip_scans(&self) {
        match self {
            Self::Kernel(_) => {}
            Self::User(tracer) => tracer.scans.skip(),
        }
    }

    /// Takes out the scans that have begun, to wait for their end.
    pub fn take_scans(&mut self) -> Option<Running> {
        match self {
            Self::Kernel(_) => None,
            Self::User(tracer) => tracer.scans.take(),
        }
    }

    /// Gives back what scans have found, for the final snapshot.
    pub fn give_scans(&mut self, found: Reach) {
        match self {
            Self::Kernel(_) => {}
            Self::User(tracer) => tracer.scans.give(found),
        }
    }

    /// Passes a signal on to the command that leaktrace has started; the command's end is then the
    /// tracer's. Returns false if there is no command.
    pub fn forward(&self, signal: i32) -> bool {
        match self {
            Self::Kernel(_) => false,
            Self::User(tracer) => tracer.forward(signal),
        }
    }

    /// Releases everything. `note` takes the last lines for the person at the terminal.
    pub fn end(self, note: &mut dyn FnMut(&str)) {
        match self {
            Self::Kernel(tracer) => tracer.end(note),
            Self::User(tracer) => tracer.end(note),
        }
    }
}
