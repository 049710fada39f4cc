//! The malloc family: what a call asks for is saved at its entry, recorded at its return.
//!
//! Only the outermost call of a nest counts (`reallocarray` calls `realloc`). A call whose
//! return never comes (longjmp, an exception, a killed thread) is noticed by the thread's next
//! call: an unfinished call further up the stack still has the kernel's return trampoline in its
//! return slot, a skipped one has not, or lies below.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_ANY,
    helpers::{
        bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user,
        generated::{bpf_get_attach_cookie, bpf_get_func_ip},
    },
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use leaktrace_common::{
    AllocFunction, AllocKey, InFlight, Kind, LossReason, Outstanding, SiteKey, StackId, StackMode,
};

use super::walk::{self, Start};
use crate::{
    filter, ledger, loss,
    maps::{IN_FLIGHT, TARGETS},
};

/// What a session program returns to have the function's return skipped.
const SKIP_RETURN: u32 = 1;
/// What it returns to be run at the return as well.
const WATCH_RETURN: u32 = 0;

/// Entry and return in one program (uprobe session links, from 6.13).
///
/// Without the `uprobe` macro, which drops the result: [`SKIP_RETURN`] means something here.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub(crate) extern "C" fn lt_session(ctx: *mut core::ffi::c_void) -> u32 {
    let ctx = ProbeContext::new(ctx);
    // SAFETY: the context is a live pt_regs. At the entry the instruction pointer is the
    // probe's address, at the return the caller's.
    unsafe {
        if (*ctx.regs).rip == bpf_get_func_ip(ctx.as_ptr()) {
            return entry(&ctx);
        }
        returned(&ctx, ctx.regs, true);
    }
    0
}

/// Entry alone (uprobe_multi and perf_event links).
#[uprobe]
pub(crate) fn lt_entry(ctx: ProbeContext) -> u32 {
    entry(&ctx);
    0
}

/// Return alone (uprobe_multi and perf_event links).
#[uretprobe]
pub(crate) fn lt_return(ctx: RetProbeContext) -> u32 {
    // SAFETY: the context is a live pt_regs.
    unsafe { returned(&ctx, ctx.regs, false) };
    0
}

/// `free`, anywhere in its prologue where the first argument is intact.
#[uprobe]
pub(crate) fn lt_free(ctx: ProbeContext) -> u32 {
    // SAFETY: the context is a live pt_regs.
    let pointer = unsafe { (*ctx.regs).rdi };
    if pointer == 0 {
        return 0;
    }
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: read at once; deleted only when the session ends.
    let Some(target) = (unsafe { TARGETS.get((thread >> 32) as u32) }) else { return 0 };
    if !ledger::on_free(AllocKey::new(target.space, pointer), now_ns())
        && !is_being_resized(thread, pointer)
    {
        loss::count(LossReason::UntrackedFree);
    }
    0
}

