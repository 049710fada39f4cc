//! Stacks: how leaktrace identifies and stores them, and how a walk ended.

/// Most frames that a stack holds; a deeper stack keeps its innermost frames.
pub const MAX_FRAMES: usize = 127;

/// 64-bit hash of a stack's frames and of how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u64);

impl StackId {
    /// leaktrace took no stack for this allocation, on purpose (`--stacks adaptive|site`).
    pub const NOT_TAKEN: u64 = 0;
    /// A stack was wanted, but taking it failed; a [`crate::LossReason`] counts the failure.
    pub const LOST: u64 = 1;

    /// Start value of a hash; [`StackId::mix`] adds the frames.
    pub const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

    /// Adds one frame to a hash by a multiplication and a rotation, so that the order of frames
    /// matters.
    #[inline(always)]
    pub const fn mix(hash: u64, frame: u64) -> u64 {
        let mixed = (hash ^ frame).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^ (mixed >> 32)
    }

    /// Reverts the last [`StackId::mix`].
    #[inline(always)]
    pub const fn unmix(hash: u64, frame: u64) -> u64 {
        // The factor's inverse.
        (hash ^ (hash >> 32)).wrapping_mul(0x4f74_430c_22a5_4005) ^ frame
    }

    /// Finishes a hash; the result is never one of the two special values.
    #[inline(always)]
    pub const fn finish(hash: u64, end: u32) -> u64 {
        Self::mix(hash, end as u64) | 2
    }
}

/// Why a stack has no further frame.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StackEnd {
    /// The walk reached the outermost frame.
    Complete = 0,
    /// The stack is deeper than the limit: it keeps the innermost frames.
    TooDeep = 1,
    /// The stack could not be read.
    ReadFailed = 2,
    /// The frame pointer chain broke: some code has no frame pointers.
    NoFramePointer = 3,
    /// An address lay in no known mapping.
    NoMapping = 4,
    /// The object's unwind table has no row for an address.
    NoRow = 5,
    /// The call frame information has a rule that leaktrace does not support.
    Unsupported = 6,
    /// The object's unwind table was not built yet.
    TablePending = 7,
    /// The object has no unwind table: the file has no call frame information, or there was no
    /// room.
    NoTable = 8,
}

impl StackEnd {
    /// Every way in which a stack can end, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Complete,
        Self::TooDeep,
        Self::ReadFailed,
        Self::NoFramePointer,
        Self::NoMapping,
        Self::NoRow,
        Self::Unsupported,
        Self::TablePending,
        Self::NoTable,
    ];

    /// The end with this number; an unknown number stands for a failed read.
    pub fn from_u32(raw: u32) -> Self {
        Self::ALL.get(raw as usize).copied().unwrap_or(Self::ReadFailed)
    }

    /// Why the stack is short, as the end of a sentence; `None` for a complete stack.
    pub const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Complete => None,
            Self::TooDeep => Some("deeper than the frame limit"),
            Self::ReadFailed => Some("the stack could not be read"),
            Self::NoFramePointer => Some("code without frame pointers"),
            Self::NoMapping => Some("an address in no known mapping"),
            Self::NoRow => Some("an address without call frame information"),
            Self::Unsupported => Some("call frame information that is not supported"),
            Self::TablePending => Some("the library's unwind table was not built yet"),
            Self::NoTable => Some("the object has no unwind table"),
        }
    }
}

/// Bits of a user frame that say how the walk found it. They lie above the bits of an address: 57
/// with five levels of page tables.
pub struct FrameMark;

impl FrameMark {
    /// The walk found the frame by frame pointer.
    pub const FRAME_POINTER: u64 = 1 << 63;
    /// A signal interrupted the frame: it has made no call, and the interrupted instruction begins
    /// at the byte before the stored address.
    pub const INTERRUPTED: u64 = 1 << 62;
    /// Every mark.
    pub const ALL: u64 = Self::FRAME_POINTER | Self::INTERRUPTED;
}

