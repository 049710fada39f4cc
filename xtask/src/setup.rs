//! Installs what is missing: Debian packages by apt-get when root, bpf-linker by cargo.
//!
//! Looks first and does nothing when nothing is missing. Installing rustc-web puts a second
//! compiler into /usr/bin; the one that runs xtask is not touched.

use std::{env, fs, io, os::unix::fs::MetadataExt as _, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    command,
    toolchain::{self, DEBIAN_PACKAGES},
};

/// What compiles the demo.
const C_PACKAGES: [&str; 2] = ["gcc", "libc6-dev"];
/// What the tests trace, and what they compare with.
const TEST_PACKAGES: [&str; 17] = [
    "g++",
    "valgrind",
    "python3",
    "gdb",
    "sqlite3",
    "git",
    "redis-server",
    "musl-tools",
    "libjemalloc-dev",
    "libgoogle-perftools-dev",
    "libmimalloc-dev",
    "libboost-context-dev",
    "nodejs",
    "libssl-dev",
    "libsqlite3-dev",
    "libglib2.0-0",
    "nginx-light",
];
/// What boots and feeds a virtual machine.
const MACHINE_PACKAGES: [&str; 4] = ["qemu-system-x86", "busybox-static", "cpio", "xz-utils"];
/// What builds modules for the machines' kernels, together with their headers; bookworm's kernels
/// ask for its own compiler by name, and their objtool for libelf.
const DRIVER_PACKAGES: [&str; 3] = ["gcc-12", "libelf1", "make"];
/// What leaktrace is measured beside, and what it traces then.
const BENCH_PACKAGES: [&str; 5] =
    ["bpfcc-tools", "bpftrace", "heaptrack", "redis-tools", "libsqlite3-0"];
/// The clippy of Debian's compiler: the only one that can read leaktrace-ebpf with it.
const CLIPPY_PACKAGE: &str = "rust-web-clippy";

const LLVM: &str = "/usr/lib/llvm-22";

/// What a task is going to do; each needs what the one before it needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Build leaktrace.
    Build,
    /// Compile and trace the demo.
    Demo,
    /// Run something in a virtual machine.
    Machine,
    /// Run the tests.
    Tests,
    /// Measure beside other tools.
    Bench,
}

/// Installs what is missing, or says what root has to do.
pub(crate) fn ensure(need: Need) -> Result<()> {
    let found = toolchain::find().ok();
    let has_toolchain = found.is_some();
    let mut packages = Vec::new();
    if !has_toolchain {
        packages.extend(DEBIAN_PACKAGES);
    }
    if need >= Need::Demo {
        packages.extend(C_PACKAGES);
    }
    if need >= Need::Machine {
        packages.extend(MACHINE_PACKAGES);
    }
    if need >= Need::Tests {
        packages.extend(TEST_PACKAGES);
        packages.extend(DRIVER_PACKAGES);
        if found.is_none_or(|toolchain| toolchain.is_debian()) {
            packages.push(CLIPPY_PACKAGE);
        }
    }
    if need >= Need::Bench {
        packages.extend(BENCH_PACKAGES);
    }
    packages.sort_unstable();
    packages.dedup();
    install_packages(&packages)?;
    if !has_toolchain {
        if toolchain::find_linker().is_none() {
            install_linker()?;
        }
        // Still incomplete: the error has the recipes.
        toolchain::find()?;
    }
    Ok(())
}

fn install_packages(packages: &[&str]) -> Result<()> {
    let Some(missing) = missing_packages(packages)? else {
        // Not a Debian: what is missing shows where it is used.
        return Ok(());
    };
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if fs::metadata("/proc/self").context("/proc/self")?.uid() != 0 {
        bail!("not installed: {list}; as root: apt-get update && apt-get install {list}");
    }
    eprintln!("xtask: installing {list} (apt-get; may take some minutes)");
    // One unreachable source must not stop the others; install tells what is really missing.
    if let Err(error) = command::run(apt_get().args(["-qq", "update"])) {
        eprintln!("xtask: {error:#}; going on");
    }
    command::run(
        apt_get().args(["-qq", "--yes", "--no-install-recommends", "install"]).args(missing),
    )
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    // A server among the packages is not started (invoke-rc.d(8)).
    command.env("RUNLEVEL", "1");
    // apt-get's progress is no result of ours, and a task's stdout may be read by a program.
    command.stdout(io::stderr());
    command
}

/// Those of the packages that are not installed; none where there is no dpkg.
fn missing_packages<'a>(packages: &[&'a str]) -> Result<Option<Vec<&'a str>>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"]).args(packages);
    // It exits with 1 when it does not know one of them, and still lists the others.
    let output = match query.output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("cannot run dpkg-query"),
    };
    let listed = String::from_utf8_lossy(&output.stdout);
    let installed = |package: &str| {
        listed.lines().any(|line| line.split_once(' ') == Some((package, "installed")))
    };
    Ok(Some(packages.iter().copied().filter(|package| !installed(package)).collect()))
}

fn install_linker() -> Result<()> {
    eprintln!("xtask: building bpf-linker 0.13.0 (cargo install; one to three minutes)");
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        // One that is there and does not run has to give way.
        .args(["install", "bpf-linker", "--force", "--locked", "--no-default-features"])
        .args(["--features", "llvm-22", "--version", "0.13.0"])
        .env("LLVM_PREFIX", LLVM)
        .env("LLVM_SYS_221_PREFIX", LLVM)
        // Its objects are of no use to the workspace.
        .env_remove("CARGO_TARGET_DIR");
    command::run(&mut command)
}

#[cfg(test)]
mod tests {
    use super::missing_packages;

    #[test]
    fn a_package_that_dpkg_does_not_know_is_missing() -> anyhow::Result<()> {
        // None: this is no Debian.
        if let Some(missing) = missing_packages(&["dpkg", "leaktrace-no-such-package"])? {
            assert_eq!(missing, ["leaktrace-no-such-package"]);
        }
        Ok(())
    }
}
