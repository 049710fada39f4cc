//! The test drivers: kernel modules, built with Debian's headers of a machine's kernel.
//!
//! Linux's build writes beside the sources, so it works on a copy of `tests/drivers` below the
//! target folder, which the machine sees.

use std::{ffi::OsString, fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{
    command,
    kernel::{Headers, Kernel},
};
use crate::workspace;

/// Builds those that have changed, into a folder below `target/test-drivers` that has the
/// release's name.
pub(super) fn build(kernel: &Kernel, headers: &Headers) -> Result<()> {
    let folder = workspace::target_dir()?.join("test-drivers").join(&kernel.release);
    copy_changed(&workspace::root()?.join("tests/drivers"), &folder)?;
    eprintln!("xtask: building the test drivers for Linux {}", kernel.release);
    let mut make = Command::new("make");
    make.args(["--silent", "-C"]).arg(&headers.sources);
    for (name, value) in [("O", &headers.output), ("M", &folder)] {
        let mut word = OsString::from(format!("{name}="));
        word.push(value);
        make.arg(word);
    }
    make.arg("modules");
    // Variables of a make around this one would be taken for its own.
    make.env_remove("MAKEFLAGS").env_remove("M");
    // For its errors: what it says on stderr when all is well (that there is no vmlinux to make
    // BTF from) is of no interest.
    command::output(&mut make)?;
    Ok(())
}

/// Copies those files that differ, so that make sees which have changed.
fn copy_changed(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let entries = fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
    for entry in entries.flatten() {
        let source = fs::read(entry.path())
            .with_context(|| format!("cannot read {}", entry.path().display()))?;
        let copy = to.join(entry.file_name());
        if fs::read(&copy).ok().as_ref() != Some(&source) {
            fs::write(&copy, source).with_context(|| format!("cannot write {}", copy.display()))?;
        }
    }
    Ok(())
}
