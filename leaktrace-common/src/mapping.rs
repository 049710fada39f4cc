//! The events by which system calls report the memory that a process maps itself.

/// What a [`MapEvent`] reports.
///
/// A program reports a mapping after it exists, and the end of a mapping before it is gone. So the
/// uses of one address by two threads are reported in the order in which they happened, whatever
/// CPU each thread runs on.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MapEventKind {
    /// `mmap` has returned memory.
    Mapped = 1,
    /// `munmap` is about to unmap.
    Unmapping = 2,
    /// The thread's `munmap` has returned.
    Unmapped = 3,
    /// `mremap` is about to move or resize.
    Moving = 4,
    /// The thread's `mremap` has returned.
    Moved = 5,
    /// `brk` has returned.
    Brk = 6,
}

impl MapEventKind {
    /// The kind with this number; `None` if there is none.
    pub const fn from_u32(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Mapped),
            2 => Some(Self::Unmapping),
            3 => Some(Self::Unmapped),
            4 => Some(Self::Moving),
            5 => Some(Self::Moved),
            6 => Some(Self::Brk),
            _ => None,
        }
    }
}

/// A system call of a traced process that changes its mappings. All fields are raw: the loader
/// decides what counts as memory, and whose it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapEvent {
    /// A [`MapEventKind`].
    pub kind: u32,
    /// Space of the process image.
    pub space: u32,
    /// The thread.
    pub tid: u32,
    /// 1: the thread made the call inside an allocator call that is in flight.
    pub in_allocator: u32,
    /// `CLOCK_MONOTONIC` in nanoseconds when the event was written.
    pub timestamp_ns: u64,
    /// First argument: an address; for [`MapEventKind::Brk`], the requested program break.
    pub address: u64,
    /// Second argument: bytes.
    pub length: u64,
    /// Third argument of `mremap`: the new size in bytes.
    pub new_length: u64,
    /// What the call returned; 0 while it has not returned.
    pub result: u64,
    /// Third argument of `mmap`: `PROT_*`.
    pub protection: u32,
    /// Fourth argument of `mmap` and `mremap`: `MAP_*` or `MREMAP_*`.
    pub flags: u32,
    /// Address of the instruction behind the system call.
    pub call_site: u64,
    /// A [`crate::StackId`] or one of its special values.
    pub stack: u64,
}

/// A system call that gives a process memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MapCall {
    /// `mmap(2)`
    Mmap,
    /// `mremap(2)`
    Mremap,
    /// `brk(2)`
    Brk,
}

impl MapCall {
    /// The system call's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mmap => "mmap",
            Self::Mremap => "mremap",
            Self::Brk => "brk",
        }
    }
}

/// Numbers of the system calls on x86_64 (arch/x86/entry/syscalls/syscall_64.tbl).
pub struct MapSyscall;

impl MapSyscall {
    /// `mmap`
    pub const MMAP: u64 = 9;
    /// `munmap`
    pub const MUNMAP: u64 = 11;
    /// `brk`
    pub const BRK: u64 = 12;
    /// `mremap`
    pub const MREMAP: u64 = 25;
}

const _: () = assert!(size_of::<MapEvent>() == 4 * 4 + 5 * 8 + 2 * 4 + 2 * 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_survive_their_number() {
        for raw in 1..=6 {
            assert_eq!(MapEventKind::from_u32(raw).map(|kind| kind as u32), Some(raw));
        }
        assert_eq!(MapEventKind::from_u32(0), None);
        assert_eq!(MapEventKind::from_u32(7), None);
    }
}
