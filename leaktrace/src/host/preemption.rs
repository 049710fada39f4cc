//! Whether raw tracepoint programs can be preempted.

use std::fs;

use super::layout::VMLINUX_BTF;

/// Two names in the kernel's BTF that tell it together; older kernels have at most one of them.
///
/// From 7.0 on tracepoints are walked under SRCU in its fast form, with preemption on
/// (include/linux/tracepoint.h and `__bpf_trace_run`, kernel/trace/bpf_trace.c, 7.2); before that,
/// preemption was off. The SRCU structure of tracepoints had been there up to 6.12, for tracepoints
/// in idle CPUs, but not the fast form.
const SIGNS: [&[u8]; 2] = [b"tracepoint_srcu_srcu_data", b"init_srcu_struct_fast"];

/// Whether raw tracepoint programs can be preempted on this kernel, if it is built with preemption.
/// A kernel without BTF is an older one.
pub fn has_preemptible_tracepoints() -> bool {
    fs::read(VMLINUX_BTF).is_ok_and(|btf| has_signs(&btf))
}

fn has_signs(btf: &[u8]) -> bool {
    SIGNS.iter().all(|sign| btf.split(|byte| *byte == 0).any(|name| name == *sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_signs_are_needed() {
        assert!(has_signs(b"x\0init_srcu_struct_fast\0y\0tracepoint_srcu_srcu_data\0"));
        // 6.1, and what merely begins so.
        assert!(!has_signs(b"\0tracepoint_srcu_srcu_data\0"));
        assert!(!has_signs(b"\0tracepoint_srcu_srcu_data\0init_srcu_struct_fast_updown\0"));
        assert!(!has_signs(b""));
    }
}
