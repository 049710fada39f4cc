//! What the kernel has made of BPF programs: their machine code.

use std::ffi::CStr;

use iced_x86::{Code, Decoder, DecoderOptions, Register};

use crate::kernel::{self, IdAttr, InfoAttr, bpf};

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_TYPE_KPROBE: u32 = 2;

/// The start of `struct bpf_prog_info`, up to `xlated_prog_insns`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_bytes: u32,
    translated_bytes: u32,
    jited: u64,
    translated: u64,
}

/// The start of `union bpf_attr` for loading a program, up to `kern_version`.
#[repr(C)]
struct LoadAttr {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// A loaded program; gone when dropped.
pub struct Program(libc::c_int);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the descriptor is this value's alone.
        unsafe { libc::close(self.0) };
    }
}

impl Program {
    /// One of kprobes' kind that needs 128 bytes of stack and makes no tail call.
    ///
    /// # Panics
    ///
    /// When the kernel refuses it.
    pub fn with_much_stack() -> Self {
        const LICENSE: &CStr = c"GPL";
        let instructions: [u64; 4] = [
            instruction(0xb7, 1, 0, 0, 7),     // r1 = 7
            instruction(0x7b, 10, 1, -128, 0), // *(u64 *)(r10 - 128) = r1
            instruction(0x79, 0, 10, -128, 0), // r0 = *(u64 *)(r10 - 128)
            instruction(0x95, 0, 0, 0, 0),     // exit
        ];
        let mut attr = LoadAttr {
            kind: BPF_PROG_TYPE_KPROBE,
            instruction_count: 4,
            instructions: instructions.as_ptr() as u64,
            license: LICENSE.as_ptr() as u64,
            log_level: 0,
            log_bytes: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
        };
        let fd = bpf(BPF_PROG_LOAD, &mut attr);
        Self(fd.unwrap_or_else(|error| panic!("BPF_PROG_LOAD: {error}")))
    }

    /// The program with this ID; none when it was unloaded meanwhile.
    fn by_id(id: u32) -> Option<Self> {
        bpf(BPF_PROG_GET_FD_BY_ID, &mut IdAttr { id, ..IdAttr::default() }).ok().map(Self)
    }

    fn info(&self, buffer: &mut [u8]) -> ProgramInfo {
        let mut info = ProgramInfo {
            jited_bytes: u32::try_from(buffer.len()).unwrap_or_else(|error| panic!("{error}")),
            jited: buffer.as_mut_ptr() as u64,
            ..ProgramInfo::default()
        };
        let mut attr = InfoAttr {
            fd: self.0.unsigned_abs(),
            info_len: size_of::<ProgramInfo>() as u32,
            info: std::ptr::from_mut(&mut info) as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)
            .unwrap_or_else(|error| panic!("BPF_OBJ_GET_INFO_BY_FD: {error}"));
        info
    }

    /// Whether it is of kprobes' kind, which is that of uprobes.
    fn is_kprobe(&self) -> bool {
        self.info(&mut []).kind == BPF_PROG_TYPE_KPROBE
    }

    /// Its machine code, and that of all functions that it calls.
    fn code(&self) -> Vec<u8> {
        let mut code = vec![0; self.info(&mut []).jited_bytes as usize];
        assert!(!code.is_empty(), "the kernel runs BPF programs without its compiler");
        let info = self.info(&mut code);
        assert_eq!(code.len(), info.jited_bytes as usize);
        code
    }

    /// Whether the kernel has given it, or a function of it, a private stack: its frame pointer is
    /// then in r9, which the compiler uses for nothing else, and the CPU's part of per-CPU memory is
    /// added to it (`emit_priv_frame_ptr`, arch/x86/net/bpf_jit_comp.c, 6.13 to 7.2).
    pub fn has_private_stack(&self) -> bool {
        let code = self.code();
        Decoder::new(64, &code, DecoderOptions::NONE).into_iter().any(|instruction| {
            instruction.code() == Code::Add_r64_rm64
                && instruction.op0_register() == Register::R9
                && instruction.segment_prefix() == Register::GS
        })
    }
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = immediate.to_le_bytes();
    u64::from_le_bytes([code, to | from << 4, low, high, a, b, c, d])
}

/// The programs of kprobes' and uprobes' kind that a process holds: names, and whether they have
/// private stacks.
///
/// # Panics
///
/// When not root, or when the process has ended.
pub fn private_stacks(pid: u32) -> Vec<(String, bool)> {
    let programs = kernel::verified_programs(pid).into_iter();
    programs
        .filter_map(|(id, name, _)| Some((name, Program::by_id(id)?)))
        .filter(|(_, program)| program.is_kprobe())
        .map(|(name, program)| (name, program.has_private_stack()))
        .collect()
}
