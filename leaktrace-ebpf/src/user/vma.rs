//! Asks the kernel what a process has mapped at an address: for processes whose mappings the loader
//! has not read yet, and for those that have mapped something since.
//!
//! The helper gives up where another thread is changing the mappings at that moment (it only tries
//! the lock: bpf_find_vma, kernel/bpf/task_iter.c, 6.1 and 6.18). Then the address counts as in no
//! known mapping.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_find_vma, bpf_get_current_task_btf, bpf_probe_read_kernel};
use leaktrace_common::{TEXT_SEGMENTS, TextMapping, TextObject};

use super::state::Area;
use crate::maps::{OBJECTS, WALKS, config};

/// `VM_EXEC` (include/linux/mm.h, 6.1 and 6.18).
const EXECUTABLE: u64 = 4;

/// `FMODE_NOACCOUNT` (include/linux/fs.h, 6.7 and 6.12): a file that the kernel has opened for
/// itself, such as the lower file that overlayfs maps. `FMODE_BACKING`, the bit with exactly that
/// meaning, is not the same bit in all kernels.
const NOT_ACCOUNTED: u64 = 1 << 29;

/// Sets the walk's mapping to the kernel's mapping at `address`, if that is code; returns 0 if
/// there is none or the kernel does not answer. Global as [`super::walk::leaktrace_step`].
///
/// # Safety
///
/// Called with a slot that the caller has claimed.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn leaktrace_find_area(slot: u32, address: u64) -> u32 {
    // Without the helper nothing below is there for the verifier.
    if config!(areas.file) == 0 {
        return 0;
    }
    let Some(walk) = WALKS.get_ptr_mut(slot) else { return 0 };
    // SAFETY: the caller owns the slot, where the callback leaves what it finds: the stack is
    // small, and callers have theirs.
    unsafe {
        let area = &raw mut (*walk).area;
        (*area).flags = 0;
        let task = bpf_get_current_task_btf();
        let mut slot = slot;
        let read_area = read_area as *mut c_void;
        let result = bpf_find_vma(task, address, read_area, (&raw mut slot).cast(), 0);
        if result != 0 || (*area).flags & EXECUTABLE == 0 {
            return 0;
        }
        let mapping = &raw mut (*walk).mapping;
        (*mapping).start = (*area).start;
        (*mapping).end = (*area).end;
        (*mapping).unwinding = config!(areas.without_file);
        if (*area).file != 0 {
            match OBJECTS.get_ptr(&(*area).key) {
                // Written whole before it is found.
                Some(object) => apply(&*object, &*area, &mut *mapping),
                None => (*mapping).unwinding = config!(areas.unknown_file),
            }
        }
        (*walk).has_asked = 1;
    }
    1
}

/// The callback of `bpf_find_vma`, which holds the lock.
extern "C" fn read_area(_task: *mut c_void, vma: *mut c_void, slot: *mut u32) -> i64 {
    // SAFETY: the pointer that was given to the helper.
    let Some(walk) = WALKS.get_ptr_mut(unsafe { *slot }) else { return 0 };
    // What cannot be read is 0: the helper says so in the place itself, and no branch here
    // multiplies the verifier's work.
    let read = |into: *mut u64, at: u64, offset: u32| {
        // SAFETY: the helper checks the address, and writes one word.
        unsafe { bpf_probe_read_kernel(into.cast(), 8, (at + u64::from(offset)) as *const _) };
    };
    let vma = vma as u64;
    // SAFETY: a live map value, whose owner has called the helper.
    let area = unsafe { &mut (*walk).area };
    read(&raw mut area.start, vma, config!(areas.start));
    read(&raw mut area.end, vma, config!(areas.end));
    read(&raw mut area.file_offset, vma, config!(areas.file_offset));
    read(&raw mut area.flags, vma, config!(areas.flags));
    read(&raw mut area.file, vma, config!(areas.file));
    read(&raw mut area.inode, area.file, config!(areas.inode));
    if config!(areas.user_entry) != 0 {
        read(&raw mut area.mode, area.file, config!(areas.mode));
        if area.mode & NOT_ACCOUNTED != 0 {
            // The file that the process has opened, as the kernel shows it in /proc and to stat.
            read(&raw mut area.entry, area.file, config!(areas.user_entry));
            read(&raw mut area.inode, area.entry, config!(areas.entry_inode));
        }
    }
    read(&raw mut area.key.inode, area.inode, config!(areas.number));
    read(&raw mut area.super_block, area.inode, config!(areas.super_block));
    read(&raw mut area.key.device, area.super_block, config!(areas.device));
    // `dev_t` has 32 bits.
    area.key.device &= 0xffff_ffff;
    0
}

/// Chooses the text segment that the mapping belongs to: of those that hold its offset in the file,
/// the last one, see `CompiledObject::address_of`.
#[inline(always)]
fn apply(object: &TextObject, area: &Area, mapping: &mut TextMapping) {
    let offset = area.file_offset.wrapping_mul(4096);
    let mut chosen = TEXT_SEGMENTS;
    for index in 0..TEXT_SEGMENTS {
        let segment = &object.segments[index];
        if offset >= segment.start && offset < segment.end {
            chosen = index;
        }
    }
    if chosen >= TEXT_SEGMENTS {
        return;
    }
    let segment = &object.segments[chosen];
    let address = segment.address.wrapping_add(offset.wrapping_sub(segment.start));
    mapping.bias = area.start.wrapping_sub(address);
    mapping.first_page = object.first_page;
    mapping.page_base = object.page_base;
    mapping.page_count = object.page_count;
    mapping.unwinding = object.unwinding;
}
