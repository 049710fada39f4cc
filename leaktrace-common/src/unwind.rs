//! Unwind tables, in the form that the BPF programs and the loader share.
//!
//! A row says how to find the caller's frame from any instruction between the row's own address and
//! the next row's. The return address always lies 8 bytes below the CFA (canonical frame address,
//! DWARF 5 section 6.4); code where it does not is unsupported and stops the walk.

/// How a row computes the CFA.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CfaRule {
    /// No function covers these addresses.
    Gap = 0,
    /// `rsp + offset`
    Rsp = 1,
    /// `rbp + offset`
    Rbp = 2,
    /// A PLT entry: `rsp + 8`, and 8 bytes more from byte `offset` of the 16-byte entry on.
    Plt = 3,
    /// The outermost frame: the call frame information leaves its return address undefined.
    End = 4,
    /// The trampoline behind a signal handler: the signal frame holds the registers.
    Signal = 5,
    /// `*(rbp + offset)`, with the caller's rbp at `*(rbp + rbp_offset)`: a stack that gcc
    /// realigned.
    Deref = 6,
    /// A rule that no row can express.
    Unsupported = 7,
}

impl CfaRule {
    /// The rule with this number (3 bits).
    #[inline(always)]
    pub const fn from_u16(raw: u16) -> Self {
        match raw & 7 {
            1 => Self::Rsp,
            2 => Self::Rbp,
            3 => Self::Plt,
            4 => Self::End,
            5 => Self::Signal,
            6 => Self::Deref,
            7 => Self::Unsupported,
            _ => Self::Gap,
        }
    }
}

/// One row in 8 bytes: the address in the low half; rule, CFA offset and rbp offset in the high
/// half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnwindRow {
    /// First address that the row covers, relative to the object's virtual address 0.
    pub pc: u32,
    /// How to compute the CFA.
    pub rule: CfaRule,
    /// Offset in bytes, below 65,536 and a multiple of 8; for [`CfaRule::Plt`], a byte's number.
    /// For [`CfaRule::Deref`] the offset is negative, and this field holds its absolute value.
    pub offset: u16,
    /// Where the caller's rbp is stored, in bytes from the CFA (for [`CfaRule::Deref`], from rbp);
    /// 0 if the function has not changed rbp. A multiple of 8.
    pub rbp_offset: i32,
}

impl UnwindRow {
    /// The row without its address, as stored in the upper half.
    #[inline(always)]
    pub const fn packed_rule(self) -> u32 {
        let offset = match self.rule {
            CfaRule::Plt => self.offset,
            _ => self.offset / 8,
        };
        let cfa = (self.rule as u16) | (offset << 3);
        (cfa as u32) | ((((self.rbp_offset / 8) as i16) as u16 as u32) << 16)
    }

    /// The row as stored.
    #[inline(always)]
    pub const fn packed(self) -> u64 {
        (self.pc as u64) | ((self.packed_rule() as u64) << 32)
    }

    /// The row in a stored upper half; its address is not part of that half.
    #[inline(always)]
    pub const fn unpack_rule(packed: u32) -> Self {
        let rule = CfaRule::from_u16(packed as u16);
        let offset = (packed as u16) >> 3;
        let offset = match rule {
            CfaRule::Plt => offset,
            _ => offset * 8,
        };
        Self { pc: 0, rule, offset, rbp_offset: ((packed >> 16) as u16 as i16 as i32) * 8 }
    }
}

/// Bytes of text that share one entry in `PAGES`.
pub const TEXT_PAGE_BYTES: u64 = 4096;
/// Most rows of one text page that a look-up searches.
pub const MAX_ROWS_IN_PAGE: u32 = 4096;
/// Most user stack walks that can be under way at once on one CPU; leaktrace counts further ones as
/// lost.
pub const WALKS_PER_CPU: u32 = 8;
/// Most executable mappings of one process that a look-up searches.
pub const MAX_MAPPINGS: u32 = 4096;

