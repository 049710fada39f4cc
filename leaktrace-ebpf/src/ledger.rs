//! The only writer of outstanding blocks and of call sites' counters.

use aya_ebpf::bindings::BPF_NOEXIST;
use leaktrace_common::{
    AllocKey, LossReason, Outstanding, SiteKey, StackId, StackMode, lifetime_bucket, sampling,
};

use crate::{
    atomic, loss,
    maps::{CURSORS, FREE_SITES, RECENT_SITES, RECENT_SLOTS, SITE_INDEX, SITES, config},
    stack::EEXIST,
    table,
};

/// The call site's slot in `SITES`, made if it is new.
#[inline(always)]
pub(crate) fn site_index(key: &SiteKey) -> Option<u32> {
    site_index_or(key, || ())
}

/// As [`site_index`]; `is_new` is called first where the site has not been seen before.
///
/// A small table of recent answers comes before the hash map. An entry is one word, and what it
/// leads to is compared with the whole key, so a stale one, as whoever is preempted here writes it,
/// costs a look and nothing else.
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

/// [`leaktrace_new_site`] found no room.
const NO_SITE: u32 = u32::MAX;

/// Makes a call site of the parts of its key, kind, generation and space in one word; gives its index
/// or [`NO_SITE`]. Global and not inlined, so that the verifier checks it once.
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

/// A slot of `SITES` that nobody has.
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

/// Whether this allocation of the call site `base` (a site without stack) gets a stack, under
/// `--stacks adaptive`: the first 16, one in 1024 after that, all once the loader says so.
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

/// A [`SiteVerdict`] on a call site.
#[inline(always)]
pub(crate) fn verdict(site: u32) -> u32 {
    // SAFETY: a live map value.
    SITES.get_ptr_mut(site).map_or(0, |record| unsafe { (*record).verdict })
}

/// Remembers a [`SiteVerdict`] on a call site.
#[inline(always)]
pub(crate) fn set_verdict(site: u32, verdict: u32) {
    if let Some(record) = SITES.get_ptr_mut(site) {
        // SAFETY: a live map value; whoever is second writes the same.
        unsafe { (*record).verdict = verdict };
    }
}

/// The largest allocation that a site has seen; 0 if none.
#[inline(always)]
pub(crate) fn largest_bytes(site: u32) -> u64 {
    // SAFETY: a live map value.
    SITES.get_ptr_mut(site).map_or(0, |record| unsafe { (*record).largest_bytes })
}

