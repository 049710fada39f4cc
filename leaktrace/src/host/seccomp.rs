//! Whether return probes kill processes under a seccomp filter: leaktrace tries it on a child of
//! its own.
//!
//! From 6.11 on the kernel's return trampoline makes a system call, `uretprobe` (335 on x86_64).
//! A filter that does not know this call kills the process there, or makes the call fail, after
//! which the process crashes. Kernels with `seccomp: passthrough uretprobe systemcall without
//! filtering` (6.14 and stable kernels after it) let the call pass.

use std::{
    fs::{self, File},
    io::{self, PipeReader, Read as _, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};

use super::{answer::Answer, proc};

/// Longest time for the child, which takes less than a millisecond; a busy emulated machine takes
/// some hundred.
const DEADLINE: Duration = Duration::from_secs(10);

// The function with the return probe; global, as the compiler may put it into another object file
// than its caller.
std::arch::global_asm!(
    ".pushsection .text.leaktrace_returning, \"ax\", @progbits",
    ".globl leaktrace_returning",
    ".hidden leaktrace_returning",
    ".type leaktrace_returning, @function",
    "leaktrace_returning:",
    "nop",
    "ret",
    ".size leaktrace_returning, . - leaktrace_returning",
    ".popsection",
);

unsafe extern "C" {
    fn leaktrace_returning();
}

/// Whether processes under a seccomp filter survive a return probe; the answer is no where the
/// kernel kills them. Only the child meets the probe, which is gone when this function returns.
pub fn return_probes() -> Answer {
    // SAFETY: it takes nothing, changes nothing and returns.
    let (counter, end) = match filtered(count_returns, || unsafe { leaktrace_returning() }) {
        Ok(ended) => ended,
        Err(error) => return Answer::Unknown(format!("it cannot be tried: {error}")),
    };
    judge(end, || {
        let mut count = [0; 8];
        (&counter).read_exact(&mut count)?;
        Ok(u64::from_ne_bytes(count))
    })
}

/// Has the kernel count the returns of the function in a process, by perf_event_open(2): the
/// library that leaktrace uses for perf events cannot open uprobes.
fn count_returns(child: Pid) -> io::Result<File> {
    /// Words of `perf_event_attr` up to `config2`, which `uprobe` events need
    /// (PERF_ATTR_SIZE_VER1).
    const WORDS: usize = 9;
    /// include/uapi/linux/perf_event.h
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    let events = "/sys/bus/event_source/devices/uprobe/type";
    let kind: u64 = fs::read_to_string(events)?.trim().parse().map_err(io::Error::other)?;
    let path = c"/proc/self/exe";
    let offset = proc::own_offset(leaktrace_returning as *const () as usize as u64)
        .ok_or_else(|| io::Error::other("leaktrace's own code is not in /proc/self/maps"))?;
    let mut attr = [0u64; WORDS];
    // Type and size; the lowest bit of `config` asks for returns; `config1` is the path, `config2`
    // the offset.
    attr[0] = kind | (size_of_val(&attr) as u64) << 32;
    attr[1] = 1;
    attr[7] = path.as_ptr() as u64;
    attr[8] = offset;
    let (pid, any_cpu, no_group) = (child.as_raw(), -1, -1);
    // SAFETY: the attribute and the path live during the call, and the size is that of the former.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attr.as_ptr(),
            pid,
            any_cpu,
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { File::from_raw_fd(fd as i32) })
}

fn judge(end: WaitStatus, hits: impl FnOnce() -> io::Result<u64>) -> Answer {
    match end {
        WaitStatus::Signaled(_, Signal::SIGSYS, _) => {
            Answer::No("the kernel kills such processes".to_owned())
        }
        WaitStatus::Exited(_, 0) => match hits() {
            Ok(1..) => Answer::Yes,
            Ok(0) => Answer::Unknown("the probe of a child was not hit".to_owned()),
            Err(error) => Answer::Unknown(format!("hits cannot be counted: {error}")),
        },
        other => Answer::Unknown(format!("a child ended unexpectedly: {other:?}")),
    }
}

/// Whether a thread of a process is under seccomp; false if the process has ended.
pub fn is_filtered(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok()).any(
        |status| {
            // 0 none, 1 strict, 2 filters (man 5 proc_pid_status).
            let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
            mode.is_some_and(|mode| mode.trim() != "0")
        },
    )
}

/// Forks a child, runs `prepare` on it, and has it act under a filter that kills it at any system
/// call but its exit. Returns the result of `prepare`, and how the child ended. The child is gone
/// on return.
fn filtered<T>(
    prepare: impl FnOnce(Pid) -> io::Result<T>,
    act: impl FnOnce(),
) -> io::Result<(T, WaitStatus)> {
    let (go, mut start) = io::pipe()?;
    // SAFETY: the child makes system calls, allocates nothing, and never returns.
    let child = match unsafe { fork() }? {
        ForkResult::Child => {
            // Else the child would wait for itself if leaktrace is killed.
            drop(start);
            // SAFETY: this is the child.
            unsafe { act_and_exit(&go, act) }
        }
        ForkResult::Parent { child } => Child(child),
    };
    drop(go);
    let prepared = prepare(child.0)?;
    start.write_all(&[0])?;
    let end = child.wait()?;
    Ok((prepared, end))
}

