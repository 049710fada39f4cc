//! User probes: the allocator functions of one process, or of all that map an object.

use std::{collections::BTreeMap, io};

use leaktrace_common::STEPPED;

pub use super::price::Prices;
use super::{
    allocator::{Allocator, Probe},
    price::{self, Ground},
};
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
    /// A perf_event link for each probe, which takes some 130 ms to detach.
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
    /// The links of each process; those for all processes under 0.
    links: BTreeMap<u32, Vec<Link>>,
    /// What a trap costs; measured where there is a budget.
    prices: Option<Prices>,
    kept: Kept,
}

/// Which probes are attached, or would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    All,
    Frees,
    None,
}

/// The program that is attached to each freeing function by a link of its own.
const FREE: &str = "lt_free";
const ENTRY: &str = "lt_entry";
const RETURN: &str = "lt_return";
const EXIT: &str = "lt_returning";

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

/// Loads every program that tracing processes needs, and attaches none.
///
/// # Errors
///
/// [`Error::Refused`] when the kernel does not load a program.
pub fn load(loaded: &mut Loaded, way: Way) -> Result<(), Error> {
    use KernelProgram::{
        Exec, ExecAgain, Exit, ExitAgain, Fork, ForkAgain, SyscallEnter, SyscallEnterAgain,
        SyscallExit, SyscallExitAgain,
    };
    for program in [Exit, ExitAgain, Exec, ExecAgain, Fork, ForkAgain, SyscallEnter, SyscallExit] {
        loaded.load_tracepoint(program)?;
    }
    for program in [SyscallEnterAgain, SyscallExitAgain] {
        loaded.load_again(program)?;
    }
    Programs::load(loaded, way).map(drop)
}

impl UserProbes {
    /// Loads the programs. Attaches those that follow the execs and ends of processes and, if
    /// wanted, forks and system calls that map memory.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] or [`Error::Kernel`] when the kernel refuses a program.
    pub fn new(
        loaded: &mut Loaded,
        way: Way,
        trace: &TraceOptions,
        follows: bool,
    ) -> Result<Self, Error> {
        // Ends before beginnings: an end that is not told leaves a process behind.
        loaded.attach_tracepoint(KernelProgram::Exit)?;
        loaded.attach_tracepoint(KernelProgram::ExitAgain)?;
        loaded.attach_tracepoint(KernelProgram::Exec)?;
        loaded.attach_tracepoint(KernelProgram::ExecAgain)?;
        if follows {
            loaded.attach_tracepoint(KernelProgram::Fork)?;
            loaded.attach_tracepoint(KernelProgram::ForkAgain)?;
        }
        if trace.user_kinds.mmap {
            // What takes memory away first.
            loaded.attach_tracepoint(KernelProgram::SyscallEnter)?;
            loaded.attach_again(KernelProgram::SyscallEnterAgain)?;
            loaded.attach_tracepoint(KernelProgram::SyscallExit)?;
            loaded.attach_again(KernelProgram::SyscallExitAgain)?;
        }
        // Without it (before 5.7) new mappings are noticed by the first stack that meets one.
        if loaded.attach_tracepoint(KernelProgram::Mapped).is_ok() {
            loaded.attach_again(KernelProgram::MappedAgain)?;
        }
        let programs = Programs::load(loaded, way)?;
        let prices = match trace.max_overhead_ppm {
            Some(_) => Some(programs.prices(loaded)?),
            None => None,
        };
        Ok(Self { programs, links: BTreeMap::new(), prices, kept: Kept::All })
    }

    /// What a trap costs, where there is a budget.
    pub fn prices(&self) -> Option<Prices> {
        self.prices
    }

    /// Removes the probes of allocating functions for good; those of frees stay.
    pub fn keep_frees(&mut self, loaded: &mut Loaded) {
        self.kept = Kept::Frees;
        for links in self.links.values_mut() {
            links.retain(|link| link.program() == FREE);
        }
        if matches!(self.programs, Programs::PerfEvent) {
            // Entries first, so that no call is entered whose return is not watched.
            loaded.detach_uprobe(ENTRY);
            loaded.detach_uprobe(RETURN);
            loaded.detach_uprobe(EXIT);
        }
    }

    /// Removes all probes for good.
    pub fn keep_none(&mut self, loaded: &mut Loaded) {
        self.keep_frees(loaded);
        self.kept = Kept::None;
        self.links.clear();
        if matches!(self.programs, Programs::PerfEvent) {
            loaded.detach_uprobe(FREE);
        }
    }

    /// Run time of the programs in nanoseconds, while the kernel measures it.
    pub fn run_time_ns(&self, loaded: &Loaded) -> u64 {
        match &self.programs {
            Programs::Session { session, free, throwing: Throwing { entry, exit } } => {
                [session, free, entry, exit].into_iter().map(MultiProgram::run_time_ns).sum()
            }
            Programs::Multi { entry, returned, free, exit } => {
                [entry, returned, free, exit].into_iter().map(MultiProgram::run_time_ns).sum()
            }
            Programs::PerfEvent => {
                let names = [ENTRY, RETURN, FREE, EXIT];
                names.into_iter().map(|name| loaded.uprobe_run_time_ns(name)).sum()
            }
        }
    }

