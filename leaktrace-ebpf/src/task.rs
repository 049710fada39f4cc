//! Reads the kernel's record of the running task.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};

use crate::maps::config;

/// The `struct task_struct` of the first thread of the running process, whose command name is the
/// process'.
#[inline(always)]
pub(crate) fn leader() -> Option<u64> {
    if config!(task_leader_offset) == 0 {
        return None;
    }
    // SAFETY: the helper checks the address.
    unsafe {
        let at = bpf_get_current_task() + u64::from(config!(task_leader_offset));
        bpf_probe_read_kernel(at as *const u64).ok()
    }
}

/// The command name of a task.
#[inline(always)]
pub(crate) fn comm(task: u64) -> Option<[u8; 16]> {
    // SAFETY: as above.
    unsafe { bpf_probe_read_kernel((task + u64::from(config!(task_comm_offset))) as *const _).ok() }
}

/// Whether the running thread, which is ending, is the last one of its process: a thread counts
/// itself out before the tracepoint (do_exit, kernel/exit.c, 6.1 and 6.18).
#[inline(always)]
pub(crate) fn is_last() -> bool {
    // SAFETY: as above.
    unsafe {
        let at = bpf_get_current_task() + u64::from(config!(task_signal_offset));
        let Ok(signal) = bpf_probe_read_kernel(at as *const u64) else { return false };
        let live = signal + u64::from(config!(signal_live_offset));
        bpf_probe_read_kernel(live as *const i32).is_ok_and(|live| live <= 0)
    }
}
