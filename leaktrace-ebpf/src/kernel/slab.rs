//! Slab allocations: kmalloc, kfree, kmem_cache_alloc, kmem_cache_free.
//!
//! Raw tracepoint arguments, include/trace/events/kmem.h:
//!
//! | tracepoint | kernel | arguments |
//! |---|---|---|
//! | kmalloc | to 5.18, from 6.1 | call_site, ptr, bytes_req, bytes_alloc, gfp_flags \[, node\] |
//! | kmalloc | 5.19, 6.0 | call_site, ptr, s, bytes_req, bytes_alloc, gfp_flags |
//! | kmem_cache_alloc | to 5.18 | call_site, ptr, bytes_req, bytes_alloc, gfp_flags |
//! | kmem_cache_alloc | 5.19, 6.0 | call_site, ptr, s, bytes_req, bytes_alloc, gfp_flags |
//! | kmem_cache_alloc | from 6.1 | call_site, ptr, s, gfp_flags, node |
//! | kfree, kmem_cache_free | all | call_site, ptr, ... |
//!
//! The `*_node` variants (to 6.0) add the node at the end. The loader reads the positions from
//! the kernel's BTF. Raw tracepoints carry the same arguments as BTF-typed ones at the same
//! cost and under the same recursion guard, so there is one program for both; see [`crate::pair`]
//! for what that guard refuses.

use aya_ebpf::{
    EbpfContext, helpers::bpf_ktime_get_ns, macros::raw_tracepoint, programs::RawTracePointContext,
};
use leaktrace_common::{AllocKey, KERNEL_SPACE, Kind, LossReason, Pair, TRACED_TWICE};

use super::{
    allocation::{Allocation, ZERO_SIZE_PTR, allocated, unless_recorded},
    arguments::arg,
    generation::generation_at,
};
use crate::{
    counters::{self, Place},
    filter, ledger, loss,
    maps::{CONFIG, config},
    pair,
};

/// Requests above this size get pages from kmalloc (`KMALLOC_MAX_CACHE_SIZE`, include/linux/slab.h,
/// 5.15 to 7.2).
const LARGEST_OBJECT: u64 = 8192;

/// kmem:kmalloc
#[raw_tracepoint(tracepoint = "kmalloc")]
pub(crate) fn lt_kmalloc(ctx: RawTracePointContext) -> i32 {
    pair::first(Pair::Kmalloc, arg!(&ctx, 1), || kmalloc(&ctx, 0));
    0
}

/// kmem:kmalloc: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "kmalloc")]
pub(crate) fn lt_kmalloc_2(ctx: RawTracePointContext) -> i32 {
    let address = arg!(&ctx, 1);
    pair::second(Pair::Kmalloc, address, || unless_recorded(address, || kmalloc(&ctx, 7)));
    0
}

/// kmem:kmalloc_node, to 6.0
#[raw_tracepoint(tracepoint = "kmalloc_node")]
pub(crate) fn lt_kmalloc_node(ctx: RawTracePointContext) -> i32 {
    kmalloc(&ctx, 1);
    0
}

/// kmem:kmem_cache_alloc
#[raw_tracepoint(tracepoint = "kmem_cache_alloc")]
pub(crate) fn lt_cache_alloc(ctx: RawTracePointContext) -> i32 {
    pair::first(Pair::CacheAlloc, arg!(&ctx, 1), || kmem_cache_alloc(&ctx, 2));
    0
}

/// kmem:kmem_cache_alloc: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "kmem_cache_alloc")]
pub(crate) fn lt_cache_all_2(ctx: RawTracePointContext) -> i32 {
    let address = arg!(&ctx, 1);
    let run = || kmem_cache_alloc(&ctx, 8);
    pair::second(Pair::CacheAlloc, address, || unless_recorded(address, run));
    0
}

/// kmem:kmem_cache_alloc_node, to 6.0
#[raw_tracepoint(tracepoint = "kmem_cache_alloc_node")]
pub(crate) fn lt_cache_alloc_n(ctx: RawTracePointContext) -> i32 {
    kmem_cache_alloc(&ctx, 3);
    0
}

/// kmem:kfree
#[raw_tracepoint(tracepoint = "kfree")]
pub(crate) fn lt_kfree(ctx: RawTracePointContext) -> i32 {
    let address = arg!(&ctx, 1);
    pair::first(Pair::Kfree, address, || free(arg!(&ctx, 0), address));
    0
}

