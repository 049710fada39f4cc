//! Where the modules that `--module` names have their code.

use leaktrace_common::{MODULE_NAME_BYTES, MODULES_MOST, TEXT_RANGES, TextRange};

use crate::{
    atomic,
    maps::{CURSORS, FILTER_MODULES, MODULE_TEXT, config},
};

/// Index in [`CURSORS`] of the number of init texts that were stored.
const CURSOR: u32 = 5;
const _: () = assert!((TEXT_RANGES - MODULES_MOST).is_power_of_two());

/// The kernel has loaded a module of this name and is about to run its init.
#[inline(always)]
pub(super) fn loaded(name: &[u8; MODULE_NAME_BYTES], text: TextRange, init: TextRange) {
    if config!(filter_modules) == 0 {
        return;
    }
    // The text of a module's start goes without a tracepoint once it has run: whoever has its place
    // now is another.
    freed(text, init);
    // SAFETY: the value is not looked at, only its presence.
    if unsafe { FILTER_MODULES.get(name) }.is_some() {
        leaktrace_add_text(text.start, text.end);
        add_init(init);
    }
}

/// The kernel is about to free a module.
#[inline(always)]
pub(super) fn freed(text: TextRange, init: TextRange) {
    if config!(filter_modules) != 0 {
        forget(text);
        forget(init);
    }
}

/// Stores a module's text in an empty slot: there are as many slots as a session can name modules.
/// Global and not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_add_text(start: u64, end: u64) -> u32 {
    let Some(ranges) = MODULE_TEXT.get_ptr_mut(1) else { return 0 };
    let ranges: *mut TextRange = ranges.cast();
    let mut at = 0;
    while at < MODULES_MOST {
        // SAFETY: within a live map value. Two modules may be loaded at once: whose start is in the
        // slot has it, and without an end it holds nothing.
        unsafe {
            let slot = ranges.add(at);
            if atomic::exchange_if(&raw mut (*slot).start, 0, start) {
                (&raw mut (*slot).end).write_volatile(end);
                return 1;
            }
        }
        at += 1;
    }
    0
}

/// Stores a module's init text in one of the slots for init texts. The slots are used in turn, as
/// no tracepoint reports that an init has run.
#[inline(always)]
fn add_init(range: TextRange) {
    const SLOTS: u64 = (TEXT_RANGES - MODULES_MOST) as u64;
    let (Some(cursor), Some(ranges)) = (CURSORS.get_ptr_mut(CURSOR), MODULE_TEXT.get_ptr_mut(1))
    else {
        return;
    };
    let ranges: *mut TextRange = ranges.cast();
    // SAFETY: live map values, and a slot within one.
    unsafe {
        let turn = (atomic::fetch_add(cursor, 1) & (SLOTS - 1)) as usize;
        write(ranges.add(MODULES_MOST + turn), range);
    }
}

/// Writes a slot; meanwhile the slot holds an empty range.
///
/// # Safety
///
/// `slot` lies in a live map value.
#[inline(always)]
unsafe fn write(slot: *mut TextRange, range: TextRange) {
    // SAFETY: the caller's promise.
    unsafe {
        (&raw mut (*slot).end).write_volatile(0);
        (&raw mut (*slot).start).write_volatile(range.start);
        (&raw mut (*slot).end).write_volatile(range.end);
    }
}

#[inline(always)]
fn forget(range: TextRange) {
    if range.start != range.end {
        leaktrace_forget_text(range.start, range.end);
    }
}

/// Empties every slot whose range overlaps this one. Global as [`leaktrace_add_text`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_forget_text(start: u64, end: u64) -> u32 {
    for which in 0..2 {
        let Some(ranges) = MODULE_TEXT.get_ptr_mut(which) else { return 0 };
        let ranges: *mut TextRange = ranges.cast();
        let mut at = 0;
        while at < TEXT_RANGES {
            // SAFETY: within a live map value.
            unsafe {
                let slot = ranges.add(at);
                if (*slot).start < end && (*slot).end > start {
                    write(slot, TextRange::EMPTY);
                }
            }
            at += 1;
        }
    }
    0
}
