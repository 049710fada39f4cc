//! Arguments of raw tracepoints.

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