/// Whether `realloc` frees its old block, whose record it has already taken out.
#[inline(always)]
fn is_being_resized(thread: u64, pointer: u64) -> bool {
    let Some(flight) = IN_FLIGHT.get_ptr(thread) else { return false };
    // SAFETY: a live map value that belongs to this thread.
    unsafe { (*flight).stack_pointer != 0 && (*flight).pointer == pointer }
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// What a call asks for.
struct Request {
    size_bytes: u64,
    /// See [`InFlight::pointer`].
    pointer: u64,
    /// Whether `pointer` is an old block that the call may free or move.
    resizes: bool,
}

/// Decodes the arguments; nothing if the product of `calloc` or `reallocarray` overflows, as
/// the call then fails.
#[inline(always)]
fn decode(function: u64, rdi: u64, rsi: u64, rdx: u64) -> Option<Request> {
    use AllocFunction as F;
    const MALLOC: u64 = F::Malloc as u64;
    const CALLOC: u64 = F::Calloc as u64;
    const REALLOC: u64 = F::Realloc as u64;
    const REALLOCARRAY: u64 = F::Reallocarray as u64;
    const POSIX_MEMALIGN: u64 = F::PosixMemalign as u64;
    const ALIGNED_ALLOC: u64 = F::AlignedAlloc as u64;
    const MEMALIGN: u64 = F::Memalign as u64;
    const VALLOC: u64 = F::Valloc as u64;
    const PVALLOC: u64 = F::Pvalloc as u64;
    let plain = |size_bytes| Some(Request { size_bytes, pointer: 0, resizes: false });
    match function {
        MALLOC | VALLOC | PVALLOC => plain(rdi),
        CALLOC => plain(product(rdi, rsi)?),
        REALLOC => Some(Request { size_bytes: rsi, pointer: rdi, resizes: true }),
        REALLOCARRAY => {
            Some(Request { size_bytes: product(rsi, rdx)?, pointer: rdi, resizes: true })
        }
        POSIX_MEMALIGN => Some(Request { size_bytes: rdx, pointer: rdi, resizes: false }),
        ALIGNED_ALLOC | MEMALIGN => plain(rsi),
        _ => None,
    }
}

/// `count * size`, unless that overflows; by halves, as BPF has no 128-bit product.
#[inline(always)]
fn product(count: u64, size: u64) -> Option<u64> {
    let (small, big) = if count < size { (count, size) } else { (size, count) };
    if small >> 32 != 0 {
        return None;
    }
    let high = small * (big >> 32);
    if high >> 32 != 0 {
        return None;
    }
    let low = small * (big & 0xffff_ffff);
    let sum = (high << 32).wrapping_add(low);
    if sum < low { None } else { Some(sum) }
}

#[inline(always)]
fn entry(ctx: &ProbeContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    let Some(target) = TARGETS.get_ptr((thread >> 32) as u32) else { return SKIP_RETURN };
    // SAFETY: the context is a live pt_regs; the target is deleted only when the session ends.
    let (regs, target) = unsafe { (&*ctx.regs, *target) };
    // SAFETY: the helper takes the program's own context.
    let function = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    // SAFETY: the helper checks the address.
    let caller = unsafe { bpf_probe_read_user(regs.rsp as *const u64) }.unwrap_or(0);

    let known = IN_FLIGHT.get_ptr_mut(thread);
    if let Some(flight) = known {
        // SAFETY: a live map value that belongs to this thread.
        unsafe {
            if (*flight).stack_pointer != 0 {
                if is_nested(&*flight, target.space, regs.rsp, caller) {
                    return SKIP_RETURN;
                }
                if (*flight).space == target.space {
                    loss::count(LossReason::SkippedReturn);
                    put_old_back(&*flight);
                }
                (*flight).stack_pointer = 0;
            }
        }
    }

    let Some(request) = decode(function, regs.rdi, regs.rsi, regs.rdx) else {
        return SKIP_RETURN;
    };
    if !request.resizes && !filter::wants_size(request.size_bytes) {
        return SKIP_RETURN;
    }
    let start = Start {
        tgid: (thread >> 32) as u32,
        space: target.space,
        caller,
        stack_pointer: regs.rsp,
        frame_pointer: regs.rbp,
    };
    let mut flight = InFlight {
        stack_pointer: regs.rsp,
        space: target.space,
        function: function as u32,
        size_bytes: request.size_bytes,
        caller,
        stack: user_stack(&start, function),
        pointer: request.pointer,
        old: Outstanding { size_bytes: 0, timestamp_ns: 0, site: 0, tgid: 0 },
        old_tracked: 0,
    };
    // The old block is neither live nor free during the call: were its record left in place,
    // another thread could be given the address before this call's return is seen.
    let old_key = AllocKey::new(target.space, request.pointer);
    if request.resizes
        && request.pointer != 0
        && let Some(old) = ledger::take(old_key)
    {
        flight.old = old;
        flight.old_tracked = 1;
    }
    let stored = match known {
        Some(slot) => {
            // SAFETY: a live map value that belongs to this thread.
            unsafe { *slot = flight };
            true
        }
        None => IN_FLIGHT.insert(thread, &flight, u64::from(BPF_ANY)).is_ok(),
    };
    if stored {
        return WATCH_RETURN;
    }
    loss::count(LossReason::InFlightFull);
    if flight.old_tracked != 0 {
        ledger::put_back(old_key, &flight.old);
    }
    SKIP_RETURN
}

/// A thread ends: a call of which it has not returned never will. That is a loss where it leaves
/// `alone`, as its process lives on.
#[inline(always)]
pub(super) fn abandon(thread: u64, space: u32, alone: bool) {
    let Some(flight) = IN_FLIGHT.get_ptr_mut(thread) else { return };
    // SAFETY: a live map value that belongs to this thread.
    unsafe {
        if (*flight).stack_pointer != 0 && (*flight).space == space {
            if alone {
                loss::count(LossReason::SkippedReturn);
            }
            put_old_back(&*flight);
        }
        (*flight).stack_pointer = 0;
    }
}

/// The call will not return: the block that it was to resize is as it was.
#[inline(always)]
fn put_old_back(flight: &InFlight) {
    if flight.old_tracked != 0 {
        ledger::put_back(AllocKey::new(flight.space, flight.pointer), &flight.old);
    }
}

/// Whether a call is made inside the unfinished call `outer`; see the module.
#[inline(always)]
pub(super) fn is_nested(outer: &InFlight, space: u32, stack_pointer: u64, caller: u64) -> bool {
    if outer.space != space || stack_pointer > outer.stack_pointer {
        return false;
    }
    if stack_pointer == outer.stack_pointer {
        // A tail call: the return slot is the outer call's.
        return is_trampoline(caller);
    }
    // SAFETY: the helper checks the address.
    let slot = unsafe { bpf_probe_read_user(outer.stack_pointer as *const u64) };
    is_trampoline(slot.unwrap_or(0))
}

/// Whether a return slot holds the kernel's return trampoline, which is the first instruction
/// of the page that it maps as `[uprobes]` (uprobe_get_trampoline_vaddr,
/// kernel/events/uprobes.c, 6.1 and 6.18). No call returns to the start of a page but by chance.
#[inline(always)]
fn is_trampoline(slot: u64) -> bool {
    slot != 0 && slot & 4095 == 0
}

/// The stack of a call, as far as `--stacks` wants it.
#[inline(always)]
fn user_stack(start: &Start, function: u64) -> u64 {
    let wanted = if crate::maps::config!(stack_mode) == StackMode::Adaptive as u32 {
        leaktrace_wants_stack(start.space, function, start.caller) != 0
    } else {
        ledger::wants_stack(0)
    };
    if wanted { walk::take_user(start) } else { StackId::NOT_TAKEN }
}

/// Whether a call site's next stack is wanted. Global and not inlined, so that the verifier
/// checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_wants_stack(space: u32, function: u64, caller: u64) -> u32 {
    let base = site_key(space, function, caller, StackId::NOT_TAKEN);
    match ledger::site_index(&base) {
        Some(base) => u32::from(ledger::wants_stack(base)),
        None => 0,
    }
}