/// The child's part; it exits with 0 if it has survived.
///
/// # Safety
///
/// Only for a process that was forked to call this function, which changes the whole process.
unsafe fn act_and_exit(go: &PipeReader, act: impl FnOnce()) -> ! {
    // SAFETY: plain system calls on values that live here; the filter's instructions are copied.
    unsafe {
        let quiet = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
            // No handler of core dumps hears of it.
            && libc::prctl(libc::PR_SET_DUMPABLE, 0) == 0
            && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
        let mut byte = 0u8;
        if !quiet || libc::read(go.as_raw_fd(), (&raw mut byte).cast(), 1) != 1 {
            libc::_exit(2);
        }
        let mut filter = [
            libc::BPF_STMT((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0),
            libc::BPF_JUMP(
                (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
                libc::SYS_exit_group as u32,
                0,
                1,
            ),
            libc::BPF_STMT((libc::BPF_RET | libc::BPF_K) as u16, libc::SECCOMP_RET_ALLOW),
            libc::BPF_STMT((libc::BPF_RET | libc::BPF_K) as u16, libc::SECCOMP_RET_KILL_PROCESS),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        if libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) != 0 {
            libc::_exit(3);
        }
        act();
        libc::_exit(0)
    }
}

/// A child of leaktrace; killed and reaped when dropped.
struct Child(Pid);

impl Child {
    /// Waits for the child's end, but not for ever.
    fn wait(self) -> io::Result<WaitStatus> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match waitpid(self.0, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) if Instant::now() >= deadline => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "a child did not end in time",
                    ));
                }
                Ok(WaitStatus::StillAlive) => thread::sleep(Duration::from_micros(200)),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(end) => {
                    // Its number may be another's from now on.
                    std::mem::forget(self);
                    return Ok(end);
                }
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only if it is gone.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a child ends that does this under the filter; no child is left behind.
    fn end_of(act: impl FnOnce()) -> WaitStatus {
        let (pid, end) = filtered(Ok, act).unwrap();
        assert_eq!(waitpid(pid, Some(WaitPidFlag::WNOHANG)), Err(Errno::ECHILD));
        end
    }

    #[test]
    fn a_child_is_killed_at_a_call_that_its_filter_does_not_know() {
        // SAFETY: a system call without arguments.
        let end = end_of(|| unsafe {
            libc::syscall(libc::SYS_getppid);
        });
        assert!(matches!(end, WaitStatus::Signaled(_, Signal::SIGSYS, false)), "{end:?}");
        assert!(matches!(judge(end, || Ok(1)), Answer::No(_)));
    }

    #[test]
    fn a_child_that_makes_no_call_survives() {
        let end = end_of(|| ());
        assert!(matches!(end, WaitStatus::Exited(_, 0)), "{end:?}");
        assert_eq!(judge(end, || Ok(1)), Answer::Yes);
        // That it survived says nothing where the probe was not hit.
        assert!(matches!(judge(end, || Ok(0)), Answer::Unknown(_)));
        assert!(matches!(judge(WaitStatus::StillAlive, || Ok(1)), Answer::Unknown(_)));
    }

    #[test]
    fn a_child_that_cannot_be_prepared_is_gone() {
        let mut child = None;
        let prepare = |pid| {
            child = Some(pid);
            Err::<(), _>(io::Error::other("no"))
        };
        assert!(filtered(prepare, || ()).is_err());
        assert_eq!(waitpid(child.unwrap(), Some(WaitPidFlag::WNOHANG)), Err(Errno::ECHILD));
    }

    #[test]
    fn filters_are_seen_from_outside() {
        assert!(!is_filtered(u32::MAX));
        let stay = || loop {
            std::hint::spin_loop();
        };
        let (go, mut start) = io::pipe().unwrap();
        // SAFETY: the child makes system calls and allocates nothing.
        let child = match unsafe { fork() }.unwrap() {
            // SAFETY: this is the child.
            ForkResult::Child => unsafe { act_and_exit(&go, stay) },
            ForkResult::Parent { child } => Child(child),
        };
        let pid = child.0.as_raw() as u32;
        assert_eq!(is_filtered(pid), is_filtered(std::process::id()));
        start.write_all(&[0]).unwrap();
        let deadline = Instant::now() + DEADLINE;
        while !is_filtered(pid) {
            assert!(Instant::now() < deadline, "its filter is not seen");
            thread::yield_now();
        }
    }
}
