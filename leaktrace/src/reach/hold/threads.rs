//! Stops every thread of a process, and lets all of them go.

use std::{
    collections::HashSet,
    fs, io,
    time::{Duration, Instant},
};

use super::{
    Refusal,
    ptrace::{self, Tid, Wait},
    registers,
};
use crate::{host::proc, reach::view::ThreadState};

/// Pause between two looks at threads that have not stopped yet.
const FIRST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// The threads of a process, all of them stopped; let go when dropped.
///
/// Only the thread that made it may use it: ptrace(2) answers no other.
#[derive(Debug)]
pub(super) struct Stopped {
    /// The process.
    pub(super) pid: u32,
    /// Its living threads.
    pub(super) tids: Vec<Tid>,
    /// When the first thread was asked to stop.
    since: Instant,
}

impl Stopped {
    /// Stops every thread of a process, also those that are born meanwhile, but for at most
    /// `patience`.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] when another traces the process, when it has ended, or when a thread does not
    /// stop in time; the process then runs on.
    pub(super) fn whole(pid: u32, patience: Duration) -> Result<Self, Refusal> {
        let since = Instant::now();
        let mut stopped = Self { pid, tids: Vec::new(), since };
        let mut seen = HashSet::new();
        loop {
            let fresh: Vec<Tid> =
                threads_of(pid)?.into_iter().filter(|tid| seen.insert(*tid)).collect();
            if fresh.is_empty() {
                break;
            }
            let first = stopped.tids.len();
            for tid in fresh {
                // With patience spent, what is seized goes free.
                check(pid, since, patience, None)?;
                if seize(pid, tid)? {
                    stopped.tids.push(tid);
                }
            }
            // Only a thread that runs can make another: those come with the next look.
            stopped.await_from(first, patience)?;
        }
        if stopped.tids.is_empty() {
            return Err(Refusal::ended(pid));
        }
        Ok(stopped)
    }

    /// Stops one thread of a process.
    ///
    /// # Errors
    ///
    /// As [`Stopped::whole`].
    pub(super) fn one(pid: u32, tid: Tid, patience: Duration) -> Result<Self, Refusal> {
        let mut stopped = Self { pid, tids: Vec::new(), since: Instant::now() };
        if seize(pid, tid)? {
            stopped.tids.push(tid);
        }
        stopped.await_from(0, patience)?;
        if stopped.tids.is_empty() { Err(Refusal::ended(pid)) } else { Ok(stopped) }
    }

    /// Waits until all threads from an index on have stopped; those that end are left out.
    fn await_from(&mut self, first: usize, patience: Duration) -> Result<(), Refusal> {
        let mut waiting: HashSet<Tid> = self.tids[first..].iter().copied().collect();
        let mut ended = HashSet::new();
        let mut pause = FIRST_PAUSE;
        loop {
            let mut failure = None;
            waiting.retain(|tid| match ptrace::look(*tid) {
                Ok(Wait::Held | Wait::Stopped) => false,
                Ok(Wait::Running) => {
                    let is_dead = state_of(self.pid, *tid).is_none_or(is_dead);
                    if is_dead {
                        ended.insert(*tid);
                    }
                    !is_dead
                }
                Ok(Wait::Ended) => {
                    ended.insert(*tid);
                    false
                }
                // A signal that came before leaktrace's request: it takes it, and stops then.
                Ok(Wait::Signal(signal)) => {
                    let _ = ptrace::proceed(*tid, signal);
                    true
                }
                Ok(Wait::Call | Wait::Event(_)) => {
                    let _ = ptrace::proceed(*tid, 0);
                    true
                }
                Err(error) => {
                    failure = Some(error);
                    false
                }
            });
            if let Some(error) = failure {
                return Err(Refusal::kernel(self.pid, "wait for a thread of", &error));
            }
            if waiting.is_empty() {
                break;
            }
            check(self.pid, self.since, patience, waiting.iter().next().copied())?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.tids.retain(|tid| !ended.contains(tid));
        Ok(())
    }

    /// The registers of every thread.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] when those of a thread cannot be read: it may have been killed.
    pub(super) fn states(&self) -> Result<Vec<ThreadState>, Refusal> {
        let read = |tid: &Tid| registers::state(*tid);
        let states: io::Result<_> = self.tids.iter().map(read).collect();
        states.map_err(|error| Refusal::kernel(self.pid, "read the registers of", &error))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for tid in &self.tids {
            // One that has not been waited for may stop in front of a signal, which is its own.
            let signal = match ptrace::look(*tid) {
                Ok(Wait::Signal(signal)) => signal,
                _ => 0,
            };
            if ptrace::detach(*tid, signal).is_ok() {
                continue;
            }
            // It runs, as this comes from a failure: it must stop before it can be let go. One
            // that never does is let go by the kernel when this thread of leaktrace ends.
            let deadline = Instant::now() + Duration::from_millis(20);
            while Instant::now() < deadline {
                let signal = match ptrace::look(*tid) {
                    Ok(Wait::Running) => {
                        std::thread::sleep(FIRST_PAUSE);
                        continue;
                    }
                    Ok(Wait::Signal(signal)) => signal,
                    Ok(Wait::Held | Wait::Stopped | Wait::Call | Wait::Event(_)) => 0,
                    Ok(Wait::Ended) | Err(_) => break,
                };
                if ptrace::detach(*tid, signal).is_ok() {
                    break;
                }
            }
        }
    }
}

/// Whether a thread may be made to call the kernel: a filter of its own (seccomp) may kill it for a
/// call that it does not know, and a shadow stack for the return. Filters are a thread's, not a
/// process', and may have come a moment ago.
pub(super) fn takes_calls(pid: u32, tid: Tid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name)).map(str::trim)
    };
    matches!(field("Seccomp:"), Some("0"))
        && !field("x86_Thread_features:").is_some_and(|features| features.contains("shstk"))
}

