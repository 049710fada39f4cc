//! The user side: traced processes and calls that have not returned yet.

/// A traced process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Space of its present image, see [`crate::AllocKey::space`].
    pub space: u32,
    /// Always zero.
    pub zero: u32,
}

/// The outermost allocator call of a thread that has not returned yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Stack pointer at the function's entry; 0 when no call is in flight.
    pub stack_pointer: u64,
    /// Space of the process image that made the call.
    pub space: u32,
    /// A [`crate::AllocFunction::cookie`].
    pub function: u32,
    /// Bytes asked for.
    pub size_bytes: u64,
    /// Return address of the call.
    pub caller: u64,
    /// A [`crate::StackId`] or one of its special values.
    pub stack: u64,
    /// [`crate::Takes::Out`]: where the result goes. `realloc` and the like: the old block.
    pub pointer: u64,
    /// `realloc`: the old block's record, taken out of `BLOCKS` for the time of the call.
    pub old: crate::Outstanding,
    /// Whether `old` holds a record.
    pub old_tracked: u64,
}

/// What an [`Event`] tells.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A traced process replaced its image.
    Exec = 1,
    /// A traced process is about to map memory.
    Mapped = 2,
    /// A walk met an address in no known mapping.
    Unmapped = 3,
    /// A traced process made a child that is to be traced as well.
    Forked = 4,
}

/// A rare happening in a traced process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// An [`EventKind`].
    pub kind: u32,
    /// The process; [`EventKind::Forked`]: the child.
    pub tgid: u32,
    /// [`EventKind::Exec`]: the space that ended. [`EventKind::Forked`]: the parent's.
    pub old_space: u32,
    /// The present space; 0 if there is none left, and the process is not traced any more.
    /// [`EventKind::Forked`]: the parent's own if both share their memory (vfork), 0 if there was
    /// no room for another process.
    pub new_space: u32,
}

const _: () = assert!(size_of::<InFlight>() == 8 + 8 + 4 * 8 + 24 + 8);
const _: () = assert!(size_of::<Target>() == 8 && size_of::<Event>() == 16);
