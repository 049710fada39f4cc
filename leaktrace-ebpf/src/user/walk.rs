//! User stack walks: by unwind tables, and by frame pointers where a table does not cover an
//! address.
//!
//! One global function takes one frame, so that the verifier checks it once and not once a frame.
//! The state lies in a claimed slot of a map: uprobe programs run with migration disabled but
//! preemption enabled, and can be preempted by themselves (bpf_prog_run_array_uprobe,
//! include/linux/bpf.h, 6.18). The walk reads stack words from a copy of the stack, made a page at
//! a time: a helper call costs the same for 8 bytes as for some hundred.

use aya_ebpf::helpers::{bpf_get_smp_processor_id, generated::bpf_probe_read_user};
use leaktrace_common::{
    CfaRule, EventKind, FrameMark, LossReason, MAX_FRAMES, StackEnd, StackId, UnwindRow,
    WALKS_PER_CPU,
};

use super::{
    events,
    pair_calls::returns_to_from,
    rule::{
        BY_FRAME_POINTER, NO_CALL, NO_MAPPING_KNOWN, NO_RULE, UNCALLED, leaktrace_find_rule,
        leaktrace_is_called,
    },
    state::{WINDOW_WORDS, Walk},
    targets,
    vma::leaktrace_find_area,
};
use crate::{
    atomic, loss,
    maps::{RULE_CACHE, RULE_CACHE_SLOTS, TEXT_MAPS, WALKS, config},
    stack,
};

/// A copy of fewer bytes than this holds only some frames. The environment and the auxiliary
/// vector, above the first frames of the main thread, are longer.
const LITTLE_BYTES: u32 = 1024;

/// Spreads the differences between rules over all bits: rules differ in some low bits, and so do
/// the addresses of neighbouring calls.
#[inline(always)]
fn seal(rule: u64) -> u64 {
    rule.wrapping_mul(StackId::SEED)
}

/// The answer of [`leaktrace_step`] when the walk goes on.
const GO_ON: u32 = 0xff;

/// Where a walk begins: a function's entry, before the function pushes the frame pointer.
pub(crate) struct Start {
    pub(crate) tgid: u32,
    pub(crate) space: u32,
    /// Return address of the call; 0 if it has not been read.
    pub(crate) caller: u64,
    pub(crate) stack_pointer: u64,
    pub(crate) frame_pointer: u64,
}

/// Walks the stack of the current thread; returns the stack's ID.
#[inline(always)]
pub(crate) fn take_user(start: &Start) -> u64 {
    let &Start { tgid, space, caller, stack_pointer, frame_pointer } = start;
    leaktrace_walk(tgid, space, caller, stack_pointer, frame_pointer)
}

/// Does a whole walk, see [`Start`] for the arguments; returns the stack's ID or [`StackId::LOST`].
/// Global as [`leaktrace_step`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_walk(
    tgid: u32,
    space: u32,
    caller: u64,
    stack_pointer: u64,
    frame_pointer: u64,
) -> u64 {
    let Some((slot, walk)) = claim() else {
        loss::count(LossReason::ScratchBusy);
        return StackId::LOST;
    };
    // SAFETY: the slot was claimed, so it is this run's alone until it is released.
    let id = unsafe {
        // At the entry the CFA is rsp + 8: the caller's frame begins there.
        (*walk).stack_pointer = stack_pointer.wrapping_add(8);
        (*walk).frame_pointer = frame_pointer;
        (*walk).window_words = 0;
        // No address lies in it.
        (*walk).mapping.end = 0;
        (*walk).has_asked = 0;
        (*walk).slot = slot;
        let mut caller = caller;
        if caller == 0 {
            // What cannot be read is no call's: the walk ends there.
            caller = read_word(walk, stack_pointer).unwrap_or(0);
        }
        let caller = returns_to_from(stack_pointer, caller & !FrameMark::ALL);
        (*walk).address = caller.wrapping_sub(1) & !FrameMark::ALL;
        (*walk).hash = StackId::mix(StackId::SEED, caller);
        (*walk).record.count = 1;
        (*walk).record.frames[0] = caller;
        // SAFETY: a live map value.
        let mappings = TEXT_MAPS.get_ptr(space).map(|map| targets::text_map(map));
        let (first, count, generation) = mappings.unwrap_or_default();
        (*walk).first_mapping = first;
        (*walk).mapping_count = count;
        (*walk).generation = generation;
        let mut end = GO_ON;
        for _ in 0..MAX_FRAMES {
            end = leaktrace_step(slot);
            if end != GO_ON {
                break;
            }
        }
        (*walk).record.end = if end == GO_ON { StackEnd::TooDeep as u32 } else { end };
        if end == StackEnd::NoMapping as u32 && leaktrace_is_made_by_hand(slot) != 0 {
            (*walk).record.end = StackEnd::Complete as u32;
        } else if end == StackEnd::NoMapping as u32 || (*walk).has_asked != 0 {
            events::notify_once(EventKind::Unmapped, tgid, space);
        }
        stack::store_hashed(&raw mut (*walk).record, (*walk).hash)
    };
    release(walk);
    id
}

