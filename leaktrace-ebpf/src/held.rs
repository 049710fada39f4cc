//! The objects that functions of pairs have given: one more kind of block, which may be held
//! several times.
//!
//! A key can be acquired while it is held already, as a reference is. Then the first acquisition is
//! in the table of outstanding blocks, and each further one is in `PAIR_AGAIN`, under its level. A
//! release takes the latest acquisition. Most keys are held once, and pay one more look for this.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use leaktrace_common::{AgainKey, LossReason, Outstanding};

use crate::{
    atomic,
    counters::{count_alloc, count_free},
    ledger, loss,
    maps::{CURSORS, EEXIST, PAIR_AGAIN, PAIR_LEVELS},
    table,
};

/// Index in [`CURSORS`] of the number of entries in `PAIR_AGAIN`.
const AGAIN_CURSOR: u32 = 6;
/// `-E2BIG`: a hash map is full.
const E2BIG: i32 = -7;
/// Levels that a look-up tries, from where the key's last level should be: other CPUs may have
/// added or taken some meanwhile.
const TRIES: u32 = 8;
/// How many of the tried levels lie above that place.
const ABOVE: u32 = 2;

/// Whether any key is held more than once at present.
#[inline(always)]
fn are_some_held_again() -> bool {
    // SAFETY: a live map value; volatile, as other CPUs write it.
    CURSORS.get_ptr(AGAIN_CURSOR).is_some_and(|count| unsafe { count.read_volatile() } != 0)
}

/// Records the acquisition of a key, given by its word. `who` holds the site in the low half and
/// the process in the high half. Global and not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_acquired(
    word: u64,
    size_bytes: u64,
    timestamp_ns: u64,
    who: u64,
) -> u32 {
    let block =
        Outstanding { size_bytes, timestamp_ns, site: who as u32, detail: (who >> 32) as u32 };
    // Two that acquire a key at once which nobody holds may both be first: the table then counts the
    // release of one as missed.
    if !table::has_word(word) {
        return u32::from(ledger::on_alloc_word(word, block));
    }
    match again(word, &block) {
        Ok(()) => {
            count_alloc(&block);
            1
        }
        Err(reason) => {
            loss::count(reason);
            0
        }
    }
}

/// Stores an acquisition under the next level of its key.
#[inline(always)]
fn again(word: u64, block: &Outstanding) -> Result<(), LossReason> {
    // SAFETY: copied at once.
    let first = unsafe { PAIR_LEVELS.get(word) }.copied().unwrap_or(0);
    for try_ in 0..TRIES {
        let level = first.wrapping_add(try_);
        let key = AgainKey { word, level, zero: 0 };
        match PAIR_AGAIN.insert(key, block, u64::from(BPF_NOEXIST)) {
            Ok(()) => {
                let next = level.wrapping_add(1);
                if PAIR_LEVELS.insert(word, next, u64::from(BPF_ANY)).is_err() {
                    // Nobody would find it there.
                    let _ = PAIR_AGAIN.remove(key);
                    return Err(LossReason::OutstandingRefused);
                }
                if let Some(count) = CURSORS.get_ptr_mut(AGAIN_CURSOR) {
                    // SAFETY: a live map value.
                    unsafe { atomic::add(count, 1) };
                }
                return Ok(());
            }
            Err(EEXIST) => {}
            Err(E2BIG) => return Err(LossReason::OutstandingFull),
            Err(_) => return Err(LossReason::OutstandingRefused),
        }
    }
    Err(LossReason::OutstandingRefused)
}

/// Records the release of a key, given by its word; returns whether the key was held. Global as
/// [`leaktrace_acquired`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_released(word: u64, now_ns: u64) -> u32 {
    let mut may_be_held = false;
    if are_some_held_again() {
        match take_again(word) {
            Again::Taken(block) => {
                count_free(&block, now_ns);
                return 1;
            }
            Again::Gone => {}
            Again::NotFound => may_be_held = true,
        }
    }
    match table::take_word(word) {
        Some(block) => {
            count_free(&block, now_ns);
            1
        }
        None => u32::from(may_be_held),
    }
}

/// What became of a key's further levels.
enum Again {
    /// The block of the highest one was taken.
    Taken(Outstanding),
    /// It has none.
    Gone,
    /// None was found where they should be; that is counted.
    NotFound,
}

/// Takes the acquisition with the highest level of a key out of `PAIR_AGAIN`.
#[inline(always)]
fn take_again(word: u64) -> Again {
    // SAFETY: copied at once.
    let Some(next) = unsafe { PAIR_LEVELS.get(word) }.copied() else { return Again::Gone };
    for try_ in 0..TRIES {
        let above = next.wrapping_add(ABOVE);
        if try_ > above {
            break;
        }
        let level = above.wrapping_sub(try_);
        let key = AgainKey { word, level, zero: 0 };
        // SAFETY: copied at once; who deletes it has it.
        let Some(block) = (unsafe { PAIR_AGAIN.get(key) }).copied() else { continue };
        if PAIR_AGAIN.remove(key).is_err() {
            continue;
        }
        if let Some(count) = CURSORS.get_ptr_mut(AGAIN_CURSOR) {
            // SAFETY: a live map value.
            unsafe { atomic::add(count, u64::MAX) };
        }
        let _ = match level {
            0 => PAIR_LEVELS.remove(word),
            _ => PAIR_LEVELS.insert(word, level, u64::from(BPF_ANY)),
        };
        return Again::Taken(block);
    }
    let lowest = next.wrapping_add(ABOVE).saturating_sub(TRIES - 1);
    if lowest != 0 {
        // One that was preempted before it wrote its level has written it now: there may be others
        // further down, which the next release looks for.
        let _ = PAIR_LEVELS.insert(word, lowest, u64::from(BPF_ANY));
        loss::count(LossReason::DeleteRefused);
        return Again::NotFound;
    }
    let _ = PAIR_LEVELS.remove(word);
    Again::Gone
}
