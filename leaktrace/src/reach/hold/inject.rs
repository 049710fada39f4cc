//! Has a stopped thread make a system call for leaktrace, and puts it back as it was.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::{
    Phase,
    frame::{self, WayBack},
    gadgets::Gadgets,
    ptrace::{self, Tid, Wait},
    registers, threads,
};
use crate::host::proc::Mapping;

/// How often a call is made again that a stop of the whole process has broken off.
const ATTEMPTS: usize = 8;

/// What a thread must be like to make a call for leaktrace, and how it gets back.
#[derive(Debug)]
pub(super) struct Caller {
    tid: Tid,
    registers: libc::user_regs_struct,
    mask: u64,
    gadgets: Gadgets,
    back: WayBack,
}

/// A fork that the call has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Forked {
    /// Its process ID.
    pub(super) pid: Tid,
}

/// What became of a call.
#[derive(Debug)]
pub(super) struct Done {
    /// What it returned.
    pub(super) result: i64,
    /// The fork that it made, traced and stopped at its start.
    pub(super) forked: Option<Forked>,
}

impl Caller {
    /// Chooses a thread among stopped ones: one on a stack that is known and has room, not in the
    /// middle of a sequence that must not be left (rseq), and best one that has lost no call to
    /// the stop.
    pub(super) fn choose(
        pid: u32,
        tids: &[Tid],
        mappings: &[Mapping],
        gadgets: Gadgets,
    ) -> Result<Self, io::Error> {
        let mut second = None;
        for tid in tids {
            let Ok(registers) = ptrace::registers(*tid) else { continue };
            if !registers::is_64_bit(&registers)
                || is_in_sequence(*tid, &registers)
                || !threads::takes_calls(pid, *tid)
            {
                continue;
            }
            let (Ok(xsave), Ok(mask)) = (ptrace::xsave_area(*tid), ptrace::signal_mask(*tid))
            else {
                continue;
            };
            let is_leader = *tid == pid as Tid;
            let Some(stack) = stack_of(&registers, is_leader, mappings) else { continue };
            let back = WayBack::new(&registers, &xsave, mask, gadgets);
            if back.address < stack {
                continue;
            }
            let caller = Self { tid: *tid, registers, mask, gadgets, back };
            if !frame::has_lost_a_call(&registers) {
                return Ok(caller);
            }
            second = second.or(Some(caller));
        }
        second.ok_or_else(|| io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// The stack pointer for a fork.
    pub(super) fn fork_sp(&self) -> u64 {
        self.back.fork_sp
    }

    /// The thread.
    pub(super) fn tid(&self) -> Tid {
        self.tid
    }

    /// Makes a call. The thread is stopped again and as it was when this returns, whatever the
    /// result.
    ///
    /// # Errors
    ///
    /// When the thread has ended, or does not let itself be led.
    pub(super) fn call(
        &self,
        number: i64,
        arguments: [u64; 6],
        watch: &mut dyn FnMut(Phase),
    ) -> io::Result<Done> {
        let memory =
            File::options().read(true).write(true).open(format!("/proc/{}/mem", self.tid))?;
        if !self.gadgets.are_in(&memory) {
            // The process has executed another program since they were found.
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let mut before = vec![0; self.back.bytes.len()];
        memory.read_exact_at(&mut before, self.back.address)?;
        memory.write_all_at(&self.back.bytes, self.back.address)?;
        let done = self.make(number, arguments, watch);
        let put_back = ptrace::set_signal_mask(self.tid, self.mask)
            .and_then(|()| ptrace::set_registers(self.tid, &self.registers));
        let written = memory.write_all_at(&before, self.back.address);
        watch(Phase::Restored);
        let done = done?;
        put_back.and(written).map(|()| done)
    }

    fn make(
        &self,
        number: i64,
        arguments: [u64; 6],
        watch: &mut dyn FnMut(Phase),
    ) -> io::Result<Done> {
        let tid = self.tid;
        ptrace::set_options(tid, libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE)?;
        let mut registers = self.registers;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] =
            arguments;
        registers.rax = number as u64;
        registers.rip = self.gadgets.syscall;
        registers.rsp = self.back.sp;
        // The kernel shall not take this for a call that was broken off.
        registers.orig_rax = u64::MAX;
        ptrace::set_registers(tid, &registers)?;
        // The way back restores the mask, so it comes second.
        ptrace::set_signal_mask(tid, ptrace::ALL_SIGNALS)?;
        watch(Phase::Prepared);
        let done = self.lead(watch);
        watch(Phase::Returned);
        let _ = ptrace::set_options(tid, 0);
        done
    }

    /// Leads the thread through the call and to a stop behind it, where the kernel takes the
    /// thread's own registers for those of a stopped thread.
    fn lead(&self, watch: &mut dyn FnMut(Phase)) -> io::Result<Done> {
        let tid = self.tid;
        let mut forked = None;
        let mut is_entered = false;
        let mut stops = 0;
        ptrace::proceed_to_call(tid)?;
        loop {
            match ptrace::wait_for(tid)? {
                Wait::Call if !is_entered => {
                    is_entered = true;
                    watch(Phase::Entered);
                }
                Wait::Call => {
                    // Behind the call. A signal that stops the whole process breaks it off before
                    // anything was made; the kernel makes it again.
                    if is_broken_off(ptrace::registers(tid)?.rax as i64) && stops < ATTEMPTS {
                        stops += 1;
                        is_entered = false;
                    } else {
                        break;
                    }
                }
                Wait::Event(libc::PTRACE_EVENT_CLONE) => {
                    let pid = ptrace::event_message(tid)? as Tid;
                    watch(Phase::Forked);
                    // Its first stop, in front of its first instruction.
                    if ptrace::wait_for(pid)? != Wait::Ended
                        && ptrace::set_options(pid, libc::PTRACE_O_EXITKILL).is_ok()
                    {
                        forked = Some(Forked { pid });
                    }
                    watch(Phase::Owned);
                }
                Wait::Held | Wait::Stopped | Wait::Event(_) => {}
                // SIGSTOP alone can come here, as all others are blocked.
                Wait::Signal(signal) => {
                    ptrace::proceed(tid, signal)?;
                    continue;
                }
                Wait::Ended | Wait::Running => {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
            }
            ptrace::proceed_to_call(tid)?;
        }
        let result = ptrace::registers(tid)?.rax as i64;
        ptrace::interrupt(tid)?;
        ptrace::proceed(tid, 0)?;
        loop {
            match ptrace::wait_for(tid)? {
                Wait::Held | Wait::Stopped => return Ok(Done { result, forked }),
                Wait::Signal(signal) => ptrace::proceed(tid, signal)?,
                Wait::Call | Wait::Event(_) => ptrace::proceed(tid, 0)?,
                Wait::Ended | Wait::Running => {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
            }
        }
    }
}

/// Whether a result says that the kernel will make the call again.
fn is_broken_off(result: i64) -> bool {
    (-516..=-512).contains(&result)
}

/// Whether a thread stands in a sequence that the kernel starts over when it is disturbed (man 2
/// rseq): its registers must not be replaced there.
fn is_in_sequence(tid: Tid, registers: &libc::user_regs_struct) -> bool {
    if registers.orig_rax as i64 >= 0 {
        // No such sequence may make a system call.
        return false;
    }
    match ptrace::rseq_area(tid) {
        Ok(0) => false,
        Ok(area) => {
            // rseq_cs stands behind cpu_id_start and cpu_id (uapi/linux/rseq.h).
            let mut sequence = [0; 8];
            let memory = File::open(format!("/proc/{tid}/mem"));
            let read = memory.and_then(|memory| memory.read_exact_at(&mut sequence, area + 8));
            read.is_err() || sequence != [0; 8]
        }
        Err(_) => true,
    }
}

/// Where the stack of a thread begins, if the thread runs on its own: the kernel's first stack, or
/// one whose mapping ends in the thread's control block, as C libraries make them. Others (a signal
/// stack, a coroutine's, a stack of Go) may have something else below the stack pointer.
fn stack_of(
    registers: &libc::user_regs_struct,
    is_leader: bool,
    mappings: &[Mapping],
) -> Option<u64> {
    let sp = registers.rsp;
    let mapping = mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&sp))?;
    let is_first = is_leader && mapping.path.as_deref() == Some("[stack]");
    let is_threads = (sp..mapping.end).contains(&registers.fs_base);
    (is_first || is_threads).then_some(mapping.start)
}
