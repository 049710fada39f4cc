//! `cargo xtask bench stacks`: what one user stack costs, by depth, beside `bpf_get_stackid`.
//!
//! From the kernel's own account of each program's time. leaktrace walks a program without frame
//! pointers; `bpf_get_stackid`, in a program of its own (`stackid.py`), one with them, as it sees
//! nothing else.

#![allow(clippy::print_stdout, reason = "the table is this task's result")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Lines, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    table::median,
    tracer::{script, stop},
    workload::compile,
};

/// Frames from malloc's caller to `_start`.
const DEPTHS: [u32; 4] = [7, 19, 35, 123];
/// Those of them that are not the program's own recursion: main and the C library's start.
const OTHER_FRAMES: u32 = 4;
/// Calls of malloc that the program makes in its measured stage.
const CALLS: u64 = 3000;

/// A way to trace a malloc, with and without taking the stack.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    flags: &'static str,
    with_stack: &'static [&'static str],
    without: &'static [&'static str],
}

const WAYS: [Way; 2] = [
    Way {
        name: "leaktrace",
        flags: "-fomit-frame-pointer",
        with_stack: &["leaktrace", "user", "-p", "PID", "--stacks", "all"],
        without: &["leaktrace", "user", "-p", "PID", "--stacks", "site"],
    },
    Way {
        name: "bpf_get_stackid",
        flags: "-fno-omit-frame-pointer",
        with_stack: &["stackid.py", "PID", "LIBC", "stack"],
        without: &["stackid.py", "PID", "LIBC", "bare"],
    },
];

/// Prints the table.
pub(super) fn bench(leaktrace: &Path, rounds: usize) -> Result<()> {
    let mut statistics = peer()?.arg("statistics").spawn().context("cannot run python3")?;
    let result = table(leaktrace, rounds);
    stop(&mut statistics)?;
    result
}

fn table(leaktrace: &Path, rounds: usize) -> Result<()> {
    println!("\none stack, ns by the kernel's account ({rounds} rounds, in turns)");
    println!("(whole program, less the same without a stack = the stack: minima; medians)");
    for depth in DEPTHS {
        // [way][with, without]
        let mut all: [[Vec<f64>; 2]; WAYS.len()] = Default::default();
        for _ in 0..rounds {
            for (way, times) in WAYS.iter().zip(&mut all) {
                let program = compile("stairs", &[way.flags])?;
                for (words, times) in [way.with_stack, way.without].into_iter().zip(times) {
                    times.push(one(words, &program, depth, leaktrace)?);
                }
            }
        }
        println!("  {depth} frames");
        let mut prices = Vec::new();
        for (way, [with, without]) in WAYS.iter().zip(&all) {
            let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
            let (min_with, min_without) = (least(with), least(without));
            let middle = |times: &[f64]| median(times).unwrap_or_default();
            let (mid_with, mid_without) = (middle(with), middle(without));
            println!(
                "    {:<16} {min_with:>6.0} - {min_without:>5.0} = {:>6.0}; \
                 {mid_with:>6.0} - {mid_without:>5.0} = {:>6.0}",
                way.name,
                min_with - min_without,
                mid_with - mid_without
            );
            prices.push((min_with - min_without, mid_with - mid_without));
        }
        if let [ours, theirs] = prices[..] {
            println!("    ratio {:.2}; {:.2}", ours.0 / theirs.0, ours.1 / theirs.1);
        }
    }
    Ok(())
}

/// The peer, without its arguments.
fn peer() -> Result<Command> {
    let mut command = script("stackid.py")?;
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

/// ns of all the tracer's programs for each call of malloc.
fn one(words: &[&str], program: &Path, depth: u32, leaktrace: &Path) -> Result<f64> {
    let mut program = Program::start(program, depth - OTHER_FRAMES)?;
    let pid = program.child.id();
    let library = library_of(pid)?;
    let mut words =
        words.iter().map(|word| word.replace("PID", &pid.to_string()).replace("LIBC", &library));
    let name = words.next().context("no command")?;
    let mut command = if name == "leaktrace" { Command::new(leaktrace) } else { peer()? };
    let mut tracer = command
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let result = measure(&mut program, &mut tracer);
    stop(&mut tracer)?;
    result.with_context(|| format!("under {name}"))
}

fn measure(program: &mut Program, tracer: &mut Child) -> Result<f64> {
    let deadline = Instant::now() + Duration::from_secs(20);
    // Both attach at once after they have loaded their programs.
    let mut settled = 0;
    while settled < 5 {
        ensure!(tracer.try_wait()?.is_none(), "it ended");
        ensure!(Instant::now() < deadline, "it did not start");
        settled = if run_time(tracer.id())?.is_some() { settled + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(100));
    }
    program.advance()?;
    let before = run_time(tracer.id())?.context("it has no program")?;
    program.advance()?;
    let after = run_time(tracer.id())?.context("it has no program")?;
    let runs = after.1 - before.1;
    // One run at malloc's entry, one at its return, one at free; the peer has the first alone.
    // A few more come with what the stage itself does.
    let rest = runs % CALLS;
    ensure!(
        (CALLS..CALLS * 4).contains(&runs) && rest < CALLS / 10,
        "its programs ran {runs} times for {CALLS} calls: something else was traced"
    );
    Ok((after.0 - before.0) as f64 / CALLS as f64)
}

/// ns and runs of all the programs that a process holds.
fn run_time(pid: u32) -> Result<Option<(u64, u64)>> {
    let mut programs = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
        };
        // A program may have several descriptors.
        if let (Some(id), Some(ns), Some(runs)) =
            (field("prog_id:"), field("run_time_ns:"), field("run_cnt:"))
        {
            programs.insert(id, (ns, runs));
        }
    }
    let sum = programs.values().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    Ok((!programs.is_empty()).then_some(sum))
}

/// The C library that a process maps.
fn library_of(pid: u32) -> Result<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.contains("libc.so"))
        .map(str::to_owned)
        .context("the program maps no C library")
}

/// tests/programs/stairs.c, led through its stages; ends with this value.
struct Program {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn start(path: &Path, depth: u32) -> Result<Self> {
        let mut child = Command::new(path)
            .arg(depth.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", path.display()))?;
        let stdin = child.stdin.take().context("no input")?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        lines.next().context("the program ended at once")??;
        Ok(Self { child, stdin, lines })
    }

    /// On to the next stage.
    fn advance(&mut self) -> Result<()> {
        self.stdin.write_all(b"x")?;
        self.lines.next().context("the program ended early")??;
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It fails only if the program has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
