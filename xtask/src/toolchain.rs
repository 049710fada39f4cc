//! Finds a toolchain for the BPF target, and says which it took.
//!
//! 1. rustup's nightly with rust-src and bpf-linker: what aya's own templates use.
//! 2. Debian's rustc and cargo with the BPF target's standard library, and bpf-linker.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

/// The BPF target.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// Debian's compiler for the BPF target, and what bpf-linker is built with.
pub(crate) const DEBIAN_PACKAGES: [&str; 8] = [
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev-bpf",
    "llvm-22-dev",
    "libpolly-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
    "g++",
];
/// How the second kind's linker is built, as one would type it; `setup` does that.
const LINKER_RECIPE: &str = "LLVM_PREFIX=/usr/lib/llvm-22 \
     LLVM_SYS_221_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --locked \
     --no-default-features --features llvm-22 --version 0.13.0";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";
const DEBIAN_TARGET_LIB: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

/// What cargo and rustup hand down to xtask, and what a user may have set for host builds: it
/// would choose another compiler or other flags than the recipe's.
const HOST_ENVIRONMENT: [&str; 12] = [
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// A compiler and a linker for the BPF target.
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

/// Where the compiler comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compiler {
    RustupNightly,
    Debian,
}

impl Toolchain {
    /// A cargo command for the BPF target, without the arguments of its subcommand.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = match self.compiler {
            Compiler::RustupNightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
            // cargo would take the first cargo-clippy on PATH, which is rustup's.
            Compiler::Debian if subcommand == "clippy" => Command::new(DEBIAN_CLIPPY),
            Compiler::Debian => Command::new(DEBIAN_CARGO),
        };
        for name in HOST_ENVIRONMENT {
            command.env_remove(name);
        }
        if self.compiler == Compiler::Debian {
            command.env("CARGO", DEBIAN_CARGO).env("RUSTC", DEBIAN_RUSTC);
            // aya-ebpf needs unstable features; this allows them on a stable compiler.
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command.arg(subcommand);
        command
    }

    /// Whether the compiler is Debian's.
    pub(crate) fn is_debian(&self) -> bool {
        self.compiler == Compiler::Debian
    }

    /// Whether `core` has to be built from source.
    pub(crate) fn builds_core(&self) -> bool {
        self.compiler == Compiler::RustupNightly
    }

    /// Whether cargo's clippy command is there for this compiler.
    pub(crate) fn has_clippy(&self) -> bool {
        match self.compiler {
            Compiler::RustupNightly => nightly_has("clippy"),
            Compiler::Debian => Path::new(DEBIAN_CLIPPY).exists(),
        }
    }

    /// The linker.
    pub(crate) fn linker(&self) -> &Path {
        &self.linker
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.compiler {
            Compiler::RustupNightly => write!(f, "rustup's nightly with rust-src")?,
            Compiler::Debian => write!(f, "Debian's {DEBIAN_RUSTC}")?,
        }
        write!(f, " and {}", self.linker.display())
    }
}

/// The first toolchain that is complete, or an error with the recipes for both.
pub(crate) fn find() -> Result<Toolchain> {
    let nightly = nightly_has("rust-src");
    let debian = has_debian_compiler();
    let Some(linker) = find_linker() else {
        bail!("no bpf-linker that runs: {}", missing(nightly, debian));
    };
    let compiler = if nightly {
        Compiler::RustupNightly
    } else if debian {
        Compiler::Debian
    } else {
        bail!("no Rust compiler for {TARGET}: {}", missing(nightly, debian));
    };
    Ok(Toolchain { compiler, linker })
}

/// Whether Debian's compiler and its standard library for the BPF target are installed.
pub(crate) fn has_debian_compiler() -> bool {
    [DEBIAN_RUSTC, DEBIAN_CARGO, DEBIAN_TARGET_LIB].iter().all(|path| Path::new(path).exists())
}

/// bpf-linker, on PATH or where `cargo install` puts it, if it runs: it may be there and lack its
/// LLVM library.
pub(crate) fn find_linker() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let runs = |linker: &PathBuf| {
        let mut command = Command::new(linker);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    env::split_paths(&path)
        .chain([cargo_home().join("bin")])
        .map(|folder| folder.join("bpf-linker"))
        .find(|linker| linker.is_file() && runs(linker))
}

/// Where `cargo install` puts programs.
fn cargo_home() -> PathBuf {
    env::var_os("CARGO_HOME")
        .map_or_else(|| env::home_dir().unwrap_or_default().join(".cargo"), PathBuf::from)
}

/// Whether rustup has a nightly toolchain with a component. A missing rustup is a plain no.
fn nightly_has(component: &str) -> bool {
    let mut command = Command::new("rustup");
    command.args(["component", "list", "--toolchain", "nightly", "--installed"]);
    // rustup would otherwise install a toolchain that it does not have.
    command.env("RUSTUP_AUTO_INSTALL", "0");
    command.output().is_ok_and(|output| {
        output.status.success()
            && String::from_utf8_lossy(&output.stdout).lines().any(|line| {
                line.strip_prefix(component)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            })
    })
}

fn missing(nightly: bool, debian: bool) -> String {
    let found = match (nightly, debian) {
        (true, _) => "rustup's nightly with rust-src is there",
        (false, true) => "Debian's compiler is there",
        (false, false) => "neither rustup's nightly with rust-src nor Debian's compiler is there",
    };
    format!(
        "{found}. Either\n  \
         rustup toolchain install nightly --component rust-src && cargo install bpf-linker --locked\n\
         or, as root on Debian,\n  cargo xtask setup\nwhich does\n  apt-get install {}\n  {}",
        DEBIAN_PACKAGES.join(" "),
        LINKER_RECIPE,
    )
}
