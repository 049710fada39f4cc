//! Ways to trace a workload: started, known to be attached, and ended again.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    peers,
    workload::{Side, Workload},
};
use crate::{command, workspace};

/// How long a tracer may take to attach, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often another tool is started before its refusal counts.
const ATTEMPTS: usize = 3;

/// How a workload is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Untraced,
    /// With these arguments; `PID` stands for the workload's.
    Leaktrace(&'static [&'static str]),
    /// The same with another binary: an older leaktrace.
    Other(&'static [&'static str]),
    /// leaktrace's probes with programs that return at once.
    Empty {
        /// Whether the session has the function's return skipped.
        skip: bool,
    },
    Memleak,
    Bpftrace,
    Heaptrack,
    Valgrind,
}

const USER_WAYS: [Way; 7] = [
    Way::Untraced,
    Way::Leaktrace(&["user", "-p", "PID"]),
    Way::Leaktrace(&["user", "-p", "PID", "--stacks", "site"]),
    Way::Memleak,
    Way::Bpftrace,
    Way::Heaptrack,
    Way::Valgrind,
];

const LIMITS: [Way; 5] = [
    Way::Untraced,
    Way::Leaktrace(&["user", "-p", "PID"]),
    Way::Leaktrace(&["user", "-p", "PID", "--stacks", "site"]),
    Way::Empty { skip: false },
    Way::Empty { skip: true },
];

const KERNEL_WAYS: [Way; 6] = [
    Way::Untraced,
    Way::Leaktrace(&["kernel"]),
    Way::Leaktrace(&["kernel", "--stacks", "site"]),
    Way::Leaktrace(&["kernel", "--stacks", "all"]),
    Way::Memleak,
    Way::Bpftrace,
];

const USER_BESIDE: [Way; 3] =
    [Way::Untraced, Way::Leaktrace(&["user", "-p", "PID"]), Way::Other(&["user", "-p", "PID"])];

const KERNEL_BESIDE: [Way; 3] =
    [Way::Untraced, Way::Leaktrace(&["kernel"]), Way::Other(&["kernel"])];

/// The ways to measure beside another leaktrace.
pub(super) fn beside(side: Side) -> &'static [Way] {
    match side {
        Side::User => &USER_BESIDE,
        Side::Kernel => &KERNEL_BESIDE,
    }
}

/// The ways that a workload is measured in; the first is the one that the others are compared with.
pub(super) fn ways(side: Side, limits: bool) -> &'static [Way] {
    match (side, limits) {
        (Side::User, false) => &USER_WAYS,
        (Side::User, true) => &LIMITS,
        (Side::Kernel, _) => &KERNEL_WAYS,
    }
}

impl Way {
    /// As the table says it.
    pub(super) fn name(self) -> String {
        match self {
            Self::Untraced => "untraced".into(),
            Self::Leaktrace(words) => {
                let words: Vec<&str> =
                    words.iter().copied().filter(|word| !["-p", "PID"].contains(word)).collect();
                format!("leaktrace {}", words.join(" "))
            }
            Self::Other(words) => format!("{}, the other", Self::Leaktrace(words).name()),
            Self::Empty { skip: false } => "the same probes, empty".into(),
            Self::Empty { skip: true } => "the same, returns skipped".into(),
            Self::Memleak => "memleak-bpfcc".into(),
            Self::Bpftrace => "bpftrace, empty probes".into(),
            Self::Heaptrack => "heaptrack".into(),
            Self::Valgrind => "valgrind --leak-check=full".into(),
        }
    }

    /// Whether it may be missing: another tool, or what only a newer kernel tells.
    pub(super) fn is_peer(self) -> bool {
        !matches!(self, Self::Untraced | Self::Leaktrace(_) | Self::Other(_))
    }

    /// The rate of one run of a workload, traced this way.
    pub(super) fn rate(self, workload: &Workload, leaktrace: &Path) -> Result<f64> {
        let under = match self {
            Self::Heaptrack => peers::heaptrack()?,
            Self::Valgrind => peers::valgrind()?,
            _ => Vec::new(),
        };
        let mut running = workload.start(&under)?;
        let tracer = self.attach(workload.side, running.pid(), leaktrace)?;
        let rate = running.rate();
        if let Some(tracer) = tracer {
            tracer.end()?;
        }
        running.end()?;
        rate
    }

    /// Starts the tracer of a running process, if there is one apart from it.
    fn attach(self, side: Side, pid: u32, leaktrace: &Path) -> Result<Option<Tracer>> {
        match self {
            Self::Untraced | Self::Heaptrack | Self::Valgrind => Ok(None),
            Self::Leaktrace(words) | Self::Other(words) => {
                Tracer::leaktrace(leaktrace, words, pid).map(Some)
            }
            Self::Empty { skip } => {
                let words = ["user", "-p", "PID"];
                let tracer = Tracer::leaktrace(leaktrace, &words, pid)?;
                let points = script("empty.py")?.args(["points", &tracer.pid()]).output()?;
                tracer.end()?;
                let text = String::from_utf8_lossy(&points.stdout);
                let errors = String::from_utf8_lossy(&points.stderr);
                ensure!(points.status.success(), "{}", errors.trim());
                let kind = if skip { "skip" } else { "watch" };
                let mut command = script("empty.py")?;
                Tracer::peer(command.args(["attach", kind, text.trim()])).map(Some)
            }
            Self::Memleak => Tracer::peer(&mut peers::memleak(side, pid)?).map(Some),
            Self::Bpftrace => Tracer::peer(&mut peers::bpftrace(side, pid)?).map(Some),
        }
    }
}

