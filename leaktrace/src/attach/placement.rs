//! Finds the instruction of a function where a uprobe costs only one trap.
//!
//! The kernel emulates some instructions under a uprobe (push, nop, relative jmp, jcc, call)
//! and single-steps all others, which costs a second trap (arch/x86/kernel/uprobes.c, 6.1 and
//! 6.18): 2 to 3 times the price on hardware. glibc's `free` begins with `test`; the `je` behind
//! it is emulated.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};
use leaktrace_common::{Shape, Takes};

/// Bytes of a function that are looked at.
const WINDOW: usize = 96;

/// The registers of arguments, in their order.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// The instruction that a probe goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Offset from the function's start.
    pub offset: u64,
    /// How the function's arguments lie in registers there.
    pub shape: Shape,
    /// Whether the kernel single-steps the instruction there.
    pub single_steps: bool,
}

/// The place on the function's first instruction.
pub fn entry(code: &[u8], shape: Shape) -> Place {
    Place { offset: 0, shape, single_steps: single_steps_first(code) }
}

/// The first instruction that the kernel emulates, that every call runs exactly once, and where the
/// registers of the arguments are known; the function's first instruction where there is no such
/// one.
///
/// `code` is the whole function. Where the function's return is probed, the stack pointer must not
/// have moved before the place, as a return probe takes the word at `rsp` for the return address.
pub fn cheapest(code: &[u8], shape: Shape) -> Place {
    // A free is told by rdi alone, and has no return that is watched.
    let frees = shape.takes == Takes::Free;
    let firsts = if frees { 0..1 } else { 0..2 };
    let shape_there = |holds: &Holds| {
        let has_moved = holds.stack_has_moved;
        firsts.clone().map(|first| Shape { first, has_moved, ..shape }).find(|there| {
            let mut needed = shape.takes.arguments().iter();
            needed.all(|needed| holds.argument(there.first + needed) == Some(shape.first + needed))
        })
    };
    straight_line(code, frees, shape_there)
        .filter(|(offset, _)| *offset == 0 || !is_branch_target(code, *offset))
        .map(|(offset, shape)| Place { offset, shape, single_steps: false })
        .unwrap_or_else(|| entry(code, shape))
}

/// As [`cheapest`], for any function: the given arguments, counted from 0, must be in their
/// registers, and the stack pointer must not have moved. Returns the offset, and whether the kernel
/// single-steps the instruction there.
pub fn cheapest_of(code: &[u8], arguments: &[u8]) -> (u64, bool) {
    let are_there = |holds: &Holds| {
        let mut arguments = arguments.iter();
        arguments.all(|argument| holds.argument(*argument) == Some(*argument)).then_some(())
    };
    match straight_line(code, false, are_there) {
        Some((offset, ())) if offset == 0 || !is_branch_target(code, offset) => (offset, false),
        _ => (0, single_steps_first(code)),
    }
}

/// Whether the kernel single-steps a function's first instruction.
pub fn single_steps_first(code: &[u8]) -> bool {
    let first = Decoder::with_ip(64, code, 0, DecoderOptions::NONE).iter().next();
    !first.is_some_and(|instruction| is_emulated(&instruction))
}

/// Where a function jumps to before it has done anything that a caller could notice: its first
/// emulated instruction jumps to another function, or through a word of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// The function at this address.
    To(u64),
    /// The function whose address the word at this address holds.
    Through(u64),
}

/// The jump of a function at `address` that forwards every call to another function.
pub fn forward(code: &[u8], address: u64) -> Option<Forward> {
    let window = code.get(..WINDOW.min(code.len()))?;
    let mut info = InstructionInfoFactory::new();
    for instruction in &mut Decoder::with_ip(64, window, address, DecoderOptions::NONE) {
        if instruction.is_jmp_near_indirect() && instruction.is_ip_rel_memory_operand() {
            return Some(Forward::Through(instruction.ip_rel_memory_address()));
        }
        if instruction.is_jmp_short_or_near() {
            let target = instruction.near_branch_target();
            let is_within = (address..address.saturating_add(code.len() as u64)).contains(&target);
            return (!is_within).then_some(Forward::To(target));
        }
        let written = info.info(&instruction).used_registers().iter().any(|used| {
            used.register().full_register() == Register::RSP && used.access() != OpAccess::Read
        });
        if instruction.flow_control() != FlowControl::Next || instruction.is_invalid() || written {
            return None;
        }
    }
    None
}

