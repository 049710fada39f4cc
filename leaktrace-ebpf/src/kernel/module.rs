//! Modules that come and go.
//!
//! Both tracepoints have one argument, the `struct module *` (include/trace/events/module.h, 5.15 to
//! 7.2). `module_load` passes before the module's init runs, `module_free` before its memory goes, also
//! where init has failed (kernel/module/main.c, 6.1).

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_probe_read_kernel, generated::bpf_probe_read_kernel_str},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use leaktrace_common::{MODULE_NAME_BYTES, TextRange};

use super::{module_text, slab::arg};
use crate::maps::config;

/// module:module_load
#[raw_tracepoint(tracepoint = "module_load")]
pub(crate) fn lt_module_load(ctx: RawTracePointContext) -> i32 {
    let module = arg!(&ctx, 0);
    let (text, init) = texts(module);
    let mut name = [0u8; MODULE_NAME_BYTES];
    // SAFETY: the buffer has the size given; the helper checks the address.
    unsafe {
        let at = module.wrapping_add(u64::from(config!(module.name)));
        bpf_probe_read_kernel_str(name.as_mut_ptr().cast(), name.len() as u32, at as *const _);
    }
    module_text::loaded(&name, text, init);
    0
}

/// module:module_free
#[raw_tracepoint(tracepoint = "module_free")]
pub(crate) fn lt_module_free(ctx: RawTracePointContext) -> i32 {
    let (text, init) = texts(arg!(&ctx, 0));
    module_text::freed(text, init);
    0
}

/// A module's code, and that of its init.
#[inline(always)]
fn texts(module: u64) -> (TextRange, TextRange) {
    (
        range(module, config!(module.text_base), config!(module.text_bytes)),
        range(module, config!(module.init_base), config!(module.init_bytes)),
    )
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
