//! `cargo xtask bench stacks`: what one user stack costs, by depth, beside `bpf_get_stackid`.
//!
//! From the kernel's own account of each program's time (`kernel.bpf_stats_enabled`, which is on
//! while this runs). leaktrace walks a program without frame pointers; `bpf_get_stackid`, which
//! Debian's bpftrace uses, one with them, as it sees nothing else.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::stop;
use crate::workspace;

/// Frames from malloc's caller to `_start`.
const DEPTHS: [u32; 4] = [7, 19, 35, 123];
/// Those of them that are not the program's own recursion: main and the C library's start.
const OTHER_FRAMES: u32 = 4;
/// Calls of malloc that the program makes in its measured stage.
const CALLS: u64 = 3000;
const ROUNDS: usize = 7;

/// A way to trace a malloc, with and without taking the stack.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    flags: &'static str,
    with_stack: &'static [&'static str],
    without: &'static [&'static str],
    /// Program whose time counts.
    program: &'static str,
}

const WAYS: [Way; 2] = [
    Way {
        name: "leaktrace",
        flags: "-fomit-frame-pointer",
        with_stack: &["leaktrace", "user", "-p", "PID", "--stacks", "all"],
        without: &["leaktrace", "user", "-p", "PID", "--stacks", "site"],
        program: "lt_session",
    },
    Way {
        name: "bpf_get_stackid",
        flags: "-fno-omit-frame-pointer",
        with_stack: &["bpftrace", "-p", "PID", "-e", "uprobe:LIBC:malloc { @[ustack(127)] = count(); }"],
        without: &["bpftrace", "-p", "PID", "-e", "uprobe:LIBC:malloc { @ = count(); }"],
        program: "",
    },
];

/// Prints the table.
pub(super) fn bench(leaktrace: &Path) -> Result<()> {
    let _statistics = Statistics::on()?;
    println!("\none stack, ns by the kernel's account ({ROUNDS} rounds, in turns, minima)");
    println!("  {:>6} {:>18} {:>18} {:>8}", "frames", WAYS[0].name, WAYS[1].name, "ratio");
    for depth in DEPTHS {
        // [way][with, without]
        let mut least = [[f64::INFINITY; 2]; WAYS.len()];
        for _ in 0..ROUNDS {
            for (way, least) in WAYS.iter().zip(&mut least) {
                for (words, least) in [way.with_stack, way.without].into_iter().zip(least) {
                    let program = compile(way.flags)?;
                    *least = least.min(one(way, words, &program, depth, leaktrace)?);
                }
            }
        }
        let [ours, theirs] = least.map(|[with, without]| with - without);
        println!("  {depth:>6} {ours:>18.0} {theirs:>18.0} {:>8.2}", ours / theirs);
    }
    Ok(())
}

/// ns of the program for each call of malloc.
fn one(way: &Way, words: &[&str], program: &Path, depth: u32, leaktrace: &Path) -> Result<f64> {
    let mut traced = Traced::start(program, depth - OTHER_FRAMES)?;
    let pid = traced.child.id();
    let mut words = words.iter().map(|word| {
        word.replace("PID", &pid.to_string()).replace("LIBC", &libc_of(pid).unwrap_or_default())
    });
    let name = words.next().context("no command")?;
    let path = if name == "leaktrace" { leaktrace.to_owned() } else { PathBuf::from(name) };
    let mut tracer = Command::new(&path)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", path.display()))?;
    let result = (|| {
        // The probes are on once a stage is seen by the program.
        let deadline = Instant::now() + Duration::from_secs(20);
        while run_time(tracer.id(), way.program)?.is_none() {
            ensure!(tracer.try_wait()?.is_none(), "{} ended", path.display());
            ensure!(Instant::now() < deadline, "{} did not start", path.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(700));
        traced.advance("warm")?;
        let (before_ns, before_runs) = run_time(tracer.id(), way.program)?.unwrap_or_default();
        traced.advance("done")?;
        let (after_ns, after_runs) = run_time(tracer.id(), way.program)?.unwrap_or_default();
        let runs = after_runs - before_runs;
        ensure!(runs >= CALLS && runs % CALLS == 0, "{runs} runs for {CALLS} calls: not all were seen");
        Ok((after_ns - before_ns) as f64 / CALLS as f64)
    })();
    stop(&mut tracer)?;
    result
}

/// ns and runs of a tracer's program, from its descriptors; the sum of all for an empty name.
fn run_time(pid: u32, program: &str) -> Result<Option<(u64, u64)>> {
    let mut found = None;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
        };
        let (Some(ns), Some(runs)) = (field("run_time_ns:"), field("run_cnt:")) else { continue };
        // The name is not told there; lt_session is the program that runs twice a call, and the
        // others of leaktrace are looked up by what bpftool would say.
        if !program.is_empty() && !is_named(field("prog_id:"), program) {
            continue;
        }
        let (all_ns, all_runs) = found.unwrap_or((0, 0));
        found = Some((all_ns + ns, all_runs + runs));
    }
    Ok(found)
}

fn is_named(id: Option<u64>, name: &str) -> bool {
    let Some(id) = id else { return false };
    let output = Command::new("bpftool").args(["prog", "show", "id", &id.to_string()]).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(name))
}
