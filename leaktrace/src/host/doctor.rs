//! Tells from facts about the host what leaktrace can do on it, what is lost, and how to mend that.

use std::io::{self, Write};

use serde::Serialize;

use super::{
    answer::Answer,
    features::{Capabilities, Capability, HostFacts, Trials},
};

/// How well the host meets one need of tracing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Everything is there.
    Ok,
    /// Tracing works, but something is lost.
    Degraded,
    /// What `lost` names does not work.
    Missing,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Missing => "missing",
        }
    }
}

/// One need of tracing, checked on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// How well the host meets the need.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What does not work because of the finding; empty if all is well.
    pub lost: &'static str,
    /// How to mend the finding; empty if all is well.
    pub mend: &'static str,
    /// The modes that cannot work without what was checked.
    #[serde(skip)]
    needed_by: Modes,
}

/// The modes of tracing that have a need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Modes {
    None,
    Kernel,
    User,
    Both,
}

/// Which modes of tracing work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// `leaktrace kernel`.
    pub kernel_mode: bool,
    /// `leaktrace user` and `leaktrace run`.
    pub user_mode: bool,
}

impl Verdict {
    /// The verdict that follows from the checks.
    pub fn of(checks: &[Check]) -> Self {
        let works = |mode| {
            !checks.iter().any(|check| {
                check.status == Status::Missing
                    && (check.needed_by == mode || check.needed_by == Modes::Both)
            })
        };
        Self { kernel_mode: works(Modes::Kernel), user_mode: works(Modes::User) }
    }
}

/// How to mend a kernel that kills processes under seccomp at return probes.
pub const SECCOMP_MEND: &str = "use Linux 6.14 or newer, or a stable kernel with its fix `seccomp: \
                                passthrough uretprobe systemcall without filtering`";
const AS_ROOT: &str = "run leaktrace as root";

/// What to say if something is not there.
struct Want {
    name: &'static str,
    needed_by: Modes,
    lost: &'static str,
    mend: &'static str,
}

impl Want {
    fn check(self, status: Status, detail: impl Into<String>) -> Check {
        let is_ok = status == Status::Ok;
        let unless_ok = |text| if is_ok { "" } else { text };
        Check {
            name: self.name,
            status,
            detail: detail.into(),
            lost: unless_ok(self.lost),
            mend: unless_ok(self.mend),
            needed_by: self.needed_by,
        }
    }

    /// Makes the check. If something is missing, the status follows from the modes that need it.
    fn of(self, is_there: bool, detail: impl Into<String>) -> Check {
        let status = match (is_there, self.needed_by) {
            (true, _) => Status::Ok,
            (false, Modes::None) => Status::Degraded,
            (false, _) => Status::Missing,
        };
        self.check(status, detail)
    }

    /// As [`Want::of`], for an answer. What the kernel refuses to an ordinary user, root may have.
    fn tried(mut self, answer: &Answer, is_root: bool, works: &str) -> Check {
        let detail = match answer {
            Answer::Yes => works.to_owned(),
            Answer::No(why) | Answer::Unknown(why) if is_root => why.clone(),
            Answer::No(why) | Answer::Unknown(why) => format!("needs root ({why})"),
        };
        if !is_root {
            self.mend = AS_ROOT;
        }
        self.of(answer.is_yes(), detail)
    }
}

/// Checks everything that tracing wants.
pub fn checks(facts: &HostFacts, trials: &Trials) -> Vec<Check> {
    let mut checks = vec![root(facts)];
    checks.extend(kernel(facts));
    checks.extend(trials_of(facts, trials));
    checks.extend(uprobes(facts));
    checks.extend(restrictions(facts));
    checks
}

fn root(facts: &HostFacts) -> Check {
    let covered = facts.capabilities.has(Capability::SysAdmin);
    let has = |capability| {
        facts.capabilities.has(capability)
            || covered && matches!(capability, Capability::Bpf | Capability::Perfmon)
    };
    let lacking: Vec<&str> =
        Capability::ALL.into_iter().filter(|one| !has(*one)).map(Capability::name).collect();
    let can_load = can_load(facts.capabilities);
    let want = Want {
        name: "privileges",
        needed_by: Modes::Both,
        lost: match (can_load, has(Capability::SysPtrace)) {
            (false, _) => "everything: programs cannot be loaded and attached",
            (true, false) => "processes of other users: their mappings cannot be read",
            (true, true) => {
                "nothing from kernel 5.11 on; before it, maps whose memory cannot be locked"
            }
        },
        mend: match facts.is_root {
            true => "give leaktrace's container or service these capabilities",
            false => AS_ROOT,
        },
    };
    if lacking.is_empty() {
        let who = if facts.is_root { "root" } else { "not root" };
        return want.check(Status::Ok, format!("{who}, with all capabilities that tracing needs"));
    }
    let detail = match facts.is_root {
        true => format!("root without {}", lacking.join(", ")),
        false => format!("needs root; lacking {}", lacking.join(", ")),
    };
    want.check(if can_load { Status::Degraded } else { Status::Missing }, detail)
}

