//! Counts the events that could not be recorded and, under `-vv`, logs the kernel's errors.

use leaktrace_common::LossReason;

use crate::{
    atomic,
    maps::{LOSS, config},
};

/// Adds one to a reason's counter.
#[inline(always)]
pub(crate) fn count(reason: LossReason) {
    if let Some(counter) = LOSS.get_ptr_mut(reason as u32) {
        // SAFETY: a live map value; atomic, as an interrupt may count on the same CPU.
        unsafe { atomic::add(counter, 1) };
    }
}

/// As [`count`], for a reason that a global function has returned as its number.
#[inline(always)]
pub(crate) fn count_number(reason: u32) {
    if let Some(counter) = LOSS.get_ptr_mut(reason) {
        // SAFETY: as above.
        unsafe { atomic::add(counter, 1) };
    }
}

/// As [`count`], with the kernel's error code. Only for rare reasons, as `-vv` prints a line for
/// each.
#[inline(always)]
pub(crate) fn count_refusal(reason: LossReason, code: i64) {
    count(reason);
    tell(reason as u32, code);
}

/// Has the session print a line about a reason under `-vv`. Without `-vv` a constant folds this
/// away.
#[inline(always)]
pub(crate) fn tell(reason: u32, code: i64) {
    if config!(log) != 0 {
        leaktrace_tell(reason, code as u64);
    }
}

/// Numbers of the reasons that [`leaktrace_tell`] has a text for.
const OUTSTANDING_REFUSED: u32 = LossReason::OutstandingRefused as u32;
const SITES_FULL: u32 = LossReason::SitesFull as u32;
const STACKS_FULL: u32 = LossReason::StacksFull as u32;
const STACK_UNREADABLE: u32 = LossReason::StackUnreadable as u32;
const DELETE_REFUSED: u32 = LossReason::DeleteRefused as u32;
const EVENTS_FULL: u32 = LossReason::EventsFull as u32;

/// Logs a reason with the kernel's error code. Global and not inlined, so that its text is not on
/// the caller's stack, and the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_tell(reason: u32, code: u64) -> u32 {
    let error = code as i64;
    // The context is not used (aya-log-ebpf 0.2).
    match reason {
        OUTSTANDING_REFUSED => aya_log_ebpf::warn!((), "OVERFLOW refused an insert: {}", error),
        SITES_FULL => aya_log_ebpf::warn!((), "SITE_INDEX refused a call site: {}", error),
        STACKS_FULL => aya_log_ebpf::warn!((), "STACKS refused a stack: {}", error),
        STACK_UNREADABLE => aya_log_ebpf::warn!((), "the kernel gave no stack: {}", error),
        DELETE_REFUSED => aya_log_ebpf::warn!((), "OVERFLOW refused a delete: {}", error),
        EVENTS_FULL => aya_log_ebpf::warn!((), "EVENTS refused an event: {}", error),
        _ => return 0,
    }
    1
}
