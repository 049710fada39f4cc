//! Keeps the programs of uprobes on the stack of the thread that runs them.
//!
//! From 6.13 on the x86 JIT gives a kprobe-type program that needs 64 bytes of stack or more a
//! private stack, one for each program and CPU (`bpf_enable_priv_stack`, kernel/bpf/verifier.c).
//! The JIT counts on such a program not being run again while it runs on that CPU, and kprobes see
//! to that: they run with preemption off, and none runs within another (`trace_call_bpf`,
//! kernel/trace/bpf_trace.c, 6.1 to 7.2). Uprobe programs have the same type, but can be preempted
//! by themselves (`bpf_prog_run_array_uprobe`, include/linux/bpf.h, from 6.0; links of uprobe_multi
//! and of sessions, `uprobe_prog_run`, kernel/trace/bpf_trace.c). On a private stack, two threads
//! on one CPU would overwrite each other's spilled registers, and the kernel would follow the wrong
//! pointers.
//!
//! A program with a tail call gets no private stack, and none of the functions that it calls does
//! (`check_max_stack_depth`). The verifier counts tail calls before it looks at anything else
//! (`check_subprogs`), so a tail call that it then finds unreachable and removes has the same
//! effect.

use aya_ebpf::{macros::map, maps::ProgramArray};

/// Makes a map of programs. Each program has a map of its own, as such a map is for programs of one
/// kind (`bpf_prog_map_compatible`, kernel/bpf/core.c), and how they are attached may be part of
/// that.
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

/// Every uprobe program calls this, with a map that no other program has.
#[inline(always)]
pub(super) fn keep<C: aya_ebpf::EbpfContext>(ctx: &C, calls: &ProgramArray) {
    if crate::maps::config!(tail_calls) != 0 {
        // SAFETY: never comes here.
        unsafe { calls.tail_call(ctx, 0) };
    }
}
