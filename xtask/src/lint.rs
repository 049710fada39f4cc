//! Formatting and clippy, warnings being errors; on the workspace, and apart on leaktrace-ebpf.

use anyhow::{Result, bail};

use crate::{
    bpf::{self, Warnings},
    command, setup, toolchain,
};

/// The task.
pub(crate) fn lint() -> Result<()> {
    setup::ensure(setup::Need::Build)?;
    // leaktrace's build script refuses an object that is older than its sources.
    bpf::build()?;
    check()
}

/// All checks, then a failure if any of them failed.
pub(crate) fn check() -> Result<()> {
    let mut failures = 0;
    for check in [format_workspace, format_ebpf, clippy_workspace, clippy_ebpf] {
        if let Err(error) = check() {
            eprintln!("xtask: {error:#}");
            failures += 1;
        }
    }
    if failures > 0 {
        bail!("lint: {failures} of 4 checks failed");
    }
    Ok(())
}

fn format_workspace() -> Result<()> {
    command::run(command::cargo()?.args(["fmt", "--all", "--check"]))
}

fn format_ebpf() -> Result<()> {
    let manifest = "leaktrace-ebpf/Cargo.toml";
    command::run(command::cargo()?.args(["fmt", "--manifest-path", manifest, "--check"]))
}

fn clippy_workspace() -> Result<()> {
    let mut cargo = command::cargo()?;
    cargo.args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-Dwarnings"]);
    command::run(&mut cargo)
}

/// leaktrace-ebpf needs the clippy of the compiler that has its target.
fn clippy_ebpf() -> Result<()> {
    let toolchain = toolchain::find()?;
    let subcommand = if toolchain.has_clippy() {
        "clippy"
    } else {
        eprintln!(
            "xtask: no clippy for {toolchain} (`cargo xtask setup` installs it): \
             leaktrace-ebpf is checked for the compiler's warnings only"
        );
        "check"
    };
    command::run(&mut bpf::cargo(&toolchain, subcommand, Warnings::Denied)?)
}
