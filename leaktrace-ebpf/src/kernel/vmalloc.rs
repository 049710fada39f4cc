//! vmalloc: by kprobes on the function that all of its relatives come to, which knows the bytes
//! asked for and the caller; or by the tracepoints of its address areas, from 6.2, which know
//! whole pages and neither.
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
use leaktrace_common::{AllocKey, KERNEL_SPACE, Kind, LossReason, Outstanding, Pair};

use super::{
    by_stack,
    slab::{Allocation, arg, site_of, unless_recorded},
};
use crate::{
    filter, ledger, loss,
    maps::{VMALLOC_IN_FLIGHT, config},
    pair,
};

/// Guard page behind each area, which nobody asked for (`VM_NO_GUARD` areas have none).
const GUARD_BYTES: u64 = 4096;
/// Where the ninth argument lies above the stack pointer at the entry.
const CALLER_AT: u64 = 24;

/// Entry of `__vmalloc_node_range`.
#[kprobe]
pub(crate) fn lt_vmalloc(ctx: ProbeContext) -> u32 {
    // SAFETY: the context is a live pt_regs; the helper checks the address.
    let (size_bytes, gfp, caller) = unsafe {
        let regs = &*ctx.regs;
        let caller = bpf_probe_read_kernel(regs.rsp.wrapping_add(CALLER_AT) as *const u64);
        (regs.rdi, regs.r8, caller.unwrap_or(0))
    };
    if !filter::wants_gfp(gfp as u32) {
        return 0;
    }
    let allocation = Allocation {
        kind: Kind::Vmalloc,
        call_site: caller,
        address: 0,
        space: KERNEL_SPACE,
        size_bytes,
        detail: 0,
    };
    let Some(tgid) = filter::wanted_tgid(&ctx, 5) else { return 0 };
    if !filter::wants_size(size_bytes) {
        return 0;
    }
    let Some(site) = site_of(&ctx, 5, &allocation) else { return 0 };
    let block = Outstanding { size_bytes, timestamp_ns: 0, site, detail: tgid };
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the value is not looked at, only its presence.
    if unsafe { VMALLOC_IN_FLIGHT.get(thread) }.is_some() {
        // The kernel had no room to watch the return of the thread's last call.
        loss::count(LossReason::SkippedReturn);
    }
    if VMALLOC_IN_FLIGHT.insert(thread, block, u64::from(BPF_ANY)).is_err() {
        loss::count(LossReason::InFlightFull);
    }
    0
}

/// Return of `__vmalloc_node_range`.
#[kretprobe]
pub(crate) fn lt_vmalloc_return(ctx: RetProbeContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: copied at once.
    let Some(mut block) = (unsafe { VMALLOC_IN_FLIGHT.get(thread) }).copied() else { return 0 };
    // One that is gone needs no removal.
    let _ = VMALLOC_IN_FLIGHT.remove(thread);
    // SAFETY: the context is a live pt_regs; the helper has no preconditions.
    let (address, now_ns) = unsafe { ((*ctx.regs).rax, bpf_ktime_get_ns()) };
    if address != 0 {
        block.timestamp_ns = now_ns;
        ledger::on_alloc(AllocKey::new(KERNEL_SPACE, address), block);
    }
    0
}

/// `vfree(const void *addr)`
#[fentry(function = "vfree")]
pub(crate) fn lt_vfree(ctx: FEntryContext) -> i32 {
    freed(ctx.arg::<u64>(0));
    0
}

/// As [`lt_vfree`].
#[kprobe]
pub(crate) fn lt_vfree_k(ctx: ProbeContext) -> u32 {
    // SAFETY: the context is a live pt_regs.
    freed(unsafe { (*ctx.regs).rdi });
    0
}

/// `vfree_atomic(const void *addr)`
#[fentry(function = "vfree_atomic")]
pub(crate) fn lt_vfree_atomic(ctx: FEntryContext) -> i32 {
    freed(ctx.arg::<u64>(0));
    0
}

/// As [`lt_vfree_atomic`].
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

/// vmap:alloc_vmap_area, a second time
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

/// vmap:free_vmap_area_noflush, a second time
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
