//! Memory that a traced process maps itself, by mmap, munmap, mremap and brk.
//!
//! The programs are on the raw tracepoints of all system calls, which costs every system call of
//! every process. fexit would cost these four calls alone, but the kernel runs no fexit program
//! that has been preempted on the same CPU (`__bpf_prog_enter_recur`, kernel/bpf/trampoline.c, 6.1
//! and 6.18), and a missed mapping makes the ranges wrong. kretprobes follow only a limited number
//! of unfinished calls. Up to 6.19 these tracepoints run with preemption off; from 7.0 on each has
//! a second program (see [`crate::pair`]). A program writes each call as one record to a ring, and
//! the loader keeps the ranges, as no map of the kernel finds overlapping ranges.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, pt_regs},
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use leaktrace_common::{LossReason, MapEvent, MapEventKind, MapSyscall, Pair, StackId};

use super::{
    in_flight, targets,
    walk::{self, Start},
};
use crate::{
    loss,
    maps::{IN_FLIGHT, MAP_EVENTS, config},
    pair,
};

/// `MAP_FIXED` and `MAP_ANONYMOUS` (include/uapi/asm-generic/mman-common.h, 6.1 and 6.18).
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
/// Low byte of the code segment of 32-bit code, whose system calls have other numbers
/// (`__USER32_CS`, arch/x86/include/asm/segment.h; Xen sets bits above it).
const CODE_32: u64 = 0x23;
/// Smallest result that is an error; all above it are errors too (include/linux/err.h).
const FIRST_ERROR: u64 = 4095_u64.wrapping_neg();
/// The ring wakes the loader when it holds this many bytes; else the loader looks when a report is
/// due.
const WAKE_BYTES: u64 = 256 * 1024;

/// raw_syscalls:sys_enter(regs, id)
#[raw_tracepoint(tracepoint = "sys_enter")]
pub(crate) fn lt_sys_enter(ctx: RawTracePointContext) -> i32 {
    let arguments = ctx.as_ptr().cast::<u64>();
    // SAFETY: the tracepoint has two arguments.
    let (regs, number) = unsafe { (*arguments, *arguments.add(1)) };
    pair::first(Pair::SyscallEnter, bpf_get_current_pid_tgid(), || {
        if maps_memory(number) {
            entered(number, regs, false);
        }
    });
    0
}

/// raw_syscalls:sys_enter: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "sys_enter")]
pub(crate) fn lt_sys_enter_2(ctx: RawTracePointContext) -> i32 {
    let arguments = ctx.as_ptr().cast::<u64>();
    // SAFETY: as above.
    let (regs, number) = unsafe { (*arguments, *arguments.add(1)) };
    pair::second(Pair::SyscallEnter, bpf_get_current_pid_tgid(), || {
        maps_memory(number) && entered(number, regs, true)
    });
    0
}

/// Whether a system call changes the mappings of its process.
#[inline(always)]
fn maps_memory(number: u64) -> bool {
    matches!(number, MapSyscall::MMAP | MapSyscall::MUNMAP | MapSyscall::BRK | MapSyscall::MREMAP)
}

/// raw_syscalls:sys_exit(regs, ret)
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn lt_sys_exit(ctx: RawTracePointContext) -> i32 {
    let arguments = ctx.as_ptr().cast::<u64>();
    // SAFETY: the tracepoint has two arguments.
    let (regs, result) = unsafe { (*arguments, *arguments.add(1)) };
    pair::first(Pair::SyscallExit, bpf_get_current_pid_tgid(), || {
        exited(regs, result, false);
    });
    0
}

/// raw_syscalls:sys_exit: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn lt_sys_exit_2(ctx: RawTracePointContext) -> i32 {
    let arguments = ctx.as_ptr().cast::<u64>();
    // SAFETY: as above.
    let (regs, result) = unsafe { (*arguments, *arguments.add(1)) };
    pair::second(Pair::SyscallExit, bpf_get_current_pid_tgid(), || exited(regs, result, true));
    0
}

/// Handles the return of a system call; returns whether it was reported. For `again` see
/// [`is_told`].
#[inline(always)]
fn exited(regs: u64, result: u64, again: bool) -> bool {
    // SAFETY: the helper checks the address.
    let number = unsafe {
        bpf_probe_read_kernel(&raw const (*(regs as *const pt_regs)).orig_rax).unwrap_or(u64::MAX)
    };
    maps_memory(number) && returned(number, regs, result, again)
}

