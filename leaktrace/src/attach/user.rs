//! User probes: the allocator functions of one process.

use std::collections::BTreeMap;

use super::allocator::{Allocator, Probe};
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
    links: BTreeMap<u32, Vec<Link>>,
}

/// Programs for functions that throw.
struct Throwing {
    entry: MultiProgram,
    exit: MultiProgram,
}

enum Programs {
    Session { session: MultiProgram, free: MultiProgram, throwing: Throwing },
    Multi { entry: MultiProgram, returned: MultiProgram, free: MultiProgram, exit: MultiProgram },
    PerfEvent,
}

impl UserProbes {
    /// Loads the programs, and attaches those that follow execs and, if wanted, forks and system
    /// calls that map memory.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when the kernel refuses a program.
    pub fn new(loaded: &mut Loaded, way: Way, trace: &TraceOptions) -> Result<Self, Error> {
        loaded.attach_tracepoint(KernelProgram::Exec)?;
        if trace.children {
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
                    throwing: Throwing {
                        entry: loader.load("lt_entry", ATTACH_MULTI)?,
                        exit: loader.load("lt_exit", ATTACH_MULTI)?,
                    },
                }
            }
            Way::Multi => {
                let loader = loaded.multi_loader()?;
                Programs::Multi {
                    entry: loader.load("lt_entry", ATTACH_MULTI)?,
                    returned: loader.load("lt_return", ATTACH_MULTI)?,
                    free: loader.load("lt_free", ATTACH_MULTI)?,
                    exit: loader.load("lt_exit", ATTACH_MULTI)?,
                }
            }
        };
        Ok(Self { programs, links: BTreeMap::new() })
    }

    /// Attaches to an allocator in the object that can be read at `path`, for one process.
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
        let probes = |list: &[Probe]| -> Vec<(u64, u64)> {
            list.iter().map(|probe| (probe.offset, u64::from(probe.cookie))).collect()
        };
        let (allocating, freeing) = (probes(&allocator.allocating), probes(&allocator.freeing));
        let (throwing, exits) = (probes(&allocator.throwing), probes(&allocator.exits));
        let mut links = Vec::new();
        let mut link = |program: &MultiProgram, probes: &[(u64, u64)], at_return| {
            if probes.is_empty() {
                return Ok(());
            }
            let attached = program.attach(path, probes, pid, at_return);
            attached.map(|attached| links.push(attached)).map_err(|error| {
                if error.raw_os_error() == Some(libc::ESRCH) {
                    return Error::Usage(format!("process {pid} has ended"));
                }
                // Old bcc leaves a field of its probes to chance, and whoever comes next is
                // refused (ref_ctr_offset, kernel/events/uprobes.c, 6.18).
                let other = match error.raw_os_error() {
                    Some(libc::EINVAL) => " (do probes of another tracer stand there? see dmesg)",
                    _ => "",
                };
                Error::kernel(
                    format!("cannot attach to the allocator of process {pid}{other}"),
                    error,
                )
            })
        };
        // Frees first: an allocation seen without its free would look like a leak. Returns
        // before entries, so that no call is entered whose return is not watched.
        match &self.programs {
            Programs::Session { session, free, throwing: Throwing { entry, exit } } => {
                link(free, &freeing, false)?;
                link(exit, &exits, false)?;
                link(entry, &throwing, false)?;
                link(session, &allocating, false)?;
            }
            Programs::Multi { entry, returned, free, exit } => {
                link(free, &freeing, false)?;
                link(exit, &exits, false)?;
                link(entry, &throwing, false)?;
                link(returned, &allocating, true)?;
                link(entry, &allocating, false)?;
            }
            Programs::PerfEvent => {
                let all = [
                    ("lt_free", &freeing),
                    ("lt_exit", &exits),
                    ("lt_entry", &throwing),
                    ("lt_return", &allocating),
                    ("lt_entry", &allocating),
                ];
                for (program, probes) in all {
                    for probe in probes {
                        loaded.attach_uprobe(program, path, *probe, pid)?;
                    }
                }
            }
        }
        self.links.entry(pid).or_default().extend(links);
        Ok(())
    }

    /// Lets go of the links of a process that has ended; perf_event links stay until the end.
    pub fn detach(&mut self, pid: u32) {
        self.links.remove(&pid);
    }

    /// As [`Loaded::recursion_misses`], for the programs of multi links.
    pub fn recursion_misses(&self) -> BTreeMap<String, u64> {
        let programs: Vec<&MultiProgram> = match &self.programs {
            Programs::Session { session, free, throwing: Throwing { entry, exit } } => {
                vec![session, free, entry, exit]
            }
            Programs::Multi { entry, returned, free, exit } => vec![entry, returned, free, exit],
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
