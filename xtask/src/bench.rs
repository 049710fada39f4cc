//! `cargo xtask bench`: what tracing costs, as ratios within one run.
//!
//! Each workload runs untraced, under leaktrace and under Debian's `memleak-bpfcc` (where it is
//! installed), in turns; the medians count. Absolute figures mean little on a shared machine.

#![allow(clippy::print_stdout, reason = "the table is this task's result")]

mod stacks;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    build::{self, Profile},
    setup::{self, Need},
};

/// Rounds; the median of each way counts.
const ROUNDS: usize = 5;
/// Seconds that a workload runs in each turn.
const SECONDS: &str = "2";
/// The peer.
const MEMLEAK: &str = "/usr/sbin/memleak-bpfcc";

/// How a workload is traced.
#[derive(Clone, Debug)]
enum Way {
    Untraced,
    /// leaktrace with these arguments; `PID` stands for the workload's.
    Leaktrace(&'static [&'static str]),
    /// memleak with these arguments.
    Memleak(&'static [&'static str]),
}

/// A program of tests/programs that prints how often it went round, and the ways to trace it.
struct Workload {
    name: &'static str,
    program: &'static str,
    ways: &'static [(&'static str, Way)],
}

const KERNEL_WAYS: [(&str, Way); 5] = [
    ("untraced", Way::Untraced),
    ("leaktrace kernel", Way::Leaktrace(&["kernel", "-q"])),
    ("leaktrace kernel --stacks site", Way::Leaktrace(&["kernel", "-q", "--stacks", "site"])),
    ("leaktrace kernel --stacks all", Way::Leaktrace(&["kernel", "-q", "--stacks", "all"])),
    ("memleak-bpfcc", Way::Memleak(&["1000"])),
];

const WORKLOADS: [Workload; 4] = [
    Workload {
        name: "malloc/free loop",
        program: "hotloop",
        ways: &[
            ("untraced", Way::Untraced),
            ("leaktrace user", Way::Leaktrace(&["user", "-p", "PID", "-q"])),
            (
                "leaktrace user --stacks site",
                Way::Leaktrace(&["user", "-p", "PID", "-q", "--stacks", "site"]),
            ),
            ("memleak-bpfcc -p", Way::Memleak(&["-p", "PID", "1000"])),
        ],
    },
    Workload { name: "pipe()+close loop", program: "pipeloop", ways: &KERNEL_WAYS },
    Workload { name: "connect+close loop (TCP)", program: "sockloop", ways: &KERNEL_WAYS },
    Workload { name: "create+unlink loop", program: "fileloop", ways: &KERNEL_WAYS },
];

/// Runs every workload, or those of these programs, in every way and prints a table of medians and ratios.
pub(crate) fn bench(only: &[String]) -> Result<()> {
    setup::ensure(Need::Tests)?;
    crate::bpf::build()?;
    let leaktrace = build::leaktrace(Profile::Release)?;
    if only.is_empty() || only.iter().any(|name| name == "stacks") {
        stacks::bench(&leaktrace)?;
    }
    let wanted =
        |workload: &&Workload| only.is_empty() || only.iter().any(|name| name == workload.program);
    for workload in WORKLOADS.iter().filter(wanted) {
        let program = compile(workload.program)?;
        let mut rates: Vec<Vec<f64>> = vec![Vec::new(); workload.ways.len()];
        for _ in 0..ROUNDS {
            for ((_, way), rates) in workload.ways.iter().zip(&mut rates) {
                if let Some(rate) = one_turn(&program, way, &leaktrace)? {
                    rates.push(rate);
                }
            }
        }
        println!("\n{} ({ROUNDS} rounds, in turns, medians)", workload.name);
        let untraced = rates.first().and_then(|rates| median(rates)).unwrap_or(0.0);
        for ((name, _), rates) in workload.ways.iter().zip(&rates) {
            match median(rates) {
                Some(rate) => {
                    println!("  {name:<32} {rate:>14.0}/s {:>9.2}x slower", untraced / rate);
                }
                None => println!("  {name:<32}              cannot run here"),
            }
        }
    }
    Ok(())
}

