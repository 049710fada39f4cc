//! The malloc family: the entry program saves what a call asks for, the return program records it.
//!
//! Only the outermost of nested calls counts (`reallocarray` calls `realloc`). A call may never
//! return (longjmp, an exception, a killed thread); the thread's next call notices that. An
//! unfinished call lies further up the stack and still has the kernel's return trampoline in its
//! return slot. A call that was skipped has not, or lies further down.

use core::ptr::read_volatile;

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{
        bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user,
        generated::{bpf_get_attach_cookie, bpf_get_func_ip},
    },
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use leaktrace_common::{
    AllocKey, Call, InFlight, Kind, LossReason, Outstanding, SiteKey, SkippedCall, StackId,
    StackMode, Takes, cookie_first, cookie_has_moved, cookie_takes, cookie_throws,
};

use super::{
    in_flight::{
        SKIP_RETURN, WATCH_RETURN, is_being_resized, is_nested, is_trampoline,
        leaktrace_skipped_return, product, returns_to, slot,
    },
    own_stack, sampling, targets,
    walk::{self, Start},
};
use crate::{
    counters::{self, Place},
    filter, ledger, loss,
    maps::{IN_FLIGHT, config},
};

/// Entry and return in one program, for uprobe session links (from 6.13).
///
/// The function does not use the `uprobe` macro, which drops the result: [`SKIP_RETURN`] means
/// something here.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub(crate) extern "C" fn lt_session(ctx: *mut core::ffi::c_void) -> u32 {
    let ctx = ProbeContext::new(ctx);
    own_stack::keep(&ctx, &own_stack::SESSION_CALLS);
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

/// Entry alone, for uprobe_multi and perf_event links.
#[uprobe]
pub(crate) fn lt_entry(ctx: ProbeContext) -> u32 {
    own_stack::keep(&ctx, &own_stack::ENTRY_CALLS);
    entry(&ctx);
    0
}

/// Return alone, for uprobe_multi and perf_event links.
#[uretprobe]
pub(crate) fn lt_return(ctx: RetProbeContext) -> u32 {
    own_stack::keep(&ctx, &own_stack::RETURN_CALLS);
    // SAFETY: the context is a live pt_regs.
    unsafe { returned(&ctx, ctx.regs, false) };
    0
}

/// A return instruction of a function whose return address must stay in place, see
/// [`leaktrace_common::AllocFunction::throws`].
#[uprobe]
pub(crate) fn lt_returning(ctx: ProbeContext) -> u32 {
    own_stack::keep(&ctx, &own_stack::RETURNING_CALLS);
    sampling::count_call(Call::SteppedReturn);
    // SAFETY: the context is a live pt_regs.
    let (rsp, rax) = unsafe { ((*ctx.regs).rsp, (*ctx.regs).rax) };
    let thread = bpf_get_current_pid_tgid();
    let Some(slot) = IN_FLIGHT.get_ptr_mut(thread) else { return 0 };
    // SAFETY: a live map value that belongs to this thread.
    let flight = unsafe { &mut *slot };
    // Other functions may end with the same instruction.
    if flight.stack_pointer == rsp && cookie_throws(flight.function.into()) {
        flight.stack_pointer = 0;
        finish(flight, rax);
    }
    0
}

/// `free`, at any instruction of its prologue where the first argument is intact.
#[uprobe]
pub(crate) fn lt_free(ctx: ProbeContext) -> u32 {
    own_stack::keep(&ctx, &own_stack::FREE_CALLS);
    sampling::count_hit(&ctx, Call::Free, Call::SteppedFree);
    // SAFETY: the context is a live pt_regs.
    let pointer = unsafe { (*ctx.regs).rdi };
    if pointer == 0 {
        return 0;
    }
    let thread = bpf_get_current_pid_tgid();
    let Some(space) = targets::space_of((thread >> 32) as u32) else { return 0 };
    if !ledger::on_free_at(AllocKey::new(space, pointer), now_ns(), || free_place(&ctx))
        // Most blocks are not recorded then.
        && config!(sampling) == 0
        && !is_being_resized(thread, pointer)
    {
        loss::count(LossReason::UntrackedFree);
    }
    0
}