#[inline(always)]
fn site_key(space: u32, function: u64, caller: u64, stack: u64) -> SiteKey {
    SiteKey { kind: Kind::Malloc as u32, space, detail: function, call_site: caller, stack }
}

/// # Safety
///
/// `regs` is a live pt_regs.
#[inline(always)]
unsafe fn returned<C: aya_ebpf::EbpfContext>(
    ctx: &C,
    regs: *const aya_ebpf::bindings::pt_regs,
    session: bool,
) {
    let thread = bpf_get_current_pid_tgid();
    let slot = IN_FLIGHT.get_ptr_mut(thread);
    // SAFETY: the caller's promise.
    let (rsp, rax) = unsafe { ((*regs).rsp, (*regs).rax) };
    // SAFETY: the helper takes the program's own context.
    let function = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let expected = match slot {
        // SAFETY: a live map value that belongs to this thread.
        Some(slot) => unsafe {
            (*slot).stack_pointer != 0
                && rsp == (*slot).stack_pointer + 8
                && function == u64::from((*slot).function)
        },
        None => false,
    };
    if expected {
        leaktrace_finish(thread, rax);
    } else if session {
        // Without a session link the returns of nested and unwanted calls come here as well.
        loss::count(LossReason::UnknownReturn);
    }
}

/// Ends the call in flight of `thread`, which returned `rax`. Global and not inlined, so that
/// the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_finish(thread: u64, rax: u64) -> u32 {
    let Some(slot) = IN_FLIGHT.get_ptr_mut(thread) else { return 0 };
    // SAFETY: a live map value that belongs to this thread, which runs this.
    let flight = unsafe {
        let flight = *slot;
        (*slot).stack_pointer = 0;
        flight
    };
    finish(&flight, rax, thread);
    0
}

/// Records the outcome of a call.
#[inline(always)]
fn finish(flight: &InFlight, rax: u64, thread: u64) {
    let posix_memalign = flight.function == AllocFunction::PosixMemalign as u32;
    let resizes = flight.function == AllocFunction::Realloc as u32
        || flight.function == AllocFunction::Reallocarray as u32;
    let now_ns = now_ns();
    let address = if posix_memalign {
        if rax as u32 != 0 {
            return;
        }
        // SAFETY: the helper checks the address.
        match unsafe { bpf_probe_read_user(flight.pointer as *const u64) } {
            Ok(address) => address,
            Err(_) => {
                loss::count(LossReason::ResultUnreadable);
                return;
            }
        }
    } else {
        rax
    };
    if resizes && flight.pointer != 0 {
        // `realloc(p, 0)` frees p and gives NULL (glibc); any other NULL left p as it was.
        if address == 0 && flight.size_bytes != 0 {
            if flight.old_tracked != 0 {
                ledger::put_back(AllocKey::new(flight.space, flight.pointer), &flight.old);
            }
            return;
        }
        if flight.old_tracked != 0 {
            ledger::count_free(&flight.old, now_ns);
        } else {
            loss::count(LossReason::UntrackedFree);
        }
    }
    if address == 0 || !filter::wants_size(flight.size_bytes) {
        return;
    }
    let key = site_key(flight.space, u64::from(flight.function), flight.caller, flight.stack);
    let Some(site) = ledger::site_index(&key) else { return };
    ledger::on_alloc(
        AllocKey::new(flight.space, address),
        Outstanding {
            size_bytes: flight.size_bytes,
            timestamp_ns: now_ns,
            site,
            tgid: (thread >> 32) as u32,
        },
    );
}
