//! Reads kernel stacks, and gives IDs to kernel and user stacks and stores them.

use aya_ebpf::{EbpfContext, bindings::BPF_NOEXIST, helpers::generated::bpf_get_stack};
use leaktrace_common::{LossReason, MAX_FRAMES, StackEnd, StackId, StackRecord};

use crate::{
    kernel::generation::{self, Frames},
    loss,
    maps::{EEXIST, KERNEL_SCRATCH, RECENT_STACK_SLOTS, RECENT_STACKS, STACKS, config},
};

/// Takes the kernel stack; returns its ID, or [`StackId::LOST`] after it has counted the loss. For
/// `slot` see [`read_kernel`].
#[inline(always)]
pub(crate) fn take_kernel<C: EbpfContext>(ctx: &C, slot: u32) -> u64 {
    let has_stack = read_kernel(ctx, slot);
    name_kernel(slot, has_stack)
}

/// Reads the kernel stack into a scratch slot; returns whether there is one, or counts the loss.
///
/// `slot` belongs to the calling program alone, and a second program on the same tracepoint has a
/// slot of its own. The kernel does not run a raw tracepoint program while that program is running
/// on the same CPU, not even where it is preempted there, and it stays on its CPU
/// (`__bpf_trace_run`, kernel/trace/bpf_trace.c, 6.1 to 7.2). Nor does the kernel run a kprobe's
/// program within another's (`trace_call_bpf` there).
#[inline(always)]
pub(crate) fn read_kernel<C: EbpfContext>(ctx: &C, slot: u32) -> bool {
    let Some(record) = KERNEL_SCRATCH.get_ptr_mut(slot) else {
        loss::count(LossReason::ScratchBusy);
        return false;
    };
    // SAFETY: a live map value that no other program uses; the helper writes within its size.
    unsafe {
        let room = config!(max_frames).min(MAX_FRAMES as u32) * 8;
        let bytes = bpf_get_stack(ctx.as_ptr(), (&raw mut (*record).frames).cast(), room, 0);
        if bytes <= 0 {
            loss::count_refusal(LossReason::StackUnreadable, bytes);
            return false;
        }
        let count = (bytes as u32) / 8;
        (*record).count = count;
        (*record).end = if count >= config!(max_frames) {
            StackEnd::TooDeep as u32
        } else {
            StackEnd::Complete as u32
        };
    }
    true
}

/// Stores the stack that [`read_kernel`] has read; returns its ID, or [`StackId::LOST`] if there is
/// none.
#[inline(always)]
pub(crate) fn name_kernel(slot: u32, has_stack: bool) -> u64 {
    match KERNEL_SCRATCH.get_ptr_mut(slot) {
        // SAFETY: a live map value that no other program uses, as it was read.
        Some(record) if has_stack => unsafe { store(slot, record) },
        _ => StackId::LOST,
    }
}

/// Frames among which [`is_interrupt`] looks for an interrupt's entry; most often it is among the
/// first twenty.
const INTERRUPT_FRAMES: u32 = 64;

/// Whether the kernel stack shows that an interrupt is being handled. For `slot` see
/// [`read_kernel`].
#[inline(always)]
pub(crate) fn is_interrupt<C: EbpfContext>(ctx: &C, slot: u32) -> bool {
    let Some(record) = KERNEL_SCRATCH.get_ptr_mut(slot) else { return false };
    // SAFETY: as in `read_kernel`.
    unsafe {
        let room = INTERRUPT_FRAMES * 8;
        let bytes = bpf_get_stack(ctx.as_ptr(), (&raw mut (*record).frames).cast(), room, 0);
        bytes > 0 && leaktrace_has_interrupt(slot, bytes as u32 / 8) != 0
    }
}

/// Whether one of the first `count` frames in a scratch slot is the entry of an interrupt. Global
/// and not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_has_interrupt(slot: u32, count: u32) -> u32 {
    let Some(record) = KERNEL_SCRATCH.get_ptr_mut(slot) else { return 0 };
    for index in 0..INTERRUPT_FRAMES {
        if index >= count {
            break;
        }
        // SAFETY: a live map value; the index is below the number of frames.
        let frame = unsafe { (*record).frames[index as usize] };
        let is_in = |start: u64, end: u64| frame >= start && frame < end;
        if is_in(config!(irq_start), config!(irq_end))
            || is_in(config!(softirq_start), config!(softirq_end))
        {
            return 1;
        }
    }
    0
}

/// Gives a stack its ID, the hash of its frames, and stores it if it is new.
///
/// # Safety
///
/// `record` is the live map value of `slot`, which only the caller uses, and its `count` and `end`
/// are set.
#[inline(always)]
unsafe fn store(slot: u32, record: *mut StackRecord) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let count = (*record).count as usize;
        let mut hash = StackId::SEED;
        let mut frames = Frames::NONE;
        for index in 0..MAX_FRAMES {
            if index >= count {
                break;
            }
            let frame = (*record).frames[index];
            hash = StackId::mix(hash, frame);
            frames.see(frame);
        }
        let generation = if frames.has_module() && config!(module.is_known) != 0 {
            u64::from(generation::leaktrace_generation(slot))
        } else {
            0
        };
        (*record).generation = generation;
        store_hashed(record, StackId::mix(hash, generation))
    }
}

/// As [`store`], for frames whose hash is known.
///
/// # Safety
///
/// `record` is a live map value that only the caller uses, and all but its unused frames are set.
#[inline(always)]
pub(crate) unsafe fn store_hashed(record: *mut StackRecord, hash: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let id = StackId::finish(hash, (*record).end);
        let Some(recent) = RECENT_STACKS.get_ptr_mut(id as u32 & (RECENT_STACK_SLOTS - 1)) else {
            return StackId::LOST;
        };
        if *recent == id {
            return id;
        }
        if STACKS.get_ptr(id).is_some() {
            *recent = id;
            // The loader may have taken it out, and wiped the table, in between; it does so in this
            // order.
            if STACKS.get_ptr(id).is_some() {
                return id;
            }
            *recent = 0;
        }
        match STACKS.insert(id, &*record, u64::from(BPF_NOEXIST)) {
            Ok(()) | Err(EEXIST) => id,
            Err(error) => {
                loss::count_refusal(LossReason::StacksFull, error.into());
                StackId::LOST
            }
        }
    }
}
