//! Builds the BPF object to a fixed place in the target directory, with a hash of its sources.

use std::{ffi::OsString, fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{
    command, source_hash,
    toolchain::{self, TARGET, Toolchain},
    workspace,
};

/// Flags of the proved recipe; the linker is added to them. The third version of the BPF
/// instruction set has the atomic addition that fetches (kernels since 5.12).
const RUST_FLAGS: [&str; 4] =
    ["-Ctarget-cpu=v3", "--cfg=bpf_target_arch=\"x86_64\"", "-Cdebuginfo=2", "-Clink-arg=--btf"];

/// Builds the object unless it was built from these very sources.
pub(crate) fn build() -> Result<()> {
    let root = workspace::root()?;
    let target_dir = workspace::target_dir()?;
    let object = target_dir.join(source_hash::OBJECT);
    let recorded = target_dir.join(source_hash::RECORDED);

    let mut hash = source_hash::of_sources(&root).context("cannot read the BPF sources")?;
    if object.exists() && fs::read_to_string(&recorded).is_ok_and(|old| old.trim() == hash) {
        return Ok(());
    }
    let toolchain = toolchain::find()?;
    eprintln!("xtask: building the BPF object with {toolchain}");
    loop {
        command::run(&mut cargo(&toolchain, "build", Warnings::Allowed)?)?;
        // The build may have written Cargo.lock, and an editor may have saved a file meanwhile.
        let after = source_hash::of_sources(&root).context("cannot read the BPF sources")?;
        if after == hash {
            break;
        }
        hash = after;
    }

    // In this order a build that was cut short leaves no object with a hash that is not its own.
    let _ = fs::remove_file(&recorded);
    fs::create_dir_all(target_dir.join("bpf")).context("cannot make target/bpf")?;
    let built = build_dir(Warnings::Allowed)?.join(TARGET).join("release/leaktrace");
    fs::copy(&built, &object).with_context(|| format!("cannot copy {}", built.display()))?;
    fs::write(&recorded, hash + "\n").context("cannot write the hash of the BPF sources")
}

/// What a warning does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Warnings {
    /// It is shown.
    Allowed,
    /// It fails the command.
    Denied,
}

/// A cargo command on leaktrace-ebpf with the recipe's flags.
pub(crate) fn cargo(
    toolchain: &Toolchain,
    subcommand: &str,
    warnings: Warnings,
) -> Result<std::process::Command> {
    let mut flags: Vec<OsString> = RUST_FLAGS.iter().map(OsString::from).collect();
    let mut linker = OsString::from("-Clinker=");
    linker.push(toolchain.linker());
    flags.push(linker);
    if warnings == Warnings::Denied {
        flags.push("-Dwarnings".into());
    }
    let mut command = toolchain.cargo(subcommand);
    command
        .args(["--quiet", "--release", "--target", TARGET, "--target-dir"])
        .arg(build_dir(warnings)?)
        .current_dir(workspace::root()?.join("leaktrace-ebpf"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(&OsString::from("\u{1f}")));
    if toolchain.builds_core() {
        command.arg("-Zbuild-std=core");
    }
    Ok(command)
}

/// Cargo's folder for the BPF target: one for each set of flags, as other flags rebuild all. Not
/// below target/bpf, which leaktrace's build script watches.
fn build_dir(warnings: Warnings) -> Result<PathBuf> {
    Ok(workspace::target_dir()?.join(match warnings {
        Warnings::Allowed => "bpf-build",
        Warnings::Denied => "bpf-lint",
    }))
}
