//! Names of processes that have ended: whose memory it was is asked for long after they have gone.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use leaktrace_common::{ENDED_SLOTS, EndedProcess};

use crate::{
    atomic,
    maps::{CURSORS, ENDED},
    task,
};

/// Where [`CURSORS`] counts them.
const CURSOR: u32 = 4;

/// sched:sched_process_exit, of each thread; the last one ends the process. What allocates pays
/// nothing for names.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn lt_ended(_ctx: RawTracePointContext) -> i32 {
    if task::is_last()
        && let Some(leader) = task::leader()
        && let (Some(comm), Some(start_ns)) = (task::comm(leader), task::start_ns(leader))
    {
        remember(comm, start_ns);
    }
    0
}

#[inline(always)]
fn remember(comm: [u8; 16], start_ns: u64) {
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
        (*slot).start_ns = start_ns;
        (*slot).end_ns = bpf_ktime_get_ns();
        (*slot).comm = comm;
        (*slot).tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        compiler_fence(Ordering::SeqCst);
        (&raw mut (*slot).sequence).write_volatile(number + 1);
    }
}
