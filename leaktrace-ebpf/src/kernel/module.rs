//! Gives each module that comes or goes a number; `generation` looks the number up.
//!
//! Both tracepoints pass one argument, the `struct module *` (include/trace/events/module.h, 5.15
//! to 7.2). The kernel passes `module_load` before it runs the module's init. It passes
//! `module_free` while the module's name is still there, also where init has failed
//! (kernel/module/main.c, 6.1).

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_probe_read_kernel, generated::bpf_probe_read_kernel_str},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use leaktrace_common::{
    LAST_GENERATION, LossReason, MODULE_NAME_BYTES, ModuleEvent, ModuleEventKind, PART_SHIFT,
    PARTS, PARTS_OF_MODULE, TextRange,
};

use super::{arguments::arg, module_text};
use crate::{
    atomic, loss,
    maps::{CURSORS, GENERATIONS, MODULE_EVENTS, config},
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

/// The range of a part of a module; `base` and `bytes` are the offsets in `struct module` of its
/// start and its size.
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

/// Gives every part of the modules' address range that a range touches the number `generation`.
/// Global and not inlined, so that the verifier checks it once.
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
