//! The user side: traced processes and calls that have not returned yet.

/// What `CALLS` counts: the hits of probes, by what a hit costs.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A return probe's hit: a function returns.
    Return = 0,
    /// An entry probe's hit in a function that gives memory, on an instruction that the kernel
    /// emulates.
    Entry = 1,
    /// As [`Call::Entry`], on an instruction that the kernel single-steps.
    SteppedEntry = 2,
    /// A probe's hit in a function that takes memory back, on an instruction that the kernel
    /// emulates.
    Free = 3,
    /// As [`Call::Free`], on an instruction that the kernel single-steps.
    SteppedFree = 4,
    /// A hit of a probe on a return instruction, which the kernel single-steps.
    SteppedReturn = 5,
}

/// Number of variants of [`Call`].
pub const CALLS: u32 = 6;

/// Set above the [`crate::AllocFunction::cookie`] in the cookie of a probe on an instruction that
/// the kernel single-steps.
pub const STEPPED: u64 = 1 << 32;

/// Most processes that leaktrace traces at once.
pub const MAX_PROCESSES: u32 = 4096;

/// Number of slots of `ENDED`; a power of two.
pub const ENDED_SLOTS: u32 = 16 * 1024;

/// A process that has ended. Everything allocated under its process ID from its start to its end
/// was its own, whatever process has the ID later.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedProcess {
    /// One more than the process' index in the order of ends; 0 while a program writes the slot.
    pub sequence: u64,
    /// `CLOCK_MONOTONIC`, in nanoseconds, at the start of the process.
    pub start_ns: u64,
    /// `CLOCK_MONOTONIC`, in nanoseconds, when the last thread of the process began to end.
    pub end_ns: u64,
    /// The command name of the process, ended by a zero byte.
    pub comm: [u8; 16],
    /// The process ID.
    pub tgid: u32,
    /// Always zero.
    pub zero: u32,
}

const _: () = assert!(size_of::<EndedProcess>() == 48);

/// A traced process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Space of the present process image, see [`crate::AllocKey::space`].
    pub space: u32,
    /// 1: leaktrace traces the process whatever it executes. 0: only while the filters want its
    /// command name or its control group.
    pub stays: u32,
    /// Address of the process' `struct mm_struct`, by which the programs recognise an exec that
    /// they have seen; 0 if unknown.
    pub mm: u64,
}

/// The outermost unfinished allocator call of a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Stack pointer at the function's entry; 0 when no call is in flight.
    pub stack_pointer: u64,
    /// Space of the process image that made the call.
    pub space: u32,
    /// The function's [`crate::AllocFunction::cookie`].
    pub function: u32,
    /// Bytes that the call asks for.
    pub size_bytes: u64,
    /// Return address of the call.
    pub caller: u64,
    /// A [`crate::StackId`] or one of its special values.
    pub stack: u64,
    /// For [`crate::Takes::Out`], the address to which the function writes the result. For
    /// `realloc` and the like, the old block.
    pub pointer: u64,
    /// For `realloc`, the old block's record, which is not in `BLOCKS` while the call runs.
    pub old: crate::Outstanding,
    /// Whether `old` holds a record.
    pub old_tracked: u32,
    /// Sampling interval at the call; [`InFlight::UNSAMPLED`] if the block is not to be recorded.
    pub interval: u32,
    /// The thread's last call that sampling skipped, by which the programs recognise the calls made
    /// inside it.
    pub skipped: SkippedCall,
    /// Used where raw tracepoint programs can be preempted, for a system call that maps memory: 1
    /// from the report of the call's entry to the report of its return.
    pub system_call: u64,
}

impl InFlight {
    /// The [`InFlight::interval`] of a call that the programs follow only for the block that the
    /// call frees.
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

/// An outermost call that the programs do not follow to its return.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkippedCall {
    /// Stack pointer at the function's entry; 0 if there is no such call.
    pub stack_pointer: u64,
    /// Return address of the call.
    pub caller: u64,
    /// The function's [`crate::AllocFunction::cookie`].
    pub function: u64,
}

impl SkippedCall {
    /// No skipped call.
    pub const NONE: Self = Self { stack_pointer: 0, caller: 0, function: 0 };
}

/// What an [`Event`] reports.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A process executed a new image: it is traced already, or from now on.
    Exec = 1,
    /// A traced process is about to map memory.
    Mapped = 2,
    /// A stack walk met an address in no known mapping.
    Unmapped = 3,
    /// A process has begun that leaktrace is to trace.
    Forked = 4,
    /// leaktrace no longer traces a process: the process has ended, or has executed an image that
    /// the filters do not want.
    Ended = 5,
}

/// A rare event in a traced process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// An [`EventKind`].
    pub kind: u32,
    /// The process ID; for [`EventKind::Forked`], the child's.
    pub tgid: u32,
    /// For [`EventKind::Exec`], the space that ended, 0 if the process was not traced. For
    /// [`EventKind::Forked`], the parent's space, 0 if the parent is not traced. For
    /// [`EventKind::Ended`], the last space.
    pub old_space: u32,
    /// The present space. 0 if no space is left or there is no room for another process; then the
    /// process is not traced any more. For [`EventKind::Forked`], the parent's own space if both
    /// share their memory (vfork).
    pub new_space: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds, at the event.
    pub time_ns: u64,
}

const _: () = assert!(size_of::<InFlight>() == 8 + 8 + 4 * 8 + 24 + 8 + 24 + 8);
const _: () = assert!(size_of::<Target>() == 16 && size_of::<Event>() == 24);