/// Claims a free slot of this CPU.
#[inline(always)]
fn claim() -> Option<(u32, *mut Walk)> {
    let slot = leaktrace_claim();
    WALKS.get_ptr_mut(slot).map(|walk| (slot, walk))
}

/// The answer of [`leaktrace_claim`] when no slot of this CPU is free.
const NO_SLOT: u32 = u32::MAX;

/// Claims a slot; returns its index or [`NO_SLOT`]. Global as [`leaktrace_step`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_claim() -> u32 {
    // SAFETY: the helper has no preconditions.
    let first = unsafe { bpf_get_smp_processor_id() } * WALKS_PER_CPU;
    for index in 0..WALKS_PER_CPU {
        let slot = first + index;
        let Some(walk) = WALKS.get_ptr_mut(slot) else { return NO_SLOT };
        // SAFETY: a live map value.
        if unsafe { atomic::fetch_add(&raw mut (*walk).claims, 1) } == 0 {
            return slot;
        }
        release(walk);
    }
    NO_SLOT
}

#[inline(always)]
fn release(walk: *mut Walk) {
    // SAFETY: a live map value; takes back the one claim made before.
    unsafe { atomic::add(&raw mut (*walk).claims, u64::MAX) };
}

/// Takes one frame of the walk in `slot`; returns [`GO_ON`] or a [`StackEnd`].
///
/// # Safety
///
/// Called with a slot that the caller has claimed. Global and not inlined: see the module.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn leaktrace_step(slot: u32) -> u32 {
    let Some(walk) = WALKS.get_ptr_mut(slot) else { return StackEnd::ReadFailed as u32 };
    // SAFETY: the caller owns the slot.
    unsafe {
        let rule = rule_of(walk, slot);
        if rule & NO_RULE != 0 {
            return rule as u32;
        }
        if rule & BY_FRAME_POINTER != 0 {
            return leaktrace_step_by_fp(slot, rule as u32);
        }
        step_by_row(walk, UnwindRow::unpack_rule(rule as u32))
    }
}

/// The rule for [`Walk::address`]. Only this function asks the kernel, and not the functions that
/// find rules: nested calls share one small stack, and on 6.1 no more of it is left there.
///
/// # Safety
///
/// `walk` is a live map value that the caller owns, as for all functions below.
#[inline(always)]
unsafe fn rule_of(walk: *mut Walk, slot: u32) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let rule = cached_rule(walk, slot);
        let is_found = rule == NO_MAPPING_KNOWN
            && leaktrace_find_area(slot, (*walk).address & !FrameMark::ALL) != 0;
        if is_found { leaktrace_find_rule(slot) } else { rule }
    }
}

/// # Safety
///
/// As for [`rule_of`].
#[inline(always)]
unsafe fn cached_rule(walk: *mut Walk, slot: u32) -> u64 {
    // SAFETY: the caller's promise; cache entries are checked, see [`CachedRule`].
    unsafe {
        // Before the first mappings are published, spaces have nothing in common but that.
        if (*walk).generation == 0 {
            return leaktrace_find_rule(slot);
        }
        // The generation goes over all bits, as it outgrows those that an address leaves free.
        let generation = u64::from((*walk).generation).wrapping_mul(StackId::SEED);
        let key = (*walk).address ^ generation;
        let hash = StackId::mix(StackId::SEED, key);
        let Some(entry) = RULE_CACHE.get_ptr_mut(hash as u32 & (RULE_CACHE_SLOTS - 1)) else {
            return leaktrace_find_rule(slot);
        };
        let (check, rule) = ((*entry).check, (*entry).rule);
        if check ^ seal(rule) == key && check != 0 {
            return rule;
        }
        let rule = leaktrace_find_rule(slot);
        if rule & NO_RULE == 0 {
            (*entry).check = key ^ seal(rule);
            (*entry).rule = rule;
        }
        rule
    }
}

