//! The only writer of outstanding blocks and of call sites; `counters` writes the sites' counters.

use aya_ebpf::bindings::BPF_NOEXIST;
use leaktrace_common::{AllocKey, BlockWord, LossReason, Outstanding, SiteKey, StackId, StackMode};

use crate::{
    atomic,
    counters::{Place, count_alloc, count_free, count_free_at},
    loss,
    maps::{CURSORS, EEXIST, FREE_SITES, RECENT_SITES, RECENT_SLOTS, SITE_INDEX, SITES, config},
    table,
};

/// The index of the call site in `SITES`; a new site gets a slot.
#[inline(always)]
pub(crate) fn site_index(key: &SiteKey) -> Option<u32> {
    site_index_or(key, || ())
}

/// As [`site_index`]; if the site is new, `is_new` is called before the site is made.
///
/// A small table of recent answers is asked before the hash map. An entry is one word, and the site
/// that it leads to is compared with the whole key. So a stale entry, as a preempted writer may
/// leave, costs one more look-up and nothing else.
#[inline(always)]
pub(crate) fn site_index_or(key: &SiteKey, is_new: impl FnOnce()) -> Option<u32> {
    let mut hash = StackId::mix(key.call_site, key.detail);
    hash = StackId::mix(hash, key.stack);
    let recent = RECENT_SITES.get_ptr_mut(hash as u32 & (RECENT_SLOTS - 1))?;
    // SAFETY: live map values; a record's key does not change once it is published.
    unsafe {
        let index = *recent as u32;
        if let Some(record) = SITES.get_ptr_mut(index)
            && (*record).key == *key
        {
            return Some(index);
        }
    }
    // SAFETY: read at once; entries are deleted only once nobody has their space.
    let found = match unsafe { SITE_INDEX.get(key) } {
        Some(index) => Some(*index),
        None => {
            is_new();
            let kind =
                u64::from(key.kind) | u64::from(key.generation) << 16 | u64::from(key.space) << 32;
            match leaktrace_new_site(kind, key.detail, key.call_site, key.stack) {
                NO_SITE => None,
                index => Some(index),
            }
        }
    };
    if let Some(index) = found {
        // SAFETY: a live map value, written whole.
        unsafe { *recent = u64::from(index) };
    }
    found
}

/// The answer of [`leaktrace_new_site`] when it finds no room.
const NO_SITE: u32 = u32::MAX;

/// Makes a call site from the parts of its key; `kind` holds kind, generation and space in one
/// word. Returns the site's index or [`NO_SITE`]. Global and not inlined, so that the verifier
/// checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_new_site(kind: u64, detail: u64, call_site: u64, stack: u64) -> u32 {
    let key = SiteKey {
        kind: kind as u16,
        generation: (kind >> 16) as u16,
        space: (kind >> 32) as u32,
        detail,
        call_site,
        stack,
    };
    new_site(&key).unwrap_or(NO_SITE)
}

#[inline(always)]
fn new_site(key: &SiteKey) -> Option<u32> {
    let Some(index) = free_slot() else {
        loss::count(LossReason::SitesFull);
        return None;
    };
    let record = SITES.get_ptr_mut(index)?;
    // SAFETY: this slot was given to this run alone; nobody reads it before it is published,
    // but the loader, which takes a record with kind 0 for unused.
    unsafe { (*record).key = *key };
    match SITE_INDEX.insert(key, index, u64::from(BPF_NOEXIST)) {
        Ok(()) => Some(index),
        Err(error) => {
            // SAFETY: as above.
            unsafe { (*record).key.kind = 0 };
            // A queue that is as long as the array has room for each slot.
            let _ = FREE_SITES.push(index, 0);
            if error == EEXIST {
                // Another CPU was quicker: its slot counts.
                // SAFETY: as above.
                return unsafe { SITE_INDEX.get(key) }.copied();
            }
            loss::count_refusal(LossReason::SitesFull, error.into());
            None
        }
    }
}

