//! The exec, fork and end of traced processes.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_kernel},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use leaktrace_common::{EventKind, Follow, Pair, Target, TextMap};

use super::{
    events::{notify, notify_once},
    in_flight, pair_calls,
    targets::{forget, next_space, register, remember, text_map, unregister},
};
use crate::{
    filter,
    maps::{TARGETS, TEXT_MAPS, config},
    pair,
};

/// sched:sched_process_exec, after the new image is in place. The old image's memory is gone, so
/// the process gets a new space, and its old blocks can never be confused with new ones.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn lt_exec(_ctx: RawTracePointContext) -> i32 {
    let thread = bpf_get_current_pid_tgid();
    pair::first(Pair::Exec, thread, || {
        executed(current_mm());
    });
    0
}

/// sched:sched_process_exec: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn lt_exec_2(_ctx: RawTracePointContext) -> i32 {
    let mm = current_mm();
    // A process is known by the memory of its present image, which is made while the old one's is
    // still there; where that cannot be told, nothing tells whether this exec has been seen.
    pair::second(Pair::Exec, bpf_get_current_pid_tgid(), || mm != 0 && executed(mm));
    0
}

/// The running process' `struct mm_struct`; 0 if it cannot be read.
#[inline(always)]
fn current_mm() -> u64 {
    match config!(task_mm_offset) {
        0 => 0,
        // SAFETY: the helper checks the address.
        offset => unsafe {
            bpf_probe_read_kernel((bpf_get_current_task() + u64::from(offset)) as *const u64)
                .unwrap_or(0)
        },
    }
}

/// Handles an exec of the running process, whose memory is now `mm`; returns whether the exec was
/// news.
#[inline(always)]
fn executed(mm: u64) -> bool {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let known = TARGETS.get_ptr_mut(tgid);
    let (old_space, stays) = match known {
        // SAFETY: a live map value; an exec has ended every other thread of the process.
        Some(target) => unsafe {
            if mm != 0 && (*target).mm == mm {
                return false;
            }
            ((*target).space, (*target).stays)
        },
        None => (0, 0),
    };
    if stays == 0 && !filter::follows_current() {
        if old_space != 0 {
            unregister(tgid);
            notify(EventKind::Ended, tgid, old_space, 0);
        }
        return old_space != 0;
    }
    let mut new_space = next_space();
    match known {
        // SAFETY: as above.
        Some(target) if new_space != 0 => unsafe {
            (*target).space = new_space;
            (*target).mm = mm;
            remember(tgid, new_space);
        },
        Some(_) => unregister(tgid),
        None => new_space = register(tgid, Target { space: new_space, stays: 0, mm }, true),
    }
    notify(EventKind::Exec, tgid, old_space, new_space);
    true
}

/// sched:sched_process_fork(parent, child), before the child runs. The child of a traced process is
/// traced as well if the user asked for that: in a space of its own, unless it shares its parent's
/// memory (vfork).
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub(crate) fn lt_fork(ctx: RawTracePointContext) -> i32 {
    let child = child_of(&ctx);
    pair::first(Pair::Fork, child, || {
        forked(child);
    });
    0
}

/// sched:sched_process_fork: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub(crate) fn lt_fork_2(ctx: RawTracePointContext) -> i32 {
    let child = child_of(&ctx);
    pair::second(Pair::Fork, child, || forked(child));
    0
}

#[inline(always)]
fn child_of(ctx: &RawTracePointContext) -> u64 {
    // SAFETY: the tracepoint has two arguments.
    unsafe { *ctx.as_ptr().cast::<u64>().add(1) }
}

/// Handles a new child or thread of the running process; returns whether a child was news.
#[inline(always)]
fn forked(child: u64) -> bool {
    let parent = (bpf_get_current_pid_tgid() >> 32) as u32;
    let target = TARGETS.get_ptr(parent);
    let inherits = target.is_some() && config!(follow) & Follow::CHILDREN != 0;
    if !inherits && !filter::follows_current() {
        return false;
    }
    // SAFETY: the helper checks the addresses, and the child has all it needs but has not been
    // woken (kernel_clone, kernel/fork.c, 6.1 and 6.18).
    let (tgid, mm, shares_memory) = unsafe {
        let (tgid_at, mm_at) = (config!(task_tgid_offset), config!(task_mm_offset));
        let Ok(tgid) = bpf_probe_read_kernel((child + u64::from(tgid_at)) as *const u32) else {
            return false;
        };
        let mm = |task: u64| bpf_probe_read_kernel((task + u64::from(mm_at)) as *const u64);
        let of_child = mm(child).unwrap_or(0);
        (tgid, of_child, mm(bpf_get_current_task()) == Ok(of_child))
    };
    // A thread belongs to its process, and a thread of the kernel has no memory.
    if tgid == parent || mm == 0 {
        return false;
    }
    // SAFETY: a live map value. A process that had this number and whose end was not seen had
    // other memory.
    if TARGETS.get_ptr(tgid).is_some_and(|known| unsafe { (*known).mm } == mm) {
        return false;
    }
    // SAFETY: a live map value.
    let old_space = target.map_or(0, |target| unsafe { (*target).space });
    let has_own = !shares_memory || old_space == 0;
    let space = if has_own { next_space() } else { old_space };
    let new_space = register(tgid, Target { space, stays: u32::from(inherits), mm }, has_own);
    // It begins with its parent's mappings.
    if new_space != old_space
        && new_space != 0
        && let Some(map) = TEXT_MAPS.get_ptr(old_space)
        && let Some(copy) = TEXT_MAPS.get_ptr_mut(new_space)
    {
        // SAFETY: live map values; nobody has the new space yet.
        unsafe {
            let (first, count, generation) = text_map(map);
            *copy = TextMap { first, count, generation, notified: 0 };
        }
    }
    notify(EventKind::Forked, tgid, old_space, new_space);
    true
}