/// Whether the pair's second program, which passes `again`, has nothing to report. The thread's
/// slot holds what was reported last: 1 from the entry of a call to its return, else 0.
#[inline(always)]
fn is_told(thread: u64, told: u64, again: bool) -> bool {
    if config!(preemptible) == 0 {
        return false;
    }
    let Some(slot) = in_flight::slot(thread) else { return again };
    // SAFETY: a live map value that belongs to this thread.
    unsafe {
        let is_told = again && (*slot).system_call == told;
        (*slot).system_call = told;
        is_told
    }
}

/// Handles the entry of a system call, which is reported if the call takes memory away; returns
/// whether it was. For `again` see [`is_told`].
#[inline(always)]
fn entered(number: u64, regs: u64, again: bool) -> bool {
    let takes_away = matches!(number, MapSyscall::MUNMAP | MapSyscall::MREMAP);
    if !takes_away && config!(preemptible) == 0 {
        return false;
    }
    let Some((mut event, _)) = describe(regs) else { return false };
    if is_told(bpf_get_current_pid_tgid(), 1, again) || !takes_away {
        return false;
    }
    event.kind = match number {
        MapSyscall::MUNMAP => MapEventKind::Unmapping,
        _ => MapEventKind::Moving,
    } as u32;
    tell(&event);
    true
}

/// Handles a call that has returned `result`; returns whether it was reported. For `again` see
/// [`is_told`].
#[inline(always)]
fn returned(number: u64, regs: u64, result: u64, again: bool) -> bool {
    let Some((mut event, regs)) = describe(regs) else { return false };
    if is_told(bpf_get_current_pid_tgid(), 0, again) {
        return false;
    }
    event.result = result;
    let failed = result >= FIRST_ERROR;
    let (kind, gives_memory) = match number {
        // Memory, or something that replaces what was there.
        MapSyscall::MMAP if !failed && regs.r10 & (MAP_ANONYMOUS | MAP_FIXED) != 0 => {
            (MapEventKind::Mapped, regs.r10 & MAP_ANONYMOUS != 0)
        }
        MapSyscall::MUNMAP => (MapEventKind::Unmapped, false),
        MapSyscall::MREMAP => (MapEventKind::Moved, !failed),
        MapSyscall::BRK => (MapEventKind::Brk, regs.rdi != 0 && result == regs.rdi),
        _ => return false,
    };
    event.kind = kind as u32;
    if gives_memory {
        let thread = bpf_get_current_pid_tgid();
        event.in_allocator = u32::from(is_in_allocator(thread, event.space, regs.rsp));
        event.stack = walk::take_user(&Start {
            tgid: (thread >> 32) as u32,
            space: event.space,
            caller: regs.rip,
            // As if the system call were a function that had just been entered.
            stack_pointer: regs.rsp.wrapping_sub(8),
            frame_pointer: regs.rbp,
        });
    }
    tell(&event);
    true
}

/// The record of a traced process' call, and the user registers.
#[inline(always)]
fn describe(regs: u64) -> Option<(MapEvent, pt_regs)> {
    let thread = bpf_get_current_pid_tgid();
    let space = targets::space_of((thread >> 32) as u32)?;
    // SAFETY: the helper checks the address.
    let regs = unsafe { bpf_probe_read_kernel(regs as *const pt_regs) }.ok()?;
    if regs.cs & 0xff == CODE_32 {
        return None;
    }
    let event = MapEvent {
        kind: 0,
        space,
        tid: thread as u32,
        in_allocator: 0,
        // SAFETY: the helper has no preconditions.
        timestamp_ns: unsafe { bpf_ktime_get_ns() },
        address: regs.rdi,
        length: regs.rsi,
        new_length: regs.rdx,
        result: 0,
        protection: regs.rdx as u32,
        flags: regs.r10 as u32,
        call_site: regs.rip,
        stack: StackId::NOT_TAKEN,
    };
    Some((event, regs))
}

/// Whether the thread made the call inside an allocator call.
#[inline(always)]
fn is_in_allocator(thread: u64, space: u32, stack_pointer: u64) -> bool {
    let Some(flight) = IN_FLIGHT.get_ptr(thread) else { return false };
    // SAFETY: a live map value that belongs to this thread.
    unsafe {
        (*flight).stack_pointer != 0 && in_flight::is_nested(&*flight, space, stack_pointer, 0, 0)
    }
}

#[inline(always)]
fn tell(event: &MapEvent) {
    let wake = match MAP_EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) {
        waiting if waiting >= WAKE_BYTES => BPF_RB_FORCE_WAKEUP,
        _ => BPF_RB_NO_WAKEUP,
    };
    if MAP_EVENTS.output::<MapEvent>(event, u64::from(wake)).is_err() {
        loss::count(LossReason::MappingsFull);
    }
}