/// kmem:kmem_cache_free
#[raw_tracepoint(tracepoint = "kmem_cache_free")]
pub(crate) fn lt_cache_free(ctx: RawTracePointContext) -> i32 {
    let address = arg!(&ctx, 1);
    pair::first(Pair::CacheFree, address, || free(arg!(&ctx, 0), address));
    0
}

/// kmem:kfree: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "kfree")]
pub(crate) fn lt_kfree_2(ctx: RawTracePointContext) -> i32 {
    let address = arg!(&ctx, 1);
    pair::second(Pair::Kfree, address, || look_again(arg!(&ctx, 0), address));
    0
}

/// kmem:kmem_cache_free: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "kmem_cache_free")]
pub(crate) fn lt_cache_free_2(ctx: RawTracePointContext) -> i32 {
    let address = arg!(&ctx, 1);
    pair::second(Pair::CacheFree, address, || look_again(arg!(&ctx, 0), address));
    0
}

#[inline(always)]
fn kmalloc(ctx: &RawTracePointContext, slot: u32) {
    let (size_bytes, object_bytes, gfp) = if config!(kmalloc_size_arg) == 3 {
        (arg!(ctx, 3), arg!(ctx, 4), arg!(ctx, 5))
    } else {
        (arg!(ctx, 2), arg!(ctx, 3), arg!(ctx, 4))
    };
    if !filter::wants_gfp(gfp as u32) {
        return;
    }
    if object_bytes > LARGEST_OBJECT {
        leaktrace_take_first(arg!(ctx, 1), size_bytes);
    }
    let cache_flags = gfp as u32 & config!(gfp_cache_mask);
    allocated(
        ctx,
        slot,
        &Allocation {
            kind: Kind::Kmalloc,
            call_site: arg!(ctx, 0),
            address: arg!(ctx, 1),
            space: KERNEL_SPACE,
            size_bytes,
            detail: u64::from(cache_flags) << 32 | object_bytes & 0xffff_ffff,
        },
    );
}

/// Takes a large block out of the table that kmalloc has reported as its own, since kmalloc is
/// about to report it as its caller's. From 6.11 on, `__do_kmalloc_node` calls a function that
/// reports the block first, and then reports the block itself (mm/slub.c, 6.11 to 7.2). Global and
/// not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_take_first(address: u64, size_bytes: u64) -> u32 {
    let key = AllocKey::new(KERNEL_SPACE, address);
    let Some(first) = ledger::take(key) else { return 0 };
    let ranges = (&raw const CONFIG.traced_twice).cast();
    let is_first = first.size_bytes == size_bytes
        && filter::is_in_one(ranges, TRACED_TWICE, ledger::call_site(first.site)) != 0;
    if is_first {
        counters::uncount_alloc(&first);
    } else {
        // SAFETY: the helper has no preconditions.
        counters::count_missed_free(&first, unsafe { bpf_ktime_get_ns() });
    }
    u32::from(is_first)
}

#[inline(always)]
fn kmem_cache_alloc(ctx: &RawTracePointContext, slot: u32) {
    let cache = if config!(cache_arg) == 2 { arg!(ctx, 2) } else { 0 };
    let (size_bytes, gfp) = if config!(cache_size_arg) == 3 {
        (arg!(ctx, 3), arg!(ctx, 5))
    } else if config!(cache_size_arg) == 2 {
        (arg!(ctx, 2), arg!(ctx, 4))
    } else {
        (0, arg!(ctx, 3))
    };
    if !filter::wants_gfp(gfp as u32) {
        return;
    }
    allocated(
        ctx,
        slot,
        &Allocation {
            kind: Kind::KmemCache,
            call_site: arg!(ctx, 0),
            address: arg!(ctx, 1),
            space: KERNEL_SPACE,
            size_bytes,
            detail: cache,
        },
    );
}

/// The caller of the function that frees: the first argument of both tracepoints.
#[inline(always)]
fn place(call_site: u64) -> Place {
    Place { address: call_site, generation: generation_at(call_site) }
}

#[inline(always)]
fn free(call_site: u64, address: u64) {
    if address <= ZERO_SIZE_PTR {
        return;
    }
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let key = AllocKey::new(KERNEL_SPACE, address);
    if !ledger::on_free_at(key, now_ns, || place(call_site)) && !filter::is_own() {
        loss::count(LossReason::UntrackedFree);
    }
}

/// For a second program: takes a block out of the table if [`free`] did not run for it; returns
/// whether there was one.
#[inline(always)]
fn look_again(call_site: u64, address: u64) -> bool {
    if address <= ZERO_SIZE_PTR {
        return false;
    }
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    ledger::on_free_at(AllocKey::new(KERNEL_SPACE, address), now_ns, || place(call_site))
}
