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
