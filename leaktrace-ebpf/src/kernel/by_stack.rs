//! Allocations whose tracepoint does not pass the call site: leaktrace always takes the stack, and
//! the filters look at that.

use aya_ebpf::{EbpfContext, helpers::bpf_ktime_get_ns, programs::RawTracePointContext};
use leaktrace_common::{AllocKey, Choice, Outstanding};

use super::allocation::{Allocation, key_of, leaktrace_wants_frames};
use crate::{filter, ledger, maps::config, stack};

/// Records an allocation; returns whether the table now holds it. For `slot` see
/// [`stack::read_kernel`].
#[inline(always)]
pub(super) fn allocated(ctx: &RawTracePointContext, slot: u32, allocation: &Allocation) -> bool {
    if config!(filter_caches) == Choice::ONLY || !filter::wants_size(allocation.size_bytes) {
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

/// The site of an allocation, if the filters want its stack. If the site is new, `is_new` is called
/// before the site is made.
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
