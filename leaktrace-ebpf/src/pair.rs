//! Two programs on one tracepoint: the second records what the first was refused.
//!
//! The kernel does not run a program that is running on the same CPU already (the `active` count of
//! `__bpf_trace_run`, kernel/trace/bpf_trace.c, 6.1 to 7.2). Up to 6.19 only an interrupt meets one
//! there, some hundred times in a row where RCU callbacks free; from 7.0 on such programs can be
//! preempted, and every task that comes to the tracepoint on that CPU meanwhile is refused. The
//! second program is not running then; where it is itself the one that is in the way, the first is
//! not.
//!
//! These programs switch preemption off while they run, where the kernel has a function for that
//! (from 6.10), so that none is stopped in the middle of its work, with a lock or the kernel's
//! buffer for stacks in its hands. Who is to be preempted then is so at the end, where the program
//! still counts as running: a third task that comes while a second one has been stopped there as
//! well is refused twice, and counted.
//!
//! Each second program finds out by itself whether its event has been recorded: in the table of
//! blocks, among the traced processes, in the thread's own slot. [`HANDLED`] only saves that look.
//! A first program wipes its mark on this CPU before it does anything, so that no old mark is left
//! while it stands in the way of others: what it refuses finds no mark, or that of the event that is
//! in the way. A task that is preempted between the two programs may find another's mark or be on
//! another CPU, and looks.

use leaktrace_common::{KernelCall, Pair};

use crate::{
    atomic,
    maps::{HANDLED, HEALED, config},
};

/// The pairs up to this one are attached on all kernels: what is freed in interrupts, and what is
/// rare.
const LAST_ON_ALL: u32 = Pair::Exit as u32;

/// Whether there is a second program.
#[inline(always)]
fn is_attached(pair: Pair) -> bool {
    pair as u32 <= LAST_ON_ALL || config!(preemptible) != 0
}

/// Runs a first program; `event` is what names it for its second, never 0.
#[inline(always)]
pub(crate) fn first(pair: Pair, event: u64, run: impl FnOnce()) {
    stop_preemption();
    if is_attached(pair) {
        mark(pair, 0);
    }
    run();
    if is_attached(pair) {
        mark(pair, event);
    }
    allow_preemption();
}

/// Runs a second program, unless the first has handled its event; `run` gives whether it had
/// something to record.
#[inline(always)]
pub(crate) fn second(pair: Pair, event: u64, run: impl FnOnce() -> bool) {
    stop_preemption();
    look_again(pair, event, run);
    allow_preemption();
}

#[inline(always)]
fn look_again(pair: Pair, event: u64, run: impl FnOnce() -> bool) {
    if let Some(handled) = HANDLED.get_ptr_mut(pair as u32) {
        // SAFETY: a live map value, this CPU's own. The mark is used up, so that none is left that
        // a later event of the same name could meet.
        unsafe {
            if handled.read_volatile() == event {
                handled.write_volatile(0);
                return;
            }
        }
    }
    if run()
        && let Some(healed) = HEALED.get_ptr_mut(pair as u32)
    {
        // SAFETY: a live map value, aligned.
        unsafe { atomic::add(healed, 1) };
    }
}

/// A call of a function of the kernel.
macro_rules! call {
    ($function:expr) => {
        if config!(preemptible) == 2 {
            // SAFETY: the function takes nothing and gives nothing, and calls as helpers do.
            unsafe {
                core::arch::asm!(
                    "call {}",
                    const $function,
                    lateout("r0") _, lateout("r1") _, lateout("r2") _,
                    lateout("r3") _, lateout("r4") _, lateout("r5") _,
                );
            }
        }
    };
}

#[inline(always)]
fn stop_preemption() {
    call!(KernelCall::PREEMPT_DISABLE);
}

#[inline(always)]
fn allow_preemption() {
    call!(KernelCall::PREEMPT_ENABLE);
}

#[inline(always)]
fn mark(pair: Pair, event: u64) {
    if let Some(handled) = HANDLED.get_ptr_mut(pair as u32) {
        // SAFETY: a live map value, this CPU's own.
        unsafe { handled.write_volatile(event) };
    }
}