/// The caller of the function that frees.
#[inline(always)]
fn free_place(ctx: &ProbeContext) -> Place {
    // SAFETY: the helper takes the program's own context.
    let function = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    if cookie_has_moved(function) {
        return Place::UNKNOWN;
    }
    // SAFETY: the context is a live pt_regs.
    let address = returns_to(unsafe { (*ctx.regs).rsp });
    // Where the function was jumped to, its caller's return may be watched.
    if is_trampoline(address) { Place::UNKNOWN } else { Place { address, generation: 0 } }
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

impl Request {
    /// The block that the call may free or move; 0 if there is none.
    #[inline(always)]
    fn old_block(&self) -> u64 {
        if self.resizes { self.pointer } else { 0 }
    }
}
const SIZE: u64 = Takes::Size as u64;
const COUNT_SIZE: u64 = Takes::CountSize as u64;
const RESIZE: u64 = Takes::Resize as u64;
const RESIZE_OR_FREE: u64 = Takes::ResizeOrFree as u64;
const RESIZE_ARRAY: u64 = Takes::ResizeArray as u64;
const RESIZE_IN_PLACE: u64 = Takes::ResizeInPlace as u64;
const OUT: u64 = Takes::Out as u64;

/// Decodes the arguments; `None` if the product of `calloc` or `reallocarray` overflows, as the
/// call then fails.
#[inline(always)]
fn decode(cookie: u64, regs: &pt_regs) -> Option<Request> {
    // Read before one is chosen: the verifier refuses a choice of addresses in the context.
    // SAFETY: live references.
    let [rdi, rsi, rdx, rcx] = [&regs.rdi, &regs.rsi, &regs.rdx, &regs.rcx]
        .map(|register| unsafe { read_volatile(register) });
    let (a, b, c) = if cookie_first(cookie) == 0 { (rdi, rsi, rdx) } else { (rsi, rdx, rcx) };
    let plain = |size_bytes| Some(Request { size_bytes, pointer: 0, resizes: false });
    match cookie_takes(cookie) {
        SIZE => plain(a),
        COUNT_SIZE => plain(product(a, b)?),
        RESIZE | RESIZE_OR_FREE | RESIZE_IN_PLACE => {
            Some(Request { size_bytes: b, pointer: a, resizes: true })
        }
        RESIZE_ARRAY => Some(Request { size_bytes: product(b, c)?, pointer: a, resizes: true }),
        OUT => Some(Request { size_bytes: c, pointer: a, resizes: false }),
        _ => None,
    }
}

#[inline(always)]
fn entry(ctx: &ProbeContext) -> u32 {
    sampling::count_hit(ctx, Call::Entry, Call::SteppedEntry);
    let thread = bpf_get_current_pid_tgid();
    let Some(space) = targets::space_of((thread >> 32) as u32) else { return SKIP_RETURN };
    // SAFETY: the context is a live pt_regs.
    let regs = unsafe { &*ctx.regs };
    // SAFETY: the helper takes the program's own context.
    let function = u64::from(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) } as u32);
    let Some(slot) = slot(thread) else {
        loss::count(LossReason::InFlightFull);
        return SKIP_RETURN;
    };
    // SAFETY: a live map value that belongs to this thread.
    let flight = unsafe { &mut *slot };
    // A stack has its first return address anyway: one copy from the process is saved.
    let is_read = flight.stack_pointer != 0
        || config!(sampling) != 0
        || config!(stack_mode) != StackMode::All as u32
        || cookie_throws(function);
    let caller = if is_read { returns_to(regs.rsp) } else { 0 };
    if flight.stack_pointer != 0 {
        if is_nested(flight, space, regs.rsp, caller, function) {
            return SKIP_RETURN;
        }
        leaktrace_skipped_return(thread, space);
    }
    let Some(request) = decode(function, regs) else { return SKIP_RETURN };
    if !request.resizes && !filter::wants_size(request.size_bytes) {
        return SKIP_RETURN;
    }
    let mut interval = 0;
    if config!(sampling) != 0 {
        let size_bytes = request.size_bytes;
        interval = sampling::leaktrace_sample(thread, function, size_bytes, regs.rsp, caller);
        if interval == InFlight::UNSAMPLED && request.old_block() == 0 {
            return SKIP_RETURN;
        }
    }
    flight.space = space;
    flight.function = function as u32;
    flight.size_bytes = request.size_bytes;
    flight.caller = caller;
    flight.pointer = request.pointer;
    flight.interval = interval;
    flight.stack = StackId::NOT_TAKEN;
    if interval != InFlight::UNSAMPLED {
        let start = Start {
            tgid: (thread >> 32) as u32,
            space,
            caller,
            stack_pointer: regs.rsp,
            frame_pointer: regs.rbp,
        };
        flight.stack = user_stack(&start, function);
        if caller == 0 && flight.stack == StackId::LOST {
            flight.caller = returns_to(regs.rsp);
        }
    }
    // The old block is neither live nor free during the call: were its record left in place,
    // another thread could be given the address before this call's return is seen.
    flight.old_tracked = 0;
    if request.old_block() != 0
        && let Some(old) = ledger::take(AllocKey::new(space, request.old_block()))
    {
        flight.old = old;
        flight.old_tracked = 1;
    } else if interval == InFlight::UNSAMPLED {
        return SKIP_RETURN;
    }
    flight.skipped = SkippedCall::NONE;
    flight.stack_pointer = regs.rsp;
    WATCH_RETURN
}

