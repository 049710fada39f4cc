//! Runs the test layers; the output ends with the test runner's own summary.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{
    bpf,
    build::{self, Profile},
    command, lint, setup, tidy,
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
}

impl Layer {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Golden => "golden",
            Self::Live => "live",
        }
    }
}

/// The variable that tells tests and tidy where the binary is.
pub(crate) const BINARY_VARIABLE: &str = "LEAKTRACE_BIN";

/// The task. Every step runs even if one before it failed, so that the whole picture is seen; a
/// failure is told where it happens, as nothing may follow the last summary.
pub(crate) fn test(layers: &[Layer]) -> Result<ExitCode> {
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
        if let Some(mut command) = layer_command(*layer, binary.as_deref())? {
            eprintln!("xtask: test layer {}", layer.name());
            // cargo tells its failure itself.
            all_passed &= command.status().context("cannot run cargo test")?.success();
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

/// The command of a layer, if it can run.
fn layer_command(layer: Layer, binary: Option<&Path>) -> Result<Option<Command>> {
    let mut cargo = command::cargo()?;
    cargo.arg("test");
    match layer {
        Layer::Unit => {
            cargo.args(["--workspace", "--exclude", "leaktrace-tests", "--no-fail-fast"]);
            return Ok(Some(cargo));
        }
        Layer::Golden => cargo.args(["--package", "leaktrace-tests", "--test", "golden"]),
        // Serial: the tests share the kernel.
        Layer::Live => {
            let arguments = ["--test", "live", "--", "--test-threads=1"];
            cargo.args(["--package", "leaktrace-tests"]).args(arguments)
        }
    };
    Ok(binary.map(|binary| {
        cargo.env(BINARY_VARIABLE, binary);
        cargo
    }))
}
