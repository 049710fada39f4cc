//! A copy-on-write fork of a process, to be read while the process runs on.

use super::{
    PATIENCE, Phase, Refusal, areas, checks,
    gadgets::{self, Gadgets},
    inject::Caller,
    ptrace::{self, Tid, Wait},
    threads::{self, Stopped},
};
use crate::reach::view::View;

/// How many threads to ask in turn to wait for the dead fork.
const REAPERS: usize = 16;

/// A fork that never runs; killed, and waited for by its parent, when dropped.
struct Fork {
    parent: u32,
    /// The fork, by its process ID.
    pid: Tid,
    /// The same as its parent sees it.
    pid_in_parent: i64,
    /// The thread that made it.
    maker: Tid,
    watch: Box<dyn FnMut(Phase)>,
}

/// Makes a copy-on-write fork of a process. The process is stopped for the time of one clone(2),
/// some 30 to 85 ms for each GiB of memory in use.
///
/// # Errors
///
/// A [`Refusal`] when the process is under seccomp, runs 32-bit code, is traced by another, has no
/// room for the copy in its control group, or has no thread that can make it.
pub fn snapshot(pid: u32) -> Result<View, Refusal> {
    snapshot_watched(pid, Box::new(|_| {}))
}

/// As [`snapshot`], and tells of each step.
///
/// # Errors
///
/// As [`snapshot`].
pub fn snapshot_watched(pid: u32, mut watch: Box<dyn FnMut(Phase)>) -> Result<View, Refusal> {
    checks::check_snapshot(pid)?;
    // Before the process is stopped: the code does not change, and the search takes time.
    let gadgets = find_gadgets(pid)?;

    let stopped = Stopped::whole(pid, PATIENCE)?;
    watch(Phase::Stopped);
    checks::check_code(&stopped)?;
    let threads = stopped.states()?;
    let maker = caller(&stopped, gadgets)?;
    // Without CLONE_FILES, what the process closes would stay open in the copy. No signal at its
    // end.
    let flags = (libc::CLONE_FILES | libc::CLONE_FS) as u64;
    let done = maker
        .call(libc::SYS_clone, [flags, maker.fork_sp(), 0, 0, 0, 0], &mut *watch)
        .map_err(|error| Refusal::kernel(pid, "copy", &error))?;
    let Some(forked) = done.forked else {
        return Err(checks::no_copy(pid, -done.result as i32));
    };
    let maker = maker.tid();
    drop(stopped);
    let mut fork = Fork { parent: pid, pid: forked.pid, pid_in_parent: done.result, maker, watch };
    (fork.watch)(Phase::Ready);

    let memory_pid = fork.pid as u32;
    // By the thread that made it: a leader that has ended shows no mappings.
    let from_target = areas::from_parent(maker as u32, memory_pid)
        .map_err(|error| Refusal::kernel(pid, "read the mappings of", &error))?;
    Ok(View {
        pid,
        memory_pid,
        threads,
        is_consistent: true,
        from_target,
        hold: Some(Box::new(fork)),
    })
}

/// The instructions that a call needs.
fn find_gadgets(pid: u32) -> Result<Gadgets, Refusal> {
    for tid in threads::living_threads(pid) {
        // A thread may end meanwhile.
        if let Some(mappings) = gadgets::mappings(tid)
            && let Some(gadgets) = Gadgets::find(tid, &mappings)
        {
            return Ok(gadgets);
        }
    }
    Err(Refusal::new(format!("the code of process {pid} has no `syscall; ret` to be used")))
}

/// The thread of a stopped process that is to make a call.
fn caller(stopped: &Stopped, gadgets: Gadgets) -> Result<Caller, Refusal> {
    let pid = stopped.pid;
    let any = stopped.tids.first().copied().unwrap_or_default();
    let mappings = gadgets::mappings(any).ok_or_else(|| Refusal::ended(pid))?;
    Caller::choose(pid, &stopped.tids, &mappings, gadgets).map_err(|_| {
        Refusal::new(format!(
            "no thread of process {pid} can make a copy now: none runs on a stack of the C library"
        ))
    })
}

impl Fork {
    /// Has a thread of the parent wait for the dead fork; returns whether it is gone.
    fn reap(&mut self) -> bool {
        let mut tids = threads::threads_of(self.parent).unwrap_or_default();
        tids.sort_by_key(|tid| *tid != self.maker);
        let mut reapers = tids.into_iter().take(REAPERS);
        reapers.any(|tid| self.reap_by(tid).unwrap_or(false))
    }

    fn reap_by(&mut self, tid: Tid) -> Result<bool, Refusal> {
        // Found anew, as the process may execute another program by now.
        let gadgets = find_gadgets(self.parent)?;
        let stopped = Stopped::one(self.parent, tid, PATIENCE)?;
        let caller = caller(&stopped, gadgets)?;
        let flags = (libc::WNOHANG | libc::__WALL) as u64;
        let arguments = [self.pid_in_parent as u64, 0, flags, 0, 0, 0];
        let done = caller
            .call(libc::SYS_wait4, arguments, &mut *self.watch)
            .map_err(|error| Refusal::kernel(self.parent, "lead", &error))?;
        // The process may have waited for it itself.
        Ok(done.result == self.pid_in_parent || done.result == -i64::from(libc::ECHILD))
    }
}

impl Drop for Fork {
    fn drop(&mut self) {
        // SAFETY: kill takes two integers. The fork is traced and has not been waited for, so the
        // ID is its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        while !matches!(ptrace::wait_for(self.pid), Ok(Wait::Ended) | Err(_)) {}
        (self.watch)(Phase::Killed);
        // A process that has ended meanwhile leaves it to init. One that another traces now, or
        // whose threads do not stop, keeps a zombie that asks nothing of it.
        self.reap();
    }
}