fn median(rates: &[f64]) -> Option<f64> {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// Rounds a second of one run; nothing where the tracer is not installed.
fn one_turn(program: &Path, way: &Way, leaktrace: &Path) -> Result<Option<f64>> {
    if matches!(way, Way::Memleak(_)) && !Path::new(MEMLEAK).exists() {
        return Ok(None);
    }
    let mut workload = Command::new(program)
        .arg(SECONDS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let mut lines = BufReader::new(workload.stdout.take().context("no output")?).lines();
    lines.next().context("the workload ended before it was ready")??;
    let mut tracer = match way {
        Way::Untraced => None,
        Way::Leaktrace(arguments) => Some(start_tracer(leaktrace, arguments, workload.id())?),
        Way::Memleak(arguments) => {
            match start_tracer(Path::new(MEMLEAK), arguments, workload.id()) {
                Ok(tracer) => Some(tracer),
                // It wants kernel headers, and tracefs for kernel mode.
                Err(refusal) => {
                    let refusal = refusal.to_string();
                    eprintln!("{}", refusal.lines().next().unwrap_or_default());
                    workload.kill()?;
                    workload.wait()?;
                    return Ok(None);
                }
            }
        }
    };
    let mut stdin = workload.stdin.take().context("no input")?;
    stdin.write_all(b"x")?;
    let line = lines.next().context("the workload printed no figure")??;
    if let Some(tracer) = &mut tracer {
        stop(tracer)?;
    }
    // The last byte ends it.
    let _ = stdin.write_all(b"x");
    drop(stdin);
    let _ = workload.wait();
    let rate = line
        .split("_per_s\":")
        .nth(1)
        .and_then(|rest| rest.split([',', '}']).next())
        .and_then(|figure| figure.trim().parse().ok())
        .with_context(|| format!("no figure in `{line}`"))?;
    Ok(Some(rate))
}

/// Starts a tracer and waits until the kernel has its programs.
fn start_tracer(program: &Path, arguments: &[&str], pid: u32) -> Result<Child> {
    let before = programs()?;
    let mut tracer = Command::new(program)
        .args(arguments.iter().map(|argument| match *argument {
            "PID" => pid.to_string(),
            other => other.to_owned(),
        }))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut settled = 0;
    let mut last = before;
    // All programs are there once their number stands still above what it was.
    while settled < 10 {
        std::thread::sleep(Duration::from_millis(100));
        if let Some(status) = tracer.try_wait()? {
            let mut text = String::new();
            if let Some(mut stderr) = tracer.stderr.take() {
                stderr.read_to_string(&mut text)?;
            }
            bail!("{} ended ({status}): {text}", program.display());
        }
        ensure!(Instant::now() < deadline, "{} did not start", program.display());
        let now = programs()?;
        settled = if now > before && now == last { settled + 1 } else { 0 };
        last = now;
    }
    Ok(tracer)
}

/// Number of BPF programs that are loaded, by the descriptors that processes hold.
fn programs() -> Result<usize> {
    let mut count = 0;
    for process in std::fs::read_dir("/proc")?.flatten() {
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        count += descriptors
            .flatten()
            .filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok())
            .filter(|target| target.as_os_str() == "anon_inode:bpf-prog")
            .count();
    }
    Ok(count)
}

/// Ends a tracer as Ctrl-C does.
fn stop(tracer: &mut Child) -> Result<()> {
    let pid = tracer.id().to_string();
    Command::new("kill").args(["-INT", &pid]).status().context("cannot run kill")?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while tracer.try_wait()?.is_none() {
        if Instant::now() > deadline {
            tracer.kill()?;
            tracer.wait()?;
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn compile(name: &str) -> Result<PathBuf> {
    compile_with(name, "-fno-omit-frame-pointer")
}

/// Compiles a program of tests/programs with one more flag.
fn compile_with(name: &str, flag: &str) -> Result<PathBuf> {
    let folder = crate::workspace::target_dir()?.join("bench");
    std::fs::create_dir_all(&folder)?;
    let program = folder.join(format!("{name}{}", flag.strip_prefix("-fno").unwrap_or_default()));
    let source = crate::workspace::root()?.join("tests/programs").join(format!("{name}.c"));
    let status = Command::new("gcc")
        .args(["-O2", "-g", flag, "-fno-builtin", "-fno-optimize-sibling-calls", "-pthread", "-o"])
        .args([&program, &source])
        .status()
        .context("cannot run gcc")?;
    ensure!(status.success(), "gcc refused {}", source.display());
    Ok(program)
}
