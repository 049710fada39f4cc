//! Functions of a process that `--pair` names.
//!
//! As in `malloc`, the entry program saves an acquiring call, and the return program records it.
//! But calls of several pairs, or of one, may be nested, each with a key of its own; so a thread's
//! slot holds several. An outer call that returns the key that an inner call of its pair has just
//! given has passed it on: the key counts once, at the inner call.
//!
//! A call may never return (longjmp, a thread that ends); the thread's next call notices that, see
//! [`super::malloc`].

use core::ptr::read_volatile;

use aya_ebpf::{
    EbpfContext,
    bindings::pt_regs,
    helpers::{
        bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user,
        generated::{bpf_get_attach_cookie, bpf_get_func_ip},
    },
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use leaktrace_common::{
    AllocKey, BlockWord, Kind, LossReason, PAIR_DEPTH, PairCall, PairCalls, PairCookie, SiteKey,
    StackId, StackMode,
};

use super::{
    in_flight::{SKIP_RETURN, WATCH_RETURN, is_trampoline, product, returns_to},
    own_stack,
    pair_calls::{call_at, returns_to_from, slot},
    targets,
    walk::{self, Start},
};
use crate::{
    filter, held, ledger, loss,
    maps::{PAIR_CALLS, config},
};

/// Entry and return in one program, as `lt_session` of the malloc family.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub(crate) extern "C" fn lt_pair_session(ctx: *mut core::ffi::c_void) -> u32 {
    let ctx = ProbeContext::new(ctx);
    own_stack::keep(&ctx, &own_stack::PAIR_SESSION_CALLS);
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

/// Entry alone.
#[uprobe]
pub(crate) fn lt_pair_entry(ctx: ProbeContext) -> u32 {
    own_stack::keep(&ctx, &own_stack::PAIR_ENTRY_CALLS);
    entry(&ctx);
    0
}

/// Return alone.
#[uretprobe]
pub(crate) fn lt_pair_return(ctx: RetProbeContext) -> u32 {
    own_stack::keep(&ctx, &own_stack::PAIR_RETURN_CALLS);
    // SAFETY: the context is a live pt_regs.
    unsafe { returned(&ctx, ctx.regs, false) };
    0
}

/// A return instruction of a function whose return address must stay in place, as exceptions may
/// pass, or as the function may switch stacks.
#[uprobe]
pub(crate) fn lt_pair_exit(ctx: ProbeContext) -> u32 {
    own_stack::keep(&ctx, &own_stack::PAIR_RETURNING_CALLS);
    // SAFETY: the context is a live pt_regs.
    let (rsp, rax) = unsafe { ((*ctx.regs).rsp, (*ctx.regs).rax) };
    let thread = bpf_get_current_pid_tgid();
    // One that was jumped to by another returns for both.
    for _ in 0..TAILS {
        if leaktrace_pair_returned(thread, rsp, rax, ANY_STAYING) != 1 {
            break;
        }
    }
    0
}

/// Functions that jump to each other and are followed.
const TAILS: u32 = 4;

/// Entry of a releasing function, or a later instruction where its arguments are intact.
#[uprobe]
pub(crate) fn lt_pair_free(ctx: ProbeContext) -> u32 {
    own_stack::keep(&ctx, &own_stack::PAIR_RELEASE_CALLS);
    let thread = bpf_get_current_pid_tgid();
    let Some(space) = targets::space_of((thread >> 32) as u32) else { return 0 };
    let cookie = cookie_of(&ctx);
    // SAFETY: the context is a live pt_regs.
    let regs = unsafe { &*ctx.regs };
    let key = cookie.defined(Arguments::of(regs).number(cookie.key_argument()));
    if !cookie.is_key(key) {
        return 0;
    }
    if cookie.nests() && leaktrace_is_within_release(thread, space, key, regs.rsp, cookie.0) != 0 {
        return 0;
    }
    let word = BlockWord::of_pair(AllocKey::new(space, key), cookie.pair());
    if held::leaktrace_released(word, now_ns()) == 0 {
        loss::count(LossReason::UntrackedRelease);
    }
    0
}

/// Whether a call of a releasing function is made inside another one of its pair, for the same key.
/// If not, the thread's slot remembers the call for the calls that it makes. Global and not
/// inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_is_within_release(
    thread: u64,
    space: u32,
    key: u64,
    stack_pointer: u64,
    cookie: u32,
) -> u32 {
    let Some(slot) = slot(thread) else { return 0 };
    let caller = returns_to(stack_pointer);
    // SAFETY: a live map value that belongs to this thread.
    let outer = unsafe { &mut (*slot).release };
    if outer.stack_pointer != 0
        && (outer.space, outer.key) == (space, key)
        && PairCookie(outer.cookie).pair() == PairCookie(cookie).pair()
        // The same one again is another call, in a loop.
        && outer.cookie != cookie
        && stack_pointer <= outer.stack_pointer
        // A tail call has the outer one's return address; a call that has returned has none there.
        && outer.caller != 0
        && returns_to(outer.stack_pointer) == outer.caller
        && (stack_pointer < outer.stack_pointer || caller == outer.caller)
    {
        return 1;
    }
    outer.stack_pointer = stack_pointer;
    outer.caller = caller;
    outer.key = key;
    outer.cookie = cookie;
    outer.space = space;
    0
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn cookie_of<C: EbpfContext>(ctx: &C) -> PairCookie {
    // SAFETY: the helper takes the program's own context.
    PairCookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) } as u32)
}

