//! Unfinished calls of the functions that `--pair` names: a thread's slot holds several. `pairs`
//! says what the calls do; stack walks ask where they return to.

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_get_current_pid_tgid};
use leaktrace_common::{LossReason, PAIR_DEPTH, PairCall, PairCalls};

use super::in_flight::is_trampoline;
use crate::{
    loss,
    maps::{NO_PAIR_CALLS, PAIR_CALLS, STACKS, config},
};

/// The call with this index in a thread's slot.
#[inline(always)]
pub(super) fn call_at(slot: *mut PairCalls, index: u32) -> *mut PairCall {
    // SAFETY: a live map value of which the address alone is taken; the index is bounded.
    unsafe { (&raw mut (*slot).calls).cast::<PairCall>().add(bounded(index)) }
}

/// The same index, in a form whose bound the verifier sees: LLVM would optimise a mask away.
#[inline(always)]
fn bounded(index: u32) -> usize {
    const { assert!(PAIR_DEPTH == 16) };
    let mut bounded = u64::from(index);
    // SAFETY: changes the register alone.
    unsafe {
        core::arch::asm!("{0} &= 15", inout(reg) bounded, options(pure, nomem, nostack));
    }
    bounded as usize
}

/// The slot of a thread.
#[inline(always)]
pub(super) fn slot(thread: u64) -> Option<*mut PairCalls> {
    if let Some(slot) = PAIR_CALLS.get_ptr_mut(thread) {
        return Some(slot);
    }
    let idle = NO_PAIR_CALLS.get_ptr(0)?;
    // SAFETY: a live map value that nobody writes.
    PAIR_CALLS.insert(thread, unsafe { &*idle }, u64::from(BPF_ANY)).ok()?;
    PAIR_CALLS.get_ptr_mut(thread)
}

/// Removes the slot of a thread that ends; its unfinished calls will not return any more. They are
/// losses if the thread leaves its process `alone`. Returns whether there were any.
#[inline(always)]
pub(super) fn abandon(thread: u64, space: u32, alone: bool) -> bool {
    if config!(pairs) == 0 {
        return false;
    }
    let Some(slot) = PAIR_CALLS.get_ptr(thread) else { return false };
    // SAFETY: a live map value that belongs to this thread.
    let (depth, of) = unsafe { ((*slot).depth, (*slot).space) };
    // One that is not there needs no removal.
    let _ = PAIR_CALLS.remove(thread);
    if alone && of == space {
        for at in 0..PAIR_DEPTH as u32 {
            if at >= depth {
                break;
            }
            loss::count(LossReason::SkippedReturn);
        }
    }
    depth != 0
}

/// Where a call returns to, during a stack walk: `address` is what its return slot holds. If that
/// is the trampoline that the kernel has put there for a pair's function, the result is the return
/// address that was there before.
#[inline(always)]
pub(super) fn returns_to_from(slot: u64, address: u64) -> u64 {
    if config!(pairs) == 0 || !is_trampoline(address) {
        return address;
    }
    match leaktrace_pair_caller(slot) {
        0 => address,
        caller => caller,
    }
}

/// The caller of that unfinished call of the running thread whose return slot is this one; 0 if
/// there is none. Global and not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_pair_caller(stack_pointer: u64) -> u64 {
    let Some(slot) = PAIR_CALLS.get_ptr_mut(bpf_get_current_pid_tgid()) else { return 0 };
    // SAFETY: a live map value that belongs to this thread.
    let depth = unsafe { (*slot).depth };
    let mut at = 0;
    while at < PAIR_DEPTH as u32 {
        if at >= depth {
            break;
        }
        // SAFETY: within the array.
        let call = unsafe { &*call_at(slot, at) };
        if call.stack_pointer == stack_pointer {
            return match call.caller {
                // It has been read as the first frame of the stack.
                0 => match STACKS.get_ptr(call.stack) {
                    // SAFETY: a live map value; the loader takes out stacks of images that are gone.
                    Some(stack) => unsafe { (*stack).frames[0] },
                    None => 0,
                },
                caller => caller,
            };
        }
        at += 1;
    }
    0
}
