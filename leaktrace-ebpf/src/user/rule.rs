//! Finds the mapping of a user stack's address, and the rule to unwind its frame by.

use aya_ebpf::helpers::bpf_probe_read_user;
use leaktrace_common::{FrameMark, StackEnd, TEXT_PAGE_BYTES, Unwinding, ends_with_call};

use super::state::Walk;
use crate::maps::{MAPPINGS, PAGES, ROWS, WALKS};

/// Steps of a binary search over `MAX_MAPPINGS` or `MAX_ROWS_IN_PAGE` (2^12) entries.
const SEARCH_STEPS: u32 = 13;

/// Marks a rule that says: unwind by frame pointer. Then the low half is the [`StackEnd`] to report
/// if the frame pointer leads to no caller. Without the mark the low half is a packed
/// [`leaktrace_common::UnwindRow`].
pub(super) const BY_FRAME_POINTER: u64 = 1 << 32;
/// Marks that there is no rule; the low half is a [`StackEnd`].
pub(super) const NO_RULE: u64 = 1 << 33;
/// Added to [`BY_FRAME_POINTER`] for an address that a frame pointer has led to and that no call
/// precedes.
pub(super) const UNCALLED: u64 = 1 << 34;
/// The address is in no published mapping.
pub(super) const NO_MAPPING_KNOWN: u64 = no_rule(StackEnd::NoMapping);

/// The answer of [`find_row`] when it finds no row. No row has this value: its address would be the
/// last one.
const NO_ROW: u64 = u64::MAX;
/// The answer of [`find_mapping`] when it finds no mapping; no mapping has this index.
const NO_MAPPING: u32 = u32::MAX;

#[inline(always)]
const fn no_rule(end: StackEnd) -> u64 {
    NO_RULE | end as u64
}

/// Finds how to unwind the walk's present frame: [`BY_FRAME_POINTER`], a packed row, or [`NO_RULE`]
/// with the reason. Global as [`super::walk::leaktrace_step`].
///
/// # Safety
///
/// Called with a slot that the caller has claimed.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn leaktrace_find_rule(slot: u32) -> u64 {
    let Some(walk) = WALKS.get_ptr_mut(slot) else { return no_rule(StackEnd::ReadFailed) };
    // SAFETY: the caller owns the slot; mappings and rows are written by the loader before
    // they are published.
    unsafe {
        let how = (*walk).address & FrameMark::ALL;
        let address = (*walk).address & !FrameMark::ALL;
        if leaktrace_find_text(slot, address) == 0 {
            return NO_MAPPING_KNOWN;
        }
        let returns_to = address.wrapping_add(1);
        let mapping = &raw const (*walk).mapping;
        const TABLE: u32 = Unwinding::Table as u32;
        const FRAME_POINTER: u32 = Unwinding::FramePointer as u32;
        const PENDING: u32 = Unwinding::Pending as u32;
        const MIXED: u32 = Unwinding::Mixed as u32;
        let unwinding = (*mapping).unwinding;
        // What a frame pointer leads to is a return address only behind a call. But interpreters
        // push that of what they go on with, and jump (OpenJDK's, in code made at run time): there
        // it takes other evidence.
        if how == Walk::FRAME_POINTER && leaktrace_is_called(returns_to) != CALL {
            return match unwinding {
                FRAME_POINTER => BY_FRAME_POINTER | UNCALLED | StackEnd::NoFramePointer as u64,
                _ => no_rule(StackEnd::NoFramePointer),
            };
        }
        match unwinding {
            TABLE | MIXED => {}
            FRAME_POINTER => return BY_FRAME_POINTER | StackEnd::NoFramePointer as u64,
            PENDING => return no_rule(StackEnd::TablePending),
            _ => return no_rule(StackEnd::NoTable),
        }
        let rule = if how == Walk::INTERRUPTED {
            leaktrace_row_at(slot, address) >> 32
        } else {
            row_of_return(slot, (*mapping).bias, returns_to)
        };
        // CfaRule::Gap is 0.
        if rule == NO_ROW >> 32 || rule & 7 == 0 {
            return match unwinding {
                MIXED => BY_FRAME_POINTER | StackEnd::NoRow as u64,
                _ => no_rule(StackEnd::NoRow),
            };
        }
        rule
    }
}

