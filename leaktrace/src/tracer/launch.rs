//! Starts a command, and holds it before it runs any of its code until the probes are attached.
//!
//! A command with libraries is held where its dynamic loader tells debuggers that all of them are
//! mapped; the loader has not called any of their constructors then. A static command, or one whose
//! loader does not tell debuggers, is held at its entry point. All calls up to
//! [`Suspended::resume`] must come from one thread: ptrace(2) answers only the thread that started
//! the command.

mod exit;

use std::{
    ffi::OsString,
    io,
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child as Process, Command, ExitStatus},
};

use nix::{
    errno::Errno,
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::io::unix::AsyncFd;

use self::exit::ExitWatch;
use super::{
    loader::{Auxiliary, Interpreter, Loader},
    wait,
};
use crate::{error::Error, reach::view::ThreadState};

/// The x86 breakpoint instruction.
const INT3: libc::c_long = 0xcc;

/// A command that is held at its start; killed when dropped.
#[derive(Debug)]
pub(super) struct Suspended {
    /// The held process; `None` once [`Suspended::resume`] has taken it.
    process: Option<Process>,
    pid: Pid,
    name: String,
    unseen: Option<String>,
}

/// A running command that leaktrace started.
#[derive(Debug)]
pub(super) struct Child {
    process: Process,
    watch: Watch,
}

/// How the end of a command is seen.
#[derive(Debug)]
enum Watch {
    /// The kernel tells of it.
    Pidfd(AsyncFd<OwnedFd>),
    /// It is followed to its exit, where its memory can be looked at.
    Exit(ExitWatch),
}

/// What a command does.
#[derive(Debug)]
pub(super) enum Happened {
    /// It is about to end, and waits until it is [let go](Child::let_go): its first thread, with
    /// all of its memory.
    Leaving(Box<ThreadState>),
    /// It has ended.
    Ended(Ended),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended(pub(super) ExitStatus);

/// The breakpoints in a command on its way to the place where it is held.
struct Breakpoints {
    entry: Option<Breakpoint>,
    loader: Option<(Breakpoint, Loader)>,
    /// The path of a loader that does not tell debuggers when libraries are mapped.
    silent: Option<String>,
}

/// A breakpoint instruction in a process.
#[derive(Clone, Copy)]
struct Breakpoint {
    address: u64,
    /// The word that the breakpoint replaced.
    original: libc::c_long,
}

/// Why a command stopped on its way to that place.
enum Stop {
    /// The command executed a program (again).
    Exec,
    /// The command got a SIGTRAP that no exec explains.
    Trap,
    /// The command got a signal that must be delivered.
    Signal(Signal),
}

impl Suspended {
    /// Starts `argv` and lets it run to the place where all of its libraries are mapped.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when the command cannot be run or ends before that place, [`Error::Kernel`]
    /// when the kernel refuses to trace it.
    pub(super) fn start(argv: &[OsString]) -> Result<Self, Error> {
        let Some((program, arguments)) = argv.split_first() else {
            return Err(Error::Usage("no command to run".to_owned()));
        };
        let name = program.to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command.args(arguments);
        let trace_me = || ptrace::traceme().map_err(io::Error::from);
        // SAFETY: the closure makes one system call and allocates nothing, which is allowed
        // between fork and exec.
        unsafe { command.pre_exec(trace_me) };
        // An empty signal mask, the default SIGPIPE, and the pipe that tells of a failed exec
        // are the standard library's doing.
        let process = command.spawn().map_err(|error| {
            let cause = Errno::from_raw(error.raw_os_error().unwrap_or(0));
            match cause {
                Errno::UnknownErrno => Error::Usage(format!("cannot run `{name}`: {error}")),
                cause => Error::Usage(format!("cannot run `{name}`: {}", cause.desc())),
            }
        })?;
        let pid = Pid::from_raw(process.id() as i32);
        let mut suspended = Self { process: Some(process), pid, name, unseen: None };
        suspended.unseen = suspended.run_to_start()?;
        Ok(suspended)
    }

    /// A sentence on code of the command that may have run before it was held, for the report.
    pub(super) fn unseen(&self) -> Option<&str> {
        self.unseen.as_deref()
    }

    /// The command's process ID.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// Lets the command run. The caller must be in the event loop. With `until_exit`, the command
    /// waits at its end until it is let go.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when the command was killed meanwhile, [`Error::Kernel`] for any other
    /// refusal.
    pub(super) fn resume(mut self, until_exit: bool) -> Result<Child, Error> {
        let watch = if until_exit {
            // It stays stopped, so that it cannot end before it is followed.
            ptrace::detach(self.pid, Signal::SIGSTOP)
                .and_then(|()| waitpid(self.pid, Some(WaitPidFlag::WUNTRACED)))
                .map_err(|error| self.refused("resume", error))?;
            Watch::Exit(ExitWatch::start(self.pid())?)
        } else {
            let pidfd = wait::pidfd(self.pid())?;
            ptrace::detach(self.pid, None).map_err(|error| self.refused("resume", error))?;
            Watch::Pidfd(pidfd)
        };
        match self.process.take() {
            Some(process) => Ok(Child { process, watch }),
            None => Err(self.refused("resume", Errno::ESRCH)),
        }
    }

    /// Runs the command to where it is held; returns what may have been allocated before.
    fn run_to_start(&self) -> Result<Option<String>, Error> {
        // The stop that the exec itself causes; what comes before it is delivered.
        loop {
            match self.wait()? {
                Stop::Exec | Stop::Trap => break,
                Stop::Signal(signal) => self.proceed(Some(signal))?,
            }
        }
        // Leaktrace's death must not leave the command stopped for ever; and an exec on the
        // way, by an audit library, must be told from a breakpoint.
        ptrace::setoptions(self.pid, Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACEEXEC)
            .map_err(|error| self.refused("trace", error))?;
        let mut breakpoints = self.plant()?;
        self.proceed(None)?;
        loop {
            match self.wait()? {
                Stop::Exec => {
                    breakpoints = self.plant()?;
                    self.proceed(None)?;
                }
                Stop::Trap => {
                    let at = self.registers()?.rip.wrapping_sub(1);
                    if let Some((point, loader)) = &mut breakpoints.loader
                        && at == point.address
                    {
                        if loader.is_done(self.pid()).map_err(|error| {
                            Error::kernel(format!("cannot trace `{}`", self.name), error)
                        })? {
                            return self.hold_at(at, &breakpoints);
                        }
                        self.step_over(*point)?;
                    } else if breakpoints.entry.is_some_and(|entry| entry.address == at) {
                        return self.hold_at(at, &breakpoints);
                    } else {
                        self.proceed(Some(Signal::SIGTRAP))?;
                    }
                }
                Stop::Signal(signal) => self.proceed(Some(signal))?,
            }
        }
    }

    /// Removes every trace of breakpoints from the command; returns what may have run before.
    fn hold_at(&self, address: u64, breakpoints: &Breakpoints) -> Result<Option<String>, Error> {
        let Breakpoints { entry, loader, silent } = breakpoints;
        for point in entry.iter().chain(loader.iter().map(|(point, _)| point)) {
            self.poke(point.address, point.original)?;
        }
        self.move_to(address)?;
        const BEFORE: &str = "what constructors of libraries allocated before the command's entry";
        Ok(match loader {
            None => silent.as_ref().map(|path| {
                format!("{BEFORE}: its dynamic loader {path} does not tell when they are mapped")
            }),
            Some((point, _)) if point.address != address => {
                Some(format!("{BEFORE}: its dynamic loader did not tell when they were mapped"))
            }
            Some((_, loader)) => loader.had_others().then(|| {
                "what libraries of LD_AUDIT allocated before those of the command were mapped"
                    .to_owned()
            }),
        })
    }

    /// Sets breakpoints where the command may be held.
    fn plant(&self) -> Result<Breakpoints, Error> {
        let auxiliary = Auxiliary::of(self.pid()).map_err(|error| {
            Error::kernel(format!("cannot find the entry point of `{}`", self.name), error)
        })?;
        let mut breakpoints = Breakpoints { entry: None, loader: None, silent: None };
        match Interpreter::of(self.pid(), &auxiliary) {
            Interpreter::None => {}
            Interpreter::Silent(path) => breakpoints.silent = Some(path),
            Interpreter::Known(loader) => {
                let point = self.plant_at(loader.break_address)?;
                breakpoints.loader = Some((point, loader));
            }
        }
        // A loader that was executed itself has mapped nothing at its entry point.
        if !breakpoints.loader.as_ref().is_some_and(|(_, loader)| loader.is_program) {
            breakpoints.entry = Some(self.plant_at(auxiliary.entry)?);
        }
        Ok(breakpoints)
    }

    fn plant_at(&self, address: u64) -> Result<Breakpoint, Error> {
        let original = ptrace::read(self.pid, address as ptrace::AddressType)
            .map_err(|error| self.refused("trace", error))?;
        self.poke(address, original & !0xff | INT3)?;
        Ok(Breakpoint { address, original })
    }

    /// Lets the command run on from a breakpoint that stays set.
    fn step_over(&self, point: Breakpoint) -> Result<(), Error> {
        self.poke(point.address, point.original)?;
        self.move_to(point.address)?;
        let mut signal = None;
        loop {
            ptrace::step(self.pid, signal).map_err(|error| self.refused("trace", error))?;
            match self.wait()? {
                Stop::Exec | Stop::Trap => break,
                Stop::Signal(other) => signal = Some(other),
            }
        }
        self.poke(point.address, point.original & !0xff | INT3)?;
        self.proceed(None)
    }

    fn registers(&self) -> Result<libc::user_regs_struct, Error> {
        ptrace::getregs(self.pid).map_err(|error| self.refused("trace", error))
    }

    fn move_to(&self, address: u64) -> Result<(), Error> {
        let mut registers = self.registers()?;
        registers.rip = address;
        ptrace::setregs(self.pid, registers).map_err(|error| self.refused("trace", error))
    }

    fn poke(&self, address: u64, word: libc::c_long) -> Result<(), Error> {
        ptrace::write(self.pid, address as ptrace::AddressType, word)
            .map_err(|error| self.refused("trace", error))
    }

    fn proceed(&self, signal: Option<Signal>) -> Result<(), Error> {
        ptrace::cont(self.pid, signal).map_err(|error| self.refused("trace", error))
    }

    fn wait(&self) -> Result<Stop, Error> {
        let status = loop {
            match waitpid(self.pid, Some(WaitPidFlag::__WALL)) {
                Err(Errno::EINTR) => {}
                other => break other.map_err(|error| self.refused("trace", error))?,
            }
        };
        match status {
            WaitStatus::PtraceEvent(..) => Ok(Stop::Exec),
            WaitStatus::Stopped(_, Signal::SIGTRAP) => Ok(Stop::Trap),
            WaitStatus::Stopped(_, signal) => Ok(Stop::Signal(signal)),
            WaitStatus::Exited(_, code) => Err(Error::Usage(format!(
                "`{}` ended with exit code {code} before it could be held",
                self.name
            ))),
            WaitStatus::Signaled(_, signal, _) => Err(Error::Usage(format!(
                "`{}` was ended by {signal} before it could be held",
                self.name
            ))),
            other => Err(Error::kernel(
                format!("cannot trace `{}`", self.name),
                format!("unexpected state {other:?}"),
            )),
        }
    }

    fn refused(&self, action: &str, error: Errno) -> Error {
        match error {
            Errno::ESRCH => {
                Error::Usage(format!("`{}` was killed before it could start", self.name))
            }
            error => Error::kernel(format!("cannot {action} `{}`", self.name), error),
        }
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // Either fails only if it has ended and was waited for.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Child {
    /// The command's process ID.
    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends the command a signal; does nothing if the command has ended.
    pub(super) fn forward(&self, signal: i32) {
        if let Ok(signal) = Signal::try_from(signal) {
            // It is not waited for yet, so the ID cannot be another's; root may signal anyone.
            let _ = nix::sys::signal::kill(Pid::from_raw(self.pid() as i32), signal);
        }
    }

    /// Waits for what the command does next; the caller may drop the future and call again.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when the wait fails.
    pub(super) async fn next(&mut self) -> Result<Happened, Error> {
        let failed = |error: io::Error| Error::kernel("cannot wait for the command", error);
        match &mut self.watch {
            Watch::Exit(watch) => watch.next().await.map_err(failed),
            Watch::Pidfd(pidfd) => loop {
                if let Some(status) = self.process.try_wait().map_err(failed)? {
                    return Ok(Happened::Ended(Ended(status)));
                }
                pidfd.readable().await.map_err(failed)?.clear_ready();
            },
        }
    }

    /// Lets a command end that waits for it.
    pub(super) fn let_go(&mut self) {
        if let Watch::Exit(watch) = &mut self.watch {
            watch.let_go();
        }
    }
}

/// Waits for what the command does next; for ever if there is no command.
///
/// # Errors
///
/// As [`Child::next`].
pub(super) async fn wait_for_child(child: Option<&mut Child>) -> Result<Happened, Error> {
    match child {
        Some(child) => child.next().await,
        None => std::future::pending().await,
    }
}

impl Ended {
    /// The command's exit code; 128 and the signal's number if a signal ended it.
    pub(super) fn exit_code(&self) -> u8 {
        let code = match self.0.signal() {
            Some(signal) => 128 + signal,
            None => self.0.code().unwrap_or(0),
        };
        code as u8
    }
}

#[cfg(test)]
mod tests;
