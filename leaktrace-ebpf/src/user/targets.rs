//! Traced processes in the maps: their spaces and their mappings.

use aya_ebpf::bindings::BPF_ANY;
use leaktrace_common::{Target, TextMap};

use crate::{
    atomic,
    maps::{CURSORS, FREE_SPACES, RECENT_TARGET_SLOTS, RECENT_TARGETS, TARGETS, config},
};

/// A space that no process image has; 0 when all spaces are taken.
#[inline(always)]
pub(super) fn next_space() -> u32 {
    if let Ok(Some(space)) = FREE_SPACES.pop() {
        return space;
    }
    let Some(cursor) = CURSORS.get_ptr_mut(1) else { return 0 };
    // SAFETY: a live map value.
    let space = unsafe { atomic::fetch_add(cursor, 1) } + 1;
    if space < u64::from(config!(spaces)) { space as u32 } else { 0 }
}

/// Adds a process to the traced ones; returns its space, or 0 if there is no space or no room for
/// the process. With `has_own` the space is the process' own; where there is no room, it goes back
/// to the free ones.
#[inline(always)]
pub(super) fn register(tgid: u32, target: Target, has_own: bool) -> u32 {
    if target.space == 0 {
        return 0;
    }
    if TARGETS.insert(tgid, target, u64::from(BPF_ANY)).is_ok() {
        remember(tgid, target.space);
        return target.space;
    }
    if has_own {
        // The queue has room for every space.
        let _ = FREE_SPACES.push(target.space, 0);
    }
    0
}

/// Removes a process from the traced ones.
#[inline(always)]
pub(super) fn unregister(tgid: u32) {
    // One that is not there needs no removal.
    let _ = TARGETS.remove(tgid);
    forget(tgid);
}

/// The space of a traced process, looked up by one of its own threads.
///
/// A small array comes before the hash map. A process writes its own slot: its threads while they
/// run, its exec, which has ended all threads but one, and the end of its last thread; the loader
/// wipes the slot when it takes the process out of the hash map. So the slot is never older than
/// the hash map, and the process ID may go to another process. A thread that is preempted in this
/// function keeps its process alive, as it must come to its end before an exec or the last end
/// does. Another process that shares the slot may lose its word then, and looks itself up again.
#[inline(always)]
pub(crate) fn space_of(tgid: u32) -> Option<u32> {
    let recent = RECENT_TARGETS.get_ptr_mut(tgid & (RECENT_TARGET_SLOTS - 1))?;
    // SAFETY: a live map value; one word is read whole, so both halves belong together.
    let word = unsafe { recent.read_volatile() };
    if (word >> 32) as u32 == tgid && word != 0 {
        return Some(word as u32);
    }
    // SAFETY: read at once; deleted only when the process ends.
    let space = unsafe { TARGETS.get(tgid) }?.space;
    remember(tgid, space);
    // The loader may have taken it out, and wiped the array, in between.
    // SAFETY: as above.
    if unsafe { TARGETS.get(tgid) }.is_none_or(|target| target.space != space) {
        forget(tgid);
        return None;
    }
    Some(space)
}

/// Wipes a process' slot in the small array.
#[inline(always)]
pub(super) fn forget(tgid: u32) {
    if let Some(recent) = RECENT_TARGETS.get_ptr_mut(tgid & (RECENT_TARGET_SLOTS - 1)) {
        // SAFETY: a live map value; words are read and written whole.
        unsafe {
            if (recent.read_volatile() >> 32) as u32 == tgid {
                recent.write_volatile(0);
            }
        }
    }
}

/// Stores a process' space in the small array.
#[inline(always)]
pub(super) fn remember(tgid: u32, space: u32) {
    if let Some(recent) = RECENT_TARGETS.get_ptr_mut(tgid & (RECENT_TARGET_SLOTS - 1)) {
        // SAFETY: a live map value; one word is written whole.
        unsafe { recent.write_volatile(u64::from(tgid) << 32 | u64::from(space)) };
    }
}

/// First mapping, number of mappings and generation of an image. The generation is never newer than
/// the mappings, as the rule cache keeps the rules found in these mappings under that generation.
///
/// # Safety
///
/// `map` is a live map value.
#[inline(always)]
pub(crate) unsafe fn text_map(map: *const TextMap) -> (u32, u32, u32) {
    // SAFETY: the caller's promise; the loader writes the mappings first, as one word.
    unsafe {
        let generation = (&raw const (*map).generation).read_volatile();
        let mappings = map.cast::<u64>().read_volatile();
        (mappings as u32, (mappings >> 32) as u32, generation)
    }
}
