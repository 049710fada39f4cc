//! The user side: traced processes and calls that have not returned yet.

/// What is counted in `CALLS`: hits of probes, by what they cost.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A function returns.
    Return = 0,
    /// A call that gives memory, at an instruction that the kernel emulates.
    Entry = 1,
    /// The same at one that it single-steps.
    SteppedEntry = 2,
    /// A call that takes memory back, at an instruction that the kernel emulates.
    Free = 3,
    /// The same at one that it single-steps.
    SteppedFree = 4,
    /// A return instruction is run, which the kernel single-steps.
    SteppedReturn = 5,
}

/// Numbers of [`Call`].
pub const CALLS: u32 = 6;

/// Set in the cookie of a probe on an instruction that the kernel single-steps, above the
/// [`crate::AllocFunction::cookie`].
pub const STEPPED: u64 = 1 << 32;

/// Most processes that are traced at once.
pub const MAX_PROCESSES: u32 = 4096;

/// Slots of `ENDED`; a power of two.
pub const ENDED_SLOTS: u32 = 16 * 1024;

/// A process that has ended: what was allocated in it from its start to its end was its own, whoever
/// has its number later.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedProcess {
    /// One more than its number in the order of ends; 0 while the slot is written.
    pub sequence: u64,
    /// `CLOCK_MONOTONIC` at its start.
    pub start_ns: u64,
    /// `CLOCK_MONOTONIC` when its last thread began to end.
    pub end_ns: u64,
    /// Its command name, ended by a zero byte.
    pub comm: [u8; 16],
    /// Its process ID.
    pub tgid: u32,
    /// Always zero.
    pub zero: u32,
}

const _: () = assert!(size_of::<EndedProcess>() == 48);

/// A traced process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Space of its present image, see [`crate::AllocKey::space`].
    pub space: u32,
    /// 1: it is traced whatever it executes; 0: while its command or its control group is one that
    /// is asked for.
    pub stays: u32,
    /// Address of its `struct mm_struct`, by which an exec that has been seen is known; 0 if it is
    /// not known.
    pub mm: u64,
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
    pub old_tracked: u32,
    /// Sampling interval at the call, [`InFlight::UNSAMPLED`] if its block is not to be recorded.
    pub interval: u32,
    /// The thread's last call that sampling let through, by which calls that it makes are known.
    pub skipped: SkippedCall,
    /// Of a system call that maps memory, where raw tracepoint programs can be preempted: 1 from
    /// its beginning being told to its return being told.
    pub system_call: u64,
}

impl InFlight {
    /// The [`InFlight::interval`] of a call that is only followed for the block that it frees.
    pub const UNSAMPLED: u32 = u32::MAX;
    /// The slot of a thread that has made no call yet.
    pub const IDLE: Self = Self {
        stack_pointer: 0,
        space: 0,
        function: 0,
        size_bytes: 0,
        caller: 0,
        stack: crate::StackId::NOT_TAKEN,
        pointer: 0,
        old: crate::Outstanding { size_bytes: 0, timestamp_ns: 0, site: 0, detail: 0 },
        old_tracked: 0,
        interval: 0,
        skipped: SkippedCall::NONE,
        system_call: 0,
    };
}

/// An outermost call that is not followed to its return.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkippedCall {
    /// Stack pointer at the function's entry; 0 if there is none.
    pub stack_pointer: u64,
    /// Return address of the call.
    pub caller: u64,
    /// A [`crate::AllocFunction::cookie`].
    pub function: u64,
}

impl SkippedCall {
    /// There is none.
    pub const NONE: Self = Self { stack_pointer: 0, caller: 0, function: 0 };
}

/// What an [`Event`] tells.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A traced process replaced its image, or one that is traced from now on.
    Exec = 1,
    /// A traced process is about to map memory.
    Mapped = 2,
    /// A walk met an address in no known mapping.
    Unmapped = 3,
    /// A process has begun that is to be traced.
    Forked = 4,
    /// A process is not traced any more: it has ended, or executed something that is not asked for.
    Ended = 5,
}

/// A rare happening in a traced process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// An [`EventKind`].
    pub kind: u32,
    /// The process; [`EventKind::Forked`]: the child.
    pub tgid: u32,
    /// [`EventKind::Exec`]: the space that ended, 0 if the process was not traced.
    /// [`EventKind::Forked`]: the parent's, 0 if that is not traced. [`EventKind::Ended`]: the last.
    pub old_space: u32,
    /// The present space; 0 if there is none left or no room for another process, and the process
    /// is not traced any more. [`EventKind::Forked`]: the parent's own if both share their memory
    /// (vfork).
    pub new_space: u32,
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
}

const _: () = assert!(size_of::<InFlight>() == 8 + 8 + 4 * 8 + 24 + 8 + 24 + 8);
const _: () = assert!(size_of::<Target>() == 16 && size_of::<Event>() == 24);
