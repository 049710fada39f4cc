//! Holds a process for the time of a look: stopped, or as a copy-on-write fork of it.
//!
//! Both stop every thread by ptrace(2), which no process can refuse, and read its registers.
//! [`stop`] keeps them so until the view is dropped. [`snapshot`] has one thread of the process
//! make a copy of its memory with a clone(2), and lets all of them go at once; the copy never runs.
//!
//! The process goes on as it was, whatever becomes of leaktrace: the kernel lets go of the threads
//! of a tracer that ends, and a thread that makes a system call for leaktrace finds its way back by
//! itself (see [`frame`]). What cannot be helped: a thread that waits in epoll_wait, sigtimedwait
//! or semop gets EINTR, as after any stop.
//!
//! The kernel answers only the thread of leaktrace that stopped a process. So does [`in_thread`]:
//! with its end, the kernel lets go of whatever it still traces.

mod areas;
mod checks;
pub mod exit;
mod frame;
mod gadgets;
mod groups;
mod inject;
mod ptrace;
mod registers;
mod snapshot;
mod threads;

use std::{io, time::Duration};

pub use self::snapshot::{snapshot, snapshot_watched};
use self::threads::Stopped;
use super::view::View;

/// The longest predicted stop that [`stop`] accepts unless told another.
pub const LONGEST_STOP: Duration = Duration::from_millis(250);
/// How long to wait for the threads of a process to stop. On busy CPUs each waits for its turn.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a process was not held, in one line. It runs on as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

impl Refusal {
    fn new(line: String) -> Self {
        Self(line)
    }

    fn ended(pid: u32) -> Self {
        Self(format!("process {pid} has ended"))
    }

    fn traced(pid: u32, tracer: u32) -> Self {
        let comm = crate::host::proc::comm(tracer).unwrap_or_else(|| "?".into());
        Self(format!("process {pid} is traced by process {tracer} ({comm}) already"))
    }

    fn kernel(pid: u32, action: &str, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ESRCH) => Self::ended(pid),
            _ => Self(format!("cannot {action} process {pid}: {error}")),
        }
    }
}

/// A step in the holding of a process, for who wants to follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Every thread has stopped.
    Stopped,
    /// One thread has the registers of a system call for leaktrace, and has not run yet.
    Prepared,
    /// It stands in front of the system call.
    Entered,
    /// The fork is there; leaktrace has not taken charge of it yet.
    Forked,
    /// The fork ends with leaktrace from now on.
    Owned,
    /// The system call is done; the thread does not have its own registers yet.
    Returned,
    /// The thread has its own registers again.
    Restored,
    /// The process runs on, and the fork is there to be read.
    Ready,
    /// The fork has been killed, and is to be waited for by the process.
    Killed,
}

/// Stops a process until the view is dropped. `longest` bounds the predicted time of a scan.
///
/// # Errors
///
/// A [`Refusal`] when the process is too large to be scanned in that time, is traced by another,
/// has ended, or does not stop.
pub fn stop(pid: u32, longest: Duration) -> Result<View, Refusal> {
    checks::check_stop(pid, longest)?;
    let stopped = Stopped::whole(pid, PATIENCE)?;
    checks::check_code(&stopped)?;
    let threads = stopped.states()?;
    // A leader that has ended shows no memory.
    let has_leader = stopped.tids.contains(&(pid as i32));
    let any = stopped.tids.first().map_or(pid, |tid| *tid as u32);
    let memory_pid = if has_leader { pid } else { any };
    Ok(View {
        pid,
        memory_pid,
        threads,
        is_consistent: true,
        from_target: Vec::new(),
        hold: Some(Box::new(stopped)),
    })
}

/// Runs `look` in a thread of its own, with whose end the kernel lets go of everything that was
/// held there.
pub fn in_thread<T: Send>(look: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(look).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
