//! The way back of a thread that makes a system call for leaktrace.
//!
//! The call is a `syscall; ret` somewhere in the code of the process. leaktrace writes below the
//! thread's stack what the kernel writes there for a signal: a frame that holds all of the thread's
//! registers, in front of it the address of the code that every C library has for the end of a
//! signal handler. If leaktrace dies in the middle, the thread returns into that code, and
//! rt_sigreturn(2) gives it its registers back. Otherwise leaktrace gives them back, and what it
//! wrote is overwritten with what was there.
//!
//! A fork gets a stack pointer of its own, with a frame that leads to exit_group(2): it does not
//! run as a copy of the process, whoever lets go of it.

use super::gadgets::Gadgets;

/// Bytes below the stack pointer that belong to the function that runs (System V ABI, 3.2.2).
const RED_ZONE: u64 = 128;
/// Bytes of `struct rt_sigframe` that rt_sigreturn(2) reads: the return address, and
/// `struct ucontext` (arch/x86/include/asm/sigframe.h, uapi/asm/ucontext.h; 6.1 and 6.18).
const FRAME_BYTES: usize = 8 + 304;
/// `UC_FP_XSTATE`, `UC_SIGCONTEXT_SS` and `UC_STRICT_RESTORE_SS` (uapi/asm/ucontext.h).
const UC_FP_XSTATE: u64 = 1;
const UC_SS: u64 = 2 | 4;
/// Flags of a signal stack that sigaltstack(2) refuses: the thread keeps the one that it has.
const NO_SUCH_STACK: u64 = 0x7777;
/// Where the kernel's words stand in the XSAVE area (`struct _fpx_sw_bytes`), and what they begin
/// and end with (uapi/asm/sigcontext.h).
const SW_BYTES: usize = 464;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Bytes of the XSAVE area without the extended states: the legacy region and the header.
const XSAVE_LEAST: usize = 512 + 64;

/// What a system call that was broken off returns to the kernel (include/linux/errno.h).
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// Bytes to be written below a thread's stack.
#[derive(Debug)]
pub(super) struct WayBack {
    /// Where they go.
    pub(super) address: u64,
    /// What they are.
    pub(super) bytes: Vec<u8>,
    /// The stack pointer of the thread during the call.
    pub(super) sp: u64,
    /// The stack pointer of a fork.
    pub(super) fork_sp: u64,
}

impl WayBack {
    /// For a thread with these registers, this XSAVE area and these blocked signals.
    pub(super) fn new(
        registers: &libc::user_regs_struct,
        xsave: &[u8],
        mask: u64,
        gadgets: Gadgets,
    ) -> Self {
        let has_xsave = xsave.len() >= XSAVE_LEAST;
        let fp_bytes = if has_xsave { xsave.len() + 4 } else { xsave.len() };
        // From the top: the vector registers on 64 bytes as XRSTOR needs them, the frame of the
        // thread, the frame of a fork.
        let fp = (registers.rsp - RED_ZONE - fp_bytes as u64) & !63;
        let sp = (fp - FRAME_BYTES as u64) & !15;
        let fork_sp = (sp - FRAME_BYTES as u64) & !15;
        let address = fork_sp;

        let mut bytes = vec![0; (fp - address) as usize + fp_bytes];
        let own = frame(&resumed(registers), mask, gadgets.sigreturn, fp, has_xsave);
        let mut ends = *registers;
        (ends.rax, ends.rdi, ends.rip) = (libc::SYS_exit_group as u64, 0, gadgets.syscall);
        ends.rsp = fork_sp;
        let of_fork = frame(&ends, u64::MAX, gadgets.sigreturn, 0, false);
        place(&mut bytes, address, fork_sp, &of_fork);
        place(&mut bytes, address, sp, &own);
        place(&mut bytes, address, fp, xsave);
        if has_xsave {
            // xfeatures and what follows were written by the kernel's ptrace already.
            let features = &xsave[512..520];
            let mut words = Vec::with_capacity(20);
            words.extend(FP_XSTATE_MAGIC1.to_ne_bytes());
            words.extend((fp_bytes as u32).to_ne_bytes());
            words.extend(features);
            words.extend((xsave.len() as u32).to_ne_bytes());
            place(&mut bytes, address, fp + SW_BYTES as u64, &words);
            let end = fp + xsave.len() as u64;
            place(&mut bytes, address, end, &FP_XSTATE_MAGIC2.to_ne_bytes());
        }
        Self { address, bytes, sp, fork_sp }
    }
}