/// A slot of `SITES` that no call site uses.
#[inline(always)]
fn free_slot() -> Option<u32> {
    if let Ok(Some(index)) = FREE_SITES.pop() {
        return Some(index);
    }
    let cursor = CURSORS.get_ptr_mut(0)?;
    // SAFETY: a live map value.
    let index = unsafe { atomic::fetch_add(cursor, 1) };
    (index < u64::from(config!(max_sites))).then_some(index as u32)
}

/// Whether this allocation of the call site `base` (a site without stack) gets a stack under
/// `--stacks adaptive`: the first 16 do, then one in 1024, and all once the loader marks the site
/// as suspect.
#[inline(always)]
pub(crate) fn wants_stack(base: u32) -> bool {
    match config!(stack_mode) {
        mode if mode == StackMode::All as u32 => true,
        mode if mode == StackMode::Site as u32 => false,
        _ => {
            let Some(record) = SITES.get_ptr_mut(base) else { return false };
            // SAFETY: a live map value; a lost increment only moves the sample.
            unsafe {
                let calls = (*record).calls;
                (*record).calls = calls.wrapping_add(1);
                (*record).suspect != 0 || calls < 16 || calls & 1023 == 0
            }
        }
    }
}

/// The [`SiteVerdict`] on a call site.
#[inline(always)]
pub(crate) fn verdict(site: u32) -> u32 {
    // SAFETY: a live map value.
    SITES.get_ptr_mut(site).map_or(0, |record| unsafe { (*record).verdict })
}

/// Stores the [`SiteVerdict`] on a call site.
#[inline(always)]
pub(crate) fn set_verdict(site: u32, verdict: u32) {
    if let Some(record) = SITES.get_ptr_mut(site) {
        // SAFETY: a live map value; whoever is second writes the same.
        unsafe { (*record).verdict = verdict };
    }
}

/// The largest allocation that a site has seen, in bytes; 0 if none.
#[inline(always)]
pub(crate) fn largest_bytes(site: u32) -> u64 {
    // SAFETY: a live map value.
    SITES.get_ptr_mut(site).map_or(0, |record| unsafe { (*record).largest_bytes })
}

/// The return address of a site's call.
#[inline(always)]
pub(crate) fn call_site(site: u32) -> u64 {
    // SAFETY: a live map value, whose key does not change once it is published.
    SITES.get_ptr_mut(site).map_or(0, |record| unsafe { (*record).key.call_site })
}

/// Records an allocation; returns whether there was room for it.
#[inline(always)]
pub(crate) fn on_alloc(key: AllocKey, block: Outstanding) -> bool {
    on_alloc_word(BlockWord::of(key), block)
}

/// As [`on_alloc`], by a [`BlockWord`].
#[inline(always)]
pub(crate) fn on_alloc_word(word: u64, block: Outstanding) -> bool {
    match table::insert_word(word, &block) {
        Ok(()) => {
            count_alloc(&block);
            true
        }
        Err(reason) => {
            loss::count_number(reason);
            false
        }
    }
}

/// Records the free of the block that is outstanding at `key`; returns whether there was one. The
/// caller decides what the free of an unknown block means.
#[inline(always)]
pub(crate) fn on_free(key: AllocKey, now_ns: u64) -> bool {
    match take(key) {
        Some(block) => {
            count_free(&block, now_ns);
            true
        }
        None => false,
    }
}

/// As [`on_free`]; `place` is asked for some of the frees where the block is freed.
#[inline(always)]
pub(crate) fn on_free_at(key: AllocKey, now_ns: u64, place: impl FnOnce() -> Place) -> bool {
    match take(key) {
        Some(block) => {
            count_free_at(&block, now_ns, place);
            true
        }
        None => false,
    }
}

/// Takes a block out of the table without counting it as freed.
#[inline(always)]
pub(crate) fn take(key: AllocKey) -> Option<Outstanding> {
    table::take(key)
}

/// Puts a block back into the table; its allocation is counted already.
#[inline(always)]
pub(crate) fn put_back(key: AllocKey, block: &Outstanding) {
    if let Err(reason) = table::insert(key, block) {
        loss::count_number(reason);
    }
}
