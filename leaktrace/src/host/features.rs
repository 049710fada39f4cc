//! What this host allows. Each feature is tried once; attaching and `doctor` both use the result.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    answer::Answer,
    attempts,
    debug_files::{self, KERNEL_NOTES},
    proc,
    records::{Records, Whose},
};

/// A capability that tracing needs, by its bit in `CapEff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// `CAP_SYS_PTRACE`: reading other processes' mappings.
    SysPtrace = 19,
    /// `CAP_SYS_ADMIN`: everything that the others do not cover.
    SysAdmin = 21,
    /// `CAP_SYS_RESOURCE`: locking memory for maps before 5.11.
    SysResource = 24,
    /// `CAP_PERFMON`: attaching to tracepoints and uprobes.
    Perfmon = 38,
    /// `CAP_BPF`: loading programs.
    Bpf = 39,
}

impl Capability {
    /// Every capability that tracing needs.
    pub const ALL: [Self; 5] =
        [Self::Bpf, Self::Perfmon, Self::SysAdmin, Self::SysPtrace, Self::SysResource];

    /// The capability's name in capabilities(7).
    pub fn name(self) -> &'static str {
        match self {
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysResource => "CAP_SYS_RESOURCE",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// A set of effective capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Whether the capability is in the set.
    pub fn has(self, capability: Capability) -> bool {
        self.0 & 1 << capability as u32 != 0
    }
}

/// Facts about this host.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// Whether leaktrace runs as root.
    pub is_root: bool,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel_release: String,
    /// Whether the kernel has BTF, which describes its types.
    pub has_btf: bool,
    /// Whether raw tracepoint programs load.
    pub raw_tracepoint: Answer,
    /// Whether programs can be attached to the slab allocator's tracepoints.
    pub slab_tracepoints: Answer,
    /// Whether the perf subsystem has uprobes.
    pub has_uprobe: bool,
    /// Whether one link can hold many uprobes, for all threads of a process.
    pub uprobe_multi: Answer,
    /// Whether one link can hold entries and returns.
    pub session: Answer,
    /// Whether programs can be attached to the entries of kernel functions.
    pub fentry: Answer,
    /// Whether the perf subsystem has kprobes.
    pub has_kprobe: bool,
    /// Whether the kernel records what processes map.
    pub records: Answer,
    /// Whether /proc/slabinfo can be read.
    pub has_slabinfo: bool,
    /// The kernel's file with debug information, where packages put it.
    pub vmlinux: Option<PathBuf>,
    /// leaktrace's effective capabilities.
    pub capabilities: Capabilities,
    /// The lockdown mode; `None` where the kernel has no lockdown.
    pub lockdown: Option<String>,
    /// `kernel.kptr_restrict`.
    pub kptr_restrict: Option<i32>,
    /// `kernel.perf_event_paranoid`.
    pub perf_event_paranoid: Option<i32>,
    /// The libc of this host; `None` where no process that leaktrace may read maps one.
    pub libc: Option<String>,
}

/// Trials that take longer, for `doctor` alone.
#[derive(Clone, Debug)]
pub struct Trials {
    /// Whether the kernel loads all programs of `leaktrace kernel`, as they are.
    pub kernel: Answer,
    /// Whether the kernel loads all programs of `leaktrace user` and `leaktrace run`.
    pub user: Answer,
    /// Whether processes under a seccomp filter survive return probes.
    pub return_probes: Answer,
}

impl HostFacts {
    /// Probes this host; see [`probe`].
    pub fn probe() -> Self {
        probe()
    }
}

