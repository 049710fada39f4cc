//! Runs a command on Debian's kernel in a virtual machine (qemu, emulated), with this machine's
//! files: programs, libraries and the workspace are where they are here.
//!
//! The root is read-only, `/tmp` and `/run` are the guest's own, cargo's target folder is shared
//! both ways. The guest has no network but its loopback.

mod drivers;
mod kernel;
mod machine;
mod packages;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{
    bpf, build, command, setup,
    workspace::{self, BINARY_VARIABLE},
};

/// A kernel of Debian's to boot, by its series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flavour {
    /// bullseye's
    #[value(name = "5.10")]
    Old,
    /// bookworm's
    #[value(name = "6.1")]
    Stable,
    /// bookworm's with real-time preemption
    #[value(name = "6.1-rt")]
    RealTime,
    /// trixie's, as bookworm has it
    #[value(name = "6.12")]
    Newer,
    /// sid's, whatever it has by now
    #[value(name = "7.2")]
    Newest,
}

impl Flavour {
    /// As the command line has it.
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether the test drivers can be built for it: where bookworm's compiler is as new as that
    /// of the kernel's configuration, and the functions that the drivers call are there.
    pub(crate) fn takes_drivers(self) -> bool {
        matches!(self, Self::Stable | Self::RealTime | Self::Newer)
    }
}

/// What to run in the machine.
pub(crate) struct Job<'a> {
    pub(crate) flavour: Flavour,
    /// Program and arguments.
    pub(crate) command: &'a [OsString],
    /// Its working directory.
    pub(crate) directory: &'a Path,
    /// Variables of its environment, beside PATH and HOME.
    pub(crate) environment: &'a [(&'a str, OsString)],
    /// After this time the machine is ended.
    pub(crate) limit: Duration,
    /// Where what it prints goes; to standard output if nowhere else.
    pub(crate) output: Option<fs::File>,
}

/// The task: builds leaktrace, boots, runs the command, exits as it did.
pub(crate) fn vm(flavour: Flavour, command: &[OsString]) -> Result<ExitCode> {
    setup::ensure(setup::Need::Machine)?;
    bpf::build()?;
    let binary = build::leaktrace(build::Profile::Release)?;
    let folder = binary.parent().context("the binary has no folder")?;
    let mut path = folder.as_os_str().to_owned();
    path.push(":");
    path.push(machine::PATH);
    let directory = std::env::current_dir().context("no working directory")?;
    let code = run(&Job {
        flavour,
        command,
        directory: &directory,
        environment: &[("PATH", path), (BINARY_VARIABLE, binary.into_os_string())],
        limit: Duration::from_secs(3600),
        output: None,
    })?;
    Ok(ExitCode::from(code))
}

/// Gets the flavour's kernel, if it is not there.
pub(crate) fn fetch(flavour: Flavour) -> Result<()> {
    kernel::find(flavour).map(drop)
}

/// Builds the test drivers for the flavour's kernel.
pub(crate) fn build_drivers(flavour: Flavour) -> Result<()> {
    let kernel = kernel::find(flavour)?;
    drivers::build(&kernel, &kernel::headers(flavour, &kernel)?)
}

/// Boots, runs the job, and gives its exit code.
pub(crate) fn run(job: &Job<'_>) -> Result<u8> {
    let kernel = kernel::find(job.flavour)?;
    machine::run(&kernel, job)
}

/// The folder of what a kernel's machines need and leave.
fn folder(flavour: Flavour) -> Result<PathBuf> {
    let folder = workspace::target_dir()?.join("vm").join(flavour.name());
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}