/// The arguments of a call that are passed in registers.
pub(crate) struct Arguments([u64; 6]);

impl Arguments {
    /// Reads all arguments before one is chosen: the verifier refuses a computed address in the
    /// context.
    #[inline(always)]
    pub(crate) fn of(regs: &pt_regs) -> Self {
        let registers = [&regs.rdi, &regs.rsi, &regs.rdx, &regs.rcx, &regs.r8, &regs.r9];
        // SAFETY: live references.
        Self(registers.map(|register| unsafe { read_volatile(register) }))
    }

    /// The argument with this number, from 1 on; 0 for any other number.
    #[inline(always)]
    pub(crate) fn number(&self, number: u32) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        match number {
            1 => a,
            2 => b,
            3 => c,
            4 => d,
            5 => e,
            6 => f,
            _ => 0,
        }
    }

    /// The size that a call asks for; 0 where the function takes no size, and where a product
    /// overflows.
    #[inline(always)]
    pub(crate) fn size_bytes(&self, cookie: PairCookie) -> u64 {
        let size = self.number(cookie.size_argument());
        match cookie.count_argument() {
            0 => size,
            count => product(size, self.number(count)).unwrap_or(0),
        }
    }
}

#[inline(always)]
fn entry(ctx: &ProbeContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    let Some(space) = targets::space_of((thread >> 32) as u32) else { return SKIP_RETURN };
    // SAFETY: the context is a live pt_regs.
    let regs = unsafe { &*ctx.regs };
    let cookie = cookie_of(ctx);
    let Some(slot) = slot(thread) else {
        loss::count(LossReason::InFlightFull);
        return SKIP_RETURN;
    };
    let arguments = Arguments::of(regs);
    // SAFETY: a live map value that belongs to this thread.
    let calls = unsafe { &mut *slot };
    let is_read =
        calls.depth != 0 || config!(stack_mode) != StackMode::All as u32 || cookie.stays();
    let caller = if is_read { returns_to(regs.rsp) } else { 0 };
    if calls.depth != 0 {
        leaktrace_pair_settle(thread, space, regs.rsp, caller, cookie.0);
    }
    // Now that no call is left which this one's return could be taken for.
    let size_bytes = arguments.size_bytes(cookie);
    if cookie.size_argument() != 0 && !filter::wants_size(size_bytes) {
        return SKIP_RETURN;
    }
    let depth = calls.depth;
    // A function that jumped here has its own caller.
    let caller = if depth != 0 { returns_to_from(regs.rsp, caller) } else { caller };
    if depth >= PAIR_DEPTH as u32 {
        loss::count(LossReason::PairsTooDeep);
        return SKIP_RETURN;
    }
    let start = Start {
        tgid: (thread >> 32) as u32,
        space,
        caller,
        stack_pointer: regs.rsp,
        frame_pointer: regs.rbp,
    };
    let stack = user_stack(&start, cookie);
    let call = PairCall {
        stack_pointer: regs.rsp,
        caller: match (caller, stack) {
            (0, StackId::LOST) => returns_to(regs.rsp),
            _ => caller,
        },
        size_bytes,
        stack,
        argument: arguments.number(cookie.key_argument()),
        given: 0,
        cookie: cookie.0,
        zero: 0,
    };
    calls.space = space;
    // SAFETY: within the array; the map value is this thread's.
    unsafe { call_at(slot, depth).write(call) };
    calls.depth = depth + 1;
    WATCH_RETURN
}

