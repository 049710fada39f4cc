//! leaktrace's build, test and check tasks: `cargo xtask <task>`, one file a task.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod bpf;
mod build;
mod command;
mod lint;
mod run;
mod setup;
mod source_hash;
mod test;
mod tidy;
mod toolchain;
mod vm;
mod workspace;

/// leaktrace's build, test and check tasks.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building and testing need, where it is missing (as root, on Debian).
    Setup,
    /// Build the BPF object alone, if its sources have changed.
    Bpf,
    /// Build the BPF object and leaktrace.
    Build {
        /// Leave one optimised static binary at target/dist/leaktrace.
        #[arg(long)]
        release: bool,
    },
    /// Build and run leaktrace; without arguments trace a small leaking program for some seconds.
    Run {
        /// Arguments of leaktrace.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run the tests: lint, tidy and every layer, or only the layers named.
    Test {
        /// Layers to run.
        #[arg(value_enum)]
        layers: Vec<test::Layer>,
        #[command(flatten)]
        machine: test::MachineOptions,
    },
    /// Boot Debian's kernel in a virtual machine and run a command there, with this machine's files.
    Vm {
        /// The kernel.
        #[arg(long, value_enum, default_value = "6.1")]
        kernel: vm::Flavour,
        /// The command and its arguments; `leaktrace` is the one just built.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Measure what tracing costs, as ratios within one run (some ten minutes).
    Bench(bench::Options),
    /// Check formatting and run clippy, warnings being errors.
    Lint,
    /// Check the project's own rules: module arrows, file heads and lengths, README in step.
    Tidy,
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup => setup::ensure(setup::Need::Tests)?,
        Task::Bpf => {
            setup::ensure(setup::Need::Build)?;
            bpf::build()?;
        }
        Task::Build { release } => build::build(release)?,
        Task::Run { args } => return run::run(&args),
        Task::Test { layers, machine } => return test::test(&layers, &machine),
        Task::Vm { kernel, command } => return vm::vm(kernel, &command),
        Task::Bench(options) => bench::bench(&options)?,
        Task::Lint => lint::lint()?,
        Task::Tidy => tidy::tidy()?,
    }
    Ok(ExitCode::SUCCESS)
}
