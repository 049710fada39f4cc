//! The state of user stack walks, and what they remember: values of maps.

use leaktrace_common::{FileKey, FrameMark, StackRecord, TextMapping};

/// Words of the stack copy.
pub(super) const WINDOW_WORDS: usize = 512;

/// State of one stack walk.
#[repr(C)]
pub(crate) struct Walk {
    /// Number of claims on this slot: whoever raised it from 0 owns it.
    pub(super) claims: u64,
    /// Address whose rule is next: in the calling instruction. Marked as [`Walk::RETURN`],
    /// [`Walk::FRAME_POINTER`] or [`Walk::INTERRUPTED`].
    pub(super) address: u64,
    /// Stack and frame pointer in that frame.
    pub(super) stack_pointer: u64,
    pub(super) frame_pointer: u64,
    /// The process image's part of `MAPPINGS`, and its generation.
    pub(super) first_mapping: u32,
    pub(super) mapping_count: u32,
    pub(super) generation: u32,
    /// Index of this slot.
    pub(super) slot: u32,
    /// Mapping of the frame before: most often this one's as well.
    pub(super) mapping: TextMapping,
    /// Whether the kernel was asked for one that the loader has not published.
    pub(super) has_asked: u32,
    pub(super) zero: u32,
    /// Its answer.
    pub(super) area: Area,
    /// Address of the first word of `window`.
    pub(super) window_start: u64,
    /// Words in `window` that hold stack contents.
    pub(super) window_words: u64,
    /// Hash of the frames so far.
    pub(super) hash: u64,
    pub(super) window: [u64; WINDOW_WORDS],
    pub(super) record: StackRecord,
}

impl Walk {
    /// [`Walk::address`] is before a return address that was found by call frame information.
    pub(super) const RETURN: u64 = 0;
    /// It is before a return address that was found by frame pointer.
    pub(super) const FRAME_POINTER: u64 = FrameMark::FRAME_POINTER;
    /// It is that of the instruction that a signal has interrupted.
    pub(super) const INTERRUPTED: u64 = FrameMark::INTERRUPTED;
}

/// A rule found before. `check` is the key XOR `walk::seal` of the rule: an entry that is torn, by
/// writers on other CPUs or by one that was preempted between its two words, is that of no address
/// instead of giving a wrong rule.
#[repr(C)]
pub(crate) struct CachedRule {
    pub(super) check: u64,
    pub(super) rule: u64,
}

/// What is read of a `struct vm_area_struct`.
#[repr(C)]
pub(crate) struct Area {
    pub(super) start: u64,
    pub(super) end: u64,
    /// In pages.
    pub(super) file_offset: u64,
    pub(super) flags: u64,
    /// 0 if there is none.
    pub(super) file: u64,
    /// On the way to `key`.
    pub(super) mode: u64,
    pub(super) entry: u64,
    pub(super) inode: u64,
    pub(super) super_block: u64,
    pub(super) key: FileKey,
}