/// Drops the calls of a thread inside which a new call cannot be made: they have skipped their
/// returns, or their process image is gone. Global and not inlined, so that the verifier checks it
/// once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_pair_settle(
    thread: u64,
    space: u32,
    stack_pointer: u64,
    caller: u64,
    cookie: u32,
) -> u32 {
    let Some(slot) = PAIR_CALLS.get_ptr_mut(thread) else { return 0 };
    // SAFETY: a live map value that belongs to this thread.
    let calls = unsafe { &mut *slot };
    if calls.space != space {
        calls.depth = 0;
        return 0;
    }
    for _ in 0..PAIR_DEPTH {
        let depth = calls.depth;
        if depth == 0 || depth > PAIR_DEPTH as u32 {
            break;
        }
        // SAFETY: within the array.
        let outer = unsafe { &*call_at(slot, depth - 1) };
        if is_within(outer, stack_pointer, caller, cookie) {
            break;
        }
        calls.depth = depth - 1;
        count_skipped(outer);
    }
    0
}

/// Counts a call that will not return any more.
#[inline(always)]
fn count_skipped(call: &PairCall) {
    loss::count(match PairCookie(call.cookie).throws() {
        true => LossReason::Thrown,
        false => LossReason::SkippedReturn,
    });
}

/// Whether a call is made inside the unfinished call `outer`, as `is_nested` of the malloc family.
#[inline(always)]
fn is_within(outer: &PairCall, stack_pointer: u64, caller: u64, cookie: u32) -> bool {
    if stack_pointer > outer.stack_pointer {
        return false;
    }
    let keeps = PairCookie(outer.cookie).stays();
    if stack_pointer == outer.stack_pointer {
        // A tail call is one of another function: the same one again has been called again.
        return is_trampoline(caller)
            || (keeps && caller == outer.caller && cookie != outer.cookie);
    }
    let slot = returns_to(outer.stack_pointer);
    is_trampoline(slot) || (keeps && slot == outer.caller)
}

/// The ID of the stack of a call, if `--stacks` wants it.
#[inline(always)]
fn user_stack(start: &Start, cookie: PairCookie) -> u64 {
    let wanted = if config!(stack_mode) == StackMode::Adaptive as u32 {
        leaktrace_pair_wants_stack(start.space, cookie.0, start.caller) != 0
    } else {
        ledger::wants_stack(0)
    };
    if wanted { walk::take_user(start) } else { StackId::NOT_TAKEN }
}

/// Whether the stack policy wants the next stack of a call site. Global and not inlined, so that
/// the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_pair_wants_stack(space: u32, cookie: u32, caller: u64) -> u32 {
    match ledger::site_index(&site_key(space, cookie, caller, StackId::NOT_TAKEN)) {
        Some(base) => u32::from(ledger::wants_stack(base)),
        None => 0,
    }
}

#[inline(always)]
fn site_key(space: u32, cookie: u32, caller: u64, stack: u64) -> SiteKey {
    SiteKey {
        kind: Kind::Pair as u16,
        generation: 0,
        space,
        detail: u64::from(cookie),
        call_site: caller,
        stack,
    }
}