/// `CAP_SYS_ADMIN` covers `CAP_BPF` and `CAP_PERFMON`.
fn can_load(capabilities: Capabilities) -> bool {
    capabilities.has(Capability::SysAdmin)
        || capabilities.has(Capability::Bpf) && capabilities.has(Capability::Perfmon)
}

fn kernel(facts: &HostFacts) -> [Check; 5] {
    let release = Want {
        name: "kernel release",
        needed_by: Modes::None,
        lost: "nothing known",
        mend: "mount /proc",
    };
    let btf = Want {
        name: "BTF",
        needed_by: Modes::Kernel,
        lost: "kernel mode: the tracepoints' arguments and cache names cannot be found",
        mend: "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, and mount /sys",
    };
    let programs = Want {
        name: "raw tracepoint programs",
        needed_by: Modes::Both,
        lost: "everything: processes and allocations are followed with them",
        mend: "use a kernel from 4.17 on with CONFIG_BPF_SYSCALL=y and CONFIG_BPF_EVENTS=y",
    };
    let tracepoints = Want {
        name: "slab tracepoints",
        needed_by: Modes::Kernel,
        lost: "kernel mode: kmalloc and slab caches cannot be traced",
        mend: "use a kernel with CONFIG_TRACEPOINTS=y and CONFIG_BPF_EVENTS=y",
    };
    let fentry = Want {
        name: "fentry",
        needed_by: Modes::None,
        lost: if facts.has_kprobe {
            "sight of kmem_cache_alloc_bulk: objects allocated through it are in no figure; kprobes \
             take its place for the rest"
        } else {
            "sight of kmem_cache_free_bulk: objects freed through it still look outstanding; of \
             kmem_cache_alloc_bulk: objects allocated through it are in no figure; and kfree_rcu is \
             seen some seconds late"
        },
        mend: "use a kernel with CONFIG_FUNCTION_TRACER=y and CONFIG_DEBUG_INFO_BTF=y",
    };
    let is_root = facts.is_root;
    [
        release.of(!facts.kernel_release.is_empty(), facts.kernel_release.clone()),
        btf.of(
            facts.has_btf,
            if facts.has_btf { "/sys/kernel/btf/vmlinux" } else { "no /sys/kernel/btf/vmlinux" },
        ),
        programs.tried(&facts.raw_tracepoint, is_root, "they load"),
        tracepoints.tried(&facts.slab_tracepoints, is_root, "programs can be attached"),
        fentry.tried(&facts.fentry, is_root, "programs can be attached"),
    ]
}

fn trials_of(facts: &HostFacts, trials: &Trials) -> [Check; 3] {
    let want = |name, needed_by, lost| Want {
        name,
        needed_by,
        lost,
        mend: "use a kernel from 5.15 on, and see `privileges` and `lockdown`",
    };
    let kernel = want("kernel mode's programs", Modes::Kernel, "kernel mode");
    let user = want("user mode's programs", Modes::User, "user mode, and `leaktrace run`");
    let returns = Want {
        name: "return probes under seccomp",
        needed_by: Modes::None,
        lost: "user mode for processes under a seccomp filter, and --all, --comm, --cgroup and \
               --children, whose probes such processes may meet",
        mend: SECCOMP_MEND,
    };
    [
        kernel.tried(&trials.kernel, facts.is_root, "they load"),
        user.tried(&trials.user, facts.is_root, "they load"),
        returns.tried(&trials.return_probes, facts.is_root, "such processes survive them"),
    ]
}

fn uprobes(facts: &HostFacts) -> [Check; 5] {
    let uprobe = Want {
        name: "uprobes",
        needed_by: Modes::User,
        lost: "user mode: allocator functions of processes cannot be traced",
        mend: "use a kernel with CONFIG_UPROBE_EVENTS=y, and mount /sys",
    };
    let multi = Want {
        name: "uprobe_multi links",
        needed_by: Modes::None,
        lost: "quick detaching: each probe is a link of its own, which takes some 130 ms to detach",
        mend: "use a kernel from 6.10 on",
    };
    let session = Want {
        name: "uprobe session links",
        needed_by: Modes::None,
        lost: "some speed: entries and returns of allocating functions are probed apart",
        mend: "use a kernel from 6.13 on",
    };
    let records = Want {
        name: "records of mappings",
        needed_by: Modes::None,
        lost: "names in stacks of commands and children that end at once, before /proc is read",
        mend: "use a kernel with CONFIG_PERF_EVENTS=y, and give leaktrace CAP_PERFMON",
    };
    let libc = Want {
        name: "libc",
        needed_by: Modes::None,
        lost: "nothing, if the traced processes have a libc of their own: theirs is what counts",
        mend: "trace processes that are linked dynamically",
    };
    let is_root = facts.is_root;
    [
        uprobe.of(
            facts.has_uprobe,
            if facts.has_uprobe { "the kernel has them" } else { "no perf event source `uprobe`" },
        ),
        multi.tried(&facts.uprobe_multi, is_root, "one link for all entries"),
        session.tried(&facts.session, is_root, "one link for entries and returns"),
        records.tried(&facts.records, is_root, "the kernel tells of them"),
        libc.of(
            facts.libc.is_some(),
            facts.libc.clone().unwrap_or_else(|| "no process maps one that can be read".to_owned()),
        ),
    ]
}