/// The ID of the stack of a call, if `--stacks` wants it.
#[inline(always)]
fn user_stack(start: &Start, function: u64) -> u64 {
    let wanted = if crate::maps::config!(stack_mode) == StackMode::Adaptive as u32 {
        leaktrace_wants_stack(start.space, function, start.caller) != 0
    } else {
        ledger::wants_stack(0)
    };
    if wanted { walk::take_user(start) } else { StackId::NOT_TAKEN }
}

/// Whether the stack policy wants the next stack of a call site. Global and not inlined, so that
/// the verifier checks it once.
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
    SiteKey {
        kind: Kind::Malloc as u16,
        generation: 0,
        space,
        detail: function,
        call_site: caller,
        stack,
    }
}

/// # Safety
///
/// `regs` is a live pt_regs.
#[inline(always)]
unsafe fn returned<C: aya_ebpf::EbpfContext>(ctx: &C, regs: *const pt_regs, session: bool) {
    let thread = bpf_get_current_pid_tgid();
    sampling::count_call(Call::Return);
    let slot = IN_FLIGHT.get_ptr_mut(thread);
    // SAFETY: the caller's promise.
    let (rsp, rax) = unsafe { ((*regs).rsp, (*regs).rax) };
    // SAFETY: the helper takes the program's own context.
    let function = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) } as u32;
    if let Some(slot) = slot {
        // SAFETY: a live map value that belongs to this thread.
        let flight = unsafe { &mut *slot };
        let is_in_flight = flight.stack_pointer != 0 && rsp == flight.stack_pointer + 8;
        if is_in_flight && function == flight.function {
            flight.stack_pointer = 0;
            finish(flight, rax);
            return;
        }
    }
    if session {
        // Without a session link the returns of nested and unwanted calls come here as well.
        loss::count(LossReason::UnknownReturn);
    }
}

/// Records the outcome of a call.
#[inline(always)]
fn finish(flight: &InFlight, rax: u64) {
    let takes = cookie_takes(u64::from(flight.function));
    let resizes = matches!(takes, RESIZE | RESIZE_OR_FREE | RESIZE_ARRAY | RESIZE_IN_PLACE);
    let now_ns = now_ns();
    let address = match takes {
        OUT => {
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
        }
        // A block that is smaller than asked for stays what it was.
        RESIZE_IN_PLACE if rax < flight.size_bytes => 0,
        RESIZE_IN_PLACE => flight.pointer,
        _ => rax,
    };
    if resizes && flight.pointer != 0 {
        // `realloc(p, 0)` frees p and gives NULL (glibc); any other NULL left p as it was, unless
        // the function frees it then.
        if address == 0 && flight.size_bytes != 0 && takes != RESIZE_OR_FREE {
            if flight.old_tracked != 0 {
                ledger::put_back(AllocKey::new(flight.space, flight.pointer), &flight.old);
            }
            return;
        }
        if flight.old_tracked != 0 {
            let place = || Place { address: flight.caller, generation: 0 };
            counters::count_free_at(&flight.old, now_ns, place);
        } else if config!(sampling) == 0 {
            loss::count(LossReason::UntrackedFree);
        }
    }
    if flight.interval == InFlight::UNSAMPLED {
        return;
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
            detail: flight.interval,
        },
    );
}
