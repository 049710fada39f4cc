//! Allocations whose tracepoint does not tell the call: there is always a stack, and the filters
//! look at that.

use aya_ebpf::{EbpfContext, helpers::bpf_ktime_get_ns, programs::RawTracePointContext};
use leaktrace_common::{AllocKey, Kind, Outstanding, PAGE_OWNERS};

use super::slab::{Allocation, key_of};
use crate::{
    filter, ledger,
    maps::{CONFIG, KERNEL_SCRATCH, config},
    stack,
};

/// Frames in which a module is looked for.
const MODULE_FRAMES: usize = 64;
/// Frames in which another allocator is looked for: those of the tracepoint and of the
/// programs come before.
const OWNER_FRAMES: usize = 16;

/// Records an allocation; gives whether it is tracked now. `slot` as for [`stack::read_kernel`].
#[inline(always)]
pub(super) fn allocated(ctx: &RawTracePointContext, slot: u32, allocation: &Allocation) -> bool {
    if config!(filter_caches) != 0 || !filter::wants_size(allocation.size_bytes) {
        return false;
    }
    let Some(tgid) = filter::wanted_tgid(ctx, slot) else { return false };
    let Some(site) = site_of(ctx, slot, allocation, || ()) else { return false };
    let block = Outstanding {
        size_bytes: allocation.size_bytes,
        // SAFETY: the helper has no preconditions.
        timestamp_ns: unsafe { bpf_ktime_get_ns() },
        site,
        detail: tgid,
    };
    ledger::on_alloc(AllocKey::new(allocation.space, allocation.address), block)
}

/// The site of an allocation, if its stack is asked for; `is_new` is called first where it has not
/// been seen before.
#[inline(always)]
pub(super) fn site_of<C: EbpfContext>(
    ctx: &C,
    slot: u32,
    allocation: &Allocation,
    is_new: impl FnOnce(),
) -> Option<u32> {
    let has_stack = stack::read_kernel(ctx, slot);
    if has_stack && leaktrace_wants_frames(slot, allocation.kind as u32) == 0 {
        return None;
    }
    let stack = stack::name_kernel(slot, has_stack);
    ledger::site_index_or(&key_of(allocation, stack), is_new)
}

/// Whether the stack in a scratch slot is asked for: pages are not where they belong to another
/// allocator, and a module asked for has to be in it. Global and not inlined, so that the
/// verifier checks it once.
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
    if config!(filter_modules) == 0 {
        return 1;
    }
    for index in 0..MODULE_FRAMES {
        // SAFETY: as above.
        if index < count && filter::leaktrace_in_text(unsafe { (*record).frames[index] }) != 0 {
            return 1;
        }
    }
    0
}

/// Whether a frame is that of an allocator whose pages count as its own. Global as
/// [`leaktrace_wants_frames`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_is_owner(return_address: u64) -> u32 {
    filter::is_in_one((&raw const CONFIG.page_owners).cast(), PAGE_OWNERS, return_address)
}
