//! What a stopped thread holds in its registers.

use std::io;

use super::ptrace::{self, Tid};
use crate::reach::view::ThreadState;

/// Code segment of 64-bit code (`__USER_CS`, arch/x86/include/asm/segment.h).
pub(super) const CODE_64: u64 = 0x33;
/// What is below is no address: the first pages are never mapped (`vm.mmap_min_addr`).
const LOWEST: u64 = 4096;

/// The registers of a stopped thread, vector registers included.
pub(super) fn state(tid: Tid) -> io::Result<ThreadState> {
    let general = ptrace::registers(tid)?;
    let vector = ptrace::xsave_area(tid)?;
    let words = general_words(&general)
        .into_iter()
        .chain(vector.chunks_exact(8).map(word))
        .filter(|word| *word >= LOWEST)
        .collect();
    Ok(ThreadState {
        tid: tid as u32,
        sp: general.rsp,
        ip: general.rip,
        bp: general.rbp,
        fs_base: general.fs_base,
        gs_base: general.gs_base,
        words,
    })
}

/// Whether a thread runs 64-bit code.
pub(super) fn is_64_bit(registers: &libc::user_regs_struct) -> bool {
    registers.cs == CODE_64
}

fn general_words(registers: &libc::user_regs_struct) -> [u64; 15] {
    let libc::user_regs_struct {
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        ..
    } = *registers;
    [r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi]
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}
