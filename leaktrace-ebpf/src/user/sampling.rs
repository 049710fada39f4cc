//! Which calls of an allocator are recorded (`--sample-bytes`, `--max-overhead`), and how many
//! there are.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_get_prandom_u32};
use leaktrace_common::{InFlight, Outstanding, SkippedCall, StackId, sampling};

use super::malloc::{is_trampoline, returns_to};
use crate::{
    atomic,
    maps::{CALLS, IN_FLIGHT, SAMPLING, config},
};

/// Counts a hit of a probe, where the session wants to know.
#[inline(always)]
pub(super) fn count_call(number: u64) {
    if config!(count_calls) != 0
        && let Some(counter) = CALLS.get_ptr_mut(number as u32)
    {
        // SAFETY: a live map value; atomic, as the program can be preempted by itself.
        unsafe { atomic::add(counter, 1) };
    }
}

/// The sampling interval for a call's block, [`InFlight::UNSAMPLED`] if it is not to be recorded.
///
/// A call that is let through is remembered, as it is not watched: what it calls itself (operator
/// new calls malloc) must not get a second chance. Global and not inlined, so that the verifier
/// checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_sample(
    thread: u64,
    function: u64,
    size_bytes: u64,
    stack_pointer: u64,
    caller: u64,
) -> u32 {
    let Some(interval) = SAMPLING.get_ptr(0) else { return 0 };
    // SAFETY: a live map value.
    let interval = unsafe { interval.read_volatile() } as u32;
    if interval == 0 {
        return 0;
    }
    let slot = IN_FLIGHT.get_ptr_mut(thread);
    if let Some(slot) = slot {
        // SAFETY: a live map value that belongs to this thread.
        let skipped = unsafe { (*slot).skipped };
        if skipped.function != function && is_inside(&skipped, stack_pointer, caller) {
            return InFlight::UNSAMPLED;
        }
    }
    // SAFETY: the helper has no preconditions.
    let random = u64::from(unsafe { bpf_get_prandom_u32() } as u32);
    let is_sampled = random < sampling::threshold(size_bytes, interval);
    let skipped = match is_sampled {
        true => SkippedCall::NONE,
        false => SkippedCall { stack_pointer, caller, function },
    };
    match slot {
        // SAFETY: as above.
        Some(slot) => unsafe { (*slot).skipped = skipped },
        None if is_sampled => {}
        None => {
            let flight = InFlight {
                stack_pointer: 0,
                space: 0,
                function: 0,
                size_bytes: 0,
                caller: 0,
                stack: StackId::NOT_TAKEN,
                pointer: 0,
                old: Outstanding { size_bytes: 0, timestamp_ns: 0, site: 0, detail: 0 },
                old_tracked: 0,
                interval: 0,
                skipped,
            };
            // Without room, calls that it makes are taken for calls of their own.
            let _ = IN_FLIGHT.insert(thread, &flight, u64::from(BPF_NOEXIST));
        }
    }
    if is_sampled { interval } else { InFlight::UNSAMPLED }
}

/// Whether a call is made by the skipped one, which has not returned yet: its return slot lies
/// further up the stack and still holds its return address, or is the new call's own (a tail
/// call). Another tracer's return probe may have put the kernel's trampoline there.
#[inline(always)]
fn is_inside(skipped: &SkippedCall, stack_pointer: u64, caller: u64) -> bool {
    if skipped.stack_pointer == 0 || stack_pointer > skipped.stack_pointer {
        return false;
    }
    let slot = match stack_pointer == skipped.stack_pointer {
        true => caller,
        false => returns_to(skipped.stack_pointer),
    };
    slot == skipped.caller || is_trampoline(slot)
}