/// The offset of the first emulated instruction, and what `find` finds in the registers there. No
/// instruction before it may move the stack pointer, unless `may_move` says so.
fn straight_line<T>(
    code: &[u8],
    may_move: bool,
    find: impl Fn(&Holds) -> Option<T>,
) -> Option<(u64, T)> {
    let window = code.get(..WINDOW.min(code.len()))?;
    let mut holds = Holds::at_entry();
    let mut info = InstructionInfoFactory::new();
    for instruction in &mut Decoder::with_ip(64, window, 0, DecoderOptions::NONE) {
        if instruction.is_invalid() {
            return None;
        }
        if is_emulated(&instruction) {
            return Some((instruction.ip(), find(&holds)?));
        }
        if instruction.flow_control() != FlowControl::Next {
            return None;
        }
        let copied = match (instruction.mnemonic(), instruction.op0_kind(), instruction.op1_kind())
        {
            (Mnemonic::Mov, OpKind::Register, OpKind::Register) => {
                holds.of(instruction.op1_register())
            }
            _ => None,
        };
        for used in info.info(&instruction).used_registers() {
            if used.access() == OpAccess::Read {
                continue;
            }
            if used.register().full_register() == Register::RSP {
                if !may_move {
                    return None;
                }
                holds.stack_has_moved = true;
            }
            holds.set(used.register(), copied);
        }
    }
    None
}

/// What is known of the registers.
struct Holds {
    /// The argument of the call that each register holds.
    arguments: Vec<(Register, u8)>,
    /// Whether the stack pointer has moved since the entry.
    stack_has_moved: bool,
}

impl Holds {
    fn at_entry() -> Self {
        Self { arguments: ARGUMENTS.into_iter().zip(0..).collect(), stack_has_moved: false }
    }

    /// The argument that a whole register holds.
    fn of(&self, register: Register) -> Option<u8> {
        self.arguments.iter().find(|(holder, _)| *holder == register).map(|(_, argument)| *argument)
    }

    /// The argument in the register that argument `number` was passed in.
    fn argument(&self, number: u8) -> Option<u8> {
        self.of(*ARGUMENTS.get(usize::from(number))?)
    }

    /// Notes that an instruction writes a register or a part of it.
    fn set(&mut self, register: Register, argument: Option<u8>) {
        let whole = register.full_register();
        self.arguments.retain(|(holder, _)| *holder != whole);
        if let Some(argument) = argument
            && register == whole
        {
            self.arguments.push((whole, argument));
        }
    }
}

