//! The counters of call sites; no other module writes them.

use aya_ebpf::bindings::BPF_NOEXIST;
use leaktrace_common::{
    FreePlace, LossReason, Outstanding, frees_noted, lifetime_bucket, sampling,
};

use crate::{
    atomic, loss,
    maps::{FREE_PLACES, SITES, config},
};

/// Counts a block as allocated at its site.
#[inline(always)]
pub(crate) fn count_alloc(block: &Outstanding) {
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

/// Attempts to store a new largest size while other CPUs store theirs.
const GROWTHS: u32 = 4;

/// Makes a size the largest of its site, unless a larger one is stored already: a task that is
/// preempted before it writes must not overwrite a larger size. Global and not inlined, so that the
/// verifier checks it once.
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

/// Reverts [`count_alloc`] for a block that another event reports as what it really is.
#[inline(always)]
pub(crate) fn uncount_alloc(block: &Outstanding) {
    let Some(record) = SITES.get_ptr_mut(block.site) else { return };
    // SAFETY: a live map value; the counters are atomic, and the block was added to them.
    unsafe {
        atomic::add(&raw mut (*record).allocated_count, 1u64.wrapping_neg());
        atomic::add(&raw mut (*record).allocated_bytes, block.size_bytes.wrapping_neg());
    }
}

/// Counts a block that was split: each of its `more` further parts counts as one more block.
#[inline(always)]
pub(crate) fn count_parts(site: u32, more: u64) {
    if let Some(record) = SITES.get_ptr_mut(site) {
        // SAFETY: a live map value, aligned.
        unsafe { atomic::add(&raw mut (*record).allocated_count, more) };
    }
}

/// Counts the free of a block that a program missed: the kernel has handed out the block's address
/// again.
#[inline(always)]
pub(crate) fn count_missed_free(old: &Outstanding, now_ns: u64) {
    loss::count(LossReason::MissedFree);
    count_free(old, now_ns);
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

/// Where a block is freed.
pub(crate) struct Place {
    /// Return address of the call that frees the block; 0 if it is unknown.
    pub(crate) address: u64,
    /// See [`FreePlace::generation`].
    pub(crate) generation: u32,
}

impl Place {
    pub(crate) const UNKNOWN: Self = Self { address: 0, generation: 0 };
}

/// As [`count_free`]; `place` is asked for some of the frees.
#[inline(always)]
pub(crate) fn count_free_at(block: &Outstanding, now_ns: u64, place: impl FnOnce() -> Place) {
    count_free(block, now_ns);
    let noted = leaktrace_frees_noted(block.site);
    if noted != 0 {
        let Place { address, generation } = place();
        if address != 0 {
            leaktrace_note_free(block.site, generation, address, noted);
        }
    }
}

/// How many frees of the site the next one stands for, if its place is to be noted; else 0. Global
/// and not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_frees_noted(site: u32) -> u32 {
    let Some(record) = SITES.get_ptr_mut(site) else { return 0 };
    // SAFETY: a live map value, aligned; a lost increment only moves the sample.
    let number = unsafe {
        let number = (*record).frees;
        (*record).frees = number.wrapping_add(1);
        number
    };
    frees_noted(number)
}

/// Adds `frees` to the frees of a place. Global and not inlined, so that the verifier checks it
/// once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_note_free(site: u32, generation: u32, address: u64, frees: u32) -> u32 {
    let place = FreePlace { site, generation, address };
    if let Some(known) = FREE_PLACES.get_ptr_mut(&place) {
        // SAFETY: a live map value, aligned.
        unsafe { atomic::add(known, u64::from(frees)) };
    } else {
        // Of two that are first at once, one is not noted; nor is one that finds no room.
        let _ = FREE_PLACES.insert(&place, u64::from(frees), u64::from(BPF_NOEXIST));
    }
    0
}

/// Adds to the site's estimates what a sampled block of a process stands for: to those of
/// allocations or, with `freed` 1, of frees. Global and not inlined, so that the verifier checks it
/// once.
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

/// Part of [`count_free`]. Global and not inlined, so that the verifier checks it once.
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
