//! Calls in flight, one for each thread; `malloc` says what becomes of a call that does not return.

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_probe_read_user};
use leaktrace_common::{AllocKey, InFlight, LossReason, cookie_throws};

use crate::{ledger, loss, maps::IN_FLIGHT};

/// The result by which a session program skips the function's return.
pub(super) const SKIP_RETURN: u32 = 1;
/// The result by which a session program asks to run at the function's return as well.
pub(super) const WATCH_RETURN: u32 = 0;

/// The slot of the thread with this ID.
#[inline(always)]
pub(super) fn slot(thread: u64) -> Option<*mut InFlight> {
    if let Some(slot) = IN_FLIGHT.get_ptr_mut(thread) {
        return Some(slot);
    }
    IN_FLIGHT.insert(thread, &InFlight::IDLE, u64::from(BPF_ANY)).ok()?;
    IN_FLIGHT.get_ptr_mut(thread)
}

/// Forgets a call in flight that has skipped its return, unless the call's process image is gone.
/// Global and not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_skipped_return(thread: u64, space: u32) -> u32 {
    let Some(slot) = IN_FLIGHT.get_ptr_mut(thread) else { return 0 };
    // SAFETY: a live map value that belongs to this thread.
    let flight = unsafe { &mut *slot };
    flight.stack_pointer = 0;
    if flight.space == space {
        loss::count(match cookie_throws(flight.function.into()) {
            true => LossReason::Thrown,
            false => LossReason::SkippedReturn,
        });
        put_old_back(flight);
    }
    0
}

/// Forgets the call in flight of a thread that ends: the call never returns. If the thread ends
/// `alone`, its process lives on, and the call counts as lost. Returns whether there was a call.
#[inline(always)]
pub(super) fn abandon(thread: u64, space: u32, alone: bool) -> bool {
    let Some(flight) = IN_FLIGHT.get_ptr_mut(thread) else { return false };
    // SAFETY: a live map value that belongs to this thread.
    unsafe {
        let is_news = (*flight).stack_pointer != 0;
        if (*flight).stack_pointer != 0 && (*flight).space == space {
            if alone {
                loss::count(LossReason::SkippedReturn);
            }
            put_old_back(&*flight);
        }
        (*flight).stack_pointer = 0;
        is_news
    }
}

/// Puts the old block of a call back that will not return: the block is as it was before the
/// resize.
#[inline(always)]
fn put_old_back(flight: &InFlight) {
    if flight.old_tracked != 0 {
        ledger::put_back(AllocKey::new(flight.space, flight.pointer), &flight.old);
    }
}

/// Whether a call is made inside the unfinished call `outer`; `malloc` says how a program knows.
#[inline(always)]
pub(super) fn is_nested(
    outer: &InFlight,
    space: u32,
    stack_pointer: u64,
    caller: u64,
    function: u64,
) -> bool {
    if outer.space != space || stack_pointer > outer.stack_pointer {
        return false;
    }
    // What throws keeps its return address.
    let keeps = cookie_throws(outer.function.into());
    if stack_pointer == outer.stack_pointer {
        // A tail call: the return slot is the outer call's.
        let same = keeps && caller == outer.caller && function != u64::from(outer.function);
        return same || is_trampoline(caller);
    }
    let slot = returns_to(outer.stack_pointer);
    is_trampoline(slot) || (keeps && slot == outer.caller)
}

/// The return address in a return slot; 0 if it cannot be read.
#[inline(always)]
pub(super) fn returns_to(slot: u64) -> u64 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(slot as *const u64) }.unwrap_or(0)
}

/// Whether a return slot holds the kernel's return trampoline. The trampoline is the first
/// instruction of the page that the kernel maps as `[uprobes]` (uprobe_get_trampoline_vaddr,
/// kernel/events/uprobes.c, 6.1 and 6.18). A call returns to the start of a page only by chance.
#[inline(always)]
pub(super) fn is_trampoline(slot: u64) -> bool {
    slot != 0 && slot & 4095 == 0
}

/// Whether the thread frees `pointer` inside a `realloc` of it, which has already taken its record
/// out.
#[inline(always)]
pub(super) fn is_being_resized(thread: u64, pointer: u64) -> bool {
    let Some(flight) = IN_FLIGHT.get_ptr(thread) else { return false };
    // SAFETY: a live map value that belongs to this thread.
    unsafe { (*flight).stack_pointer != 0 && (*flight).pointer == pointer }
}

/// `count * size`, or `None` if it overflows; computed by halves, as BPF has no 128-bit product.
#[inline(always)]
pub(super) fn product(count: u64, size: u64) -> Option<u64> {
    let (small, big) = if count < size { (count, size) } else { (size, count) };
    if small >> 32 != 0 {
        return None;
    }
    let high = small * (big >> 32);
    if high >> 32 != 0 {
        return None;
    }
    let low = small * (big & 0xffff_ffff);
    let sum = (high << 32).wrapping_add(low);
    if sum < low { None } else { Some(sum) }
}