/// The registers with which the kernel would let a stopped thread go on: one that was stopped in a
/// system call makes it again (arch/x86/kernel/signal.c, `arch_do_signal_or_restart`).
fn resumed(registers: &libc::user_regs_struct) -> libc::user_regs_struct {
    let mut registers = *registers;
    if (registers.orig_rax as i64) < 0 {
        return registers;
    }
    match registers.rax as i64 {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => registers.rax = registers.orig_rax,
        ERESTART_RESTARTBLOCK => registers.rax = libc::SYS_restart_syscall as u64,
        _ => return registers,
    }
    // The instruction `syscall` has two bytes.
    registers.rip -= 2;
    registers
}

/// Whether a stopped thread has lost a call to EINTR, by the stop itself.
pub(super) fn has_lost_a_call(registers: &libc::user_regs_struct) -> bool {
    registers.orig_rax as i64 >= 0 && registers.rax as i64 == -i64::from(libc::EINTR)
}

/// A `struct rt_sigframe`, as far as it is read.
fn frame(
    registers: &libc::user_regs_struct,
    mask: u64,
    sigreturn: u64,
    fp: u64,
    has_xsave: bool,
) -> Vec<u8> {
    let libc::user_regs_struct {
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rdi,
        rsi,
        rbp,
        rbx,
        rdx,
        rax,
        rcx,
        rsp,
        rip,
        eflags,
        ..
    } = *registers;
    let segments = registers.cs & 0xffff
        | (registers.gs & 0xffff) << 16
        | (registers.fs & 0xffff) << 32
        | (registers.ss & 0xffff) << 48;
    let flags = UC_SS | if has_xsave { UC_FP_XSTATE } else { 0 };
    let mut words = vec![sigreturn];
    // uc_flags, uc_link, uc_stack
    words.extend([flags, 0, 0, NO_SUCH_STACK, 0]);
    // struct sigcontext: registers, segments, err, trapno, oldmask, cr2, fpstate, eight reserved
    words.extend([r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp]);
    words.extend([rip, eflags, segments, 0, 0, 0, 0, fp]);
    words.extend([0; 8]);
    words.push(mask);
    words.into_iter().flat_map(u64::to_ne_bytes).collect()
}

fn place(bytes: &mut [u8], base: u64, address: u64, piece: &[u8]) {
    let start = (address - base) as usize;
    bytes[start..start + piece.len()].copy_from_slice(piece);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers() -> libc::user_regs_struct {
        // SAFETY: any bytes are such a struct of integers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        registers.rsp = 0x7ffd_0000_1238;
        registers.rip = 0x40_1002;
        registers.orig_rax = u64::MAX;
        registers
    }

    #[test]
    fn a_frame_has_the_size_that_the_kernel_reads() {
        assert_eq!(frame(&registers(), 0, 0, 0, false).len(), FRAME_BYTES);
    }

    #[test]
    fn nothing_is_written_into_the_red_zone() {
        let xsave = vec![7; 2696];
        let back = WayBack::new(&registers(), &xsave, 0, Gadgets { syscall: 1, sigreturn: 2 });
        let end = back.address + back.bytes.len() as u64;
        assert!(end <= registers().rsp - 128, "{back:x?}");
        assert!(back.fork_sp + FRAME_BYTES as u64 <= back.sp);
        let word = |address: u64| {
            let start = (address - back.address) as usize;
            u64::from_ne_bytes(back.bytes[start..start + 8].try_into().unwrap())
        };
        // Where `ret` finds it.
        assert_eq!((word(back.sp), word(back.fork_sp)), (2, 2));
        // rip of the frame: 8 + 16 + 24 bytes and 16 registers before it.
        assert_eq!(word(back.sp + 8 + 40 + 128), 0x40_1002);
        assert_eq!(word(back.fork_sp + 8 + 40 + 128), 1);
    }

    #[test]
    fn a_call_that_was_broken_off_is_made_again() {
        let mut broken = registers();
        broken.orig_rax = libc::SYS_futex as u64;
        for (result, rax) in [
            (ERESTARTSYS, libc::SYS_futex),
            (ERESTARTNOHAND, libc::SYS_futex),
            (ERESTART_RESTARTBLOCK, libc::SYS_restart_syscall),
        ] {
            broken.rax = result as u64;
            let resumed = resumed(&broken);
            assert_eq!((resumed.rax, resumed.rip), (rax as u64, 0x40_1000), "{result}");
        }
        broken.rax = 5;
        assert_eq!((resumed(&broken).rax, resumed(&broken).rip), (5, 0x40_1002));
        // Not in a call: these are the program's own values.
        broken.orig_rax = u64::MAX;
        broken.rax = ERESTARTSYS as u64;
        assert_eq!(resumed(&broken).rip, 0x40_1002);
    }
}
