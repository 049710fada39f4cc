//! The number of a module's load or unload, which tells modules at the same addresses apart.

use leaktrace_common::{MAX_FRAMES, PART_SHIFT, PARTS};

use crate::maps::{GENERATIONS, KERNEL_SCRATCH, config};

/// 1 for an address outside the kernel's own text, else 0. The function has no branch, as the
/// verifier would follow both ways at each frame. Two kernel addresses are so close that the sign
/// of their wrapped difference is right.
#[inline(always)]
fn is_outside(address: u64) -> u64 {
    let below = address.wrapping_sub(config!(kernel_text.start));
    let above = config!(kernel_text.end).wrapping_sub(address);
    (below | above) >> 63
}

/// The number of the latest load or unload at a call; 0 for a call in the kernel's own text.
#[inline(always)]
pub(crate) fn generation_at(return_address: u64) -> u32 {
    if config!(module.is_known) == 0 || return_address == 0 || is_outside(return_address) == 0 {
        return 0;
    }
    number(return_address)
}

#[inline(always)]
fn number(return_address: u64) -> u32 {
    // The call lies before its return address.
    let part = (return_address.wrapping_sub(1) >> PART_SHIFT) as u32 & (PARTS - 1);
    // SAFETY: a live map value, read whole.
    GENERATIONS.get_ptr(part).map_or(0, |number| unsafe { number.read_volatile() })
}

/// Whether a stack has frames of modules. The frames of the tracing BPF program come first and do
/// not count: every tracepoint of an allocator lies in the kernel's own text, so they end where the
/// first frame lies in that text.
#[derive(Clone, Copy)]
pub(crate) struct Frames {
    in_kernel: u64,
    in_module: u64,
}

impl Frames {
    pub(crate) const NONE: Self = Self { in_kernel: 0, in_module: 0 };

    /// Looks at the next frame.
    #[inline(always)]
    pub(crate) fn see(&mut self, frame: u64) {
        let outside = is_outside(frame);
        self.in_kernel |= outside ^ 1;
        self.in_module |= outside & self.in_kernel;
    }

    #[inline(always)]
    pub(crate) fn has_module(self) -> bool {
        self.in_module != 0
    }
}

/// The latest load number at those frames in a scratch slot that lie in modules. Global and not
/// inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_generation(slot: u32) -> u32 {
    let Some(record) = KERNEL_SCRATCH.get_ptr(slot) else { return 0 };
    // SAFETY: a live map value that only the calling program uses.
    let count = unsafe { (*record).count };
    let mut latest = 0;
    let mut frames = Frames::NONE;
    for index in 0..MAX_FRAMES {
        if index as u32 >= count {
            break;
        }
        // SAFETY: as above; the index is below the number of frames.
        let frame = unsafe { (*record).frames[index] };
        frames.see(frame);
        if is_outside(frame) != 0 && frames.has_module() {
            let number = number(frame);
            if number > latest {
                latest = number;
            }
        }
    }
    latest
}
