//! The test drivers: kernel modules, built with Debian's headers of the machine's kernel.
//!
//! Linux's build writes beside the sources, so it works on a copy of `tests/drivers` below the
//! target folder, which the machine sees.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::{command, kernel::Kernel};
use crate::workspace;

/// Builds those that have changed, into `target/test-drivers`.
pub(super) fn build(kernel: &Kernel) -> Result<()> {
    let headers = Path::new("/usr/src").join(format!("linux-headers-{}", kernel.release));
    if !headers.is_dir() {
        bail!(
            "no {}: apt-get install linux-headers-{}, or, if Debian has a newer kernel, remove \
             the folder vm below the target folder",
            headers.display(),
            kernel.release
        );
    }
    let folder = workspace::target_dir()?.join("test-drivers");
    copy_changed(&workspace::root()?.join("tests/drivers"), &folder)?;
    eprintln!("xtask: building the test drivers for Linux {}", kernel.release);
    let mut modules = std::ffi::OsString::from("M=");
    modules.push(&folder);
    let mut make = Command::new("make");
    make.args(["--silent", "-C"]).arg(&headers).arg(modules).arg("modules");
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
