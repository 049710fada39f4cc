//! Two programs on one tracepoint: the second records the events that the kernel refused to the
//! first.
//!
//! The kernel does not run a program that is running on the same CPU already (the `active` count of
//! `__bpf_trace_run`, kernel/trace/bpf_trace.c, 6.1 to 7.2). Up to 6.19 only an interrupt meets a
//! running program there, some hundred times in a row where RCU callbacks free. From 7.0 on such
//! programs can be preempted, and the kernel refuses the program to every task that comes to the
//! tracepoint on that CPU meanwhile. The second program is not running at that moment; and when the
//! second one is in the way, the first is not running.
//!
//! The programs switch preemption off while they run, where the kernel has functions for that. So
//! none is stopped in the middle of its work, while it holds a lock or the kernel's buffer for
//! stacks. A task that the scheduler wants to preempt meanwhile is preempted behind the program's
//! end (see `allow_preemption`): a program can be preempted in its first and last few instructions
//! alone. If a second task has been stopped there as well, a third task is refused both programs,
//! and the refusal is counted.
//!
//! Each second program finds out by itself whether its event has been recorded: in the table of
//! blocks, among the traced processes, or in the thread's own slot. [`HANDLED`] only saves that
//! look. A first program wipes its CPU's mark before it does anything, so that no old mark is left
//! while it stands in the way of others. So the event that it refuses finds no mark, or the mark of
//! the event that is in the way. A task that is preempted between the two programs may find another
//! task's mark or run on another CPU; then the second program looks.

use core::mem::MaybeUninit;

use leaktrace_common::{KernelCall, Pair};

use crate::{
    atomic,
    maps::{HANDLED, HEALED, config},
};

/// The last of the pairs that are attached on all kernels: the pairs up to it are for frees, which
/// interrupts do, and for rare events.
const LAST_ON_ALL: u32 = Pair::Exit as u32;

/// Whether the pair's second program is attached.
#[inline(always)]
fn is_attached(pair: Pair) -> bool {
    pair as u32 <= LAST_ON_ALL || config!(preemptible) != 0
}

/// Runs a program that has no second one: on a function's entry or return, or on a rare event.
#[inline(always)]
pub(crate) fn alone(run: impl FnOnce()) {
    stop_preemption();
    run();
    allow_preemption();
}

/// Runs a first program; `event` identifies its event for the second program and is never 0.
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

/// Runs a second program, unless the first has handled its event; `run` returns whether it had
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

#[inline(always)]
fn stop_preemption() {
    if config!(preemptible) != 2 {
        return;
    }
    // SAFETY: the function takes nothing and gives nothing, and calls as helpers do.
    unsafe {
        core::arch::asm!(
            "call {}",
            const KernelCall::PREEMPT_DISABLE,
            out("r0") _, out("r1") _, out("r2") _, out("r3") _, out("r4") _, out("r5") _,
        );
    }
}

/// Switches preemption on while interrupts are off. So a task that is due to be preempted is
/// preempted at the kernel's next check, when the kernel has counted the program as ended and it
/// stands in nobody's way. (`preempt_schedule` does nothing while interrupts are off,
/// kernel/sched/core.c, 7.2.)
#[inline(always)]
fn allow_preemption() {
    if config!(preemptible) != 2 {
        return;
    }
    let mut flags = MaybeUninit::<u64>::uninit();
    // SAFETY: the functions call as helpers do. The first writes the flags of interrupts to its
    // argument, a slot of this stack, and the last reads them there; nothing else uses the slot.
    unsafe {
        core::arch::asm!(
            "r1 = {flags}",
            "call {save}",
            "call {enable}",
            "r1 = {flags}",
            "call {restore}",
            flags = in(reg) flags.as_mut_ptr(),
            save = const KernelCall::IRQ_SAVE,
            enable = const KernelCall::PREEMPT_ENABLE,
            restore = const KernelCall::IRQ_RESTORE,
            out("r0") _, out("r1") _, out("r2") _, out("r3") _, out("r4") _, out("r5") _,
        );
    }
}

#[inline(always)]
fn mark(pair: Pair, event: u64) {
    if let Some(handled) = HANDLED.get_ptr_mut(pair as u32) {
        // SAFETY: a live map value, this CPU's own.
        unsafe { handled.write_volatile(event) };
    }
}
