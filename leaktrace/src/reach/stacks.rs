//! The frames of a thread's stack: which function's frame an address of the stack lies in.

use std::{collections::HashMap, fs, ops::Range};

use leaktrace_common::{CfaRule, UnwindRow};

use super::{memory::Memory, objects::Objects, view::ThreadState};
use crate::{
    snapshot::{Frame, Place},
    unwind::object::{CompiledObject, compile_file},
};

/// Most frames of one thread.
const MAX_FRAMES: usize = 1000;

/// Where a thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer, if it is known.
    pub bp: Option<u64>,
}

/// The memory of a stack that belongs to the call of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameSpan {
    /// Its addresses.
    pub addresses: Range<u64>,
    /// An address in the function, as a return address.
    pub frame: Frame,
}

/// Where a thread waits in the kernel, without stopping it: the kernel shows the stack pointer and
/// the instruction pointer, and no other register (`proc_pid_syscall`, fs/proc/base.c). `None` while
/// the thread runs.
pub fn waiting(pid: u32, tid: u32) -> Option<Standing> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    let mut from_the_end = text.split_whitespace().rev();
    let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let (ip, sp) = (hex(from_the_end.next()?)?, hex(from_the_end.next()?)?);
    Some(Standing { ip, sp, bp: None })
}

impl From<&ThreadState> for Standing {
    fn from(thread: &ThreadState) -> Self {
        Self { ip: thread.ip, sp: thread.sp, bp: Some(thread.bp) }
    }
}

/// Walks stacks of one process.
#[derive(Default)]
pub struct Walker {
    compiled: HashMap<u32, Option<CompiledObject>>,
}

impl Walker {
    /// The frames of a thread's stack, innermost first, as far as they are certain: by call frame
    /// information alone.
    pub fn walk(&mut self, memory: &Memory, objects: &Objects, from: Standing) -> Vec<FrameSpan> {
        let mut frames = Vec::new();
        let Standing { mut ip, mut sp, mut bp } = from;
        // The innermost address is no return address: the thread goes on there.
        let mut is_call = false;
        while frames.len() < MAX_FRAMES {
            let looked_at = if is_call { ip.wrapping_sub(1) } else { ip };
            let Some((object, file_offset)) = objects.text_at(looked_at) else { break };
            let compiled = self
                .compiled
                .entry(object.object)
                .or_insert_with(|| compile_file(&object.file).ok());
            let Some(row) = compiled
                .as_ref()
                .and_then(|compiled| row(compiled, looked_at.wrapping_sub(object.bias)))
            else {
                break;
            };
            let Some(caller) = step(row, ip, sp, bp, |address| memory.word(address)) else { break };
            if caller.sp <= sp {
                break;
            }
            let after = if is_call { 0 } else { 1 };
            let place = Place::Object { object: object.object, file_offset: file_offset + 1 };
            let frame = Frame::new(ip.wrapping_add(after), place);
            frames.push(FrameSpan { addresses: sp..caller.sp, frame });
            Standing { ip, sp, bp } = caller;
            is_call = true;
        }
        frames
    }
}

/// The row of an address of an object.
fn row(compiled: &CompiledObject, address: u64) -> Option<UnwindRow> {
    let address = u32::try_from(address).ok()?;
    let after = compiled.rows.partition_point(|row| row.pc <= address);
    compiled.rows.get(after.checked_sub(1)?).copied()
}

/// The caller of a frame; `None` where the stack ends, or where it cannot be told.
fn step(
    row: UnwindRow,
    ip: u64,
    sp: u64,
    bp: Option<u64>,
    read: impl Fn(u64) -> Option<u64>,
) -> Option<Standing> {
    let offset = u64::from(row.offset);
    let cfa = match row.rule {
        CfaRule::Rsp => sp.wrapping_add(offset),
        CfaRule::Rbp => bp?.wrapping_add(offset),
        CfaRule::Plt => sp.wrapping_add(8 + if ip & 15 >= offset { 8 } else { 0 }),
        CfaRule::Deref => read(bp?.wrapping_sub(offset))?,
        CfaRule::Gap | CfaRule::End | CfaRule::Signal | CfaRule::Unsupported => return None,
    };
    let by = row.rbp_offset as i64;
    let caller_bp = match (row.rule, row.rbp_offset) {
        (_, 0) => bp,
        (CfaRule::Deref, _) => Some(read(bp?.wrapping_add_signed(by))?),
        _ => Some(read(cfa.wrapping_add_signed(by))?),
    };
    Some(Standing { ip: read(cfa.wrapping_sub(8))?, sp: cfa, bp: caller_bp })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row_of(rule: CfaRule, offset: u16, rbp_offset: i32) -> UnwindRow {
        UnwindRow { pc: 0, rule, offset, rbp_offset }
    }

    /// A stack from 0x1000 on, whose words are their own addresses and 1.
    fn read(address: u64) -> Option<u64> {
        (0x1000..0x2000).contains(&address).then_some(address + 1)
    }

    #[test]
    fn a_step_follows_the_row() {
        let go = |row, bp| step(row, 0x40_0003, 0x1100, bp, read);
        let caller = |sp: u64, bp| Some(Standing { ip: sp - 8 + 1, sp, bp });
        assert_eq!(go(row_of(CfaRule::Rsp, 16, 0), None), caller(0x1110, None));
        assert_eq!(go(row_of(CfaRule::Rsp, 16, -16), None), caller(0x1110, Some(0x1101)));
        assert_eq!(go(row_of(CfaRule::Rbp, 16, -16), Some(0x1200)), caller(0x1210, Some(0x1201)));
        // Nothing is said without the register that it takes.
        assert_eq!(go(row_of(CfaRule::Rbp, 16, -16), None), None);
        assert_eq!(go(row_of(CfaRule::End, 0, 0), Some(0x1200)), None);
        assert_eq!(go(row_of(CfaRule::Plt, 11, 0), None), caller(0x1108, None));
        assert_eq!(
            step(row_of(CfaRule::Plt, 11, 0), 0x40_000c, 0x1100, None, read),
            caller(0x1110, None)
        );
        assert_eq!(go(row_of(CfaRule::Rsp, 0x2000, 0), None), None);
    }
}
