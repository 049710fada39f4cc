//! Names of processes that have ended: a report names the owner of memory long after its process is
//! gone.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, generated::bpf_probe_read_kernel},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use leaktrace_common::{ENDED_SLOTS, EndedProcess};

use crate::{
    atomic,
    maps::{CURSORS, ENDED, config},
    pair, task,
};

/// Index in [`CURSORS`] of the number of processes that have ended.
const CURSOR: u32 = 4;

/// sched:sched_process_exit, for each thread; the last thread ends the process. So an allocation
/// pays nothing for the name of its process.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn lt_ended(_ctx: RawTracePointContext) -> i32 {
    pair::alone(|| {
        if task::is_last()
            && let Some(leader) = task::leader()
        {
            remember(leader);
        }
    });
    0
}

#[inline(always)]
fn remember(leader: u64) {
    let Some(cursor) = CURSORS.get_ptr_mut(CURSOR) else { return };
    // SAFETY: a live map value.
    let number = unsafe { atomic::fetch_add(cursor, 1) };
    let Some(slot) = ENDED.get_ptr_mut(number as u32 & (ENDED_SLOTS - 1)) else { return };
    let slot: *mut EndedProcess = slot;
    // SAFETY: a live map value. The loader takes a slot for whole only with the same sequence before
    // and after it is read; stores are not reordered (x86_64).
    unsafe {
        (&raw mut (*slot).sequence).write_volatile(0);
        compiler_fence(Ordering::SeqCst);
        // Read into the map: what is copied by the stack has LLVM read parts of it that were not
        // written, which kernels before 6.3 refuse.
        let start_at = leader + u64::from(config!(task_start_offset));
        bpf_probe_read_kernel((&raw mut (*slot).start_ns).cast(), 8, start_at as *const _);
        let comm_at = leader + u64::from(config!(task_comm_offset));
        bpf_probe_read_kernel((&raw mut (*slot).comm).cast(), 16, comm_at as *const _);
        (*slot).end_ns = bpf_ktime_get_ns();
        (*slot).tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        compiler_fence(Ordering::SeqCst);
        (&raw mut (*slot).sequence).write_volatile(number + 1);
    }
}