/// The rule for the call before a return address.
///
/// A row that begins right at the return address is the first row of the next function, or lies
/// behind a call that never returns: then the rule is that of the byte before. Or nobody has
/// called: makecontext and others write the address of a function to a stack that they make, and
/// the frame is that function's.
///
/// # Safety
///
/// As for [`leaktrace_row_at`]; `bias` is the mapping's.
#[inline(always)]
unsafe fn row_of_return(slot: u32, bias: u64, returns_to: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let row = leaktrace_row_at(slot, returns_to);
        let pc = returns_to.wrapping_sub(bias) as u32;
        if row != NO_ROW && row as u32 != pc {
            return row >> 32;
        }
        if row != NO_ROW && leaktrace_is_called(returns_to) == NO_CALL {
            return row >> 32;
        }
        leaktrace_row_at(slot, returns_to.wrapping_sub(1)) >> 32
    }
}

/// The row that covers an address of the walk's mapping, or [`NO_ROW`]. Global as
/// [`super::walk::leaktrace_step`].
///
/// # Safety
///
/// Called with a slot that the caller has claimed.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn leaktrace_row_at(slot: u32, address: u64) -> u64 {
    let Some(walk) = WALKS.get_ptr(slot) else { return NO_ROW };
    // SAFETY: the caller owns the slot.
    unsafe {
        let mapping = &raw const (*walk).mapping;
        let pc = address.wrapping_sub((*mapping).bias);
        let page = (pc / TEXT_PAGE_BYTES).wrapping_sub(u64::from((*mapping).page_base));
        if page >= u64::from((*mapping).page_count) {
            return NO_ROW;
        }
        match PAGES.get((*mapping).first_page.wrapping_add(page as u32)) {
            Some(range) => find_row(*range as u32, (*range >> 32) as u32, pc as u32),
            None => NO_ROW,
        }
    }
}

/// The answer of [`leaktrace_is_called`] where the code cannot be read; differs from [`CALL`] and
/// [`NO_CALL`].
const UNREADABLE: u32 = 2;
const CALL: u32 = 1;
pub(super) const NO_CALL: u32 = 0;

/// Whether a call instruction ends right before an address: [`CALL`], [`NO_CALL`] or
/// [`UNREADABLE`]. Global as [`super::walk::leaktrace_step`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_is_called(address: u64) -> u32 {
    // SAFETY: the helper checks the user address.
    match unsafe { bpf_probe_read_user(address.wrapping_sub(8) as *const u64) } {
        Ok(code) if ends_with_call(code) => CALL,
        Ok(_) => NO_CALL,
        Err(_) => UNREADABLE,
    }
}

/// Sets the walk's mapping to the published one that holds `address`; returns 0 if there is none.
/// Global as [`super::walk::leaktrace_step`].
///
/// # Safety
///
/// Called with a slot that the caller has claimed.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn leaktrace_find_text(slot: u32, address: u64) -> u32 {
    let Some(walk) = WALKS.get_ptr_mut(slot) else { return 0 };
    // SAFETY: the caller owns the slot; mappings are written by the loader before they are
    // published.
    unsafe {
        let last = &raw const (*walk).mapping;
        if address >= (*last).start && address < (*last).end {
            return 1;
        }
        let index = find_mapping((*walk).first_mapping, (*walk).mapping_count, address);
        let Some(mapping) = MAPPINGS.get(index) else { return 0 };
        (*walk).mapping = *mapping;
        1
    }
}

/// The index of the mapping that holds `address`, or [`NO_MAPPING`]; searches `count` sorted
/// mappings from `first` on.
#[inline(always)]
fn find_mapping(first: u32, count: u32, address: u64) -> u32 {
    let (mut low, mut high) = (first, first.wrapping_add(count));
    for _ in 0..SEARCH_STEPS {
        if low >= high {
            break;
        }
        let middle = low + (high - low) / 2;
        let Some(mapping) = MAPPINGS.get(middle) else { return NO_MAPPING };
        if address >= mapping.end {
            low = middle + 1;
        } else if address < mapping.start {
            high = middle;
        } else {
            return middle;
        }
    }
    NO_MAPPING
}

/// The row that covers `pc`, or [`NO_ROW`]; searches the rows from `first` to `last`.
#[inline(always)]
fn find_row(first: u32, last: u32, pc: u32) -> u64 {
    // The last row that does not begin behind `pc`: in [low, high).
    let (mut low, mut high) = (first, last.wrapping_add(1));
    for _ in 0..SEARCH_STEPS {
        if low >= high {
            break;
        }
        let middle = low + (high - low) / 2;
        let Some(row) = ROWS.get(middle) else { return NO_ROW };
        if *row as u32 <= pc {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if low == first {
        return NO_ROW;
    }
    match ROWS.get(low - 1) {
        Some(row) => *row,
        None => NO_ROW,
    }
}
