//! The other tools: where they are, and what they need to run here.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::workload::Side;
use crate::{command, workspace};

const MEMLEAK: &str = "/usr/sbin/memleak-bpfcc";
const BPFTRACE: &str = "/usr/bin/bpftrace";
const HEAPTRACK: &str = "/usr/bin/heaptrack";
const VALGRIND: &str = "/usr/bin/valgrind";

/// Seconds between reports: none falls into a measurement.
const NEVER: &str = "1000";

/// Where Debian's jemalloc is, which redis-server is linked with.
const JEMALLOC: &str = "libjemalloc.so";

fn installed(path: &str) -> Result<&str> {
    ensure!(Path::new(path).exists(), "{path} is not installed");
    Ok(path)
}

/// memleak on a process, or on the kernel.
pub(super) fn memleak(side: Side, pid: u32) -> Result<Command> {
    let installed = installed(MEMLEAK)?;
    let mut command = match side {
        Side::Kernel => with_tracefs(installed)?,
        Side::User => {
            let object = allocator_of(pid)?;
            let mut command = if object.contains(JEMALLOC) {
                let mut command = Command::new("/usr/bin/python3");
                command.arg(memleak_without_mmap(installed)?).args(["-O", &object]);
                command
            } else {
                // Its default is the C library.
                Command::new(installed)
            };
            command.args(["-p", &pid.to_string()]);
            command
        }
    };
    command.arg(NEVER);
    if let Some(headers) = headers()? {
        command.env("BCC_KERNEL_SOURCE", headers);
    }
    Ok(command)
}

/// A copy of memleak that takes an allocator without mmap and munmap of its own, where the
/// original refuses to start.
fn memleak_without_mmap(original: &str) -> Result<PathBuf> {
    const CHANGES: [(&str, &str); 2] = [
        ("attach_probes(\"mmap\")", "attach_probes(\"mmap\", can_fail=True)"),
        ("name=obj, sym=\"munmap\"", "name=\"c\", sym=\"munmap\""),
    ];
    let mut text = fs::read_to_string(original)?;
    for (from, to) in CHANGES {
        ensure!(text.contains(from), "this memleak has no `{from}` to change");
        text = text.replace(from, to);
    }
    let copy = workspace::target_dir()?.join("bench/memleak.py");
    fs::write(&copy, text)?;
    Ok(copy)
}

/// bpftrace's usual one-liner, with nothing in it: what the probes alone cost.
pub(super) fn bpftrace(side: Side, pid: u32) -> Result<Command> {
    let mut command = match side {
        Side::User => Command::new(installed(BPFTRACE)?),
        Side::Kernel => with_tracefs(installed(BPFTRACE)?)?,
    };
    let program = match side {
        Side::User => {
            let object = allocator_of(pid)?;
            command.args(["-p", &pid.to_string()]);
            format!(
                "uprobe:{object}:malloc {{}} uretprobe:{object}:malloc {{}} \
                 uprobe:{object}:free {{}}"
            )
        }
        Side::Kernel => "tracepoint:kmem:kmalloc {} tracepoint:kmem:kfree {} \
             tracepoint:kmem:kmem_cache_alloc {} tracepoint:kmem:kmem_cache_free {}"
            .into(),
    };
    command.args(["-e", &program]);
    Ok(command)
}

/// The words that start a program under heaptrack.
pub(super) fn heaptrack() -> Result<Vec<String>> {
    let output = workspace::target_dir()?.join("bench/heaptrack");
    let output = output.to_string_lossy().into_owned();
    Ok([installed(HEAPTRACK)?, "-o", &output].map(str::to_owned).to_vec())
}

/// The words that start a program under memcheck.
pub(super) fn valgrind() -> Result<Vec<String>> {
    // Without the synonym it would see nothing of redis-server.
    let words = [
        installed(VALGRIND)?,
        "--leak-check=full",
        "--soname-synonyms=somalloc=libjemalloc*",
        "--log-file=/dev/null",
    ];
    Ok(words.map(str::to_owned).to_vec())
}

/// The object of a process that has its allocator.
fn allocator_of(pid: u32) -> Result<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let find = |name: &str| {
        maps.lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .find(|path| path.contains(name))
            .map(str::to_owned)
    };
    find(JEMALLOC).or_else(|| find("libc.so")).context("the process maps no allocator")
}

/// A command that sees tracefs, mounted for it alone where the machine has it not.
fn with_tracefs(program: &str) -> Result<Command> {
    if Path::new("/sys/kernel/tracing/events").exists() {
        return Ok(Command::new(program));
    }
    let mut command = Command::new("unshare");
    let script = "mount -t tracefs tracefs /sys/kernel/tracing && exec \"$0\" \"$@\"";
    command.args(["--mount", "sh", "-c", script, program]);
    Ok(command)
}

/// Debian's kernel headers as one folder, as bcc wants them; nothing where the running kernel has
/// its own. Links below target/bench: nothing outside is changed.
fn headers() -> Result<Option<PathBuf>> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    if Path::new("/lib/modules").join(release.trim()).join("build").exists() {
        return Ok(None);
    }
    let mut common: Vec<PathBuf> = fs::read_dir("/usr/src")?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with("-common"))
        .collect();
    common.sort();
    let common = common.pop().context("linux-headers-amd64 is not installed")?;
    let generated = PathBuf::from(common.to_string_lossy().replace("-common", "-amd64"));
    let merged = workspace::target_dir()?.join("bench/headers");
    if !merged.join("include/generated/autoconf.h").exists() {
        fs::create_dir_all(&merged)?;
        for part in [common, generated] {
            let mut copy = Command::new("cp");
            copy.args(["-r", "--symbolic-link", "--force"]).arg(part.join(".")).arg(&merged);
            // Makefile is in both, and needed in neither.
            command::run(&mut copy)?;
        }
    }
    Ok(Some(merged))
}
