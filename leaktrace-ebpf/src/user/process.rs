//! What happens to traced processes.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_ANY,
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_kernel},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use leaktrace_common::{BlockWord, Event, EventKind, LossReason, Target};

use crate::{
    atomic, loss,
    maps::{CURSORS, EVENTS, TARGETS, TEXT_MAPS, config},
};

/// sched:sched_process_exec, after the new image is in place: the old image's memory is gone,
/// so the process gets a new space and its old blocks can never be confused with new ones.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn lt_exec(_ctx: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(target) = TARGETS.get_ptr_mut(tgid) else { return 0 };
    let new_space = next_space();
    // SAFETY: a live map value; an exec has ended every other thread of the process.
    let old_space = unsafe {
        let old_space = (*target).space;
        (*target).space = new_space;
        old_space
    };
    if new_space == 0 {
        // One that is not there needs no removal.
        let _ = TARGETS.remove(tgid);
    }
    tell(Event { kind: EventKind::Exec as u32, tgid, old_space, new_space });
    0
}

/// A space that no process image has had; 0 when all have been given.
#[inline(always)]
fn next_space() -> u32 {
    let Some(cursor) = CURSORS.get_ptr_mut(1) else { return 0 };
    // SAFETY: a live map value.
    let space = unsafe { atomic::fetch_add(cursor, 1) } + 1;
    if space < u64::from(BlockWord::SPACES) { space as u32 } else { 0 }
}

#[inline(always)]
fn tell(event: Event) {
    if EVENTS.output::<Event>(event, 0).is_err() {
        loss::count(LossReason::EventsFull);
    }
}

/// sched:sched_process_fork(parent, child), before the child runs: a traced process' child is
/// traced as well, in a space of its own, unless it shares its parent's memory (vfork).
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub(crate) fn lt_fork(ctx: RawTracePointContext) -> i32 {
    let parent = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(target) = TARGETS.get_ptr(parent) else { return 0 };
    // SAFETY: the tracepoint has two arguments; the helper checks the addresses, and the child
    // has all it needs but has not been woken (kernel_clone, kernel/fork.c, 6.1 and 6.18).
    let (tgid, shares_memory) = unsafe {
        let child = *ctx.as_ptr().cast::<u64>().add(1);
        let (tgid_at, mm_at) = (config!(task_tgid_offset), config!(task_mm_offset));
        let Ok(tgid) = bpf_probe_read_kernel((child + u64::from(tgid_at)) as *const u32) else {
            return 0;
        };
        let mm = |task: u64| bpf_probe_read_kernel((task + u64::from(mm_at)) as *const u64);
        (tgid, mm(child) == mm(bpf_get_current_task()))
    };
    // A thread belongs to its process.
    if tgid == parent {
        return 0;
    }
    // SAFETY: a live map value.
    let old_space = unsafe { (*target).space };
    let mut new_space = old_space;
    if !shares_memory {
        new_space = next_space();
    }
    let entry = Target { space: new_space, zero: 0 };
    if new_space != 0 && TARGETS.insert(tgid, entry, u64::from(BPF_ANY)).is_err() {
        new_space = 0;
    }
    tell(Event { kind: EventKind::Forked as u32, tgid, old_space, new_space });
    0
}

/// mmap:vm_unmapped_area, from 5.7: a process is about to map memory, perhaps a library.
#[raw_tracepoint(tracepoint = "vm_unmapped_area")]
pub(crate) fn lt_mapped(_ctx: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if let Some(target) = TARGETS.get_ptr(tgid) {
        // SAFETY: a live map value.
        tell_once(EventKind::Mapped, tgid, unsafe { (*target).space });
    }
    0
}

/// Tells the session, once until it has looked, of an event of this kind.
#[inline(always)]
pub(crate) fn tell_once(kind: EventKind, tgid: u32, space: u32) {
    let Some(map) = TEXT_MAPS.get_ptr_mut(space) else { return };
    let bit = 1 << kind as u32;
    // SAFETY: a live map value; a lost race tells twice.
    unsafe {
        if (*map).told & bit != 0 {
            return;
        }
        (*map).told |= bit;
    }
    tell(Event { kind: kind as u32, tgid, old_space: space, new_space: space });
}
