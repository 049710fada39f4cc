//! Frees that no kmem tracepoint reports: `kfree_rcu` and `kmem_cache_free_bulk`.
//!
//! Each program is attached by fentry, or by kprobe where the kernel permits no fentry. The owner
//! of an object that is handed to `kfree_rcu` has let go of it, so the object counts as freed at
//! once.

use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel},
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use leaktrace_common::{AllocKey, KERNEL_SPACE};

use super::arguments::argument;
use crate::{counters, ledger, maps::config, pair};

/// Most pointers that one call of [`leaktrace_free_all`] reads.
const MAX_POINTERS: u64 = 512;
/// Most calls of [`leaktrace_free_all`] for one bulk free: callers pass fewer than 512 objects
/// (`KVFREE_BULK_MAX_ENTR`, kernel/rcu/tree.c, 6.1).
const MAX_PARTS: u64 = 8;

/// `kvfree_call_rcu(struct rcu_head *head, void *ptr)`. Up to 6.3 the second argument is the offset
/// of the head in its object, or the object itself if it has no head.
#[fentry(function = "kvfree_call_rcu")]
pub(crate) fn lt_rcu_call(ctx: FEntryContext) -> i32 {
    pair::alone(|| rcu_call(argument(&ctx, 0), argument(&ctx, 1)));
    0
}

/// As [`lt_rcu_call`], by kprobe.
#[kprobe]
pub(crate) fn lt_rcu_call_k(ctx: ProbeContext) -> u32 {
    // SAFETY: the context is a live pt_regs.
    let regs = unsafe { &*ctx.regs };
    rcu_call(regs.rdi, regs.rsi);
    0
}

#[inline(always)]
fn rcu_call(head: u64, second: u64) {
    let is_offset = config!(rcu_call_offset) != 0 && head != 0;
    leaktrace_free_one(if is_offset { head.wrapping_sub(second) } else { second });
}

/// `kmem_cache_free_bulk(struct kmem_cache *s, size_t size, void **p)`, to which `kfree_bulk` comes
/// as well.
#[fentry(function = "kmem_cache_free_bulk")]
pub(crate) fn lt_free_bulk(ctx: FEntryContext) -> i32 {
    pair::alone(|| free_bulk(argument(&ctx, 1), argument(&ctx, 2)));
    0
}

/// As [`lt_free_bulk`], by kprobe.
#[kprobe]
pub(crate) fn lt_free_bulk_k(ctx: ProbeContext) -> u32 {
    // SAFETY: the context is a live pt_regs.
    let regs = unsafe { &*ctx.regs };
    free_bulk(regs.rsi, regs.rdx);
    0
}

#[inline(always)]
fn free_bulk(count: u64, pointers: u64) {
    for part in 0..MAX_PARTS {
        let done = part * MAX_POINTERS;
        if done >= count {
            break;
        }
        leaktrace_free_all(pointers.wrapping_add(done * 8), count - done);
    }
}

/// Counts the objects behind the first [`MAX_POINTERS`] of `count` pointers as freed, if they are
/// outstanding. Global and not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_free_all(pointers: u64, count: u64) -> u32 {
    for index in 0..MAX_POINTERS {
        if index >= count {
            break;
        }
        let at = pointers.wrapping_add(index * 8) as *const u64;
        // SAFETY: the helper checks the address.
        if let Ok(address) = unsafe { bpf_probe_read_kernel(at) } {
            leaktrace_free_one(address);
        }
    }
    0
}

/// Counts one object as freed, if it is outstanding. Global as [`leaktrace_free_all`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_free_one(address: u64) -> u32 {
    let Some(block) = ledger::take(AllocKey::new(KERNEL_SPACE, address)) else { return 0 };
    // SAFETY: the helper has no preconditions.
    counters::count_free(&block, unsafe { bpf_ktime_get_ns() });
    1
}
