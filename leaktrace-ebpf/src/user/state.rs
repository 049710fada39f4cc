//! The state of user stack walks, and their cache of rules: types of map values.

use leaktrace_common::{FileKey, FrameMark, StackRecord, TextMapping};

/// Number of words in the copy of the stack.
pub(super) const WINDOW_WORDS: usize = 512;

/// State of one stack walk.
#[repr(C)]
pub(crate) struct Walk {
    /// Number of claims on this slot; the walk that raised the number from 0 owns the slot.
    pub(super) claims: u64,
    /// The next address to find a rule for, inside the calling instruction. Marked as
    /// [`Walk::RETURN`], [`Walk::FRAME_POINTER`] or [`Walk::INTERRUPTED`].
    pub(super) address: u64,
    /// Stack pointer and frame pointer in that frame.
    pub(super) stack_pointer: u64,
    pub(super) frame_pointer: u64,
    /// The process image's part of `MAPPINGS`, and that part's generation.
    pub(super) first_mapping: u32,
    pub(super) mapping_count: u32,
    pub(super) generation: u32,
    /// Index of this slot.
    pub(super) slot: u32,
    /// The mapping of the previous frame, which most often holds this frame as well.
    pub(super) mapping: TextMapping,
    /// Whether the walk has asked the kernel for a mapping that the loader has not published.
    pub(super) has_asked: u32,
    pub(super) zero: u32,
    /// The kernel's answer.
    pub(super) area: Area,
    /// Address of the first word of `window`.
    pub(super) window_start: u64,
    /// Number of words in `window` that hold stack contents.
    pub(super) window_words: u64,
    /// Hash of the frames so far.
    pub(super) hash: u64,
    pub(super) window: [u64; WINDOW_WORDS],
    pub(super) record: StackRecord,
}

impl Walk {
    /// Mark of a [`Walk::address`] before a return address that call frame information has given.
    pub(super) const RETURN: u64 = 0;
    /// Mark of an address before a return address that the frame pointer has given.
    pub(super) const FRAME_POINTER: u64 = FrameMark::FRAME_POINTER;
    /// Mark of the address of an instruction that a signal has interrupted.
    pub(super) const INTERRUPTED: u64 = FrameMark::INTERRUPTED;
}

/// A cached rule. `check` is the key XOR `walk::seal` of the rule. Writers on other CPUs, or one
/// that was preempted between its two words, may tear an entry; a torn entry matches no address
/// instead of giving a wrong rule.
#[repr(C)]
pub(crate) struct CachedRule {
    pub(super) check: u64,
    pub(super) rule: u64,
}

/// The fields that a walk reads of a `struct vm_area_struct`.
#[repr(C)]
pub(crate) struct Area {
    pub(super) start: u64,
    pub(super) end: u64,
    /// In pages.
    pub(super) file_offset: u64,
    pub(super) flags: u64,
    /// Address of the `struct file`; 0 if there is none.
    pub(super) file: u64,
    /// Values that the walk reads on the way to `key`, from here to `super_block`.
    pub(super) mode: u64,
    pub(super) entry: u64,
    pub(super) inode: u64,
    pub(super) super_block: u64,
    pub(super) key: FileKey,
}
