//! Stacks: how they are named, stored, and how they ended.

/// Most frames that a stack holds; deeper ones keep the innermost.
pub const MAX_FRAMES: usize = 127;

/// 64-bit hash of a stack's frames and of how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u64);

impl StackId {
    /// No stack was taken for this allocation, on purpose (`--stacks adaptive|site`).
    pub const NOT_TAKEN: u64 = 0;
    /// A stack was wanted but could not be had; a [`crate::LossReason`] counts it.
    pub const LOST: u64 = 1;

    /// Start of a hash; frames are added with [`StackId::mix`].
    pub const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

    /// Adds one frame to a hash: a multiply and a rotate, so that order matters.
    #[inline(always)]
    pub const fn mix(hash: u64, frame: u64) -> u64 {
        let mixed = (hash ^ frame).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^ (mixed >> 32)
    }

    /// Ends a hash: never one of the two special values.
    #[inline(always)]
    pub const fn finish(hash: u64, end: u32) -> u64 {
        Self::mix(hash, end as u64) | 2
    }
}

/// Why a stack has no further frame.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StackEnd {
    /// The outermost frame was reached.
    Complete = 0,
    /// Deeper than the limit: the innermost frames are kept.
    TooDeep = 1,
    /// The stack could not be read.
    ReadFailed = 2,
    /// The frame pointer chain broke off: code without frame pointers.
    NoFramePointer = 3,
    /// An address in no mapping that was known.
    NoMapping = 4,
    /// An address for which the object's table has no row.
    NoRow = 5,
    /// A rule of the call frame information that is not supported.
    Unsupported = 6,
    /// The object's table was not built yet.
    TablePending = 7,
    /// The object has no table: none in the file, or no room for it.
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

    /// The end with this number; an unknown one is a failed read.
    pub fn from_u32(raw: u32) -> Self {
        Self::ALL.get(raw as usize).copied().unwrap_or(Self::ReadFailed)
    }

    /// Why the stack is short, as the end of a sentence; nothing for a complete one.
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

/// The frames of one stack, innermost first, as return addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackRecord {
    /// Number of valid frames.
    pub count: u32,
    /// A [`StackEnd`].
    pub end: u32,
    /// Return addresses; what lies behind `count` is left over and means nothing.
    pub frames: [u64; MAX_FRAMES],
    /// Of a kernel stack: the latest number of the modules in it, see [`crate::ModuleEvent`].
    pub generation: u64,
}

const _: () = assert!(size_of::<StackRecord>() == 1032);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_survive_their_number_and_have_reasons() {
        for (number, end) in StackEnd::ALL.into_iter().enumerate() {
            assert_eq!(end as usize, number);
            assert_eq!(StackEnd::from_u32(number as u32), end);
            assert_eq!(end.reason().is_none(), end == StackEnd::Complete);
        }
    }
}