/// Seizes a thread and asks it to stop. Returns false if it has ended.
fn seize(pid: u32, tid: Tid) -> Result<bool, Refusal> {
    match ptrace::seize(tid, 0).and_then(|()| ptrace::interrupt(tid)) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ESRCH) => Ok(false),
            // What the kernel says of a zombie as well: a leader that ended before its threads.
            Some(libc::EPERM) if state_of(pid, tid).is_none_or(is_dead) => Ok(false),
            Some(libc::EPERM) => match tracer_of(pid, tid) {
                Some(tracer) => Err(Refusal::traced(pid, tracer)),
                None => Err(Refusal::kernel(pid, "stop", &error)),
            },
            _ => Err(Refusal::kernel(pid, "stop", &error)),
        },
    }
}

/// Refuses when more time has passed than there is patience.
fn check(
    pid: u32,
    since: Instant,
    patience: Duration,
    running: Option<Tid>,
) -> Result<(), Refusal> {
    if since.elapsed() <= patience {
        return Ok(());
    }
    let ms = patience.as_millis();
    Err(Refusal::new(match running {
        Some(tid) => format!(
            "thread {tid} of process {pid} did not stop within {ms} ms (state {})",
            state_of(pid, tid).unwrap_or('?')
        ),
        None => format!("the threads of process {pid} did not all stop within {ms} ms"),
    }))
}

/// The threads of a process, zombies included.
///
/// # Errors
///
/// A [`Refusal`] when it has ended.
pub(super) fn threads_of(pid: u32) -> Result<Vec<Tid>, Refusal> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).map_err(|_| Refusal::ended(pid))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

/// The living threads of a process, by whose IDs its memory can be read, its leader first: one that
/// has ended has none.
pub(super) fn living_threads(pid: u32) -> Vec<Tid> {
    let mut tids = threads_of(pid).unwrap_or_default();
    tids.retain(|tid| !state_of(pid, *tid).is_none_or(is_dead));
    tids.sort_by_key(|tid| *tid != pid as Tid);
    tids
}

/// The state of a thread, as /proc shows it; none if there is no such thread.
pub(super) fn state_of(pid: u32, tid: Tid) -> Option<char> {
    let stat = fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    // Behind the name, which is in parentheses and may hold anything.
    String::from_utf8_lossy(&stat).rsplit(')').next()?.trim_start().chars().next()
}

/// Whether a thread has got SIGKILL, or is ending.
pub(super) fn is_being_killed(pid: u32, tid: Tid) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")) else {
        return true;
    };
    let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
    let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    pending.is_some_and(|mask| mask & 1 << (libc::SIGKILL - 1) != 0) || proc::is_ending(tid as u32)
}

fn is_dead(state: char) -> bool {
    matches!(state, 'Z' | 'X')
}

/// The process that traces a thread.
fn tracer_of(pid: u32, tid: Tid) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|tracer| *tracer != 0)
}
