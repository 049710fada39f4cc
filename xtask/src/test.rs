//! Runs the test layers; the output ends with the test runner's own summary.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Seek as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    bpf,
    build::{self, Profile},
    command, lint, setup, tidy, vm,
    workspace::{self, BINARY_VARIABLE},
};

/// A layer of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layer {
    /// No root, no binary: tests beside the code.
    Unit,
    /// No root, the real binary: help, errors, reports compared with files.
    Golden,
    /// Root and this host's kernel.
    Live,
    /// The live tests on Debian's kernel, in a virtual machine, and modules with known leaks.
    Vm,
}

/// The files whose tests run in machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TestFile {
    Live,
    Drivers,
    Storm,
    /// Only where it is asked for: an emulated machine is too slow for the whole corpus at once.
    Verdicts,
}

impl TestFile {
    fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Drivers => "drivers",
            Self::Storm => "storm",
            Self::Verdicts => "verdicts",
        }
    }
}

/// What runs in the layer of machines, where it is not what runs by default.
#[derive(Args)]
pub(crate) struct MachineOptions {
    /// In the layer vm: this kernel alone, with all that runs on it.
    #[arg(long, value_enum)]
    kernel: Option<vm::Flavour>,
    /// With --kernel: tests of these files alone.
    #[arg(long, value_enum, requires = "kernel")]
    file: Vec<TestFile>,
    /// With --kernel: tests whose names contain one of these, behind a `--`.
    #[arg(last = true, requires = "kernel")]
    names: Vec<String>,
}

