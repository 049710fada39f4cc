//! Where in a function a uprobe costs one trap.
//!
//! The kernel emulates some instructions under a uprobe (push, nop, relative jmp, jcc, call)
//! and single-steps all others, which costs a second trap (arch/x86/kernel/uprobes.c, 6.1 and
//! 6.18): 2 to 3 times the price on hardware. glibc's `free` begins with `test`; the `je` behind
//! it is emulated.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};

/// Bytes of a function that are looked at.
const WINDOW: usize = 64;

/// Offset, from the start of a function, of the first instruction that is emulated, that every
/// call runs exactly once, and before which the first argument (`rdi`) is untouched; 0 where
/// there is none.
///
/// `code` is the whole function. Only for functions of which no return is watched: a return
/// probe takes the word at `rsp` for the return address, which a push would move.
pub fn first_argument_probe(code: &[u8]) -> u64 {
    let Some(candidate) = straight_line_candidate(code) else { return 0 };
    if candidate != 0 && is_branch_target(code, candidate) { 0 } else { candidate }
}

/// Offset after an `endbr64` at the start of a function, else 0: the one place other than the
/// entry where a return probe still finds the return address at `rsp`.
pub fn entry_probe(code: &[u8]) -> u64 {
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    if code.starts_with(&ENDBR64) { ENDBR64.len() as u64 } else { 0 }
}

fn straight_line_candidate(code: &[u8]) -> Option<u64> {
    let window = code.get(..WINDOW.min(code.len()))?;
    let mut info = InstructionInfoFactory::new();
    for instruction in &mut Decoder::with_ip(64, window, 0, DecoderOptions::NONE) {
        if instruction.is_invalid() {
            return None;
        }
        if is_emulated(&instruction) {
            return Some(instruction.ip());
        }
        if instruction.flow_control() != FlowControl::Next {
            return None;
        }
        let writes_argument = info.info(&instruction).used_registers().iter().any(|used| {
            used.register().full_register() == Register::RDI && used.access() != OpAccess::Read
        });
        if writes_argument {
            return None;
        }
    }
    None
}

/// Whether the kernel emulates an instruction (branch_setup_xol_ops and push_setup_xol_ops).
fn is_emulated(instruction: &iced_x86::Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Push => {
            instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_gpr64()
        }
        Mnemonic::Nop => instruction.len() == 1,
        _ => {
            instruction.is_jcc_short_or_near()
                || instruction.is_jmp_short_or_near()
                || instruction.is_call_near()
        }
    }
}

/// Whether any instruction of the function jumps to `offset`.
fn is_branch_target(code: &[u8], offset: u64) -> bool {
    Decoder::with_ip(64, code, 0, DecoderOptions::NONE)
        .iter()
        .filter(|instruction| instruction.op0_kind() == OpKind::NearBranch64)
        .any(|instruction| instruction.near_branch_target() == offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: &[u8], expected: u64) {
        assert_eq!(first_argument_probe(code), expected, "{code:02x?}");
    }

    #[test]
    fn glibc_free_is_probed_at_its_je() {
        // test %rdi,%rdi; je +0x10; push %r12 (glibc 2.36, Debian 12)
        check(&[0x48, 0x85, 0xff, 0x74, 0x10, 0x41, 0x54], 3);
    }

    #[test]
    fn an_emulated_first_instruction_is_the_entry() {
        // push %rbx; mov %rdi,%rbx
        check(&[0x53, 0x48, 0x89, 0xfb], 0);
        // jmp rel32
        check(&[0xe9, 0, 1, 0, 0], 0);
    }

    #[test]
    fn endbr64_is_stepped_over() {
        // endbr64; push %r12
        check(&[0xf3, 0x0f, 0x1e, 0xfa, 0x41, 0x54], 4);
        assert_eq!(entry_probe(&[0xf3, 0x0f, 0x1e, 0xfa, 0x41, 0x54]), 4);
        assert_eq!(entry_probe(&[0x41, 0x54]), 0);
    }

    #[test]
    fn a_changed_argument_ends_the_search() {
        // mov %rsi,%rdi; push %rbx
        check(&[0x48, 0x89, 0xf7, 0x53], 0);
        // xor %edi,%edi; push %rbx: a write to half of it counts
        check(&[0x31, 0xff, 0x53], 0);
    }

    #[test]
    fn a_branch_target_is_no_place() {
        // test %rdi,%rdi; je +2; jmp -4 (to the je)
        check(&[0x48, 0x85, 0xff, 0x74, 0x02, 0xeb, 0xfc, 0x90], 0);
    }

    #[test]
    fn nothing_fit_means_the_entry() {
        // test %rdi,%rdi; ret
        check(&[0x48, 0x85, 0xff, 0xc3], 0);
        check(&[], 0);
        // an indirect jump is not emulated: jmp *%rax
        check(&[0x48, 0x85, 0xff, 0xff, 0xe0], 0);
    }
}
