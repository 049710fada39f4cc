//! Events that the tracer waits for.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use leaktrace_common::{Event, EventKind, LossReason};

use crate::{
    loss,
    maps::{EVENTS, TEXT_MAPS},
};

/// Reports an event to the tracer.
#[inline(always)]
pub(super) fn notify(kind: EventKind, tgid: u32, old_space: u32, new_space: u32) {
    // SAFETY: the helper has no conditions.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let event = Event { kind: kind as u32, tgid, old_space, new_space, time_ns };
    if let Err(error) = EVENTS.output::<Event>(event, 0) {
        loss::count_refusal(LossReason::EventsFull, error.into());
    }
}

/// Reports an event of this kind to the tracer, but not again before the tracer has looked.
#[inline(always)]
pub(crate) fn notify_once(kind: EventKind, tgid: u32, space: u32) {
    let Some(map) = TEXT_MAPS.get_ptr_mut(space) else { return };
    let bit = 1 << kind as u32;
    // SAFETY: a live map value; who loses a race, or is preempted in between, tells twice, and
    // whatever bit it puts back is taken away as soon as the tracer has looked for it.
    unsafe {
        if (*map).notified & bit != 0 {
            return;
        }
        (*map).notified |= bit;
    }
    notify(kind, tgid, space, space);
}