/// The task. Every step runs even if one before it failed, so that the whole picture is seen; a
/// failure is told where it happens, as nothing may follow the last summary.
pub(crate) fn test(layers: &[Layer], options: &MachineOptions) -> Result<ExitCode> {
    if options.kernel.is_some() && layers != [Layer::Vm] {
        bail!("--kernel belongs to `cargo xtask test vm`");
    }
    setup::ensure(setup::Need::Tests)?;
    let mut all_passed = true;
    let mut record = |result: Result<()>| {
        if let Err(error) = result {
            eprintln!("xtask: {error:#}");
            all_passed = false;
        }
    };

    let mut binary = None;
    match build_binary() {
        Ok(built) => binary = Some(built),
        Err(error) => record(Err(error.context("the golden and live layers cannot run"))),
    }
    if layers.is_empty() {
        eprintln!("xtask: lint");
        record(lint::check());
        eprintln!("xtask: tidy");
        record(tidy::check(binary.as_deref()));
    }
    for layer in Layer::value_variants() {
        if !layers.is_empty() && !layers.contains(layer) {
            continue;
        }
        let passed = match (layer, binary.as_deref()) {
            (Layer::Unit, _) => unit(),
            (_, None) => continue,
            (Layer::Golden, Some(binary)) => integration(&["--test", "golden"], &[], binary),
            // The harness first: what it builds must run by itself.
            (Layer::Live, Some(binary)) => integration(&["--lib"], &[], binary)
                .and_then(|passed| Ok(integration(&["--test", "live"], &HOST, binary)? && passed))
                .and_then(|passed| {
                    Ok(integration(&["--test", "verdicts"], &TABLES, binary)? && passed)
                }),
            (Layer::Vm, Some(binary)) => in_machines(binary, options),
        };
        match passed {
            Ok(passed) => all_passed &= passed,
            Err(error) => {
                eprintln!("xtask: {error:#}");
                all_passed = false;
            }
        }
    }
    Ok(if all_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The binary under test, in the release profile: what is tested is what users run, and what
/// `cargo xtask run` has built already.
fn build_binary() -> Result<PathBuf> {
    bpf::build()?;
    eprintln!("xtask: building leaktrace (release profile)");
    build::leaktrace(Profile::Release)
}

/// The tests beside the code; gives whether they passed.
fn unit() -> Result<bool> {
    run(command::cargo()?.args([
        "test",
        "--workspace",
        "--exclude",
        "leaktrace-tests",
        "--no-fail-fast",
    ]))
}

/// Tests of the package `tests`, on this host; gives whether they passed.
fn integration(which: &[&str], arguments: &[&str], binary: &Path) -> Result<bool> {
    let mut cargo = command::cargo()?;
    cargo.args(["test", "--package", "leaktrace-tests"]).args(which).arg("--").args(arguments);
    run(cargo.env(BINARY_VARIABLE, binary))
}

/// Runs cargo, which tells a failure itself.
fn run(cargo: &mut Command) -> Result<bool> {
    Ok(cargo.status().context("cannot run cargo test")?.success())
}

/// The live tests share the kernel.
const SERIAL: [&str; 1] = ["--test-threads=1"];

/// Tables that one wants to see.
const TABLES: [&str; 2] = [SERIAL[0], "--nocapture"];

/// On this host they cost no process but their own.
const HOST: [&str; 5] = [SERIAL[0], "--skip", "host_wide::", "--skip", REFUSED];
/// What is seen only where leaktrace must refuse to trace.
const REFUSED: &str = "old_kernel::";
/// What an emulated machine is too slow for, where the kernel's part in it is the same as in other
/// tests: a thousand backtraces each, of which one test of `unwinding` is enough; every way to an
/// allocator but attaching to it; what is run again and again, lists a tree of files, or has a
/// second emulator below it. And prices, which in an emulated machine change from one second to the
/// next.
const SLOW: [&str; 14] = [
    "gdb::",
    "stacks_of_c_are_those_of_gdb_",
    "stacks_of_cpp",
    "allocators::in_",
    "allocators::started_by_leaktrace",
    "allocators::a_process_that_grows",
    "allocators::objects",
    "lifecycle::an_interrupt_right_after",
    "mappings::a_command_leaks",
    "reach::a_busy_interpreter",
    "run::an_image_after_many",
    "run::ls_prints",
    "sampling::a_steady_load",
    "valgrind::",
];

/// What BPF programs and the kernel have a part in. Other tests are of files, names and processes,
/// which are the same on each kernel: they run on this host.
const KERNEL_SIDE: [&str; 21] = [
    "at_once",
    "verifier",
    "exact::",
    "first_stacks::",
    "followed::",
    "freed_at::",
    "holders::",
    "host_wide::",
    "kernel::",
    "kernel_view::",
    "lifecycle::",
    "mappings::",
    "pairs::",
    "preemption::",
    "processes::",
    "reach::",
    "sampling::",
    "semantics::",
    "start::",
    "under_seccomp::",
    "unwinding::",
];

/// A machine: its kernel, a test file, and which of its tests run (arguments of the test runner;
/// none for all). Each is booted anew, as a driver may leave the kernel in any state.
type Machine<'a> = (vm::Flavour, TestFile, Vec<&'a str>);

/// What runs by default. Those that take long come first, as two run at a time.
const MACHINES: [(vm::Flavour, TestFile, &[&str]); 8] = [
    (vm::Flavour::Stable, TestFile::Live, &KERNEL_SIDE),
    (vm::Flavour::Stable, TestFile::Drivers, &[]),
    // Where every program can be preempted, and some have stacks of their own for each CPU: many
    // threads at once, what ends and begins meanwhile, and each kind of kernel allocation.
    (
        vm::Flavour::Newest,
        TestFile::Live,
        &[
            "at_once",
            "preemption::",
            "verifier",
            "exact::",
            "freed_at::",
            "every_call_means_what",
            "processes::",
            "kernel::",
            "of_io_uring",
            "pairs_are_counted_exactly_where",
        ],
    ),
    (vm::Flavour::Stable, TestFile::Storm, &[]),
    // Where interrupts are threads, and locks sleep.
    (
        vm::Flavour::RealTime,
        TestFile::Live,
        &["kernel::default_stacks", "kernel::percpu", "pages_in_pipes"],
    ),
    // What differs: uprobe_multi links, and walks that meet on one CPU.
    (
        vm::Flavour::Newer,
        TestFile::Live,
        &["at_once", "verifier", "first_stacks::", "kernel::objects", "host_wide::"],
    ),
    // Where allocations take other ways than on 6.1.
    (vm::Flavour::Newer, TestFile::Drivers, &["entries::", "pairs"]),
    // Older than what leaktrace traces.
    (vm::Flavour::Old, TestFile::Live, &[REFUSED]),
];

impl MachineOptions {
    fn machines(&self) -> Vec<Machine<'_>> {
        let Some(kernel) = self.kernel else {
            let machine =
                |(kernel, file, names): (_, _, &[&'static str])| (kernel, file, names.to_vec());
            return MACHINES.into_iter().map(machine).collect();
        };
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let is_asked = |file: &TestFile| match self.file.as_slice() {
            [] => *file != TestFile::Verdicts,
            files => files.contains(file),
        };
        let runs = |file: &TestFile| *file != TestFile::Drivers || kernel.takes_drivers();
        let files = TestFile::value_variants().iter().copied();
        files
            .filter(|file| is_asked(file) && runs(file))
            .map(|file| (kernel, file, names.clone()))
            .collect()
    }
}

/// Runs the tests that need Debian's kernels; gives whether all passed.
fn in_machines(binary: &Path, options: &MachineOptions) -> Result<bool> {
    let machines = options.machines();
    let mut built = Vec::new();
    for (kernel, file, _) in &machines {
        // Here and not beside another machine, as both may want the same list of packages.
        vm::fetch(*kernel)?;
        if *file == TestFile::Drivers && !built.contains(kernel) {
            vm::build_drivers(*kernel)?;
            built.push(*kernel);
        }
    }
    build_package("tikv")?;
    let jobs = machines
        .into_iter()
        .map(|machine| Ok((test_program(machine.1.name())?, machine)))
        .collect::<Result<Vec<_>>>()?;
    let [(program, machine)] = jobs.as_slice() else { return in_turn(jobs, binary) };
    Ok(in_machine(program, machine, binary, None)? == 0)
}

/// Machines that run at a time. Each has two CPUs, of which one is busy most of the time.
const AT_ONCE: usize = 2;

/// Runs jobs, some at a time, and prints what each has printed once it has ended; gives whether
/// all passed.
fn in_turn(jobs: Vec<(OsString, Machine<'_>)>, binary: &Path) -> Result<bool> {
    let waiting = Mutex::new(jobs.into_iter());
    // One prints at a time.
    let passed = Mutex::new(true);
    let run = || -> Result<()> {
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((program, machine)) = next else { return Ok(()) };
            let mut output = tempfile::tempfile().context("no file for a machine's output")?;
            let code = in_machine(&program, &machine, binary, Some(output.try_clone()?));
            let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
            output.rewind()?;
            io::copy(&mut output, &mut io::stdout().lock())?;
            *passed &= matches!(code, Ok(0));
            match code {
                Ok(0) => {}
                Ok(code) => {
                    eprintln!("xtask: {:?} {}: exit code {code}", machine.0, machine.1.name())
                }
                Err(error) => eprintln!("xtask: {error:#}"),
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(run)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| bail!("a thread that runs machines has panicked"))
        })
    })?;
    Ok(passed.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Runs tests in a machine; gives the exit code.
fn in_machine(
    program: &OsStr,
    (flavour, file, names): &Machine<'_>,
    binary: &Path,
    output: Option<File>,
) -> Result<u8> {
    let mut arguments = names.clone();
    arguments.extend(SERIAL);
    // Their tables are what one wants to see.
    let has_table = matches!(file, TestFile::Storm | TestFile::Verdicts);
    arguments.extend(has_table.then_some("--nocapture"));
    arguments.extend(SLOW.iter().flat_map(|name| ["--skip", *name]));
    if *flavour != vm::Flavour::Old {
        arguments.extend(["--skip", REFUSED]);
    }
    let words = arguments.into_iter().map(OsString::from);
    let command: Vec<OsString> = std::iter::once(program.to_owned()).chain(words).collect();
    vm::run(&vm::Job {
        flavour: *flavour,
        command: &command,
        directory: &workspace::root()?.join("tests"),
        environment: &[
            (BINARY_VARIABLE, binary.into()),
            ("CARGO_TARGET_DIR", workspace::target_dir()?.into()),
        ],
        // For one that hangs: what a busy host takes for the whole list is not known.
        limit: Duration::from_secs(2400),
        output,
    })
}

/// Builds a package of `tests/programs` where the tests look for it: in the machine it would take
/// half an hour, and a network.
fn build_package(name: &str) -> Result<()> {
    eprintln!("xtask: building tests/programs/{name}");
    let mut cargo = command::cargo()?;
    cargo.args(["build", "--release", "--locked", "--quiet"]);
    cargo.current_dir(workspace::root()?.join("tests/programs").join(name));
    let target = workspace::target_dir()?.join("test-programs").join(name);
    command::run(cargo.env("CARGO_TARGET_DIR", target))
}

/// Builds the tests of one file; gives the path of the program.
fn test_program(name: &str) -> Result<OsString> {
    let mut cargo = command::cargo()?;
    cargo.args(["test", "--package", "leaktrace-tests", "--test", name, "--no-run"]);
    let output = command::output(cargo.args(["--quiet", "--message-format=json"]))?;
    output
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        // Programs that the tests start are built beside it.
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(OsString::from))
        .with_context(|| format!("cargo built no tests called {name}"))
}
