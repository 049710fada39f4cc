//! Keeps the programs of uprobes on the stack of the thread that runs them.
//!
//! From 6.13 on the x86 JIT gives programs of kprobes' kind that need 64 bytes of stack or more a
//! private stack, one for each program and CPU (`bpf_enable_priv_stack`, kernel/bpf/verifier.c). It
//! counts on such a program not being run while it runs on that CPU, and kprobes see to that: they
//! run with preemption off, and none runs within another (`trace_call_bpf`,
//! kernel/trace/bpf_trace.c, 6.1 to 7.2). Programs of uprobes are of the same kind, but can be
//! preempted by themselves (`bpf_prog_run_array_uprobe`, include/linux/bpf.h, from 6.0; links of
//! uprobe_multi and of sessions, `uprobe_prog_run`, kernel/trace/bpf_trace.c): two threads on one
//! CPU would overwrite what the other has spilled, and the kernel would follow their pointers.
//!
//! A program with a tail call gets no private stack, and none of the functions that it calls does
//! (`check_max_stack_depth`). Tail calls are counted before anything else is looked at
//! (`check_subprogs`), so one that the verifier then finds out of reach and takes away does as well.

use aya_ebpf::{macros::map, maps::ProgramArray};

/// Each program has a map of its own, as a map of programs is for programs of one kind
/// (`bpf_prog_map_compatible`, kernel/bpf/core.c), and how they are attached may be part of that.
macro_rules! never_called {
    ($($name:ident)*) => {$(
        #[map]
        pub(super) static $name: ProgramArray = ProgramArray::with_max_entries(1, 0);
    )*};
}
never_called!(
    SESSION_CALLS ENTRY_CALLS RETURN_CALLS RETURNING_CALLS FREE_CALLS
    PAIR_SESSION_CALLS PAIR_ENTRY_CALLS PAIR_RETURN_CALLS PAIR_RETURNING_CALLS PAIR_RELEASE_CALLS
);

/// To be called by every program of a uprobe, with a map that no other program has.
#[inline(always)]
pub(super) fn keep<C: aya_ebpf::EbpfContext>(ctx: &C, calls: &ProgramArray) {
    if crate::maps::config!(tail_calls) != 0 {
        // SAFETY: never comes here.
        unsafe { calls.tail_call(ctx, 0) };
    }
}
