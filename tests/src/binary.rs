//! The binary under test.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::{LATE, child::Child};

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.map(Path::to_path_buf).unwrap_or_else(|| panic!("the tests package has no parent folder"))
}

/// Cargo's target folder.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The leaktrace to test: `LEAKTRACE_BIN`, or the newer of cargo's two builds.
///
/// # Panics
///
/// When there is none.
pub fn leaktrace_bin() -> PathBuf {
    if let Some(path) = std::env::var_os("LEAKTRACE_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "LEAKTRACE_BIN is {}, which is no file", path.display());
        return path;
    }
    let built = |profile: &str| {
        let path = target_dir().join(profile).join("leaktrace");
        let modified = path.metadata().and_then(|data| data.modified()).ok()?;
        Some((modified, path))
    };
    match built("release").max(built("debug")) {
        Some((_, path)) => path,
        None => panic!(
            "no leaktrace in {}: run `cargo xtask build` or set LEAKTRACE_BIN",
            target_dir().display()
        ),
    }
}

/// A command of leaktrace, with plain output whatever the terminal.
pub fn leaktrace(args: &[&str]) -> Command {
    let mut command = Command::new(leaktrace_bin());
    command.args(args).env("NO_COLOR", "1").env("COLUMNS", "100");
    command.stdin(Stdio::null());
    command
}

/// Ends the test unless it runs as root.
///
/// # Panics
///
/// When not root: a test that cannot test has not passed.
pub fn require_root() {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let user = unsafe { libc::geteuid() };
    assert!(user == 0, "this test traces the kernel and other processes: run it as root");
}

/// What a finished command left.
#[derive(Debug)]
pub struct Finished {
    /// Exit code, or 128 + the signal that ended it, as a shell says it.
    pub code: i32,
    /// Whole standard output.
    pub stdout: String,
    /// Whole standard error.
    pub stderr: String,
}

impl Finished {
    /// From the standard library's form.
    pub fn from_output(output: Output) -> Self {
        Self {
            code: crate::child::shell_code(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a command to its end, with `input` as its standard input.
///
/// # Panics
///
/// When it cannot be started, or does not end soon.
pub fn run_with_input(command: &mut Command, input: &str) -> Finished {
    let mut child = Child::start(command);
    child.send(input);
    child.close_stdin();
    // leaktrace's start on a slow machine, the command's own time, and a report of all of it.
    let code = child.wait(LATE);
    let (stdout, stderr) = child.into_output();
    Finished { code, stdout, stderr }
}

/// Runs a command to its end, without input.
///
/// # Panics
///
/// When it cannot be started, or does not end soon.
pub fn run(command: &mut Command) -> Finished {
    run_with_input(command, "")
}
