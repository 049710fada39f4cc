//! How a kernel allocation is recorded, whatever probe has reported it.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_NOEXIST,
    helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel},
    programs::RawTracePointContext,
};
use leaktrace_common::{
    AllocKey, CacheName, Choice, KERNEL_SPACE, Kind, Outstanding, PAGE_OWNERS, SiteKey,
    SiteVerdict, StackId,
};

use super::generation;
use crate::{
    filter, ledger,
    maps::{CACHES, CONFIG, KERNEL_SCRATCH, config},
    stack, table,
};

/// `kmalloc(0)` returns `ZERO_SIZE_PTR`, which is 16; that address and NULL are no allocations.
pub(super) const ZERO_SIZE_PTR: u64 = 16;

/// Frames among which the filter looks for a module.
const MODULE_FRAMES: usize = 64;
/// Frames among which the filter looks for another allocator. The frames of the tracepoint and of
/// BPF programs come first.
const OWNER_FRAMES: usize = 16;

/// An allocation as its tracepoint reports it.
pub(super) struct Allocation {
    pub(super) kind: Kind,
    /// 0 if the tracepoint does not pass it: see [`super::by_stack`].
    pub(super) call_site: u64,
    pub(super) address: u64,
    /// See [`AllocKey::space`].
    pub(super) space: u32,
    /// 0 if the tracepoint does not pass it, as `kmem_cache_alloc` from 6.1 on: then the slab cache
    /// knows the size. (An `Option` would have LLVM spill its undefined half, which the verifier
    /// refuses.)
    pub(super) size_bytes: u64,
    /// See [`SiteKey::detail`].
    pub(super) detail: u64,
}

/// Bytes of one object of a slab cache: `object_size` of its `struct kmem_cache`.
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
        generation: generation::generation_at(allocation.call_site) as u16,
        space: KERNEL_SPACE,
        detail: allocation.detail,
        call_site: allocation.call_site,
        stack,
    }
}

/// The index of the call site's record without stack.
#[inline(always)]
fn base_of(allocation: &Allocation) -> Option<u32> {
    ledger::site_index_or(&key_of(allocation, StackId::NOT_TAKEN), || {
        if matches!(allocation.kind, Kind::KmemCache) {
            learn_cache_name(allocation.detail);
        }
    })
}

/// The index of the site; with its stack if the stack policy wants one, or if the stack decides
/// whether the filter wants the allocation. `None` if the filter does not want it.
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
            && leaktrace_wants_frames(slot, allocation.kind as u32) != 0;
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

/// Stores the name of a slab cache, if it is not stored yet.
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

/// Runs `run` for a second program, unless the table holds the block at `address`; returns whether
/// `run` has put it there.
#[inline(always)]
pub(super) fn unless_recorded(address: u64, run: impl FnOnce()) -> bool {
    let is_recorded = || leaktrace_size_at(address) != 0;
    if is_recorded() {
        return false;
    }
    run();
    is_recorded()
}

/// Bytes of the tracked kernel block at an address; 0 if there is none. Global as
/// [`leaktrace_wants_frames`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_size_at(address: u64) -> u64 {
    table::size_at(AllocKey::new(KERNEL_SPACE, address))
}

/// Whether the filters want the stack in a scratch slot. They do not want a stack of pages that
/// belong to another allocator; and if modules are named, the stack has to pass through one, or
/// through none that is to be left out. Global and not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_wants_frames(slot: u32, kind: u32) -> u32 {
    let Some(record) = KERNEL_SCRATCH.get_ptr(slot) else { return 0 };
    // SAFETY: a live map value that only the calling program uses.
    let count = unsafe { (*record).count } as usize;
    if kind == Kind::Pages as u32 && config!(all_pages) == 0 {
        for index in 0..OWNER_FRAMES {
            // SAFETY: as above; the index is below the number of frames.
            if index < count && leaktrace_is_owner(unsafe { (*record).frames[index] }) != 0 {
                return 0;
            }
        }
    }
    if config!(filter_modules) == Choice::ALL {
        return 1;
    }
    let wants_named = config!(filter_modules) == Choice::ONLY;
    for index in 0..MODULE_FRAMES {
        // SAFETY: as above.
        if index < count && filter::leaktrace_in_text(unsafe { (*record).frames[index] }) != 0 {
            return u32::from(wants_named);
        }
    }
    u32::from(!wants_named)
}

/// Whether a frame lies in another allocator of the kernel, to which the pages then belong. Global
/// as [`leaktrace_wants_frames`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_is_owner(return_address: u64) -> u32 {
    filter::is_in_one((&raw const CONFIG.page_owners).cast(), PAGE_OWNERS, return_address)
}