#[inline(always)]
unsafe fn step_by_row(walk: *mut Walk, row: UnwindRow) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let (rsp, rbp) = ((*walk).stack_pointer, (*walk).frame_pointer);
        let offset = u64::from(row.offset);
        let cfa = match row.rule {
            CfaRule::Rsp => rsp.wrapping_add(offset),
            CfaRule::Rbp => rbp.wrapping_add(offset),
            CfaRule::Plt => {
                // `address` is the byte before the return address or the interrupted one.
                let pushed = (*walk).address & 15 >= offset;
                rsp.wrapping_add(if pushed { 16 } else { 8 })
            }
            CfaRule::Deref => match read_word(walk, rbp.wrapping_sub(offset)) {
                Some(cfa) => cfa,
                None => return StackEnd::ReadFailed as u32,
            },
            CfaRule::Signal => return step_over_signal(walk),
            CfaRule::End => return StackEnd::Complete as u32,
            CfaRule::Unsupported => return StackEnd::Unsupported as u32,
            CfaRule::Gap => return StackEnd::NoRow as u32,
        };
        // Each frame lies above the one before.
        if cfa <= rsp && !matches!(row.rule, CfaRule::Deref) {
            return StackEnd::ReadFailed as u32;
        }
        // The lower word first: the copy of the stack slides upwards.
        let saved_rbp = match row.rule {
            CfaRule::Deref => Some(rbp),
            _ if row.rbp_offset != 0 => Some(cfa.wrapping_add(i64::from(row.rbp_offset) as u64)),
            _ => None,
        };
        if let Some(at) = saved_rbp {
            match read_word(walk, at) {
                Some(rbp) => (*walk).frame_pointer = rbp,
                None => return StackEnd::ReadFailed as u32,
            }
        }
        let Some(address) = read_word(walk, cfa.wrapping_sub(8)) else {
            return StackEnd::ReadFailed as u32;
        };
        let address = returns_to_from(cfa.wrapping_sub(8), address & !FrameMark::ALL);
        if address == 0 {
            return StackEnd::Complete as u32;
        }
        (*walk).stack_pointer = cfa;
        (*walk).address = (address - 1) | Walk::RETURN;
        push(walk, address | Walk::RETURN)
    }
}

/// Steps from the trampoline behind a signal handler to the interrupted code. rsp points to the
/// `ucontext` (struct rt_sigframe, arch/x86/include/asm/sigframe.h; gregs at byte 40).
#[inline(always)]
unsafe fn step_over_signal(walk: *mut Walk) -> u32 {
    const RBP: u64 = 40 + 8 * 10;
    const RSP: u64 = 40 + 8 * 15;
    const RIP: u64 = 40 + 8 * 16;
    // SAFETY: the caller's promise.
    unsafe {
        let context = (*walk).stack_pointer;
        let (rbp, rsp, rip) = (
            read_word(walk, context.wrapping_add(RBP)),
            read_word(walk, context.wrapping_add(RSP)),
            read_word(walk, context.wrapping_add(RIP)),
        );
        let (Some(rbp), Some(rsp), Some(rip)) = (rbp, rsp, rip) else {
            return StackEnd::ReadFailed as u32;
        };
        (*walk).frame_pointer = rbp;
        (*walk).stack_pointer = rsp;
        // This one is no return address: the very instruction was interrupted. It is kept as
        // if it were one, so that the byte before it is the instruction.
        let rip = rip & !FrameMark::ALL;
        (*walk).address = rip | Walk::INTERRUPTED;
        push(walk, rip.wrapping_add(1) | Walk::INTERRUPTED)
    }
}

/// Whether `frame_pointer` can belong to a frame above the one that ends at `stack_pointer`: the
/// pointer is aligned, and the frame between them is not absurdly large.
#[inline(always)]
fn may_be_above(stack_pointer: u64, frame_pointer: u64) -> bool {
    frame_pointer & 7 == 0 && frame_pointer.wrapping_sub(stack_pointer) <= 1 << 20
}

/// Steps to the caller by frame pointer. `end` is the answer where the frame pointer leads to no
/// caller: a step takes evidence, as code without frame pointers has any number in that register.
/// Global as [`leaktrace_step`], to keep that function small.
///
/// # Safety
///
/// Called with a slot that the caller has claimed.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn leaktrace_step_by_fp(slot: u32, end: u32) -> u32 {
    let Some(walk) = WALKS.get_ptr_mut(slot) else { return StackEnd::ReadFailed as u32 };
    // SAFETY: the caller owns the slot.
    unsafe {
        let frame_pointer = (*walk).frame_pointer;
        // Code with frame pointers has one in each frame, and the outermost caller's is 0. One
        // that is 0 where the walk came by other means belongs to code without them.
        if frame_pointer == 0 {
            let is_outermost = (*walk).address & FrameMark::ALL == Walk::FRAME_POINTER;
            return if is_outermost { StackEnd::Complete as u32 } else { end };
        }
        if !may_be_above((*walk).stack_pointer, frame_pointer) {
            return end;
        }
        let Some(next) = read_word(walk, frame_pointer) else { return end };
        let Some(address) = read_word(walk, frame_pointer.wrapping_add(8)) else { return end };
        let at = (*walk).address;
        let at_slot = frame_pointer.wrapping_add(8);
        let address = returns_to_from(at_slot, address & !FrameMark::ALL);
        (*walk).address = (address.wrapping_sub(1) & !FrameMark::ALL) | Walk::FRAME_POINTER;
        let rule = rule_of(walk, slot);
        // In no mapping, or behind no call.
        if rule & NO_RULE != 0 {
            const NO_MAPPING: u32 = StackEnd::NoMapping as u32;
            const NO_CALL: u32 = StackEnd::NoFramePointer as u32;
            match rule as u32 {
                NO_MAPPING | NO_CALL => {
                    (*walk).address = at;
                    return end;
                }
                _ => {}
            }
        }
        let above = frame_pointer.wrapping_add(16);
        // Code that is unwound by frame pointer has another one in the frame above.
        if rule & UNCALLED != 0 && !may_be_above(above, next) {
            (*walk).address = at;
            return end;
        }
        (*walk).stack_pointer = above;
        (*walk).frame_pointer = next;
        push(walk, address | Walk::FRAME_POINTER)
    }
}

