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
//! cost and under the same recursion guard, so there is one program for both; see [`crate::pair`] for
//! what that guard refuses.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_NOEXIST,
    helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use leaktrace_common::{
    AllocKey, CacheName, KERNEL_SPACE, Kind, LossReason, Outstanding, Pair, SiteKey, SiteVerdict,
    StackId, TOLD_TWICE,
};

use super::{by_stack, module};
use crate::{
    filter, ledger, loss,
    maps::{CACHES, CONFIG, config},
    pair, stack,
};

/// `kmalloc(0)` gives `ZERO_SIZE_PTR`, which is 16; it and NULL are no allocations.
const ZERO_SIZE_PTR: u64 = 16;

/// From here on kmalloc takes pages (`KMALLOC_MAX_CACHE_SIZE`, include/linux/slab.h, 5.15 to 7.2).
const LARGEST_OBJECT: u64 = 8192;

/// An allocation as its tracepoint tells it.
pub(super) struct Allocation {
    pub(super) kind: Kind,
    /// 0 if it is not told: see [`super::by_stack`].
    pub(super) call_site: u64,
    pub(super) address: u64,
    /// See [`AllocKey::space`].
    pub(super) space: u32,
    /// 0 if it is not passed, as by `kmem_cache_alloc` from 6.1 on: the cache knows it. (An
    /// Option would have LLVM spill its undefined half, which the verifier refuses.)
    pub(super) size_bytes: u64,
    /// See [`SiteKey::detail`].
    pub(super) detail: u64,
}

/// kmem:kmalloc
#[raw_tracepoint(tracepoint = "kmalloc")]
pub(crate) fn lt_kmalloc(ctx: RawTracePointContext) -> i32 {
    pair::first(Pair::Kmalloc, arg!(&ctx, 1), || kmalloc(&ctx, 0));
    0
}

/// kmem:kmalloc, a second time
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

/// kmem:kmem_cache_alloc, a second time
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
    pair::first(Pair::Kfree, address, || free(address));
    0
}

/// kmem:kmem_cache_free
#[raw_tracepoint(tracepoint = "kmem_cache_free")]
pub(crate) fn lt_cache_free(ctx: RawTracePointContext) -> i32 {
    let address = arg!(&ctx, 1);
    pair::first(Pair::CacheFree, address, || free(address));
    0
}

/// kmem:kfree, a second time
#[raw_tracepoint(tracepoint = "kfree")]
pub(crate) fn lt_kfree_2(ctx: RawTracePointContext) -> i32 {
    let address = arg!(&ctx, 1);
    pair::second(Pair::Kfree, address, || look_again(address));
    0
}

/// kmem:kmem_cache_free, a second time
#[raw_tracepoint(tracepoint = "kmem_cache_free")]
pub(crate) fn lt_cache_free_2(ctx: RawTracePointContext) -> i32 {
    let address = arg!(&ctx, 1);
    pair::second(Pair::CacheFree, address, || look_again(address));
    0
}

/// Argument `n` of a raw tracepoint.
///
/// In assembly, since LLVM merges loads of different branches into one from a computed
/// address, and the verifier refuses a context pointer that was moved.
macro_rules! arg {
    ($ctx:expr, $n:literal) => {{
        let value: u64;
        // SAFETY: reads the context, which holds 12 words for every raw tracepoint
        // (raw_tp_prog_is_valid_access, kernel/trace/bpf_trace.c, 6.18).
        unsafe {
            core::arch::asm!(
                concat!("{0} = *(u64 *)({1} + 8 * ", $n, ")"),
                out(reg) value,
                in(reg) $ctx.as_ptr(),
                options(pure, readonly, nostack),
            );
        }
        value
    }};
}
pub(super) use arg;

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

/// Takes out a large block that kmalloc has told as its own, since it is about to be told as its
/// caller's: from 6.11 on `__do_kmalloc_node` calls a function that tells it first, and then tells
/// it itself (mm/slub.c, 6.11 to 7.2). Global and not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_take_first(address: u64, size_bytes: u64) -> u32 {
    let key = AllocKey::new(KERNEL_SPACE, address);
    let Some(first) = ledger::take(key) else { return 0 };
    let ranges = (&raw const CONFIG.told_twice).cast();
    let is_first = first.size_bytes == size_bytes
        && filter::is_in_one(ranges, TOLD_TWICE, ledger::call_site(first.site)) != 0;
    if is_first {
        ledger::uncount_alloc(&first);
    } else {
        // SAFETY: the helper has no preconditions.
        ledger::count_missed_free(&first, unsafe { bpf_ktime_get_ns() });
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

/// `object_size` of a `struct kmem_cache`.
#[inline(always)]
pub(super) fn object_size(cache: u64) -> u64 {
    let at = cache.wrapping_add(u64::from(config!(cache_object_size_offset)));
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(at as *const u32) }.map_or(0, u64::from)
}

