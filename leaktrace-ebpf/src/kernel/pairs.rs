//! Functions of the kernel and its modules that `--pair` names, by kprobe and kretprobe: those
//! reach modules without type information as well.
//!
//! A call is identified by the address of its return address on the stack. No two unfinished calls
//! share that address, in whatever threads or interrupts they run, so nested calls need no extra
//! care.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel, generated::bpf_get_func_ip},
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use leaktrace_common::{
    AllocKey, BlockWord, KERNEL_SPACE, KernelPairCall, Kind, LossReason, Outstanding, PairCookie,
};

use super::allocation::{Allocation, site_of};
use crate::{
    filter, held, loss,
    maps::{EEXIST, KERNEL_PAIR_CALLS, PAIR_FUNCTIONS},
    user::pairs::Arguments,
};

/// The cookie of the probed function, if it belongs to a pair.
#[inline(always)]
fn cookie_of<C: EbpfContext>(ctx: &C) -> Option<PairCookie> {
    // SAFETY: the helper takes the program's own context; the value is copied at once.
    unsafe { PAIR_FUNCTIONS.get(bpf_get_func_ip(ctx.as_ptr())) }.copied().map(PairCookie)
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// Entry of an acquiring function.
#[kprobe]
pub(crate) fn lt_pair_get(ctx: ProbeContext) -> u32 {
    let Some(cookie) = cookie_of(&ctx) else { return 0 };
    // SAFETY: the context is a live pt_regs.
    let regs = unsafe { &*ctx.regs };
    let arguments = Arguments::of(regs);
    let size_bytes = arguments.size_bytes(cookie);
    if cookie.size_argument() != 0 && !filter::wants_size(size_bytes) {
        return 0;
    }
    let stack_pointer = regs.rsp;
    // SAFETY: the helper checks the address.
    let caller = unsafe { bpf_probe_read_kernel(stack_pointer as *const u64) }.unwrap_or(0);
    let allocation = Allocation {
        kind: Kind::Pair,
        call_site: caller,
        address: 0,
        space: KERNEL_SPACE,
        size_bytes,
        detail: u64::from(cookie.0),
    };
    let Some(tgid) = filter::wanted_tgid(&ctx, 15) else { return 0 };
    let Some(site) = site_of(&ctx, 15, &allocation) else { return 0 };
    let call = KernelPairCall {
        block: Outstanding { size_bytes, timestamp_ns: now_ns(), site, detail: tgid },
        argument: arguments.number(cookie.key_argument()),
        cookie: cookie.0,
        zero: 0,
    };
    match KERNEL_PAIR_CALLS.insert(stack_pointer, call, u64::from(BPF_NOEXIST)) {
        Ok(()) => {}
        Err(EEXIST) => {
            // The kernel had no room to watch the return of that one (kretprobes have so many).
            loss::count(LossReason::SkippedReturn);
            if KERNEL_PAIR_CALLS.insert(stack_pointer, call, u64::from(BPF_ANY)).is_err() {
                loss::count(LossReason::InFlightFull);
            }
        }
        Err(_) => loss::count(LossReason::InFlightFull),
    }
    0
}

/// Return of an acquiring function. The call's return address lay just below the present stack
/// pointer, see `lt_vmalloc_return`.
#[kretprobe]
pub(crate) fn lt_pair_got(ctx: RetProbeContext) -> u32 {
    // SAFETY: the context is a live pt_regs.
    let (result, stack_pointer) = unsafe { ((*ctx.regs).rax, (*ctx.regs).rsp.wrapping_sub(8)) };
    // SAFETY: copied at once.
    let Some(call) = (unsafe { KERNEL_PAIR_CALLS.get(stack_pointer) }).copied() else { return 0 };
    // One that is gone needs no removal.
    let _ = KERNEL_PAIR_CALLS.remove(stack_pointer);
    let cookie = PairCookie(call.cookie);
    if !cookie.has_succeeded(result) {
        return 0;
    }
    let key = if cookie.is_result() {
        result
    } else if cookie.is_out() {
        // SAFETY: the helper checks the address.
        match unsafe { bpf_probe_read_kernel(call.argument as *const u64) } {
            Ok(key) => key,
            Err(_) => {
                loss::count(LossReason::ResultUnreadable);
                return 0;
            }
        }
    } else {
        call.argument
    };
    let key = cookie.defined(key);
    if cookie.is_key(key) {
        let word = BlockWord::of_pair(AllocKey::new(KERNEL_SPACE, key), cookie.pair());
        let who = u64::from(call.block.site) | u64::from(call.block.detail) << 32;
        held::leaktrace_acquired(word, call.block.size_bytes, now_ns(), who);
    }
    0
}

/// Entry of a releasing function.
#[kprobe]
pub(crate) fn lt_pair_put(ctx: ProbeContext) -> u32 {
    let Some(cookie) = cookie_of(&ctx) else { return 0 };
    // SAFETY: the context is a live pt_regs.
    let key = Arguments::of(unsafe { &*ctx.regs }).number(cookie.key_argument());
    let key = cookie.defined(key);
    if !cookie.is_key(key) {
        return 0;
    }
    let word = BlockWord::of_pair(AllocKey::new(KERNEL_SPACE, key), cookie.pair());
    if held::leaktrace_released(word, now_ns()) == 0 && !filter::is_own() {
        loss::count(LossReason::UntrackedRelease);
    }
    0
}