/// How the walk unwinds frames in a mapping.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unwinding {
    /// By the unwind table alone (`--unwind dwarf`).
    Table = 0,
    /// By frame pointers: the code has no unwind table as it was made at run time, or `--unwind fp`
    /// asks for it.
    FramePointer = 1,
    /// The loader has not built the unwind table yet.
    Pending = 2,
    /// Not at all: there is no unwind table, and frame pointers are not wanted.
    Nothing = 3,
    /// By the unwind table, and by frame pointers where the table has no row: code of runtimes
    /// (V8's builtins, stubs of Go and OpenJDK), or code compiled without call frame information.
    Mixed = 4,
}

/// One executable mapping of a process, in `MAPPINGS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextMapping {
    /// First address.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// What to subtract from an address to get the object's own virtual address.
    pub bias: u64,
    /// Index in `PAGES` of the object's first text page.
    pub first_page: u32,
    /// Number of that page: its virtual address divided by 4096.
    pub page_base: u32,
    /// Number of text pages of the object.
    pub page_count: u32,
    /// The [`Unwinding`] of the mapping, as its number.
    pub unwinding: u32,
}

/// A file's identity in the kernel: device and inode number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// `s_dev` of the file's file system: 12 bits of major, 20 bits of minor number
    /// (include/linux/kdev_t.h).
    pub device: u64,
    /// `i_ino`
    pub inode: u64,
}

impl FileKey {
    /// The key from the device and inode numbers in `/proc/PID/maps`.
    pub const fn new(device: (u32, u32), inode: u64) -> Self {
        Self { device: ((device.0 as u64) << 20) | device.1 as u64, inode }
    }
}

/// Most text segments of an object in `OBJECTS`.
pub const TEXT_SEGMENTS: usize = 4;

/// A text segment, by its pages in the file.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextSegment {
    /// Offset in the file of the segment's first page.
    pub start: u64,
    /// Offset in the file behind the segment's last byte; 0 in an unused entry.
    pub end: u64,
    /// Virtual address of the segment's first page.
    pub address: u64,
}

/// An object's unwind table, in `OBJECTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextObject {
    /// The object's text segments, in the order of `start`.
    pub segments: [TextSegment; TEXT_SEGMENTS],
    /// See [`TextMapping::first_page`].
    pub first_page: u32,
    /// See [`TextMapping::page_base`].
    pub page_base: u32,
    /// See [`TextMapping::page_count`].
    pub page_count: u32,
    /// The [`Unwinding`] of the object, as its number.
    pub unwinding: u32,
}

/// The part of `MAPPINGS` that belongs to a process image, sorted by address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextMap {
    /// Index in `MAPPINGS` of the image's first mapping.
    pub first: u32,
    /// Number of the image's mappings.
    pub count: u32,
    /// Changes whenever the mappings change: it is part of the rule cache's key.
    pub generation: u32,
    /// A bit for each [`crate::EventKind`] that the BPF side has reported; the loader clears the
    /// bits when it publishes mappings.
    pub notified: u32,
}

const _: () = assert!(size_of::<TextMapping>() == 40 && size_of::<TextMap>() == 16);
const _: () = assert!(size_of::<FileKey>() == 16 && size_of::<TextObject>() == 112);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_packing() {
        for (rule, offset, rbp_offset) in [
            (CfaRule::Rsp, 8, 0),
            (CfaRule::Rsp, 65_528, -16),
            (CfaRule::Rbp, 16, -16),
            (CfaRule::Plt, 11, 0),
            (CfaRule::Deref, 8, 0),
            (CfaRule::End, 0, 0),
            (CfaRule::Signal, 0, 0),
            (CfaRule::Unsupported, 0, 0),
            (CfaRule::Gap, 0, 0),
        ] {
            let row = UnwindRow { pc: 0x1234, rule, offset, rbp_offset };
            let packed = row.packed();
            assert_eq!(packed as u32, 0x1234);
            assert_eq!(
                UnwindRow { pc: 0x1234, ..UnwindRow::unpack_rule((packed >> 32) as u32) },
                row
            );
        }
    }
}