/// Records an allocation.
#[inline(always)]
pub(super) fn allocated(ctx: &RawTracePointContext, slot: u32, allocation: &Allocation) {
    if allocation.address <= ZERO_SIZE_PTR {
        return;
    }
    if allocation.size_bytes != 0 && !filter::wants_size(allocation.size_bytes) {
        return;
    }
    let Some(tgid) = filter::wanted_tgid(ctx, slot) else { return };
    let Some(base) = base_of(allocation) else { return };
    let verdict =
        filter::site_verdict(base, allocation.kind, allocation.detail, allocation.call_site);
    if verdict == SiteVerdict::Unwanted as u32 {
        return;
    }
    let size_bytes = match allocation.size_bytes {
        size_bytes @ 1.. => size_bytes,
        0 => {
            // All objects of a cache have one size: what this site has seen once is it.
            let size_bytes = match ledger::largest_bytes(base) {
                0 => object_size(allocation.detail),
                known => known,
            };
            if !filter::wants_size(size_bytes) {
                return;
            }
            size_bytes
        }
    };
    let Some(site) = with_stack(ctx, slot, allocation, base, verdict) else { return };
    ledger::on_alloc(
        AllocKey::new(allocation.space, allocation.address),
        Outstanding {
            size_bytes,
            // SAFETY: the helper has no preconditions.
            timestamp_ns: unsafe { bpf_ktime_get_ns() },
            site,
            detail: tgid,
        },
    );
}

/// The site of an allocation, with its stack if one is wanted.
#[inline(always)]
pub(super) fn site_of<C: EbpfContext>(ctx: &C, slot: u32, allocation: &Allocation) -> Option<u32> {
    let base = base_of(allocation)?;
    let verdict =
        filter::site_verdict(base, allocation.kind, allocation.detail, allocation.call_site);
    if verdict == SiteVerdict::Unwanted as u32 {
        return None;
    }
    with_stack(ctx, slot, allocation, base, verdict)
}

#[inline(always)]
pub(super) fn key_of(allocation: &Allocation, stack: u64) -> SiteKey {
    SiteKey {
        kind: allocation.kind as u16,
        generation: module::generation_at(allocation.call_site) as u16,
        space: KERNEL_SPACE,
        detail: allocation.detail,
        call_site: allocation.call_site,
        stack,
    }
}

/// The call site's record without stack.
#[inline(always)]
fn base_of(allocation: &Allocation) -> Option<u32> {
    ledger::site_index_or(&key_of(allocation, StackId::NOT_TAKEN), || {
        if matches!(allocation.kind, Kind::KmemCache) {
            learn_cache_name(allocation.detail);
        }
    })
}

/// The site, with its stack if that is wanted or decides; nothing if the stack is not asked for.
#[inline(always)]
fn with_stack<C: EbpfContext>(
    ctx: &C,
    slot: u32,
    allocation: &Allocation,
    base: u32,
    verdict: u32,
) -> Option<u32> {
    if config!(filter_modules) != 0 && verdict == SiteVerdict::ByStack as u32 {
        let is_wanted = stack::read_kernel(ctx, slot)
            && by_stack::leaktrace_wants_frames(slot, allocation.kind as u32) != 0;
        if !is_wanted {
            return None;
        }
        return ledger::site_index(&key_of(allocation, stack::name_kernel(slot, true)));
    }
    if !ledger::wants_stack(base) {
        return Some(base);
    }
    ledger::site_index(&key_of(allocation, stack::take_kernel(ctx, slot)))
}

/// Stores a cache's name when its call site is new.
#[inline(always)]
pub(super) fn learn_cache_name(cache: u64) {
    if cache == 0 || CACHES.get_ptr(cache).is_some() {
        return;
    }
    if let Some(bytes) = filter::cache_name(cache) {
        // A full table leaves the cache unnamed, which the report shows by its address.
        let _ = CACHES.insert(cache, CacheName { bytes }, u64::from(BPF_NOEXIST));
    }
}

/// Runs a second program, unless its block is in the table; gives whether it has put it there.
#[inline(always)]
pub(super) fn unless_recorded(address: u64, run: impl FnOnce()) -> bool {
    let is_recorded = || super::pages::leaktrace_size_at(address) != 0;
    if is_recorded() {
        return false;
    }
    run();
    is_recorded()
}

#[inline(always)]
fn free(address: u64) {
    if address <= ZERO_SIZE_PTR {
        return;
    }
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let key = AllocKey::new(KERNEL_SPACE, address);
    if !ledger::on_free(key, now_ns) && !filter::is_own() {
        loss::count(LossReason::UntrackedFree);
    }
}

/// Takes out what [`free`] was not run for; gives whether there was something.
#[inline(always)]
fn look_again(address: u64) -> bool {
    if address <= ZERO_SIZE_PTR {
        return false;
    }
    // SAFETY: the helper has no preconditions.
    ledger::on_free(AllocKey::new(KERNEL_SPACE, address), unsafe { bpf_ktime_get_ns() })
}
