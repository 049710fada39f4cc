//! Puts calls of kernel functions (kfuncs) into the object: aya 0.14 cannot express them.

use aya::{Btf, BtfError};
use aya_obj::btf::BtfKind;
use leaktrace_common::KernelCall;

/// The functions, each with the helper number that stands for it in the object. The kernel has
/// those of preemption from 6.10 on, those of interrupts from 6.14 on (kernel/bpf/helpers.c).
const FUNCTIONS: [(i32, &str); 4] = [
    (KernelCall::PREEMPT_DISABLE, "bpf_preempt_disable"),
    (KernelCall::PREEMPT_ENABLE, "bpf_preempt_enable"),
    (KernelCall::IRQ_SAVE, "bpf_local_irq_save"),
    (KernelCall::IRQ_RESTORE, "bpf_local_irq_restore"),
];

/// The opcode of a call, and the flag that makes it call a kernel function, as the first two bytes
/// of an instruction (`struct bpf_insn` and `BPF_PSEUDO_KFUNC_CALL`, include/uapi/linux/bpf.h).
const CALL: u8 = 0x85;
const KERNEL_FUNCTION: u8 = 2 << 4;

/// The object with the calls put in; `None` where the kernel lacks one of the functions.
pub(super) fn put_into(object: &[u8]) -> Option<Aligned> {
    let btf = Btf::from_sys_fs().ok()?;
    let mut calls = Vec::new();
    for (placeholder, name) in FUNCTIONS {
        calls.push((placeholder, id(&btf, name).ok()?));
    }
    let words = object.chunks(8).map(|chunk| {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(chunk) {
            *to = *from;
        }
        replaced(u64::from_le_bytes(bytes), &calls)
    });
    Some(Aligned { words: words.collect(), bytes: object.len() })
}

fn id(btf: &Btf, name: &str) -> Result<u32, BtfError> {
    btf.id_by_type_name_kind(name, BtfKind::Func)
}

/// The instruction; if it is one of the calls, with the ID of the kernel function.
fn replaced(instruction: u64, calls: &[(i32, u32)]) -> u64 {
    let of =
        |flag: u8, number: u32| u64::from(CALL) | u64::from(flag) << 8 | u64::from(number) << 32;
    let found = calls.iter().find(|(placeholder, _)| instruction == of(0, *placeholder as u32));
    found.map_or(instruction, |(_, id)| of(KERNEL_FUNCTION, *id))
}

/// Bytes at an address that is aligned enough for a parser of ELF files.
pub(super) struct Aligned {
    words: Vec<u64>,
    bytes: usize,
}

impl Aligned {
    pub(super) fn as_bytes(&self) -> &[u8] {
        let bytes = self.bytes.min(self.words.len() * 8);
        // SAFETY: a live vector of at least as many bytes; any byte is a valid one.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_call_of_that_number_is_replaced() {
        let calls = [(KernelCall::PREEMPT_DISABLE, 0x0102_0304)];
        let call = 0x6c74_7064_0000_0085;
        assert_eq!(replaced(call, &calls), 0x0102_0304_0000_2085);
        for other in [call + 1, call | 1 << 8, call + (1 << 32), 0] {
            assert_eq!(replaced(other, &calls), other);
        }
    }
}
