//! Pages: alloc_pages and its relatives, free_pages.
//!
//! | tracepoint (include/trace/events/kmem.h, 5.15 to 6.18) | arguments |
//! |---|---|
//! | mm_page_alloc | page, order, gfp_flags, migratetype |
//! | mm_page_free | page, order |
//!
//! Every page that goes back to the allocator passes mm_page_free (free_pages_prepare,
//! mm/page_alloc.c); the pages that mm_page_free_batched reports pass it as well. A block is
//! identified by the address of its first `struct page`, where no other block can lie.
//!
//! A caller may free parts of a block (split_page). Then leaktrace halves the block until it
//! reaches the part, and each half without the part becomes a block of its own. While one CPU does
//! that, other CPUs that free pages of the same region wait, because the block that they look for
//! may be out of the table meanwhile.

use aya_ebpf::{
    EbpfContext as _, helpers::bpf_ktime_get_ns, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use leaktrace_common::{
    AllocKey, KERNEL_SPACE, Kind, LossReason, MAX_PAGE_ORDER, PAGE_REGIONS_COUNT, PageRegion, Pair,
};

use super::{
    allocation::{Allocation, leaktrace_size_at, unless_recorded},
    arguments::arg,
    by_stack,
};
use crate::{
    atomic, counters, filter, ledger, loss,
    maps::{PAGE_REGIONS, config},
    pair,
};

/// Bytes of a page on x86_64.
const PAGE_BYTES: u64 = 4096;
/// See [`count_in_region`].
const ONE_MORE: u64 = 1;
/// See [`count_in_region`].
const ONE_LESS: u64 = u64::MAX;
/// Attempts to take a region's lock, which last some microseconds in all.
const TRIES: u32 = 256;

/// kmem:mm_page_alloc
#[raw_tracepoint(tracepoint = "mm_page_alloc")]
pub(crate) fn lt_page_alloc(ctx: RawTracePointContext) -> i32 {
    pair::first(Pair::PageAlloc, arg!(&ctx, 0), || alloc(&ctx, 6));
    0
}

/// kmem:mm_page_alloc: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "mm_page_alloc")]
pub(crate) fn lt_page_alloc_2(ctx: RawTracePointContext) -> i32 {
    let page = arg!(&ctx, 0);
    pair::second(Pair::PageAlloc, page, || unless_recorded(page, || alloc(&ctx, 11)));
    0
}

#[inline(always)]
fn alloc(ctx: &RawTracePointContext, slot: u32) {
    let (page, order, gfp) = (arg!(ctx, 0), arg!(ctx, 1) as u32, arg!(ctx, 2) as u32);
    if page == 0 || order > MAX_PAGE_ORDER || !filter::wants_gfp(gfp) {
        return;
    }
    // Pages of processes and of files can be moved, and say so.
    if config!(all_pages) == 0 && gfp & config!(gfp_movable) != 0 {
        return;
    }
    if order > 0 {
        // Before the block can be found: see `leaktrace_free_pages`.
        count_in_region(page, ONE_MORE);
    }
    let is_tracked = by_stack::allocated(
        ctx,
        slot,
        &Allocation {
            kind: Kind::Pages,
            call_site: 0,
            address: page,
            space: KERNEL_SPACE,
            size_bytes: PAGE_BYTES << order,
            detail: 0,
        },
    );
    if order > 0 && !is_tracked {
        count_in_region(page, ONE_LESS);
    }
}

/// kmem:mm_page_free
#[raw_tracepoint(tracepoint = "mm_page_free")]
pub(crate) fn lt_page_free(ctx: RawTracePointContext) -> i32 {
    let (page, order) = (arg!(&ctx, 0), arg!(&ctx, 1) as u32);
    pair::first(Pair::PageFree, page, || {
        leaktrace_free_pages(page, order);
    });
    0
}

/// kmem:mm_page_free: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "mm_page_free")]
pub(crate) fn lt_page_free_2(ctx: RawTracePointContext) -> i32 {
    let (page, order) = (arg!(&ctx, 0), arg!(&ctx, 1) as u32);
    pair::second(Pair::PageFree, page, || leaktrace_free_pages(page, order) != 0);
    0
}

/// Counts the pages of a block, or of a part of one, as freed. Pages that are not tracked are
/// passed over: most pages belong to processes and files. Global and not inlined, so that the
/// verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_free_pages(page: u64, order: u32) -> u32 {
    if order > MAX_PAGE_ORDER {
        return 0;
    }
    // Read before the look: blocks count here from before they can be found until after their
    // parts can, so either the look finds the page or there is something to wait for.
    let has_larger = has_larger_blocks(page);
    let bytes = leaktrace_size_at(page);
    if bytes == PAGE_BYTES << order {
        let Some(block) = ledger::take(AllocKey::new(KERNEL_SPACE, page)) else { return 0 };
        // SAFETY: the helper has no preconditions.
        counters::count_free(&block, unsafe { bpf_ktime_get_ns() });
        if order > 0 {
            count_in_region(page, ONE_LESS);
        }
        return 1;
    }
    if bytes == 0 && !has_larger {
        return 0;
    }
    if leaktrace_lock(page) == 0 {
        loss::count(LossReason::DeleteRefused);
        return 0;
    }
    let found = leaktrace_free_part(page, PAGE_BYTES << order);
    if let Some(region) = region_of(page) {
        // SAFETY: a live map value, locked by this run.
        unsafe { (&raw mut (*region).lock).write_volatile(0) };
    }
    found
}

