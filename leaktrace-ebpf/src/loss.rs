//! Counts what could not be recorded.

use leaktrace_common::LossReason;

use crate::{atomic, maps::LOSS};

/// Adds one to a reason's counter.
#[inline(always)]
pub(crate) fn count(reason: LossReason) {
    if let Some(counter) = LOSS.get_ptr_mut(reason as u32) {
        // SAFETY: a live map value; atomic, as an interrupt may count on the same CPU.
        unsafe { atomic::add(counter, 1) };
    }
}

/// As [`count`], for a reason that went through a global function as its number.
#[inline(always)]
pub(crate) fn count_number(reason: u32) {
    if let Some(counter) = LOSS.get_ptr_mut(reason) {
        // SAFETY: as above.
        unsafe { atomic::add(counter, 1) };
    }
}
