//! What the bench traces: programs that say when they are ready, and how fast they went.

use std::{
    fs,
    io::{BufRead as _, BufReader, Lines, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{command, workspace};

/// Seconds that a workload runs in each turn.
const SECONDS: &str = "1";
/// How long a server may take to start, and any workload to end, under the slowest tracer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests of each kind; under the slowest tracer they take some ten seconds.
const REQUESTS: &str = "10000";

/// The peers see nothing of programs without frame pointers.
pub(super) const FRAMES: &str = "-fno-omit-frame-pointer";

/// Whose memory is traced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    User,
    Kernel,
}

/// Something that runs at a rate.
pub(super) struct Workload {
    /// As it is selected.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    pub(super) side: Side,
    load: Load,
}

/// What runs.
#[derive(Clone, Copy)]
enum Load {
    /// A program of tests/programs, by gcc, with one more flag.
    Compiled(&'static str),
    /// A script of tests/programs.
    Python,
    /// redis-server under redis-benchmark.
    Redis,
}

/// All of them.
pub(super) const WORKLOADS: [Workload; 9] = [
    Workload {
        name: "hotloop",
        title: "malloc/free loop",
        unit: "pairs",
        side: Side::User,
        load: Load::Compiled("-O2"),
    },
    Workload {
        name: "threadloop",
        title: "malloc/free loop on 2 threads",
        unit: "pairs",
        side: Side::User,
        load: Load::Compiled("-O2"),
    },
    Workload {
        name: "liveloop",
        title: "free/malloc among 1,000,000 live blocks",
        unit: "pairs",
        side: Side::User,
        load: Load::Compiled("-O2"),
    },
    Workload {
        name: "redis",
        title: "redis-server (jemalloc) under redis-benchmark: set, get; 50 clients",
        unit: "requests",
        side: Side::User,
        load: Load::Redis,
    },
    Workload {
        name: "churn",
        title: "python3, PYTHONMALLOC=malloc",
        unit: "rounds",
        side: Side::User,
        load: Load::Python,
    },
    Workload {
        name: "inserts",
        title: "SQLite inserts in memory",
        unit: "rows",
        side: Side::User,
        load: Load::Compiled("-l:libsqlite3.so.0"),
    },
    Workload {
        name: "pipeloop",
        title: "pipe()+close loop",
        unit: "loops",
        side: Side::Kernel,
        load: Load::Compiled("-O2"),
    },
    Workload {
        name: "sockloop",
        title: "connect+close loop (TCP)",
        unit: "loops",
        side: Side::Kernel,
        load: Load::Compiled("-O2"),
    },
    Workload {
        name: "fileloop",
        title: "create+unlink loop",
        unit: "loops",
        side: Side::Kernel,
        load: Load::Compiled("-O2"),
    },
];

impl Workload {
    /// Compiles it, where that is needed.
    pub(super) fn prepare(&self) -> Result<()> {
        match self.load {
            Load::Compiled(flag) => compile(self.name, &[flag, FRAMES]).map(drop),
            Load::Python | Load::Redis => Ok(()),
        }
    }

    /// Starts it, by these words if it has to run under a tracer; it is ready then.
    pub(super) fn start(&self, under: &[String]) -> Result<Running> {
        match self.load {
            Load::Compiled(_) => {
                let program = workspace::target_dir()?.join("bench").join(self.name);
                Running::start(under, &program, &[SECONDS], None)
            }
            Load::Python => {
                let script = workspace::root()?.join("tests/programs").join("churn.py");
                let script = script.to_str().context("the workspace's path is no text")?;
                // The distribution's: another one in PATH may be a script that starts it.
                Running::start(under, Path::new("/usr/bin/python3"), &[script, SECONDS], None)
            }
            Load::Redis => {
                let folder = workspace::target_dir()?.join("bench/redis");
                fs::create_dir_all(&folder)?;
                let socket = folder.join("socket");
                let _ = fs::remove_file(&socket);
                let text = |path: &Path| path.to_string_lossy().into_owned();
                let (folder, path) = (text(&folder), text(&socket));
                let arguments: [&str; 14] = [
                    "--port",
                    "0",
                    "--unixsocket",
                    &path,
                    "--dir",
                    &folder,
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                    "--daemonize",
                    "no",
                    "--loglevel",
                    "warning",
                ];
                let program = Path::new("/usr/bin/redis-server");
                Running::start(under, program, &arguments, Some(socket))
            }
        }
    }
}

/// A workload that is ready; ends with this value at the latest.
pub(super) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    /// Where a server listens.
    socket: Option<PathBuf>,
}

impl Running {
    /// Starts a program of tests/programs, which tells when it is ready.
    pub(super) fn program(program: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start(&[], program, arguments, None)
    }

    fn start(
        under: &[String],
        program: &Path,
        arguments: &[&str],
        socket: Option<PathBuf>,
    ) -> Result<Self> {
        let mut command = match under {
            [] => Command::new(program),
            [tracer, words @ ..] => {
                let mut command = Command::new(tracer);
                command.args(words).arg(program);
                command
            }
        };
        let mut child = command
            .args(arguments)
            .env("PYTHONMALLOC", "malloc")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stdin = Some(child.stdin.take().context("no input")?);
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let mut running = Self { child, stdin, lines, socket };
        match running.socket.clone() {
            Some(socket) => running.wait_for(&socket)?,
            None => drop(running.next_stage().context("before it was ready")?),
        }
        Ok(running)
    }

    fn wait_for(&mut self, socket: &Path) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(socket).is_err() {
            ensure!(self.child.try_wait()?.is_none(), "the server ended at once");
            ensure!(Instant::now() < deadline, "the server did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The process that was started; that of the workload unless it runs under a tracer.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where a server listens.
    pub(super) fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// On to the next stage; gives what the program says there.
    pub(super) fn advance(&mut self) -> Result<String> {
        self.stdin.as_mut().context("it was ended")?.write_all(b"x")?;
        self.next_stage()
    }

    /// The next line of the program itself; a tracer may print others.
    fn next_stage(&mut self) -> Result<String> {
        loop {
            let line = self.lines.next().context("the workload ended")??;
            if line.starts_with("{\"stage\"") {
                return Ok(line);
            }
        }
    }

    /// How often a second it goes round.
    pub(super) fn rate(&mut self) -> Result<f64> {
        if let Some(socket) = &self.socket {
            return requests(socket);
        }
        self.figure("_per_s\":")
    }

    /// As [`Self::rate`], for each second that a loop in C had a CPU.
    pub(super) fn rate_on_cpu(&mut self) -> Result<f64> {
        self.figure("_per_cpu_s\":")
    }

    /// On to the stage that has this figure.
    fn figure(&mut self, name: &str) -> Result<f64> {
        loop {
            let line = self.advance()?;
            let Some((_, rest)) = line.split_once(name) else { continue };
            let figure = rest.split([',', '}']).next().unwrap_or_default();
            return figure.trim().parse().with_context(|| format!("no figure in `{line}`"));
        }
    }

    /// Lets it end by itself.
    pub(super) fn end(mut self) -> Result<()> {
        if let Some(socket) = &self.socket {
            // The connection is closed instead of an answer.
            let _ = cli(Command::new("redis-cli").arg("-s").arg(socket), &["shutdown", "nosave"]);
        } else if let Some(mut stdin) = self.stdin.take() {
            // The last byte; where it ends without one, there is nobody to read it.
            let _ = stdin.write_all(b"x");
        }
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the workload did not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn cli(command: &mut Command, arguments: &[&str]) -> Result<String> {
    command::output(command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()))
}

/// Requests a second that a server answers.
fn requests(socket: &Path) -> Result<f64> {
    let mut benchmark = Command::new("redis-benchmark");
    benchmark.arg("-s").arg(socket);
    let text = cli(
        &mut benchmark,
        &["-t", "set,get", "-n", REQUESTS, "-r", "100000", "-P", "1", "--csv"],
    )?;
    // "SET","rps",...: equal numbers of each, so their times add up.
    let rates: Vec<f64> = text
        .lines()
        .filter_map(|line| line.split(',').nth(1)?.trim_matches('"').parse().ok())
        .collect();
    ensure!(rates.len() == 2, "redis-benchmark printed no figures: {text}");
    Ok(rates.len() as f64 / rates.iter().map(|rate| 1.0 / rate).sum::<f64>())
}

/// Compiles a program of tests/programs; gives its path, which names the flags.
pub(super) fn compile(name: &str, flags: &[&str]) -> Result<PathBuf> {
    let folder = workspace::target_dir()?.join("bench");
    fs::create_dir_all(&folder)?;
    let suffix = if flags.contains(&"-fomit-frame-pointer") { "-bare" } else { "" };
    let program = folder.join(format!("{name}{suffix}"));
    let source = workspace::root()?.join("tests/programs").join(format!("{name}.c"));
    command::run(
        Command::new("gcc")
            .args(["-O2", "-g", "-fno-builtin", "-fno-optimize-sibling-calls", "-pthread", "-o"])
            .args([&program, &source])
            .args(flags),
    )?;
    Ok(program)
}
