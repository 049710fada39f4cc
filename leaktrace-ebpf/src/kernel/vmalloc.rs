//! vmalloc, in one of two ways. Kprobes on the function that all of vmalloc's relatives call see
//! the requested bytes and the caller. The tracepoints of vmalloc's address areas (from 6.2) see
//! whole pages and no caller.
//!
//! | probe | arguments |
//! |---|---|
//! | `__vmalloc_node_range` (mm/vmalloc.c) | size, align, start, end, gfp, prot, vm_flags, node, caller |
//! | vmap:alloc_vmap_area | addr, size, align, vstart, vend, failed |
//! | vmap:free_vmap_area_noflush | va_start, nr_lazy, nr_lazy_max |

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_ANY,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel},
    macros::{fentry, kprobe, kretprobe, raw_tracepoint},
    programs::{FEntryContext, ProbeContext, RawTracePointContext, RetProbeContext},
};
use leaktrace_common::{AllocKey, KERNEL_SPACE, Kind, LossReason, Outstanding, Pair, VmallocCall};

use super::{
    allocation::{Allocation, site_of, unless_recorded},
    arguments::{arg, argument},
    by_stack,
};
use crate::{
    filter, ledger, loss,
    maps::{VMALLOC_IN_FLIGHT, config},
    pair,
};

/// Bytes of the guard page behind each area, which no caller asked for (`VM_NO_GUARD` areas have
/// none).
const GUARD_BYTES: u64 = 4096;
/// Offset of the ninth argument from the stack pointer at the function's entry.
const CALLER_AT: u64 = 24;

/// Entry of `__vmalloc_node_range`.
///
/// The function calls itself to allocate its array of page pointers, so a thread may be in several
/// calls of it. The filters look at the outer call alone: the size and the GFP flags of an inner
/// call are not the caller's.
#[kprobe]
pub(crate) fn lt_vmalloc(ctx: ProbeContext) -> u32 {
    // SAFETY: the context is a live pt_regs; the helper checks the address.
    let (stack_pointer, size_bytes, gfp, caller) = unsafe {
        let regs = &*ctx.regs;
        let caller = bpf_probe_read_kernel(regs.rsp.wrapping_add(CALLER_AT) as *const u64);
        (regs.rsp, regs.rdi, regs.r8, caller.unwrap_or(0))
    };
    let thread = bpf_get_current_pid_tgid();
    let mut depth = 0;
    let mut is_wanted = filter::wants_gfp(gfp as u32) && filter::wants_size(size_bytes);
    while depth < VmallocCall::MAX_DEPTH - 1 {
        // SAFETY: read at once; only this thread writes the slot.
        let Some(outer) = (unsafe { VMALLOC_IN_FLIGHT.get(slot_of(thread, depth)) }) else { break };
        if !outer.is_for(size_bytes, caller, stack_pointer) {
            // The kernel had no room to watch its return (kretprobes have so many), or refused
            // the program.
            if outer.block.site != VmallocCall::NOT_WANTED {
                loss::count(LossReason::SkippedReturn);
            }
            break;
        }
        is_wanted = outer.block.site != VmallocCall::NOT_WANTED;
        depth += 1;
    }
    let allocation = Allocation {
        kind: Kind::Vmalloc,
        call_site: caller,
        address: 0,
        space: KERNEL_SPACE,
        size_bytes,
        detail: if depth > 0 { VmallocCall::PAGE_ARRAY } else { 0 },
    };
    let mut block = Outstanding {
        size_bytes,
        // SAFETY: the helper has no preconditions.
        timestamp_ns: unsafe { bpf_ktime_get_ns() },
        site: VmallocCall::NOT_WANTED,
        detail: 0,
    };
    if is_wanted
        && let Some(tgid) = filter::wanted_tgid(&ctx, 5)
        && let Some(site) = site_of(&ctx, 5, &allocation)
    {
        block.site = site;
        block.detail = tgid;
    }
    let call = VmallocCall { block, stack_pointer, caller };
    let inserted = VMALLOC_IN_FLIGHT.insert(slot_of(thread, depth), call, u64::from(BPF_ANY));
    if inserted.is_err() && block.site != VmallocCall::NOT_WANTED {
        loss::count(LossReason::InFlightFull);
    }
    0
}