fn restrictions(facts: &HostFacts) -> [Check; 6] {
    let kprobe = Want {
        name: "kprobes",
        needed_by: Modes::None,
        lost: "vmalloc's callers and the bytes asked for: its address areas are traced instead; \
               and what stands in for fentry where that is refused",
        mend: "use a kernel with CONFIG_KPROBE_EVENTS=y",
    };
    let lockdown = Want {
        name: "lockdown",
        needed_by: Modes::Both,
        lost: "everything: programs may not read kernel memory",
        mend: "boot without lockdown=confidentiality",
    };
    let pointers = Want {
        name: "kptr_restrict",
        needed_by: Modes::None,
        lost: "names of kernel functions: stacks show addresses",
        mend: "sysctl kernel.kptr_restrict=1, and run leaktrace as root",
    };
    let paranoid = Want {
        name: "perf_event_paranoid",
        needed_by: Modes::None,
        lost: "uprobes, where leaktrace has no CAP_PERFMON",
        mend: AS_ROOT,
    };
    let slabinfo = Want {
        name: "/proc/slabinfo",
        needed_by: Modes::None,
        lost: "the comparison of outstanding blocks with the kernel's own count of each slab cache",
        mend: if facts.is_root { "use a kernel with CONFIG_SLUB_DEBUG=y" } else { AS_ROOT },
    };
    let lines = Want {
        name: "kernel debug information",
        needed_by: Modes::None,
        lost: "file, line and inlined functions of the kernel's own functions; those of a module \
               need its file only",
        mend: "install the debug package of this kernel (Debian: linux-image-RELEASE-dbg), or name \
               a folder with its vmlinux with --debug-dir",
    };
    // 1 hides addresses from those without CAP_SYSLOG, 2 from everyone.
    let shows_pointers = match facts.kptr_restrict {
        Some(0) | None => true,
        Some(1) => facts.is_root,
        Some(_) => false,
    };
    let may_perf = can_load(facts.capabilities)
        || facts.capabilities.has(Capability::Perfmon)
        || facts.perf_event_paranoid.is_none_or(|level| level < 0);
    let shown =
        |value: Option<i32>| value.map_or("cannot be read".to_owned(), |value| value.to_string());
    let mode = facts.lockdown.as_deref().unwrap_or("none");
    [
        kprobe.of(
            facts.has_kprobe,
            if facts.has_kprobe { "the kernel has them" } else { "no perf event source `kprobe`" },
        ),
        lockdown.of(mode != "confidentiality", mode),
        pointers.of(shows_pointers, shown(facts.kptr_restrict)),
        paranoid.of(may_perf, shown(facts.perf_event_paranoid)),
        slabinfo.of(
            facts.has_slabinfo,
            if facts.has_slabinfo { "it can be read" } else { "it cannot be read" },
        ),
        lines.of(
            facts.vmlinux.is_some(),
            facts
                .vmlinux
                .as_ref()
                .map_or("not installed".to_owned(), |path| path.display().to_string()),
        ),
    ]
}

/// Writes the checks for people, the overall line last.
///
/// # Errors
///
/// The error of writing to `to`.
pub fn write_text(checks: &[Check], to: &mut dyn Write) -> io::Result<()> {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in checks {
        writeln!(to, "{:<8}  {:<width$}  {}", check.status.word(), check.name, check.detail)?;
        if check.status != Status::Ok {
            writeln!(to, "{:10}lost: {}", "", check.lost)?;
            writeln!(to, "{:10}mend: {}", "", check.mend)?;
        }
    }
    let verdict = Verdict::of(checks);
    let word = |works| if works { "yes" } else { "no" };
    let (kernel, user) = (word(verdict.kernel_mode), word(verdict.user_mode));
    writeln!(to, "kernel mode: {kernel}; user mode: {user}")
}

/// Writes the checks as one JSON object.
///
/// # Errors
///
/// The error of writing to `to`.
pub fn write_json(checks: &[Check], to: &mut dyn Write) -> io::Result<()> {
    #[derive(Serialize)]
    struct Document<'a> {
        #[serde(flatten)]
        verdict: Verdict,
        checks: &'a [Check],
    }
    let document = Document { verdict: Verdict::of(checks), checks };
    serde_json::to_writer_pretty(&mut *to, &document)?;
    writeln!(to)
}

#[cfg(test)]
mod tests;
