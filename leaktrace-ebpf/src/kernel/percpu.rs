//! Percpu memory: alloc_percpu and its relatives, free_percpu.
//!
//! Raw tracepoint arguments, include/trace/events/percpu.h:
//!
//! | tracepoint | kernel | arguments |
//! |---|---|---|
//! | percpu_alloc_percpu | to 5.17 | reserved, is_atomic, size, align, base_addr, off, ptr |
//! | percpu_alloc_percpu | from 5.18 | call_site, and those, bytes_alloc, gfp_flags |
//! | percpu_free_percpu | all | base_addr, off, ptr |

use aya_ebpf::{
    EbpfContext as _, helpers::bpf_ktime_get_ns, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use leaktrace_common::{AllocKey, Kind, LossReason, PERCPU_SPACE, Pair};

use super::{
    allocation::{Allocation, allocated},
    arguments::arg,
    by_stack,
};
use crate::{filter, ledger, loss, maps::config, pair, table};

/// percpu:percpu_alloc_percpu
#[raw_tracepoint(tracepoint = "percpu_alloc_percpu")]
pub(crate) fn lt_percpu_alloc(ctx: RawTracePointContext) -> i32 {
    pair::first(Pair::PercpuAlloc, pointer_of(&ctx), || alloc(&ctx, 4));
    0
}

/// percpu:percpu_alloc_percpu: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "percpu_alloc_percpu")]
pub(crate) fn lt_percpu_all_2(ctx: RawTracePointContext) -> i32 {
    let pointer = pointer_of(&ctx);
    pair::second(Pair::PercpuAlloc, pointer, || {
        let is_recorded = || table::size_at(AllocKey::new(PERCPU_SPACE, pointer)) != 0;
        if is_recorded() {
            return false;
        }
        alloc(&ctx, 9);
        is_recorded()
    });
    0
}

#[inline(always)]
fn pointer_of(ctx: &RawTracePointContext) -> u64 {
    if config!(percpu_size_arg) == 3 { arg!(ctx, 7) } else { arg!(ctx, 6) }
}

#[inline(always)]
fn alloc(ctx: &RawTracePointContext, slot: u32) {
    let (call_site, size_bytes, pointer) = if config!(percpu_size_arg) == 3 {
        if !filter::wants_gfp(arg!(ctx, 9) as u32) {
            return;
        }
        (arg!(ctx, 0), arg!(ctx, 3), arg!(ctx, 7))
    } else {
        // Nothing tells its GFP flags.
        if config!(filter_gfp) != 0 {
            return;
        }
        (0, arg!(ctx, 2), arg!(ctx, 6))
    };
    let allocation = Allocation {
        kind: Kind::Percpu,
        call_site,
        address: pointer,
        space: PERCPU_SPACE,
        // One for each CPU that may ever come.
        size_bytes: size_bytes * u64::from(config!(possible_cpus)),
        detail: 0,
    };
    if config!(percpu_size_arg) == 3 {
        allocated(ctx, slot, &allocation);
    } else {
        by_stack::allocated(ctx, slot, &allocation);
    }
}

/// percpu:percpu_free_percpu
#[raw_tracepoint(tracepoint = "percpu_free_percpu")]
pub(crate) fn lt_percpu_free(ctx: RawTracePointContext) -> i32 {
    let pointer = arg!(&ctx, 2);
    pair::first(Pair::PercpuFree, pointer, || {
        if !free(pointer) && !filter::is_own() {
            loss::count(LossReason::UntrackedFree);
        }
    });
    0
}

/// percpu:percpu_free_percpu: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "percpu_free_percpu")]
pub(crate) fn lt_percpu_fre_2(ctx: RawTracePointContext) -> i32 {
    let pointer = arg!(&ctx, 2);
    pair::second(Pair::PercpuFree, pointer, || free(pointer));
    0
}

#[inline(always)]
fn free(pointer: u64) -> bool {
    // SAFETY: the helper has no preconditions.
    ledger::on_free(AllocKey::new(PERCPU_SPACE, pointer), unsafe { bpf_ktime_get_ns() })
}
