//! Starts a command and holds it at its entry point until the probes are attached.
//!
//! At the entry point the dynamic loader has mapped every library that the command is linked
//! with, and nothing of the command itself has run. All calls up to [`Suspended::resume`] must
//! come from one thread: ptrace(2) answers only the thread that started the command.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read as _},
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

use super::wait;
use crate::error::Error;

/// The key of the entry point in the auxiliary vector.
const AT_ENTRY: u64 = 9;
/// The x86 breakpoint instruction.
const INT3: libc::c_long = 0xcc;

/// A command that is held at its entry point; killed when dropped.
#[derive(Debug)]
pub struct Suspended {
    /// Taken by [`Suspended::resume`].
    process: Option<Process>,
    pid: Pid,
    name: String,
}

/// A running command that leaktrace started.
#[derive(Debug)]
pub struct Child {
    process: Process,
    pidfd: AsyncFd<OwnedFd>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended(ExitStatus);

/// What stopped a command on its way to the entry point.
enum Stop {
    /// It executed a program (again).
    Exec,
    /// A SIGTRAP that no exec explains.
    Trap,
    /// A signal that is to be delivered.
    Signal(Signal),
}

impl Suspended {
    /// Starts `argv` and lets it run up to its entry point.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when the command cannot be run or ends before its entry point,
    /// [`Error::Kernel`] when the kernel refuses to trace it.
    pub fn start(argv: &[OsString]) -> Result<Self, Error> {
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
        let suspended = Self { process: Some(process), pid, name };
        suspended.run_to_entry()?;
        Ok(suspended)
    }

    /// The command's process ID.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// Lets the command run. Needs the event loop.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when the command was killed meanwhile, [`Error::Kernel`] for any other
    /// refusal.
    pub fn resume(mut self) -> Result<Child, Error> {
        let pidfd = wait::pidfd(self.pid())?;
        ptrace::detach(self.pid, None).map_err(|error| self.refused("resume", error))?;
        match self.process.take() {
            Some(process) => Ok(Child { process, pidfd }),
            None => Err(self.refused("resume", Errno::ESRCH)),
        }
    }

    fn run_to_entry(&self) -> Result<(), Error> {
        // The stop that the exec itself causes; what comes before it is delivered.
        loop {
            match self.wait()? {
                Stop::Exec | Stop::Trap => break,
                Stop::Signal(signal) => self.proceed(Some(signal))?,
            }
        }
        // Leaktrace's death must not leave the command stopped for ever; and an exec on the
        // way, by a library's constructor, must be told from the breakpoint.
        ptrace::setoptions(self.pid, Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACEEXEC)
            .map_err(|error| self.refused("trace", error))?;
        let (mut entry, mut original) = self.plant()?;
        self.proceed(None)?;
        loop {
            match self.wait()? {
                Stop::Exec => {
                    (entry, original) = self.plant()?;
                    self.proceed(None)?;
                }
                Stop::Trap => {
                    let mut registers =
                        ptrace::getregs(self.pid).map_err(|error| self.refused("trace", error))?;
                    if registers.rip != entry + 1 {
                        self.proceed(Some(Signal::SIGTRAP))?;
                        continue;
                    }
                    self.poke(entry, original)?;
                    registers.rip = entry;
                    return ptrace::setregs(self.pid, registers)
                        .map_err(|error| self.refused("trace", error));
                }
                Stop::Signal(signal) => self.proceed(Some(signal))?,
            }
        }
    }

    /// Puts a breakpoint at the entry point; gives its address and the word that was there.
    fn plant(&self) -> Result<(u64, libc::c_long), Error> {
        let entry = entry_point(self.pid()).map_err(|error| {
            Error::kernel(format!("cannot find the entry point of `{}`", self.name), error)
        })?;
        let original = ptrace::read(self.pid, entry as ptrace::AddressType)
            .map_err(|error| self.refused("trace", error))?;
        self.poke(entry, original & !0xff | INT3)?;
        Ok((entry, original))
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
                "`{}` ended with exit code {code} before its entry point",
                self.name
            ))),
            WaitStatus::Signaled(_, signal, _) => Err(Error::Usage(format!(
                "`{}` was ended by {signal} before its entry point",
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
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a signal; nothing if it has ended.
    pub fn forward(&self, signal: i32) {
        if let Ok(signal) = Signal::try_from(signal) {
            // It is not waited for yet, so the ID cannot be another's; root may signal anyone.
            let _ = nix::sys::signal::kill(Pid::from_raw(self.pid() as i32), signal);
        }
    }

    /// Waits for its end; may be dropped and called again.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when waiting fails.
    pub async fn ended(&mut self) -> Result<Ended, Error> {
        let failed = |error: io::Error| Error::kernel("cannot wait for the command", error);
        loop {
            if let Some(status) = self.process.try_wait().map_err(failed)? {
                return Ok(Ended(status));
            }
            self.pidfd.readable().await.map_err(failed)?.clear_ready();
        }
    }
}

impl Ended {
    /// Its exit code; 128 and the signal's number if a signal ended it.
    pub fn exit_code(&self) -> u8 {
        let code = match self.0.signal() {
            Some(signal) => 128 + signal,
            None => self.0.code().unwrap_or(0),
        };
        code as u8
    }
}

/// The entry point of what the process executes, where it is mapped.
fn entry_point(pid: u32) -> io::Result<u64> {
    let mut identification = [0; 5];
    fs::File::open(format!("/proc/{pid}/exe"))?.read_exact(&mut identification)?;
    // EI_CLASS; the vector of a 32-bit process has 32-bit words.
    let word = if identification[4] == 1 { 4 } else { 8 };
    let vector = fs::read(format!("/proc/{pid}/auxv"))?;
    entry_of_auxv(&vector, word)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no AT_ENTRY in its auxv"))
}

fn entry_of_auxv(vector: &[u8], word: usize) -> Option<u64> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    vector
        .chunks_exact(2 * word)
        .map(|pair| pair.split_at(word))
        .find(|(key, _)| number(key) == AT_ENTRY)
        .map(|(_, value)| number(value))
}

#[cfg(test)]
mod tests;