/// # Safety
///
/// `regs` is a live pt_regs.
#[inline(always)]
unsafe fn returned<C: EbpfContext>(ctx: &C, regs: *const pt_regs, session: bool) {
    // SAFETY: the caller's promise.
    let (rsp, rax) = unsafe { ((*regs).rsp, (*regs).rax) };
    let cookie = cookie_of(ctx);
    let entered_at = rsp.wrapping_sub(8);
    let thread = bpf_get_current_pid_tgid();
    let known = leaktrace_pair_returned(thread, entered_at, rax, cookie.0.into());
    if known == NO_SLOT {
        // Its slot was given to another thread.
        if targets::space_of((thread >> 32) as u32).is_some() {
            loss::count(LossReason::InFlightFull);
        }
    } else if session && known == 0 {
        // Without a session link the returns of unwanted calls come here as well.
        loss::count(LossReason::UnknownReturn);
    }
}

/// Stands for the cookie of any function whose return address must stay in place.
const ANY_STAYING: u64 = u64::MAX;

/// Stands for a thread that has no slot.
const NO_SLOT: u32 = 2;

/// Records the outcome of the call that was entered with this stack pointer; returns 1 if there is
/// one, 0 if there is none, or [`NO_SLOT`]. Global and not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_pair_returned(
    thread: u64,
    entered_at: u64,
    result: u64,
    cookie: u64,
) -> u32 {
    let Some(slot) = PAIR_CALLS.get_ptr_mut(thread) else { return NO_SLOT };
    // SAFETY: a live map value that belongs to this thread.
    let calls = unsafe { &mut *slot };
    for _ in 0..PAIR_DEPTH {
        let depth = calls.depth;
        if depth == 0 || depth > PAIR_DEPTH as u32 {
            return 0;
        }
        // SAFETY: within the array; copied at once.
        let call = unsafe { *call_at(slot, depth - 1) };
        if call.stack_pointer > entered_at {
            return 0;
        }
        let is_its = match cookie {
            // Other functions may end with the same instruction.
            ANY_STAYING => PairCookie(call.cookie).stays(),
            cookie => cookie == u64::from(call.cookie),
        };
        if call.stack_pointer == entered_at {
            if !is_its {
                return 0;
            }
            calls.depth = depth - 1;
            finish(slot, &call, result, depth - 1);
            return 1;
        }
        // A call further down that has not returned any more.
        calls.depth = depth - 1;
        count_skipped(&call);
    }
    0
}

/// Records the outcome of a call that `depth` other calls enclose.
#[inline(always)]
fn finish(slot: *mut PairCalls, call: &PairCall, result: u64, depth: u32) {
    let cookie = PairCookie(call.cookie);
    if !cookie.has_succeeded(result) {
        return;
    }
    let key = if cookie.is_result() {
        result
    } else if cookie.is_out() {
        // SAFETY: the helper checks the address.
        match unsafe { bpf_probe_read_user(call.argument as *const u64) } {
            Ok(key) => key,
            Err(_) => {
                loss::count(LossReason::ResultUnreadable);
                return;
            }
        }
    } else {
        call.argument
    };
    let key = cookie.defined(key);
    if !cookie.is_key(key) {
        return;
    }
    // The call of the same pair within which it was made.
    for above in 1..=PAIR_DEPTH as u32 {
        if above > depth {
            break;
        }
        let outer = call_at(slot, depth - above);
        // SAFETY: within the array.
        unsafe {
            if PairCookie((*outer).cookie).pair() == cookie.pair() {
                (*outer).given = key;
                break;
            }
        }
    }
    if call.given == key && key != 0 {
        return;
    }
    // SAFETY: a live map value that belongs to this thread.
    let space = unsafe { (*slot).space };
    // SAFETY: as above.
    let release = unsafe { &mut (*slot).release };
    // A release that comes after this is another one.
    if (release.space, release.key) == (space, key)
        && PairCookie(release.cookie).pair() == cookie.pair()
    {
        release.stack_pointer = 0;
    }
    let Some(site) = ledger::site_index(&site_key(space, call.cookie, call.caller, call.stack))
    else {
        return;
    };
    let word = BlockWord::of_pair(AllocKey::new(space, key), cookie.pair());
    held::leaktrace_acquired(word, call.size_bytes, now_ns(), u64::from(site));
}