/// sched:sched_process_exit, for each thread. The last thread of a process ends the process.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn lt_exit(_ctx: RawTracePointContext) -> i32 {
    let thread = bpf_get_current_pid_tgid();
    pair::first(Pair::Exit, thread, || {
        ended(thread);
    });
    0
}

/// sched:sched_process_exit: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn lt_exit_2(_ctx: RawTracePointContext) -> i32 {
    let thread = bpf_get_current_pid_tgid();
    pair::second(Pair::Exit, thread, || ended(thread));
    0
}

/// Handles the end of the running thread; returns whether there was something to do.
#[inline(always)]
fn ended(thread: u64) -> bool {
    let tgid = (thread >> 32) as u32;
    let Some(target) = TARGETS.get_ptr(tgid) else {
        forget(tgid);
        return false;
    };
    // SAFETY: a live map value.
    let old_space = unsafe { (*target).space };
    let leaving = Leaving::of_current();
    let mut is_news = in_flight::abandon(thread, old_space, leaving.alone);
    is_news |= pair_calls::abandon(thread, old_space, leaving.alone);
    if leaving.last {
        unregister(tgid);
        notify(EventKind::Ended, tgid, old_space, 0);
        is_news = true;
    }
    is_news
}

/// `SIGNAL_GROUP_EXIT` (include/linux/sched/signal.h, 6.1 and 6.18).
const GROUP_EXIT: u32 = 4;

/// How a thread that is ending leaves its process.
struct Leaving {
    /// The thread ends by itself: its process does not end, and no other thread has executed a new
    /// image.
    alone: bool,
    /// The thread is the last one of its process.
    last: bool,
}

impl Leaving {
    /// The kernel's layout is not known: neither holds.
    const UNKNOWN: Self = Self { alone: false, last: false };

    /// How the running thread leaves its process. A thread counts itself out before the tracepoint
    /// (do_exit, kernel/exit.c, 6.1 and 6.18).
    #[inline(always)]
    fn of_current() -> Self {
        let signal_at = config!(task_signal_offset);
        if signal_at == 0 {
            return Self::UNKNOWN;
        }
        // SAFETY: the helper checks the addresses.
        unsafe {
            let task = bpf_get_current_task();
            let Ok(signal) = bpf_probe_read_kernel((task + u64::from(signal_at)) as *const u64)
            else {
                return Self::UNKNOWN;
            };
            let number = |offset: u32| {
                bpf_probe_read_kernel((signal + u64::from(offset)) as *const u32).unwrap_or(0)
            };
            let last = number(config!(signal_live_offset)) as i32 <= 0;
            let exec_at = config!(signal_exec_offset);
            let is_exec = exec_at != 0
                && bpf_probe_read_kernel((signal + u64::from(exec_at)) as *const u64) != Ok(0);
            let ends = last || number(config!(signal_flags_offset)) & GROUP_EXIT != 0;
            Self { alone: !ends && !is_exec, last }
        }
    }
}

/// mmap:vm_unmapped_area, from 5.7: a process is about to map memory, perhaps a library.
#[raw_tracepoint(tracepoint = "vm_unmapped_area")]
pub(crate) fn lt_mapped(_ctx: RawTracePointContext) -> i32 {
    let thread = bpf_get_current_pid_tgid();
    pair::first(Pair::Mapped, thread, || mapped(thread));
    0
}

/// mmap:vm_unmapped_area: the tracepoint's second program, see [`crate::pair`]. At worst the
/// session looks once more.
#[raw_tracepoint(tracepoint = "vm_unmapped_area")]
pub(crate) fn lt_mapped_2(_ctx: RawTracePointContext) -> i32 {
    let thread = bpf_get_current_pid_tgid();
    pair::second(Pair::Mapped, thread, || {
        mapped(thread);
        false
    });
    0
}

#[inline(always)]
fn mapped(thread: u64) {
    let tgid = (thread >> 32) as u32;
    if let Some(target) = TARGETS.get_ptr(tgid) {
        // SAFETY: a live map value.
        notify_once(EventKind::Mapped, tgid, unsafe { (*target).space });
    }
}
