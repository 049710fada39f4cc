//! Allocations that no kmem tracepoint reports: `kmem_cache_alloc_bulk`, and the packet buffer
//! heads that each CPU caches. The programs are attached by fexit, which passes the arguments and
//! the result together.
//!
//! | function | arguments | result |
//! |---|---|---|
//! | `kmem_cache_alloc_bulk` (mm/slub.c; `_noprof` from 6.10) | s, flags, size, p | objects in p; on 7.2 whether |
//! | `napi_skb_cache_get` (net/core/skbuff.c, from 5.13) | none; alloc from 6.15 | the head |
//! | `napi_skb_cache_get_bulk` (from 6.15) | skbs, n | heads in skbs |
//! | `napi_skb_cache_put` | skb | |
//!
//! Nobody owns a head in that cache, though no tracepoint reports its free when it goes there. A
//! head belongs to the caller who takes it out, until somebody puts it back. The cache fills itself
//! in bulk.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel, generated::bpf_get_func_ret},
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use leaktrace_common::{AllocKey, KERNEL_SPACE, Kind, LossReason, Outstanding};

use super::{
    allocation::{Allocation, learn_cache_name, object_size},
    arguments::argument,
    bulk::{leaktrace_free_all, leaktrace_free_one},
    by_stack,
};
use crate::{filter, ledger, loss, maps::config, pair};

/// Most pointers that one call of [`leaktrace_record_all`] reads.
const MAX_POINTERS: u64 = 512;
/// Most calls of [`leaktrace_record_all`] for one allocation.
const MAX_PARTS: u64 = 16;

#[fexit(function = "kmem_cache_alloc_bulk")]
pub(crate) fn lt_alloc_bulk(ctx: FExitContext) -> i32 {
    let (cache, gfp, pointers) = (argument(&ctx, 0), argument(&ctx, 1), argument(&ctx, 3));
    let count = argument(&ctx, 2);
    if has_succeeded(result(&ctx), count) && filter::wants_gfp(gfp as u32) {
        pair::alone(|| record(&ctx, 12, cache, pointers, count));
    }
    0
}

/// Whether `kmem_cache_alloc_bulk` has allocated everything that it was asked for; it allocates all
/// objects or none. Up to 6.18 it returns their number; on 7.2 it returns a bool, of which only the
/// lowest byte is defined.
#[inline(always)]
fn has_succeeded(result: u64, count: u64) -> bool {
    if count & 0xff == 0 { result as u32 != 0 } else { result as u8 != 0 }
}

#[fexit(function = "napi_skb_cache_get")]
pub(crate) fn lt_skb_get(ctx: FExitContext) -> i32 {
    let skb = result(&ctx);
    if skb != 0 {
        pair::alone(|| {
            leaktrace_free_one(skb);
            if let Some((size_bytes, site, tgid)) = site_of(&ctx, 13, skb_cache()) {
                leaktrace_record_one(skb, size_bytes, site, tgid);
            }
        });
    }
    0
}

#[fexit(function = "napi_skb_cache_get_bulk")]
pub(crate) fn lt_skb_get_bulk(ctx: FExitContext) -> i32 {
    let (pointers, count) = (argument(&ctx, 0), result(&ctx) as u32);
    if count > 0 {
        // It asks for 64 at most (NAPI_SKB_CACHE_SIZE, net/core/skbuff.c).
        pair::alone(|| {
            leaktrace_free_all(pointers, u64::from(count));
            record(&ctx, 14, skb_cache(), pointers, u64::from(count));
        });
    }
    0
}

#[fentry(function = "napi_skb_cache_put")]
pub(crate) fn lt_skb_put(ctx: FEntryContext) -> i32 {
    pair::alone(|| {
        leaktrace_free_one(argument(&ctx, 0));
    });
    0
}

/// The result as a plain word, for the same reason as [`super::arguments::argument`].
#[inline(always)]
fn result(ctx: &FExitContext) -> u64 {
    let mut value = 0;
    // SAFETY: as above.
    unsafe { bpf_get_func_ret(ctx.as_ptr(), &raw mut value) };
    value
}

/// The address of the slab cache of packet buffer heads; 0 if it cannot be read.
#[inline(always)]
fn skb_cache() -> u64 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(config!(skb_cache_at) as *const u64) }.unwrap_or(0)
}

/// Records `count` objects of one slab cache.
#[inline(always)]
fn record<C: EbpfContext>(ctx: &C, slot: u32, cache: u64, pointers: u64, count: u64) {
    let Some((size_bytes, site, tgid)) = site_of(ctx, slot, cache) else { return };
    let who = u64::from(site) | u64::from(tgid) << 32;
    for part in 0..MAX_PARTS {
        let done = part * MAX_POINTERS;
        if done >= count {
            return;
        }
        leaktrace_record_all(pointers.wrapping_add(done * 8), count - done, size_bytes, who);
    }
    if count > MAX_PARTS * MAX_POINTERS {
        loss::count(LossReason::OutstandingRefused);
    }
}

/// Size, site and process of the allocation that the running function has made; `None` if the
/// filters do not want it.
#[inline(always)]
fn site_of<C: EbpfContext>(ctx: &C, slot: u32, cache: u64) -> Option<(u64, u32, u32)> {
    let size_bytes = object_size(cache);
    if cache == 0 || !filter::wants_size(size_bytes) || !filter::wants_cache(Kind::KmemCache, cache)
    {
        return None;
    }
    let tgid = filter::wanted_tgid(ctx, slot)?;
    let allocation = Allocation {
        kind: Kind::KmemCache,
        call_site: 0,
        address: 0,
        space: KERNEL_SPACE,
        size_bytes,
        detail: cache,
    };
    let site = by_stack::site_of(ctx, slot, &allocation, || learn_cache_name(cache))?;
    Some((size_bytes, site, tgid))
}

/// Records the first [`MAX_POINTERS`] of `count` objects. `who` holds the site in its low half and
/// the process in its high half. Global and not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_record_all(
    pointers: u64,
    count: u64,
    size_bytes: u64,
    who: u64,
) -> u32 {
    for index in 0..MAX_POINTERS {
        if index >= count {
            break;
        }
        let at = pointers.wrapping_add(index * 8) as *const u64;
        // SAFETY: the helper checks the address.
        if let Ok(address) = unsafe { bpf_probe_read_kernel(at) } {
            leaktrace_record_one(address, size_bytes, who as u32, (who >> 32) as u32);
        }
    }
    0
}

/// Records one object. Global as [`leaktrace_record_all`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_record_one(address: u64, size_bytes: u64, site: u32, tgid: u32) -> u32 {
    let block = Outstanding {
        size_bytes,
        // SAFETY: the helper has no preconditions.
        timestamp_ns: unsafe { bpf_ktime_get_ns() },
        site,
        detail: tgid,
    };
    u32::from(ledger::on_alloc(AllocKey::new(KERNEL_SPACE, address), block))
}
