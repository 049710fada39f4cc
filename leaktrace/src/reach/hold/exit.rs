//! Follows a command of leaktrace's own to its exit, where its memory can still be read.
//!
//! The command runs at its own speed: it stops only where a signal comes to its first thread, which
//! gets it at once, and at that thread's exit (`PTRACE_O_TRACEEXIT`). Its executions of other
//! programs and its children are not touched. If leaktrace dies, the kernel lets go of it.

use std::{
    io,
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    time::{Duration, Instant},
};

use super::{
    ptrace::{self, End, Tid, Wait},
    registers, threads,
};
use crate::reach::view::ThreadState;

/// How long the other threads of a process take to end once it has ended, at most.
const OTHERS: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_micros(100);

/// Follows a child of leaktrace to its end and waits for it. The child must be stopped by SIGSTOP,
/// and be traced by nobody; it goes on.
///
/// `leaving` is called in front of the child's end, once its other threads have ended. The child
/// has all of its memory, and waits for the return of `leaving`.
///
/// # Errors
///
/// When the child cannot be traced, or is no child.
pub fn follow(pid: u32, leaving: &mut dyn FnMut(ThreadState)) -> io::Result<ExitStatus> {
    let tid = pid as Tid;
    let seized = ptrace::seize(tid, libc::PTRACE_O_TRACEEXIT);
    // SAFETY: kill takes two integers; a child that has not been waited for has its own ID.
    unsafe { libc::kill(tid, libc::SIGCONT) };
    seized?;
    loop {
        let go_on = match ptrace::next_of_child(tid)? {
            Ok(Wait::Signal(signal)) => ptrace::proceed(tid, signal),
            // Stopped with all its threads, as by Ctrl-Z, until SIGCONT comes.
            Ok(Wait::Stopped) => ptrace::listen(tid),
            Ok(Wait::Event(libc::PTRACE_EVENT_EXIT)) => {
                // Who kills it wants it gone, and its memory: perhaps as the host has none left.
                let is_killed = ptrace::event_message(tid)
                    .is_ok_and(|status| status & 0x7f == libc::SIGKILL as u64);
                if !is_killed
                    && have_others_ended(pid)
                    && let Ok(state) = registers::state(tid)
                {
                    leaving(state);
                }
                ptrace::proceed(tid, 0)
            }
            Ok(Wait::Held | Wait::Call | Wait::Event(_) | Wait::Running | Wait::Ended) => {
                ptrace::proceed(tid, 0)
            }
            Err(End(status)) => return Ok(ExitStatus::from_raw(status)),
        };
        // One that was killed meanwhile says so in the next status.
        drop(go_on);
    }
}

/// Waits until the other threads of a process have ended. They do not where the first thread ends
/// alone.
fn have_others_ended(pid: u32) -> bool {
    let start = Instant::now();
    loop {
        let living = threads::living_threads(pid);
        if living.iter().all(|tid| *tid == pid as Tid) {
            return true;
        }
        // They have got SIGKILL if the process ends.
        let is_ending = living
            .iter()
            .filter(|tid| **tid != pid as Tid)
            .all(|tid| threads::is_being_killed(pid, *tid));
        if !is_ending || start.elapsed() > OTHERS {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}