/// Tries the features of this host; leaves nothing attached.
pub fn probe() -> HostFacts {
    let read = |path: &str| fs::read_to_string(path).ok();
    let number = |path: &str| read(path)?.trim().parse().ok();
    let pmu = |name: &str| Path::new("/sys/bus/event_source/devices").join(name).exists();
    let kernel_release = read("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    HostFacts {
        is_root: nix::unistd::geteuid().is_root(),
        vmlinux: debug_files::vmlinux(Path::new(KERNEL_NOTES), &[], &kernel_release),
        kernel_release,
        has_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        raw_tracepoint: attempts::raw_tracepoint(),
        slab_tracepoints: attempts::slab_tracepoints(),
        has_uprobe: pmu("uprobe"),
        uprobe_multi: attempts::uprobe_multi(),
        session: attempts::session(),
        fentry: attempts::fentry(),
        has_kprobe: pmu("kprobe"),
        records: Records::open(Whose::All).into(),
        has_slabinfo: super::slabinfo::usage().is_some(),
        capabilities: capabilities(&read("/proc/self/status").unwrap_or_default()),
        lockdown: read("/sys/kernel/security/lockdown").and_then(|text| lockdown_mode(&text)),
        kptr_restrict: number("/proc/sys/kernel/kptr_restrict"),
        perf_event_paranoid: number("/proc/sys/kernel/perf_event_paranoid"),
        libc: host_libc(),
    }
}

/// The effective set in the text of a `status` file.
fn capabilities(status: &str) -> Capabilities {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    Capabilities(effective.unwrap_or(0))
}

/// The mode in brackets, as in `[none] integrity confidentiality`.
fn lockdown_mode(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    let (mode, _) = rest.split_once(']')?;
    Some(mode.to_owned())
}

/// The libc that leaktrace itself maps. A static leaktrace maps none: then the libc of the first
/// process that sees the same files, as one in a container does not.
fn host_libc() -> Option<String> {
    libc_of("self").or_else(libc_of_another)
}

fn libc_of(pid: &str) -> Option<String> {
    libc_in(&fs::read_to_string(format!("/proc/{pid}/maps")).ok()?)
}

fn libc_of_another() -> Option<String> {
    let mounts = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = mounts("self")?;
    let mut pids = proc::all().ok()?.into_iter().map(|pid| pid.to_string());
    pids.find_map(|pid| if mounts(&pid)? == own { libc_of(&pid) } else { None })
}

/// The path of the first libc (glibc or musl) in the text of a `maps` file.
fn libc_in(maps: &str) -> Option<String> {
    maps.lines()
        .filter_map(|line| line.find('/').map(|start| &line[start..]))
        .find(|path| {
            let name = path.rsplit('/').next().unwrap_or(path);
            ["libc.so", "libc-", "libc.musl-", "ld-musl-"]
                .iter()
                .any(|start| name.starts_with(start))
        })
        .map(str::to_owned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_read() {
        let set = capabilities("Name:\tx\nCapEff:\t0000008000080000\n");
        assert!(set.has(Capability::Bpf) && set.has(Capability::SysPtrace));
        assert!(!set.has(Capability::SysAdmin));
        assert_eq!(capabilities("CapEff:\tno"), Capabilities(0));
        assert_eq!(lockdown_mode("none [integrity] confidentiality\n").unwrap(), "integrity");
        assert_eq!(lockdown_mode("none"), None);
        let maps = "0-1 r-xp 0 08:01 5 /usr/bin/x\n1-2 r-xp 0 08:01 6    /lib/libc.so.6\n";
        assert_eq!(libc_in(maps).unwrap(), "/lib/libc.so.6");
        assert_eq!(libc_in("0-1 rw-p 0 00:00 0 [heap]\n0-1 r-xp 0 0:0 5 /lib/libcap.so.2"), None);
    }

    /// The static binary maps no libc itself.
    #[test]
    fn the_libc_of_the_host_is_found_in_other_processes() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Once it answers, it maps what it needs.
        let mut answer = [0];
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"x").unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut answer).unwrap();
        let found = libc_of_another().unwrap();
        assert!(Path::new(&found).is_file(), "{found}");
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn probing_answers_without_panic_for_anyone() {
        let facts = probe();
        assert!(!facts.kernel_release.is_empty());
        assert!(facts.libc.is_some());
    }
}