/// A Python script of the bench.
pub(super) fn script(name: &str) -> Result<Command> {
    let mut command = Command::new("/usr/bin/python3");
    // Nothing compiled is left beside the sources.
    command.arg("-B").arg(workspace::root()?.join("xtask/src/bench").join(name));
    Ok(command)
}

/// A tracer that is attached; ends with this value at the latest.
pub(super) struct Tracer {
    child: Child,
    /// What it says is not read to the end, but must find a reader.
    stderr: BufReader<ChildStderr>,
}

impl Tracer {
    /// leaktrace, attached; `PID` among the words stands for the process.
    pub(super) fn leaktrace(leaktrace: &Path, words: &[&str], pid: u32) -> Result<Self> {
        let (tracer, stdout) = Self::leaktrace_with_output(leaktrace, words, pid)?;
        // Its reports are of no use, but must not stop it.
        std::thread::spawn(move || std::io::copy(&mut { stdout }, &mut std::io::sink()));
        Ok(tracer)
    }

    /// As [`Self::leaktrace`], with its output for the caller to read.
    pub(super) fn leaktrace_with_output(
        leaktrace: &Path,
        words: &[&str],
        pid: u32,
    ) -> Result<(Self, ChildStdout)> {
        let pid = pid.to_string();
        let words = words.iter().map(|word| if *word == "PID" { &pid } else { *word });
        let mut command = Command::new(leaktrace);
        let mut tracer = Self::start(command.args(words))?;
        let mut said = String::new();
        while !said.lines().last().is_some_and(|line| line.starts_with("leaktrace: tracing ")) {
            if tracer.stderr.read_line(&mut said)? == 0 {
                bail!("leaktrace ended: {}", cause(&said));
            }
        }
        let stdout = tracer.child.stdout.take().context("no output")?;
        Ok((tracer, stdout))
    }

    /// Another tracer, attached. memleak is sometimes refused a probe which it gets a moment later:
    /// while the kernel still takes the one before from the same place, it seems.
    fn peer(command: &mut Command) -> Result<Self> {
        for _ in 1..ATTEMPTS {
            if let Ok(tracer) = Self::peer_once(command) {
                return Ok(tracer);
            }
        }
        Self::peer_once(command)
    }

    /// One attempt: its programs and probes are there and get no more.
    fn peer_once(command: &mut Command) -> Result<Self> {
        let mut tracer = Self::start(command)?;
        // Nobody wants what it prints.
        if let Some(mut stdout) = tracer.child.stdout.take() {
            std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        }
        let deadline = Instant::now() + PATIENCE;
        let (mut last, mut settled) = (0, 0);
        while settled < 5 {
            std::thread::sleep(Duration::from_millis(100));
            if tracer.child.try_wait()?.is_some() {
                let mut said = String::new();
                tracer.stderr.read_to_string(&mut said)?;
                bail!("it ended: {}", cause(&said));
            }
            ensure!(Instant::now() < deadline, "it did not attach within a minute");
            let now = probes(tracer.child.id());
            settled = if now > 0 && now == last { settled + 1 } else { 0 };
            last = now;
        }
        Ok(tracer)
    }

    fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stderr = BufReader::new(child.stderr.take().context("no messages")?);
        Ok(Self { child, stderr })
    }

    pub(super) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Ends it as Ctrl-C does.
    pub(super) fn end(mut self) -> Result<()> {
        stop(&mut self.child)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends a tracer as Ctrl-C does; one that takes long over its last report is killed.
pub(super) fn stop(tracer: &mut Child) -> Result<()> {
    command::run(Command::new("kill").args(["-INT", &tracer.id().to_string()]))?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while tracer.try_wait()?.is_none() {
        if Instant::now() > deadline {
            tracer.kill()?;
            tracer.wait()?;
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// BPF programs and probes that a process holds, by its descriptors.
fn probes(pid: u32) -> usize {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    descriptors
        .flatten()
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .filter_map(|target| target.to_str().map(str::to_owned))
        .filter(|target| {
            ["bpf-prog", "bpf_link", "bpf-link", "perf_event"]
                .iter()
                .any(|kind| target.contains(kind))
        })
        .count()
}

/// Why a program failed: its first exception, else what it said last.
fn cause(text: &str) -> &str {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let is_exception = |line: &&str| line.contains("Exception: ") || line.contains("Error: ");
    lines.clone().find(is_exception).or_else(|| lines.next_back()).unwrap_or("it said nothing")
}