/// Whether the walk's last address lies in no mapping because nobody has called the frame before
/// it: that frame is the outermost one of a stack that a program has made by hand. Above it lies
/// whatever the program put there, as makecontext's `uc_link`. If so, takes the address out of the
/// stack. Global as [`leaktrace_step`].
///
/// # Safety
///
/// Called with a slot that the caller has claimed.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn leaktrace_is_made_by_hand(slot: u32) -> u32 {
    let Some(walk) = WALKS.get_ptr_mut(slot) else { return 0 };
    // SAFETY: the caller owns the slot; the index is checked.
    unsafe {
        let count = (*walk).record.count;
        let before = count.wrapping_sub(2) as usize;
        if (*walk).address & FrameMark::ALL != Walk::RETURN || before >= MAX_FRAMES {
            return 0;
        }
        let outermost = (*walk).record.frames[before];
        // Marked ones were found by other means.
        if outermost & FrameMark::ALL != 0 || leaktrace_is_called(outermost) != NO_CALL {
            return 0;
        }
        (*walk).record.count = count - 1;
        // A loop would multiply the verifier's work.
        (*walk).hash = StackId::unmix((*walk).hash, (*walk).address.wrapping_add(1));
        1
    }
}

/// Adds a frame, which carries the marks of [`Walk::address`].
#[inline(always)]
unsafe fn push(walk: *mut Walk, address: u64) -> u32 {
    // SAFETY: the caller's promise; the index is checked.
    unsafe {
        let count = (*walk).record.count as usize;
        if count >= MAX_FRAMES || count >= config!(max_frames) as usize {
            return StackEnd::TooDeep as u32;
        }
        (*walk).hash = StackId::mix((*walk).hash, address);
        (*walk).record.frames[count] = address;
        (*walk).record.count = count as u32 + 1;
        GO_ON
    }
}

/// Reads one word of the stack, from the copy.
#[inline(always)]
unsafe fn read_word(walk: *mut Walk, address: u64) -> Option<u64> {
    // SAFETY: the caller's promise; the index is checked against the window.
    unsafe {
        let mut index = address.wrapping_sub((*walk).window_start) / 8;
        if index >= (*walk).window_words || address & 7 != (*walk).window_start & 7 {
            if leaktrace_refill((*walk).slot, address) == 0 {
                return None;
            }
            index = 0;
        }
        let index = (index as usize) & (WINDOW_WORDS - 1);
        Some((*walk).window[index])
    }
}

/// Copies the stack from `address` up to the page's end; or beyond it, if little is left of the
/// page and the next page is readable as well. Returns the number of words copied. Global as
/// [`leaktrace_step`].
///
/// A copy that faults takes half a microsecond more, and a stack ends within two pages of its first
/// frames, at a random place (`arch_align_stack`, arch/x86/kernel/process.c, 6.1 and 6.18). A copy
/// that always crossed the page would fault in every walk of one run of a program, and in none of
/// the next.
///
/// # Safety
///
/// Called with a slot that the caller has claimed.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn leaktrace_refill(slot: u32, address: u64) -> u32 {
    let Some(walk) = WALKS.get_ptr_mut(slot) else { return 0 };
    // SAFETY: the caller owns the slot; the helper checks the user address and writes at most
    // the size given, which is at most the size of the window.
    unsafe {
        let window = (&raw mut (*walk).window).cast();
        let whole = (WINDOW_WORDS * 8) as u32;
        (*walk).window_start = address;
        let to_page_end = 4096 - (address as u32 & 4095);
        if to_page_end < LITTLE_BYTES
            && bpf_probe_read_user(window, whole, address as *const _) == 0
        {
            (*walk).window_words = WINDOW_WORDS as u64;
            return WINDOW_WORDS as u32;
        }
        (*walk).window_words = 0;
        if bpf_probe_read_user(window, to_page_end, address as *const _) != 0 {
            return 0;
        }
        (*walk).window_words = u64::from(to_page_end / 8);
        to_page_end / 8
    }
}
