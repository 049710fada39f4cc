//! Modules that come and go, and what tells one from another at the same addresses.
//!
//! Both tracepoints have one argument, the `struct module *` (include/trace/events/module.h, 5.15 to
//! 7.2). `module_load` passes before the module's init runs, `module_free` while its name is there
//! still, also where init has failed (kernel/module/main.c, 6.1).

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_probe_read_kernel, generated::bpf_probe_read_kernel_str},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use leaktrace_common::{
    LAST_GENERATION, LossReason, MAX_FRAMES, MODULE_NAME_BYTES, ModuleEvent, ModuleEventKind,
    PART_SHIFT, PARTS, PARTS_OF_MODULE, TextRange,
};

use super::{module_text, slab::arg};
use crate::{
    atomic, loss,
    maps::{CURSORS, GENERATIONS, KERNEL_SCRATCH, MODULE_EVENTS, config},
    pair,
};

/// module:module_load
#[raw_tracepoint(tracepoint = "module_load")]
pub(crate) fn lt_module_load(ctx: RawTracePointContext) -> i32 {
    pair::alone(|| tell(ModuleEventKind::Loaded, arg!(ctx, 0)));
    0
}

/// module:module_free
#[raw_tracepoint(tracepoint = "module_free")]
pub(crate) fn lt_module_free(ctx: RawTracePointContext) -> i32 {
    pair::alone(|| tell(ModuleEventKind::Freed, arg!(ctx, 0)));
    0
}

#[inline(always)]
fn tell(kind: ModuleEventKind, module: u64) {
    let Some(counter) = CURSORS.get_ptr_mut(3) else { return };
    // SAFETY: a live map value, aligned.
    let generation = unsafe { atomic::fetch_add(counter, 1) } + 1;
    let generation = if generation < LAST_GENERATION { generation } else { LAST_GENERATION };
    let mut event = ModuleEvent {
        kind: kind as u32,
        generation: generation as u32,
        text: range(module, config!(module.text_base), config!(module.text_bytes)),
        init_text: range(module, config!(module.init_base), config!(module.init_bytes)),
        name: [0; MODULE_NAME_BYTES],
    };
    // SAFETY: the helper checks the address; the buffer has the size given.
    unsafe {
        bpf_probe_read_kernel_str(
            event.name.as_mut_ptr().cast(),
            MODULE_NAME_BYTES as u32,
            module.wrapping_add(u64::from(config!(module.name))) as *const _,
        );
    }
    match kind {
        ModuleEventKind::Loaded => module_text::loaded(&event.name, event.text, event.init_text),
        ModuleEventKind::Freed => module_text::freed(event.text, event.init_text),
    }
    for text in [event.text, event.init_text] {
        leaktrace_number(text.start, text.end, generation as u32);
    }
    if MODULE_EVENTS.output::<ModuleEvent>(event, 0).is_err() {
        loss::count(LossReason::ModuleEventsFull);
    }
}

/// Where a part of a module lies, by where it says so.
#[inline(always)]
fn range(module: u64, base: u32, bytes: u32) -> TextRange {
    // SAFETY: the helper checks the addresses.
    let (start, bytes) = unsafe {
        let start = bpf_probe_read_kernel(module.wrapping_add(u64::from(base)) as *const u64);
        let bytes = bpf_probe_read_kernel(module.wrapping_add(u64::from(bytes)) as *const u32);
        (start.unwrap_or(0), bytes.map_or(0, u64::from))
    };
    TextRange { start, end: start.wrapping_add(bytes) }
}

/// Numbers the parts that a range of addresses lies in. Global and not inlined, so that the verifier
/// checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_number(start: u64, end: u64, generation: u32) -> u32 {
    let (first, last) = (start >> PART_SHIFT, end.wrapping_sub(1) >> PART_SHIFT);
    for index in 0..PARTS_OF_MODULE {
        let part = first.wrapping_add(u64::from(index));
        if start >= end || part > last {
            break;
        }
        if let Some(number) = GENERATIONS.get_ptr_mut(part as u32 & (PARTS - 1)) {
            // SAFETY: a live map value, written whole. Where two modules come at once, either
            // number is later than any module that lay there before.
            unsafe { number.write_volatile(generation) };
        }
    }
    0
}

/// 1 for what lies outside the kernel's own text, else 0. Without a branch: the verifier would follow
/// both ways of each frame. Both differences of addresses of the kernel have the sign that they seem
/// to have.
#[inline(always)]
fn is_outside(address: u64) -> u64 {
    let below = address.wrapping_sub(config!(kernel_text.start));
    let above = config!(kernel_text.end).wrapping_sub(address);
    (below | above) >> 63
}

/// The number of the latest load or unload at a call; 0 for one in the kernel's own text.
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

/// Whether a stack has frames of modules. The tracing program's own frames, which no tracepoint of
/// an allocator lies behind, come first and are none.
#[derive(Clone, Copy)]
pub(crate) struct Frames {
    in_kernel: u64,
    in_module: u64,
}

impl Frames {
    pub(crate) const NONE: Self = Self { in_kernel: 0, in_module: 0 };

    /// Takes in the next frame.
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

/// The latest number at the frames in a scratch slot that lie in modules. Global and not inlined, so
/// that the verifier checks it once.
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
