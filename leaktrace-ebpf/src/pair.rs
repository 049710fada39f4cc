//! Two programs on one tracepoint: the second records what the first was refused.
//!
//! The kernel does not run a program that is running on the same CPU already (the `active` count of
//! `__bpf_trace_run`, kernel/trace/bpf_trace.c, 6.1 to 7.2). Up to 6.19 only an interrupt meets one
//! there, some hundred times in a row where RCU callbacks free; from 7.0 on such programs can be
//! preempted, and every task that comes to the tracepoint on that CPU meanwhile is refused. The
//! second program is not running then; where it is itself the one that is in the way, the first is
//! not.
//!
//! These programs switch preemption off while they run, where the kernel has functions for that, so
//! that none is stopped in the middle of its work, with a lock or the kernel's buffer for stacks in
//! its hands. Who is to be preempted then is so behind the program's end (see `allow_preemption`): a
//! program is preempted in its first and last few instructions alone. A third task that comes while
//! a second one has been stopped there as well is refused twice, and counted.
//!
//! Each second program finds out by itself whether its event has been recorded: in the table of
//! blocks, among the traced processes, in the thread's own slot. [`HANDLED`] only saves that look.
//! A first program wipes its mark on this CPU before it does anything, so that no old mark is left
//! while it stands in the way of others: what it refuses finds no mark, or that of the event that is
//! in the way. A task that is preempted between the two programs may find another's mark or be on
//! another CPU, and looks.

use core::mem::MaybeUninit;

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

/// Runs a program that has no second one: of a function's entry or return, or of what is rare.
#[inline(always)]
pub(crate) fn alone(run: impl FnOnce()) {
    stop_preemption();
    run();
    allow_preemption();
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

/// Switches preemption on while interrupts are off: who is to be preempted is so at the kernel's
/// next look, when the program has been counted as ended, and stands in nobody's way.
/// (`preempt_schedule` does nothing while interrupts are off, kernel/sched/core.c, 7.2.)
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
