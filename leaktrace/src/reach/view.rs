//! A look at a process: whose memory to read, and what its threads hold in registers.

use std::{any::Any, ops::Range};

/// What a scan reads. The target is let go when this is dropped.
///
/// It is not `Send`: what holds a target by ptrace must let go of it in the thread that took it.
pub struct View {
    /// The process that is judged.
    pub pid: u32,
    /// The process whose memory is read: the target itself, or its fork.
    pub memory_pid: u32,
    /// The threads of which the registers are known; those of the target, in a fork as well.
    pub threads: Vec<ThreadState>,
    /// Whether the memory cannot change while the view lives, and belongs to these registers.
    pub is_consistent: bool,
    /// Memory that the fork does not have as the target has it (MADV_DONTFORK, MADV_WIPEONFORK):
    /// it is read from the target. Empty where the target's own memory is read.
    pub from_target: Vec<Range<u64>>,
    /// Lets go of the target when dropped.
    pub hold: Option<Box<dyn Any>>,
}

/// What a thread held in registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadState {
    /// Thread ID.
    pub tid: u32,
    /// Stack pointer.
    pub sp: u64,
    /// Instruction pointer.
    pub ip: u64,
    /// Frame pointer.
    pub bp: u64,
    /// Base of the FS segment: the thread's control block.
    pub fs_base: u64,
    /// Base of the GS segment.
    pub gs_base: u64,
    /// Every other word that may be an address: general and vector registers.
    pub words: Vec<u64>,
}

impl View {
    /// A view of a running process, which is neither stopped nor asked for its registers.
    pub fn live(pid: u32) -> Self {
        Self {
            pid,
            memory_pid: pid,
            threads: Vec::new(),
            is_consistent: false,
            from_target: Vec::new(),
            hold: None,
        }
    }
}
