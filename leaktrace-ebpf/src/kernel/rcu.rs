//! Objects freed through `kfree_rcu`, on kernels where no probe can be attached to it.
//!
//! `kfree_rcu` gathers pointers in pages and frees the objects in bulk, and no kmem tracepoint
//! reports it. But its two work items pass workqueue:workqueue_execute_start, and at that moment a
//! program can read the pages. `kfree_rcu_monitor` is about to hand on, or to free, the objects
//! that its CPU has gathered; `kfree_rcu_work` is about to free those that have waited for a grace
//! period. The owner of such an object has let go of it, so it counts as freed. A program may see
//! an object twice without harm, as the kernel cannot allocate it again in between.

use aya_ebpf::{
    EbpfContext as _, helpers::bpf_probe_read_kernel, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use leaktrace_common::Pair;

use super::bulk;
use crate::{maps::config, pair};

/// Most pages of one list that a program follows; 128 pages hold some 64,000 objects.
const MAX_PAGES: u32 = 128;

/// workqueue:workqueue_execute_start (struct work_struct *work)
#[raw_tracepoint(tracepoint = "workqueue_execute_start")]
pub(crate) fn lt_rcu_work(ctx: RawTracePointContext) -> i32 {
    let work = work_of(&ctx);
    pair::first(Pair::RcuWork, work, || executed(work));
    0
}

/// workqueue:workqueue_execute_start: the tracepoint's second program, see [`crate::pair`]
#[raw_tracepoint(tracepoint = "workqueue_execute_start")]
pub(crate) fn lt_rcu_work_2(ctx: RawTracePointContext) -> i32 {
    let work = work_of(&ctx);
    pair::second(Pair::RcuWork, work, || {
        executed(work);
        // Most work is not RCU's.
        false
    });
    0
}

#[inline(always)]
fn work_of(ctx: &RawTracePointContext) -> u64 {
    // SAFETY: the tracepoint has one argument, a work item.
    unsafe { *ctx.as_ptr().cast::<u64>() }
}

/// Handles a work item that is about to run; the helpers check every address.
#[inline(always)]
fn executed(work: u64) {
    let Some(function) = read(work.wrapping_add(u64::from(config!(rcu.func_offset)))) else {
        return;
    };
    // The lists of slab objects come first in both arrays, those of vmalloc second.
    let head = if function == config!(rcu.work_function) {
        work.wrapping_add(u64::from(config!(rcu.work_list_offset)))
    } else if function == config!(rcu.monitor_function) {
        work.wrapping_sub(u64::from(config!(rcu.monitor_offset)))
            .wrapping_add(u64::from(config!(rcu.monitor_list_offset)))
    } else {
        return;
    };
    let Some(mut page) = read(head) else { return };
    for _ in 0..MAX_PAGES {
        if page == head || page == 0 {
            break;
        }
        leaktrace_rcu_page(page);
        // `list` is the first member of a page.
        let Some(next) = read(page) else { break };
        page = next;
    }
}

/// Counts every object of one page of pointers as freed. Global and not inlined, so that the
/// verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_rcu_page(page: u64) -> u32 {
    let Some(count) = read(page.wrapping_add(u64::from(config!(rcu.count_offset)))) else {
        return 0;
    };
    bulk::leaktrace_free_all(page.wrapping_add(u64::from(config!(rcu.records_offset))), count)
}

/// One word of kernel memory.
#[inline(always)]
fn read(address: u64) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address as *const u64) }.ok()
}
