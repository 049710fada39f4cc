//! Builds leaktrace: for daily work, or as one static binary to copy to other hosts.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{bpf, command, setup, workspace};

/// The host's target, named so that flags for static linking do not reach build scripts.
const HOST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// How leaktrace is compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quick to build.
    Debug,
    /// Quick to run.
    Release,
}

/// The task: everything leaktrace is made of.
pub(crate) fn build(release: bool) -> Result<()> {
    setup::ensure(setup::Need::Build)?;
    bpf::build()?;
    let binary = if release { static_binary()? } else { leaktrace(Profile::Debug)? };
    eprintln!("xtask: built {}", binary.display());
    Ok(())
}

/// Builds leaktrace with the BPF object that is there; gives the path of the binary.
pub(crate) fn leaktrace(profile: Profile) -> Result<PathBuf> {
    let mut cargo = command::cargo()?;
    cargo.args(["build", "--package", "leaktrace"]);
    let folder = match profile {
        Profile::Debug => "debug",
        Profile::Release => {
            cargo.arg("--release");
            "release"
        }
    };
    command::run(&mut cargo)?;
    Ok(workspace::target_dir()?.join(folder).join("leaktrace"))
}

/// Builds the static binary and leaves it at `target/dist/leaktrace`, and what names lines in it at
/// `target/dist/leaktrace.debug`.
fn static_binary() -> Result<PathBuf> {
    let mut cargo = command::cargo()?;
    cargo
        .args(["build", "--package", "leaktrace", "--release", "--target", HOST_TARGET])
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    command::run(&mut cargo)?;

    let target_dir = workspace::target_dir()?;
    let built = target_dir.join(HOST_TARGET).join("release/leaktrace");
    let image = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    ensure!(
        !asks_for_interpreter(&image).context("the built leaktrace is no 64-bit ELF file")?,
        "{} is not static: it asks for a dynamic loader",
        built.display()
    );

    let folder = target_dir.join("dist");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let binary = folder.join("leaktrace");
    // A running leaktrace keeps the old file: writing into it would fail with "text file busy".
    let _ = fs::remove_file(&binary);
    split(&built, &binary)?;
    Ok(binary)
}

/// Copies an executable without its debug information, which goes to a file beside it. The copy
/// names that file, so that a debugger and Rust's own backtraces find it (`.gnu_debuglink`).
fn split(built: &Path, binary: &Path) -> Result<()> {
    let debug = binary.with_extension("debug");
    let objcopy = |arguments: &[&str]| {
        let mut objcopy = Command::new("objcopy");
        objcopy.args(arguments);
        objcopy
    };
    command::run(
        objcopy(&["--only-keep-debug", "--compress-debug-sections"]).arg(built).arg(&debug),
    )?;
    let mut link = OsString::from("--add-gnu-debuglink=");
    link.push(&debug);
    command::run(objcopy(&["--strip-unneeded"]).arg(link).arg(built).arg(binary))
}

/// Whether an ELF file (64-bit, little-endian) has a PT_INTERP program header, which every
/// dynamically linked executable has and no static one, position-independent or not.
fn asks_for_interpreter(image: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    if !image.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    // Offsets of e_phoff, e_phentsize and e_phnum in the ELF-64 header.
    let first = usize::try_from(u64::from_le_bytes(*image.get(32..)?.first_chunk()?)).ok()?;
    let size = usize::from(u16::from_le_bytes(*image.get(54..)?.first_chunk()?));
    let count = usize::from(u16::from_le_bytes(*image.get(56..)?.first_chunk()?));
    for index in 0..count {
        let kind = u32::from_le_bytes(*image.get(first + index * size..)?.first_chunk()?);
        if kind == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::asks_for_interpreter;

    /// An ELF header and program headers of these kinds, with nothing else in them.
    fn image(kinds: &[u8]) -> Vec<u8> {
        let mut image = b"\x7fELF\x02\x01".to_vec();
        image.resize(64, 0);
        image[32] = 64;
        image[54] = 56;
        image[56] = kinds.len() as u8;
        for kind in kinds {
            image.push(*kind);
            image.resize(image.len() + 55, 0);
        }
        image
    }

    #[test]
    fn only_a_dynamic_executable_asks_for_a_loader() {
        // PT_LOAD 1, PT_DYNAMIC 2, PT_INTERP 3; a static-pie has PT_DYNAMIC too.
        assert_eq!(asks_for_interpreter(&image(&[1, 1, 2, 3])), Some(true));
        assert_eq!(asks_for_interpreter(&image(&[1, 1, 2])), Some(false));
    }

    #[test]
    fn no_elf_is_no_answer() {
        assert_eq!(asks_for_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(asks_for_interpreter(b"\x7fELF\x02\x01"), None);
        assert_eq!(asks_for_interpreter(&image(&[1, 1])[..100]), None);
    }
}
