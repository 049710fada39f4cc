//! Runs leaktrace; without arguments on a small program that leaks, so that a newcomer sees the
//! main job at work.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    bpf,
    build::{self, Profile},
    command, setup, workspace,
};

/// The task. With arguments it becomes leaktrace and does not return.
pub(crate) fn run(args: &[OsString]) -> Result<ExitCode> {
    setup::ensure(if args.is_empty() { setup::Need::Demo } else { setup::Need::Build })?;
    bpf::build()?;
    // The release profile: leaktrace has to be quick, and tests use the same one.
    let leaktrace = build::leaktrace(Profile::Release)?;
    if args.is_empty() {
        return trace_demo(&leaktrace);
    }
    let error = Command::new(&leaktrace).args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", leaktrace.display()))
}

fn trace_demo(leaktrace: &Path) -> Result<ExitCode> {
    let demo = Demo::start(&compile_demo()?)?;
    let pid = demo.0.id().to_string();
    let args = ["user", "-p", &pid, "-d", "5s", "-i", "5s"];
    eprintln!("xtask: tests/programs/demo.c runs as process {pid} and leaks");
    eprintln!("xtask: leaktrace {}", args.join(" "));
    let status = Command::new(leaktrace)
        .args(args)
        .status()
        .with_context(|| format!("cannot run {}", leaktrace.display()))?;
    // A signal has no code; then any failure will do.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

fn compile_demo() -> Result<PathBuf> {
    let folder = workspace::target_dir()?.join("demo");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let program = folder.join("demo");
    let mut gcc = Command::new("gcc");
    gcc.args(["-g", "-O1", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-o"])
        .arg(&program)
        .arg("tests/programs/demo.c")
        .current_dir(workspace::root()?);
    command::run(&mut gcc)?;
    Ok(program)
}

/// The running demo; ends with this value.
struct Demo(Child);

impl Demo {
    fn start(program: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(io::stderr());
        Ok(Self(command.spawn().with_context(|| format!("cannot run {}", program.display()))?))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It fails only if the demo has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