/// Waits for the lock of a page's region; returns 0 if it cannot have the lock, as when it runs in
/// an interrupt of the lock's holder. Global as [`leaktrace_free_pages`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_lock(page: u64) -> u32 {
    let Some(region) = region_of(page) else { return 0 };
    for _ in 0..TRIES {
        // SAFETY: a live map value, aligned.
        if unsafe { atomic::exchange_if(&raw mut (*region).lock, 0, 1) } {
            return 1;
        }
    }
    0
}

/// Counts the part of `wanted_bytes` that begins at `page` as freed, and puts the rest of its block
/// back into the table. The caller holds the region's lock. Global as [`leaktrace_free_pages`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_free_part(page: u64, wanted_bytes: u64) -> u32 {
    let mut head = leaktrace_head_of(page);
    if head == 0 {
        return 0;
    }
    let Some(block) = ledger::take(AllocKey::new(KERNEL_SPACE, head)) else { return 0 };
    let mut part = block;
    let mut halvings = 0;
    while halvings < MAX_PAGE_ORDER && part.size_bytes > wanted_bytes {
        part.size_bytes /= 2;
        let middle = head.wrapping_add(span(part.size_bytes));
        let other = if page >= middle { head } else { middle };
        if page >= middle {
            head = middle;
        }
        if part.size_bytes > PAGE_BYTES {
            count_in_region(other, ONE_MORE);
        }
        ledger::put_back(AllocKey::new(KERNEL_SPACE, other), &part);
        halvings += 1;
    }
    counters::count_parts(block.site, u64::from(halvings));
    // SAFETY: the helper has no preconditions.
    counters::count_free(&part, unsafe { bpf_ktime_get_ns() });
    if block.size_bytes > PAGE_BYTES {
        count_in_region(page, ONE_LESS);
    }
    1
}

/// The first page of the tracked block that a page lies in; 0 if there is none. Global as
/// [`leaktrace_free_pages`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_head_of(page: u64) -> u64 {
    for order in 0..=MAX_PAGE_ORDER {
        // Blocks are aligned to their size, and so are their struct pages, as the first of all
        // lies at a round address (vmemmap, arch/x86/include/asm/pgtable_64_types.h).
        let bytes = PAGE_BYTES << order;
        let head = page & !(span(bytes) - 1);
        if leaktrace_size_at(head) >= bytes {
            return head;
        }
    }
    0
}

/// Bytes of the `struct page`s that describe `bytes` bytes of pages.
#[inline(always)]
fn span(bytes: u64) -> u64 {
    (bytes / PAGE_BYTES) << (config!(page_struct_shift) & 31)
}

/// The region that a page lies in; a region has as many pages as the largest block.
#[inline(always)]
fn region_of(page: u64) -> Option<*mut PageRegion> {
    let region = page / span(PAGE_BYTES << MAX_PAGE_ORDER);
    PAGE_REGIONS.get_ptr_mut(region as u32 & (PAGE_REGIONS_COUNT - 1))
}

#[inline(always)]
fn has_larger_blocks(page: u64) -> bool {
    region_of(page).is_some_and(|region| {
        // SAFETY: a live map value; volatile, as other CPUs write it.
        unsafe { (&raw const (*region).larger_blocks).read_volatile() != 0 }
    })
}

/// Counts a block of more than one page in its region, by [`ONE_MORE`] or [`ONE_LESS`].
#[inline(always)]
fn count_in_region(page: u64, change: u64) {
    if let Some(region) = region_of(page) {
        // SAFETY: a live map value, aligned.
        unsafe { atomic::add(&raw mut (*region).larger_blocks, change) };
    }
}