/// Whether the kernel emulates an instruction (branch_setup_xol_ops and push_setup_xol_ops).
fn is_emulated(instruction: &Instruction) -> bool {
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

    const FREE: Shape = Shape { takes: Takes::Free, first: 0, has_moved: false };
    const SIZE: Shape = Shape { takes: Takes::Size, first: 0, has_moved: false };
    const ALIGNED: Shape = Shape { takes: Takes::Size, first: 1, has_moved: false };
    const RESIZE: Shape = Shape { takes: Takes::Resize, first: 0, has_moved: false };

    /// The offset of the place, and the register of the first argument; `None` if single-stepped.
    fn place(code: &[u8], shape: Shape) -> Option<(u64, u8)> {
        let place = cheapest(code, shape);
        (!place.single_steps).then_some((place.offset, place.shape.first))
    }

    #[test]
    fn glibc() {
        // free: test %rdi,%rdi; je +0x10; push %r12 (2.36, Debian 12)
        assert_eq!(place(&[0x48, 0x85, 0xff, 0x74, 0x10, 0x41, 0x54], FREE), Some((3, 0)));
        // malloc: push %r12; push %rbp
        assert_eq!(place(&[0x41, 0x54, 0x55], SIZE), Some((0, 0)));
        // memalign: cmpb $0,(%rip); je
        let code = [0x80, 0x3d, 0x71, 0x0e, 0x14, 0, 0, 0x74, 0x07, 0xe9];
        assert_eq!(place(&code, ALIGNED), Some((7, 1)));
    }

    #[test]
    fn jemalloc() {
        // malloc, operator new: cmp $0x1000,%rdi; ja (5.3.0, Debian 12)
        let code = [0x48, 0x81, 0xff, 0, 0x10, 0, 0, 0x0f, 0x87, 0x93, 0, 0, 0];
        assert_eq!(place(&code, SIZE), Some((7, 0)));
        // free: a look into its cache of the heap's pages, up to the first jne
        let code = [
            0x48, 0x89, 0xf8, 0x48, 0x8b, 0x15, 0x0e, 0x53, 0x0a, 0x00, 0x48, 0x89, 0xf9, 0x48,
            0xc1, 0xe8, 0x1a, 0x48, 0x81, 0xe1, 0, 0, 0, 0xc0, 0x25, 0xf0, 0, 0, 0, 0x64, 0x48,
            0x03, 0x04, 0x25, 0, 0, 0, 0, 0x48, 0x01, 0xd0, 0x48, 0x3b, 0x88, 0xb0, 1, 0, 0, 0x0f,
            0x85, 0x8a, 0, 0, 0,
        ];
        assert_eq!(place(&code, FREE), Some((48, 0)));
        // operator delete(void*, size_t): test %rdi,%rdi; je; sub $8,%rsp
        assert_eq!(place(&[0x48, 0x85, 0xff, 0x74, 0x13, 0x48, 0x83, 0xec, 8], FREE), Some((3, 0)));
        // rallocx: xor %ecx,%ecx; jmp
        assert_eq!(place(&[0x31, 0xc9, 0xe9, 0xe9, 0x1c, 0xff, 0xff], RESIZE), Some((2, 0)));
    }

    #[test]
    fn tcmalloc() {
        // malloc: mov 0xab59(%rip),%rax; test %rax,%rax; jne (2.10, Debian 12)
        let code = [0x48, 0x8b, 0x05, 0x59, 0xab, 0, 0, 0x48, 0x85, 0xc0, 0x75, 0x75, 0x90];
        assert_eq!(place(&code, SIZE), Some((10, 0)));
        // memalign: mov %rdi,%r8; cmp $0x2000,%rdi; ja
        let code = [0x49, 0x89, 0xf8, 0x48, 0x81, 0xff, 0, 0x20, 0, 0, 0x0f, 0x87, 0xe8, 0, 0, 0];
        assert_eq!(place(&code, ALIGNED), Some((10, 1)));
    }

    #[test]
    fn mimalloc() {
        // malloc: mov (%rip),%rax; mov %rdi,%rsi; mov %fs:(%rax),%rdi; cmp $0x400,%rsi; ja
        // (2.0.9, Debian 12): the size has moved to the second register.
        let code = [
            0x48, 0x8b, 0x05, 0x49, 0xb4, 0, 0, 0x48, 0x89, 0xfe, 0x64, 0x48, 0x8b, 0x38, 0x48,
            0x81, 0xfe, 0, 4, 0, 0, 0x77, 0x29,
        ];
        assert_eq!(place(&code, SIZE), Some((21, 1)));
        // realloc: mov (%rip),%rax; mov %rsi,%rdx; mov %rdi,%rsi; mov %fs:(%rax),%rax;
        // mov %rax,%rdi; jmp
        let code = [
            0x48, 0x8b, 0x05, 0x49, 0xa9, 0, 0, 0x48, 0x89, 0xf2, 0x48, 0x89, 0xfe, 0x64, 0x48,
            0x8b, 0x00, 0x48, 0x89, 0xc7, 0xe9, 0xf7, 0x4e, 0xff, 0xff,
        ];
        assert_eq!(place(&code, RESIZE), Some((20, 1)));
        assert_eq!(forward(&code, 0x11670), Some(Forward::To(0x6580)));
        // calloc: mov (%rip),%rdx; mov %rdi,%rax; mov %fs:(%rdx),%rdi; cmp $1,%rax; je: the count
        // has gone to a register that no shape has.
        let code = [
            0x48, 0x8b, 0x15, 0xc9, 0xad, 0, 0, 0x48, 0x89, 0xf8, 0x64, 0x48, 0x8b, 0x3a, 0x48,
            0x83, 0xf8, 1, 0x74, 8,
        ];
        let calloc = Shape { takes: Takes::CountSize, first: 0, has_moved: false };
        assert_eq!(cheapest(&code, calloc), Place { offset: 0, shape: calloc, single_steps: true });
        // free: mov %rdi,%rcx; test %rdi,%rdi; je
        assert_eq!(place(&[0x48, 0x89, 0xf9, 0x48, 0x85, 0xff, 0x74, 0x5d], FREE), Some((6, 0)));
    }

    #[test]
    fn an_emulated_first_instruction_is_the_entry() {
        // push %rbx; mov %rdi,%rbx
        assert_eq!(place(&[0x53, 0x48, 0x89, 0xfb], FREE), Some((0, 0)));
        // jmp rel32
        assert_eq!(place(&[0xe9, 0, 1, 0, 0], SIZE), Some((0, 0)));
    }

    #[test]
    fn endbr64_is_stepped_over() {
        // endbr64; push %r12
        let code = [0xf3, 0x0f, 0x1e, 0xfa, 0x41, 0x54];
        assert_eq!(place(&code, FREE), Some((4, 0)));
        assert_eq!(place(&code, SIZE), Some((4, 0)));
        assert!(entry(&code, SIZE).single_steps);
    }

    #[test]
    fn a_changed_argument_ends_the_search() {
        // mov %rsi,%rdi; push %rbx
        assert_eq!(place(&[0x48, 0x89, 0xf7, 0x53], FREE), None);
        // xor %edi,%edi; push %rbx: a write to half of it counts
        assert_eq!(place(&[0x31, 0xff, 0x53], FREE), None);
        // mov %edi,%esi; xor %edi,%edi; push %rbx: half of it is not the size
        assert_eq!(place(&[0x89, 0xfe, 0x31, 0xff, 0x53], SIZE), None);
    }

    /// Once the return address is not at `rsp`, a return probe would take another word for it.
    #[test]
    fn a_moved_stack_pointer_ends_the_search_where_a_return_is_watched() {
        // sub $8,%rsp; test %rdi,%rdi; je
        let code = [0x48, 0x83, 0xec, 0x08, 0x48, 0x85, 0xff, 0x74, 0x10];
        assert_eq!(place(&code, SIZE), None);
        assert_eq!(place(&code, FREE), Some((7, 0)));
        assert!(cheapest(&code, FREE).shape.has_moved);
        assert!(!cheapest(&code[4..], FREE).shape.has_moved);
    }

    #[test]
    fn a_branch_target_is_no_place() {
        // test %rdi,%rdi; je +2; jmp -4 (to the je)
        assert_eq!(place(&[0x48, 0x85, 0xff, 0x74, 0x02, 0xeb, 0xfc, 0x90], FREE), None);
    }

    #[test]
    fn nothing_fit_means_the_entry() {
        // test %rdi,%rdi; ret
        assert_eq!(place(&[0x48, 0x85, 0xff, 0xc3], FREE), None);
        assert_eq!(place(&[], FREE), None);
        // an indirect jump is not emulated: jmp *%rax
        assert_eq!(place(&[0x48, 0x85, 0xff, 0xff, 0xe0], FREE), None);
    }

    #[test]
    fn what_only_jumps_elsewhere_is_a_forward() {
        // jmp rel32 (operator delete of jemalloc)
        assert_eq!(forward(&[0xe9, 0xeb, 0xaf, 0xf5, 0xff], 0xae0d0), Some(Forward::To(0x90c0)));
        // jmp *0x2fa2(%rip): a stub of the procedure linkage table
        let stub = [0xff, 0x25, 0xa2, 0x2f, 0, 0];
        assert_eq!(forward(&stub, 0x1000), Some(Forward::Through(0x3fa8)));
        // endbr64; bnd jmp *0x2f9b(%rip)
        let stub = [0xf3, 0x0f, 0x1e, 0xfa, 0xf2, 0xff, 0x25, 0x9b, 0x2f, 0, 0];
        assert_eq!(forward(&stub, 0x1000), Some(Forward::Through(0x3fa6)));
        // jmp to itself, a conditional jump, and a jump behind a push
        assert_eq!(forward(&[0xeb, 0xfe], 0x1000), None);
        assert_eq!(forward(&[0x74, 0x7e, 0xe9, 0, 1, 0, 0], 0x1000), None);
        assert_eq!(forward(&[0x53, 0xe9, 0, 1, 0, 0], 0x1000), None);
    }
}
