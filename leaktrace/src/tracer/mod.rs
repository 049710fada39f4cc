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
mod loader;
mod log;
mod mapped;
mod notes;
mod overhead;
mod pairs;
mod processes;
mod requested;
mod ring;
mod seccomp_guard;
mod step;
mod unseen;
mod user;
pub(crate) mod wait;

pub use self::step::{End, Step};
use self::{kernel::KernelTracer, user::UserTracer};
use crate::{
    collect::Wants,
    error::Error,
    host::features::HostFacts,
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