/// Return of `__vmalloc_node_range`. The call's return address lay just below the present stack
/// pointer (`arch_rethook_trampoline_callback`, arch/x86/kernel/rethook.c, 6.1 to 6.18).
#[kretprobe]
pub(crate) fn lt_vmalloc_return(ctx: RetProbeContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the context is a live pt_regs.
    let (address, stack_pointer) = unsafe { ((*ctx.regs).rax, (*ctx.regs).rsp) };
    for depth in 0..VmallocCall::MAX_DEPTH {
        let slot = slot_of(thread, depth);
        // SAFETY: copied at once.
        let Some(call) = (unsafe { VMALLOC_IN_FLIGHT.get(slot) }).copied() else { continue };
        if call.stack_pointer.wrapping_add(8) != stack_pointer {
            continue;
        }
        // One that is gone needs no removal.
        let _ = VMALLOC_IN_FLIGHT.remove(slot);
        let mut block = call.block;
        if address != 0 && block.site != VmallocCall::NOT_WANTED {
            // SAFETY: the helper has no preconditions.
            block.timestamp_ns = unsafe { bpf_ktime_get_ns() };
            ledger::on_alloc(AllocKey::new(KERNEL_SPACE, address), block);
        }
        break;
    }
    0
}

/// The key of a thread's call that `depth` other calls enclose. Thread IDs are below 2^22
/// (`PID_MAX_LIMIT`, include/linux/threads.h), so their highest bits are free.
#[inline(always)]
fn slot_of(thread: u64, depth: u32) -> u64 {
    thread | u64::from(depth) << 56
}

/// `vfree(const void *addr)`
#[fentry(function = "vfree")]
pub(crate) fn lt_vfree(ctx: FEntryContext) -> i32 {
    pair::alone(|| freed(argument(&ctx, 0)));
    0
}

/// As [`lt_vfree`], by kprobe.
#[kprobe]
pub(crate) fn lt_vfree_k(ctx: ProbeContext) -> u32 {
    // SAFETY: the context is a live pt_regs.
    freed(unsafe { (*ctx.regs).rdi });
    0
}

/// `vfree_atomic(const void *addr)`
#[fentry(function = "vfree_atomic")]
pub(crate) fn lt_vfree_atomic(ctx: FEntryContext) -> i32 {
    pair::alone(|| freed(argument(&ctx, 0)));
    0
}

/// As [`lt_vfree_atomic`], by kprobe.
#[kprobe]
pub(crate) fn lt_vfree_atomic_k(ctx: ProbeContext) -> u32 {
    // SAFETY: the context is a live pt_regs.
    freed(unsafe { (*ctx.regs).rdi });
    0
}

/// vmap:alloc_vmap_area
#[raw_tracepoint(tracepoint = "alloc_vmap_area")]
pub(crate) fn lt_area_alloc(ctx: RawTracePointContext) -> i32 {
    pair::first(Pair::AreaAlloc, arg!(&ctx, 0), || area_alloc(&ctx, 5));
    0
}

/// vmap:alloc_vmap_area: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "alloc_vmap_area")]
pub(crate) fn lt_area_alloc_2(ctx: RawTracePointContext) -> i32 {
    let address = arg!(&ctx, 0);
    pair::second(Pair::AreaAlloc, address, || unless_recorded(address, || area_alloc(&ctx, 10)));
    0
}

#[inline(always)]
fn area_alloc(ctx: &RawTracePointContext, slot: u32) {
    // Nothing tells its GFP flags.
    if arg!(ctx, 5) as u32 != 0 || config!(filter_gfp) != 0 {
        return;
    }
    let size_bytes = arg!(ctx, 1);
    by_stack::allocated(
        ctx,
        slot,
        &Allocation {
            kind: Kind::Vmalloc,
            call_site: 0,
            address: arg!(ctx, 0),
            space: KERNEL_SPACE,
            size_bytes: size_bytes.saturating_sub(GUARD_BYTES).max(1),
            detail: 0,
        },
    );
}

/// vmap:free_vmap_area_noflush
#[raw_tracepoint(tracepoint = "free_vmap_area_noflush")]
pub(crate) fn lt_area_free(ctx: RawTracePointContext) -> i32 {
    let address = arg!(&ctx, 0);
    pair::first(Pair::AreaFree, address, || freed(address));
    0
}

/// vmap:free_vmap_area_noflush: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "free_vmap_area_noflush")]
pub(crate) fn lt_area_free_2(ctx: RawTracePointContext) -> i32 {
    let address = arg!(&ctx, 0);
    pair::second(Pair::AreaFree, address, || {
        // SAFETY: the helper has no preconditions.
        ledger::on_free(AllocKey::new(KERNEL_SPACE, address), unsafe { bpf_ktime_get_ns() })
    });
    0
}

#[inline(always)]
fn freed(address: u64) {
    if address == 0 {
        return;
    }
    let key = AllocKey::new(KERNEL_SPACE, address);
    // SAFETY: the helper has no preconditions.
    if !ledger::on_free(key, unsafe { bpf_ktime_get_ns() }) && !filter::is_own() {
        loss::count(LossReason::UntrackedFree);
    }
}