/// Records an allocation; gives whether there was room for it.
#[inline(always)]
pub(crate) fn on_alloc(key: AllocKey, block: Outstanding) -> bool {
    match table::insert(key, &block) {
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

/// Counts a block that was cut in so many parts more as that many blocks more.
#[inline(always)]
pub(crate) fn count_parts(site: u32, more: u64) {
    if let Some(record) = SITES.get_ptr_mut(site) {
        // SAFETY: a live map value, aligned.
        unsafe { atomic::add(&raw mut (*record).allocated_count, more) };
    }
}

/// Counts a block whose address was given out again: its free was missed.
#[inline(always)]
pub(crate) fn count_missed_free(old: &Outstanding, now_ns: u64) {
    loss::count(LossReason::MissedFree);
    count_free(old, now_ns);
}

/// Records a free of whatever is outstanding at `key`; gives back whether something was. What
/// an unknown block means is for the caller to say.
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

/// Takes a block out of the outstanding ones without counting it as freed.
#[inline(always)]
pub(crate) fn take(key: AllocKey) -> Option<Outstanding> {
    table::take(key)
}

/// Puts a block back that was taken out: its allocation stays counted.
#[inline(always)]
pub(crate) fn put_back(key: AllocKey, block: &Outstanding) {
    if let Err(reason) = table::insert(key, block) {
        loss::count_number(reason);
    }
}

/// Counts a block as allocated at its site.
#[inline(always)]
fn count_alloc(block: &Outstanding) {
    let Some(record) = SITES.get_ptr_mut(block.site) else { return };
    // SAFETY: a live map value; counters that add are atomic, and of two that write the time at
    // once, either is right.
    unsafe {
        atomic::add(&raw mut (*record).allocated_count, 1);
        atomic::add(&raw mut (*record).allocated_bytes, block.size_bytes);
        if block.size_bytes > (*record).largest_bytes {
            leaktrace_new_largest(block.site, block.size_bytes);
        }
        (*record).last_ns = block.timestamp_ns;
    }
    if config!(sampling) != 0 {
        leaktrace_weigh(block.site, block.size_bytes, block.detail, 0);
    }
}

/// Times that a new largest size is tried to be written against others.
const GROWTHS: u32 = 4;

/// Makes a size the largest of its site, unless a larger one is there by now: whoever is preempted
/// before it writes must not put back a smaller one. Global and not inlined, so that the verifier
/// checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_new_largest(site: u32, size_bytes: u64) -> u32 {
    let Some(record) = SITES.get_ptr_mut(site) else { return 0 };
    for _ in 0..GROWTHS {
        // SAFETY: a live map value, aligned.
        unsafe {
            let largest = &raw mut (*record).largest_bytes;
            let known = largest.read_volatile();
            if size_bytes <= known || atomic::exchange_if(largest, known, size_bytes) {
                break;
            }
        }
    }
    0
}

/// Takes back that a block was counted as allocated: what it is comes with another event.
#[inline(always)]
pub(crate) fn uncount_alloc(block: &Outstanding) {
    let Some(record) = SITES.get_ptr_mut(block.site) else { return };
    // SAFETY: a live map value; the counters are atomic, and the block was added to them.
    unsafe {
        atomic::add(&raw mut (*record).allocated_count, 1u64.wrapping_neg());
        atomic::add(&raw mut (*record).allocated_bytes, block.size_bytes.wrapping_neg());
    }
}

/// The return address of a site's call.
#[inline(always)]
pub(crate) fn call_site(site: u32) -> u64 {
    // SAFETY: a live map value, whose key does not change once it is published.
    SITES.get_ptr_mut(site).map_or(0, |record| unsafe { (*record).key.call_site })
}

/// Counts a block as freed at its site.
#[inline(always)]
pub(crate) fn count_free(block: &Outstanding, now_ns: u64) {
    let age_ns = now_ns.saturating_sub(block.timestamp_ns);
    leaktrace_count_free(block.site, block.size_bytes, age_ns);
    if config!(sampling) != 0 {
        leaktrace_weigh(block.site, block.size_bytes, block.detail, 1);
    }
}

/// Adds what a block of a process stands for to its site's estimates, of allocations or (with
/// `freed` 1) of frees. Global and not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_weigh(site: u32, size_bytes: u64, interval: u32, freed: u32) -> u32 {
    let Some(record) = SITES.get_ptr_mut(site) else { return 0 };
    let weight = sampling::weight(size_bytes, interval);
    let bytes = sampling::weighted_bytes(size_bytes, weight);
    let mut count_variance = sampling::count_variance(weight);
    let mut bytes_variance = sampling::bytes_variance(size_bytes, bytes);
    // SAFETY: a live map value, aligned.
    unsafe {
        let weights = &raw mut (*record).weights;
        if freed != 0 {
            atomic::add(&raw mut (*weights).freed_count, weight);
            atomic::add(&raw mut (*weights).freed_bytes, bytes);
            count_variance = count_variance.wrapping_neg();
            bytes_variance = bytes_variance.wrapping_neg();
        } else {
            atomic::add(&raw mut (*weights).allocated_count, weight);
            atomic::add(&raw mut (*weights).allocated_bytes, bytes);
        }
        if weight != 1 << sampling::WEIGHT_BITS {
            atomic::add(&raw mut (*weights).count_variance, count_variance);
            atomic::add(&raw mut (*weights).bytes_variance, bytes_variance);
        }
    }
    0
}

/// As [`count_free`]. Global and not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_count_free(site: u32, size_bytes: u64, age_ns: u64) -> u32 {
    let Some(record) = SITES.get_ptr_mut(site) else { return 0 };
    let bucket = lifetime_bucket(age_ns);
    // SAFETY: a live map value; `bucket` is below the number of buckets.
    unsafe {
        atomic::add(&raw mut (*record).freed_bytes, size_bytes);
        let buckets = (&raw mut (*record).lifetimes).cast::<u64>();
        atomic::add(buckets.add(bucket), 1);
    }
    0
}
