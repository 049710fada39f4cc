//! Keeps probes away from processes under seccomp, on kernels that kill these processes at return
//! probes (`host::seccomp`).
//!
//! On such a kernel leaktrace refuses to probe a process with a thread under seccomp. It also
//! refuses probes that serve all processes that map a file, as a process under seccomp may map the
//! file at any time. It cannot protect a process that installs a filter while it is traced, as the
//! process' next call hits a probe before leaktrace knows. leaktrace warns of that before it sets a
//! probe.

use crate::{
    error::Error,
    host::{answer::Answer, doctor::SECCOMP_MEND, proc, seccomp},
    session::spec::{TraceOptions, Wanted},
};

/// Kernels whose return probes make a system call; some of them have the fix. The release alone
/// decides only whether a return probe is tried where nothing else asks for the trial.
const SUSPECTS: [&str; 3] = ["6.11", "6.12", "6.13"];

/// Whether return probes are safe for processes under seccomp.
pub(super) struct SeccompGuard {
    /// Whether the kernel kills processes under seccomp at return probes.
    kills: bool,
}

const KILLS: &str = "this kernel kills such processes at return probes";

/// The processes that return probes may hit.
struct Reach {
    /// Whether any process may hit them.
    everybody: bool,
    /// Process IDs under seccomp, of the processes that may hit them.
    filtered: Vec<u32>,
    /// Whether the kernel's release is one of [`SUSPECTS`].
    suspected: bool,
}

impl SeccompGuard {
    /// Tries a return probe where it matters. `command` is the command that leaktrace has started.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] where probes would kill a process.
    pub(super) fn new(
        trace: &TraceOptions,
        wanted: &Wanted,
        command: Option<u32>,
        release: &str,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        if !trace.user_kinds.malloc && trace.pairs.is_empty() {
            return Ok(Self { kills: false });
        }
        // With a budget, probes of leaktrace itself tell what they cost.
        let own = trace.max_overhead_ppm.map(|_| std::process::id());
        let pids = wanted.pids.iter().copied().chain(command).chain(own);
        let reach = Reach {
            everybody: wanted.is_open() || trace.children,
            filtered: pids.filter(|pid| seccomp::is_filtered(*pid)).collect(),
            suspected: SUSPECTS.iter().any(|start| {
                release.strip_prefix(start).is_some_and(|rest| !rest.starts_with(char::is_numeric))
            }),
        };
        let kills = decide(&reach, seccomp::return_probes)?;
        if kills {
            note(&format!(
                "this kernel kills a process that comes under a seccomp filter while its \
                 allocations are traced; {SECCOMP_MEND}"
            ));
        }
        Ok(Self { kills })
    }

    /// Refuses a process that has come under seccomp since the start.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] where probes would kill the process.
    pub(super) fn check(&self, pid: u32) -> Result<(), Error> {
        match self.kills && seccomp::is_filtered(pid) {
            true => Err(refusal_of(pid, KILLS)),
            false => Ok(()),
        }
    }
}

/// Whether the kernel kills processes that come under seccomp later.
fn decide(reach: &Reach, try_one: impl FnOnce() -> Answer) -> Result<bool, Error> {
    if !reach.everybody && reach.filtered.is_empty() && !reach.suspected {
        return Ok(false);
    }
    let refuse = |why: &str| match reach.filtered.first() {
        _ if reach.everybody => Err(Error::Host(format!(
            "--all, --comm, --cgroup and --children set probes that processes under a seccomp \
             filter may meet, and {why}: {SECCOMP_MEND}, or trace processes without such filters \
             by -p"
        ))),
        Some(pid) => Err(refusal_of(*pid, why)),
        None => Ok(true),
    };
    match try_one() {
        Answer::Yes => Ok(false),
        Answer::No(_) => refuse(KILLS),
        Answer::Unknown(why) => refuse(&format!(
            "whether this kernel kills such processes at return probes is unknown ({why})"
        )),
    }
}

fn refusal_of(pid: u32, why: &str) -> Error {
    Error::Host(format!(
        "process {pid} ({}) is under a seccomp filter, and {why}: {SECCOMP_MEND}",
        proc::comm(pid).unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(everybody: bool, filtered: &[u32], suspected: bool) -> Reach {
        Reach { everybody, filtered: filtered.to_vec(), suspected }
    }

    fn kills() -> Answer {
        Answer::No("it kills".into())
    }

    #[test]
    fn nothing_is_tried_for_processes_without_filters() {
        assert!(!decide(&reach(false, &[], false), || panic!("it was tried")).unwrap());
    }

    #[test]
    fn nobody_is_killed() {
        let all = decide(&reach(true, &[], false), kills).unwrap_err().to_string();
        assert!(all.contains("--all") && all.contains("6.14"), "{all}");
        let own = std::process::id();
        let one = decide(&reach(false, &[own], true), kills).unwrap_err().to_string();
        assert!(one.contains(&format!("process {own} (")) && one.contains("6.14"), "{one}");
        // Who has none yet may be traced, and is told.
        assert!(decide(&reach(false, &[], true), kills).unwrap());
    }

    #[test]
    fn what_is_harmless_is_allowed() {
        for reach in [reach(true, &[1], true), reach(false, &[1], false)] {
            assert!(!decide(&reach, || Answer::Yes).unwrap());
        }
    }

    #[test]
    fn what_cannot_be_tried_is_not_done() {
        let unknown = || Answer::Unknown("no answer".into());
        let all = decide(&reach(true, &[], false), unknown).unwrap_err().to_string();
        assert!(all.contains("no answer"), "{all}");
    }
}
