//! Decides which allocator calls are recorded (`--sample-bytes`, `--max-overhead`), and counts the
//! calls.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_attach_cookie, bpf_get_prandom_u32},
    programs::ProbeContext,
};
use leaktrace_common::{Call, InFlight, STEPPED, SkippedCall, sampling};

use super::in_flight::{is_trampoline, returns_to};
use crate::{
    atomic,
    maps::{CALLS, IN_FLIGHT, SAMPLING, config},
};

/// Counts a hit of a probe, if the tracer wants the count.
#[inline(always)]
pub(super) fn count_call(call: Call) {
    if config!(count_calls) != 0
        && let Some(counter) = CALLS.get_ptr_mut(call as u32)
    {
        // SAFETY: a live map value; atomic, as the program can be preempted by itself.
        unsafe { atomic::add(counter, 1) };
    }
}

/// Counts a hit of a function's probe, by a traced process or any other: whoever hits the probe
/// pays for it.
#[inline(always)]
pub(super) fn count_hit(ctx: &ProbeContext, emulated: Call, stepped: Call) {
    if config!(count_calls) != 0 {
        // SAFETY: the helper takes the program's own context.
        let is_stepped = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) } & STEPPED != 0;
        count_call(if is_stepped { stepped } else { emulated });
    }
}

/// The sampling interval for a call's block; [`InFlight::UNSAMPLED`] if the block is not to be
/// recorded.
///
/// The thread's slot remembers a call that is not recorded, as no program watches it: the calls
/// that it makes itself (operator new calls malloc) must not get a second chance. Global and not
/// inlined, so that the verifier checks it once.
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
    let Some(slot) = IN_FLIGHT.get_ptr_mut(thread) else { return InFlight::UNSAMPLED };
    // SAFETY: a live map value that belongs to this thread.
    let skipped = unsafe { &mut (*slot).skipped };
    if skipped.function != function && is_inside(skipped, stack_pointer, caller) {
        return InFlight::UNSAMPLED;
    }
    // SAFETY: the helper has no preconditions.
    let random = u64::from(unsafe { bpf_get_prandom_u32() } as u32);
    if random < sampling::threshold(size_bytes, interval) {
        return interval;
    }
    *skipped = SkippedCall { stack_pointer, caller, function };
    InFlight::UNSAMPLED
}

/// Whether a call is made inside the skipped call, which has not returned yet. Then the skipped
/// call's return slot lies further up the stack and still holds its return address, or it is the
/// new call's own slot (a tail call). Another tracer's return probe may have put the kernel's
/// trampoline there.
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