/// Whether the eight bytes before an address end with a near call, as the bytes before a return
/// address do. The first byte is in the lowest bits of `code`.
///
/// The bytes before any other address seem to end with one now and then: with the opcode E8 once in
/// 256.
#[inline(always)]
pub const fn ends_with_call(code: u64) -> bool {
    // E8 and a distance of 32 bits (Intel SDM, volume 2A, CALL).
    (code >> 24) & 0xff == 0xe8
        // FF /2: ModRM alone, with the target in a register or where one points.
        || (code >> 48) & 0xf8ff == 0xd0ff
        || (code >> 48) & 0xf8ff == 0x10ff
        // With SIB, with an address of one byte, with both.
        || (code >> 40) & 0xffff == 0x14ff
        || (code >> 40) & 0xf8ff == 0x50ff
        || (code >> 32) & 0xffff == 0x54ff
        // With an address of four bytes, relative to the next instruction or to a register, and
        // with SIB as well.
        || (code >> 16) & 0xffff == 0x15ff
        || (code >> 16) & 0xf8ff == 0x90ff
        || (code >> 8) & 0xffff == 0x94ff
        || (code >> 8) & 0xffff == 0x14ff
}

/// The frames of one stack, innermost first, as return addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackRecord {
    /// Number of valid frames.
    pub count: u32,
    /// A [`StackEnd`].
    pub end: u32,
    /// Return addresses, with [`FrameMark`]s in a user stack. Entries from `count` on are left over
    /// from other stacks and mean nothing.
    pub frames: [u64; MAX_FRAMES],
    /// For a kernel stack, the latest load number of the modules in it, see [`crate::ModuleEvent`].
    pub generation: u64,
}

const _: () = assert!(size_of::<StackRecord>() == 1032);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_mixed_in_can_be_taken_back() {
        for frame in [0, 1, 0x7fff_dead_beef, u64::MAX] {
            let before = StackId::mix(StackId::SEED, 0x5555_0000_1234);
            assert_eq!(StackId::unmix(StackId::mix(before, frame), frame), before);
        }
    }

    #[test]
    fn every_form_of_a_call_is_one() {
        let calls: [&[u8]; 13] = [
            &[0xe8, 1, 2, 3, 4],
            &[0xff, 0xd0],
            &[0x41, 0xff, 0xd4],
            &[0xff, 0x13],
            &[0xff, 0x50, 0x18],
            &[0xff, 0x55, 0xf8],
            &[0xff, 0x14, 0xc8],
            &[0x41, 0xff, 0x54, 0x24, 0x08],
            &[0xff, 0x15, 1, 2, 3, 4],
            &[0xff, 0x90, 1, 2, 3, 4],
            &[0xff, 0x94, 0x24, 1, 2, 3, 4],
            &[0xff, 0x14, 0xc5, 1, 2, 3, 4],
            &[0xff, 0x14, 0x25, 1, 2, 3, 4],
        ];
        for call in calls {
            let mut code = [0x90; 8];
            code[8 - call.len()..].copy_from_slice(call);
            assert!(ends_with_call(u64::from_le_bytes(code)), "{call:x?}");
        }
    }

    #[test]
    fn what_is_before_a_function_is_no_call() {
        let others: [[u8; 8]; 6] = [
            [0x90, 0x0f, 0x1f, 0x80, 0, 0, 0, 0],
            [0xcc; 8],
            [0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3],
            // jmp *%rax; jmp *8(%rbx); push (%rax).
            [0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0xff, 0xe0],
            [0x90, 0x90, 0x90, 0x90, 0x90, 0xff, 0x63, 8],
            [0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0xff, 0x30],
        ];
        for code in others {
            assert!(!ends_with_call(u64::from_le_bytes(code)), "{code:x?}");
        }
    }

    #[test]
    fn ends_survive_their_number_and_have_reasons() {
        for (number, end) in StackEnd::ALL.into_iter().enumerate() {
            assert_eq!(end as usize, number);
            assert_eq!(StackEnd::from_u32(number as u32), end);
            assert_eq!(end.reason().is_none(), end == StackEnd::Complete);
        }
    }
}
