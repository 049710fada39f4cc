//! What happens to traced processes.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid, macros::raw_tracepoint, programs::RawTracePointContext,
};
use leaktrace_common::{Event, EventKind, LossReason};

use crate::{
    atomic, loss,
    maps::{CURSORS, EVENTS, TARGETS, TEXT_MAPS},
};

/// sched:sched_process_exec, after the new image is in place: the old image's memory is gone,
/// so the process gets a new space and its old blocks can never be confused with new ones.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn lt_exec(_ctx: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(target) = TARGETS.get_ptr_mut(tgid) else { return 0 };
    let Some(cursor) = CURSORS.get_ptr_mut(1) else { return 0 };
    // SAFETY: live map values; an exec has ended every other thread of the process.
    let event = unsafe {
        let old_space = (*target).space;
        let new_space = atomic::fetch_add(cursor, 1) as u32 + 1;
        (*target).space = new_space;
        Event { kind: EventKind::Exec as u32, tgid, old_space, new_space }
    };
    if EVENTS.output::<Event>(event, 0).is_err() {
        loss::count(LossReason::EventsFull);
    }
    0
}

/// mmap:vm_unmapped_area, from 5.7: a process is about to map memory, perhaps a library.
#[raw_tracepoint(tracepoint = "vm_unmapped_area")]
pub(crate) fn lt_mapped(_ctx: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if let Some(target) = TARGETS.get_ptr(tgid) {
        // SAFETY: a live map value.
        tell_mapped(tgid, unsafe { (*target).space });
    }
    0
}

/// Tells the session, once until it has looked, that a process' mappings have changed.
#[inline(always)]
pub(crate) fn tell_mapped(tgid: u32, space: u32) {
    let Some(map) = TEXT_MAPS.get_ptr_mut(space) else { return };
    // SAFETY: a live map value; a lost race tells twice.
    unsafe {
        if (*map).told != 0 {
            return;
        }
        (*map).told = 1;
    }
    let event = Event { kind: EventKind::Mapped as u32, tgid, old_space: space, new_space: space };
    if EVENTS.output::<Event>(event, 0).is_err() {
        loss::count(LossReason::EventsFull);
    }
}