    /// Attaches to an allocator in the object that can be read at `path`: for one process or, if
    /// `pid` is 0, for all processes that map the object, now and later.
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
        if self.kept == Kept::None {
            return Ok(());
        }
        let cookie = |probe: &Probe| match probe.single_steps {
            true => u64::from(probe.cookie) | STEPPED,
            false => u64::from(probe.cookie),
        };
        let probes = |list: &[Probe]| -> Vec<(u64, u64)> {
            list.iter().map(|probe| (probe.offset, cookie(probe))).collect()
        };
        let (allocating, freeing) = (probes(&allocator.allocating), probes(&allocator.freeing));
        let (throwing, exits) = (probes(&allocator.throwing), probes(&allocator.exits));
        let [allocating, throwing, exits] = match self.kept {
            Kept::All => [allocating, throwing, exits],
            Kept::Frees | Kept::None => Default::default(),
        };
        let mut links = Vec::new();
        let mut link = |program: &MultiProgram, probes: &[(u64, u64)], at_return| {
            // Nothing to attach is no link: the kernel refuses those.
            if probes.is_empty() {
                return Ok(());
            }
            let attached = program.attach(path, probes, pid, at_return);
            attached
                .map(|attached| links.push(attached))
                .map_err(|error| refused("an allocator", pid, error))
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
                    (FREE, &freeing),
                    (EXIT, &exits),
                    (ENTRY, &throwing),
                    (RETURN, &allocating),
                    (ENTRY, &allocating),
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

    /// Drops the links of a process that has ended; perf_event links stay until the session ends.
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

/// The error for a link of multi or session programs that the kernel refuses.
pub(super) fn refused(what: &str, pid: u32, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ESRCH) => Error::Usage(format!("process {pid} has ended")),
        // alloc_uprobe, kernel/events/uprobes.c, 6.1 and 6.18.
        Some(libc::EINVAL) => Error::Host(format!(
            "cannot attach to {what}: another tracer (bcc, bpftrace) has a probe there that the \
             kernel cannot share (its log says `ref_ctr_offset mismatch`): end that tracer, then \
             try again"
        )),
        _ => Error::kernel(format!("cannot attach to {what}"), error),
    }
}

impl Programs {
    fn load(loaded: &mut Loaded, way: Way) -> Result<Self, Error> {
        Ok(match way {
            Way::PerfEvent => {
                for name in [FREE, ENTRY, RETURN, EXIT] {
                    loaded.load_uprobe(name)?;
                }
                Self::PerfEvent
            }
            Way::Session => {
                let loader = loaded.multi_loader()?;
                Self::Session {
                    session: loader.load("lt_session", ATTACH_SESSION)?,
                    free: loader.load(FREE, ATTACH_MULTI)?,
                    throwing: Throwing {
                        entry: loader.load(ENTRY, ATTACH_MULTI)?,
                        exit: loader.load(EXIT, ATTACH_MULTI)?,
                    },
                }
            }
            Way::Multi => {
                let loader = loaded.multi_loader()?;
                Self::Multi {
                    entry: loader.load(ENTRY, ATTACH_MULTI)?,
                    returned: loader.load(RETURN, ATTACH_MULTI)?,
                    free: loader.load(FREE, ATTACH_MULTI)?,
                    exit: loader.load(EXIT, ATTACH_MULTI)?,
                }
            }
        })
    }

    /// Measures what a trap costs, by probes on functions of leaktrace's own.
    fn prices(&self, loaded: &mut Loaded) -> Result<Prices, Error> {
        let Ground { path, pid, emulated, stepped } = Ground::here()?;
        let mut with_probe = |name, offset, measure: fn() -> u64| -> Result<u64, Error> {
            let (free, at_return) = match self {
                Self::Session { free, .. } | Self::Multi { free, .. } => (free, name == RETURN),
                Self::PerfEvent => {
                    // It stays, on a function that is not called again.
                    loaded.attach_uprobe(name, path, (offset, 0), pid)?;
                    return Ok(measure());
                }
            };
            let returned = match at_return {
                true => Some(loaded.multi_loader()?.load(RETURN, ATTACH_MULTI)?),
                false => None,
            };
            let program = returned.as_ref().unwrap_or(free);
            let _link = program
                .attach(path, &[(offset, 0)], pid, at_return)
                .map_err(|error| Error::kernel("cannot measure what a probe costs", error))?;
            Ok(measure())
        };
        let emulated_ns = with_probe(FREE, emulated, price::emulated_ns)?;
        let stepped_ns = with_probe(FREE, stepped, price::stepped_ns)?;
        let both_ns = with_probe(RETURN, emulated, price::emulated_ns)?;
        Ok(Prices { emulated_ns, stepped_ns, return_ns: both_ns.saturating_sub(emulated_ns) })
    }
}
