//! Arguments of raw tracepoints, and of functions at fentry and fexit.

use aya_ebpf::{EbpfContext, helpers::generated::bpf_get_func_arg};

/// Argument `n` of a raw tracepoint.
///
/// In assembly, since LLVM merges loads of different branches into one from a computed
/// address, and the verifier refuses a context pointer that was moved.
macro_rules! arg {
    ($ctx:expr, $n:literal) => {{
        let value: u64;
        // SAFETY: reads the context, which holds 12 words for every raw tracepoint
        // (raw_tp_prog_is_valid_access, kernel/trace/bpf_trace.c, 6.18).
        unsafe {
            core::arch::asm!(
                concat!("{0} = *(u64 *)({1} + 8 * ", $n, ")"),
                out(reg) value,
                in(reg) $ctx.as_ptr(),
                options(pure, readonly, nostack),
            );
        }
        value
    }};
}
pub(super) use arg;

/// An argument of a function as a plain word, whatever its type. An argument that is read from the context
/// directly is a pointer that the verifier follows or, if it is `void **` or leads to a function, refuses
/// (btf_ctx_access, kernel/bpf/btf.c, 6.1).
#[inline(always)]
pub(super) fn argument<C: EbpfContext>(ctx: &C, index: u32) -> u64 {
    let mut value = 0;
    // SAFETY: the context of a fentry or fexit program, as the helper needs; from 5.17.
    unsafe { bpf_get_func_arg(ctx.as_ptr(), index, &raw mut value) };
    value
}
