//! User probes: the allocator functions of one process, or of all that map an object.

use std::collections::BTreeMap;

use leaktrace_common::AllocFunction;

use super::allocator::Allocator;
use crate::{
    bpf::{
        Loaded,
        multi::{ATTACH_MULTI, ATTACH_SESSION, Link, MultiProgram},
        object::KernelProgram,
    },
    error::Error,
    host::features::HostFacts,
    session::spec::TraceOptions,
};

/// How uprobes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One link for entries and returns of all functions (from 6.13).
    Session,
    /// One link for all entries, one for all returns (from 6.6).
    Multi,
    /// A perf_event link for each probe: slow to detach, some 130 ms each.
    PerfEvent,
}

impl Way {
    /// The best way that this host allows.
    pub fn best(facts: &HostFacts) -> Self {
        // Session links carry the allocating functions; frees always need a multi link.
        match (facts.uprobe_multi.is_yes(), facts.session.is_yes()) {
            (true, true) => Self::Session,
            (true, false) => Self::Multi,
            (false, _) => Self::PerfEvent,
        }
    }
}

/// The probes of all traced processes; detaches when dropped.
pub struct UserProbes {
    programs: Programs,
    /// By process; those of all processes under 0.
    links: BTreeMap<u32, Vec<Link>>,
}

enum Programs {
    Session { session: MultiProgram, free: MultiProgram },
    Multi { entry: MultiProgram, returned: MultiProgram, free: MultiProgram },
    PerfEvent,
}

impl UserProbes {
    /// Loads the programs, and attaches those that follow execs and ends of processes and, if
    /// wanted, forks and system calls that map memory.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when the kernel refuses a program.
    pub fn new(
        loaded: &mut Loaded,
        way: Way,
        trace: &TraceOptions,
        follows: bool,
    ) -> Result<Self, Error> {
        // Ends before beginnings: an end that is not told leaves a process behind.
        loaded.attach_tracepoint(KernelProgram::Exit)?;
        loaded.attach_tracepoint(KernelProgram::Exec)?;
        if follows {
            loaded.attach_tracepoint(KernelProgram::Fork)?;
        }
        if trace.user_kinds.mmap {
            // What takes memory away first.
            loaded.attach_tracepoint(KernelProgram::SyscallEnter)?;
            loaded.attach_tracepoint(KernelProgram::SyscallExit)?;
        }
        // Without it (before 5.7) new mappings are noticed by the first stack that meets one.
        let _ = loaded.attach_tracepoint(KernelProgram::Mapped);
        let programs = match way {
            Way::PerfEvent => Programs::PerfEvent,
            Way::Session => {
                let loader = loaded.multi_loader()?;
                Programs::Session {
                    session: loader.load("lt_session", ATTACH_SESSION)?,
                    free: loader.load("lt_free", ATTACH_MULTI)?,
                }
            }
            Way::Multi => {
                let loader = loaded.multi_loader()?;
                Programs::Multi {
                    entry: loader.load("lt_entry", ATTACH_MULTI)?,
                    returned: loader.load("lt_return", ATTACH_MULTI)?,
                    free: loader.load("lt_free", ATTACH_MULTI)?,
                }
            }
        };
        Ok(Self { programs, links: BTreeMap::new() })
    }

    /// Attaches to an allocator in the object that can be read at `path`, for one process, or for
    /// all that map the object, now and later, if `pid` is 0.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when the process is gone, [`Error::Kernel`] for any other refusal.
    pub fn attach(
        &mut self,
        loaded: &mut Loaded,
        path: &str,
        allocator: &Allocator,
        pid: u32,
    ) -> Result<(), Error> {
        let probes = |list: &[(u64, AllocFunction)]| -> Vec<(u64, u64)> {
            list.iter().map(|(offset, function)| (*offset, *function as u64)).collect()
        };
        let (allocating, freeing) = (probes(&allocator.allocating), probes(&allocator.freeing));
        let link = |program: &MultiProgram, probes: &[(u64, u64)], at_return| {
            program.attach(path, probes, pid, at_return).map_err(|error| {
                if error.raw_os_error() == Some(libc::ESRCH) {
                    return Error::Usage(format!("process {pid} has ended"));
                }
                Error::kernel("cannot attach to an allocator", error)
            })
        };
        // Frees first: an allocation seen without its free would look like a leak. Returns
        // before entries, so that no call is entered whose return is not watched.
        let links = self.links.entry(pid).or_default();
        match &self.programs {
            Programs::Session { session, free } => {
                links.push(link(free, &freeing, false)?);
                links.push(link(session, &allocating, false)?);
            }
            Programs::Multi { entry, returned, free } => {
                links.push(link(free, &freeing, false)?);
                links.push(link(returned, &allocating, true)?);
                links.push(link(entry, &allocating, false)?);
            }
            Programs::PerfEvent => {
                let all =
                    [("lt_free", &freeing), ("lt_return", &allocating), ("lt_entry", &allocating)];
                for (program, probes) in all {
                    for probe in probes {
                        loaded.attach_uprobe(program, path, *probe, pid)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Lets go of the links of a process that has ended; perf_event links stay until the end.
    pub fn detach(&mut self, pid: u32) {
        self.links.remove(&pid);
    }

    /// As [`Loaded::recursion_misses`], for the programs of multi links.
    pub fn recursion_misses(&self) -> BTreeMap<String, u64> {
        let programs: Vec<&MultiProgram> = match &self.programs {
            Programs::Session { session, free } => vec![session, free],
            Programs::Multi { entry, returned, free } => vec![entry, returned, free],
            Programs::PerfEvent => Vec::new(),
        };
        programs
            .into_iter()
            .filter_map(|program| {
                let misses = program.recursion_misses()?;
                (misses > 0).then(|| (program.name().to_owned(), misses))
            })
            .collect()
    }
}
