//! ptrace(2) requests that the `nix` crate does not have, or gives no real-time signals for.

use std::{io, mem::MaybeUninit, ptr};

/// `PTRACE_GET_RSEQ_CONFIGURATION` (include/uapi/linux/ptrace.h, since 5.13).
const GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
/// `NT_X86_XSTATE`: the vector registers as XSAVE stores them.
const NT_X86_XSTATE: usize = 0x202;
/// `PTRACE_EVENT_STOP` (include/uapi/linux/ptrace.h).
const EVENT_STOP: i32 = 128;
/// Every signal but those that cannot be blocked, which the kernel leaves out by itself.
pub(super) const ALL_SIGNALS: u64 = u64::MAX;

/// A thread, by its ID.
pub(super) type Tid = i32;

/// What waiting for a traced thread told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// It has not stopped yet.
    Running,
    /// It has ended; the kernel has let go of it.
    Ended,
    /// It stopped because leaktrace asked.
    Held,
    /// It stopped with its whole process, by SIGSTOP and the like.
    Stopped,
    /// It stopped to take this signal, which must be passed on.
    Signal(i32),
    /// It stopped before or behind a system call.
    Call,
    /// It stopped for this event of `PTRACE_O_TRACE...`.
    Event(i32),
}

/// The status with which a child has ended, as wait(2) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End(pub(super) i32);

/// Begins to trace a thread, which goes on running.
pub(super) fn seize(tid: Tid, options: i32) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, ptr::null_mut(), options as usize)
}

/// Asks a traced thread to stop; it stops in front of any signal.
pub(super) fn interrupt(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, ptr::null_mut(), 0)
}

/// Lets a stopped thread run on, with a signal if it is not 0.
pub(super) fn proceed(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, ptr::null_mut(), signal as usize)
}

/// Leaves a thread stopped that stopped with its process; what continues the process stops it anew.
pub(super) fn listen(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_LISTEN, tid, ptr::null_mut(), 0)
}

/// Lets a stopped thread run up to the next border of a system call.
pub(super) fn proceed_to_call(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, ptr::null_mut(), 0)
}

/// Ends the tracing of a stopped thread, and lets it run on.
pub(super) fn detach(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, ptr::null_mut(), signal as usize)
}

/// Sets `PTRACE_O_...` of a stopped thread.
pub(super) fn set_options(tid: Tid, options: i32) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, ptr::null_mut(), options as usize)
}

/// The number that comes with an event: the new thread's ID.
pub(super) fn event_message(tid: Tid) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, tid, ptr::null_mut(), (&raw mut message) as usize)?;
    Ok(message)
}

/// The general registers of a stopped thread.
pub(super) fn registers(tid: Tid) -> io::Result<libc::user_regs_struct> {
    let mut registers = MaybeUninit::<libc::user_regs_struct>::zeroed();
    request(libc::PTRACE_GETREGS, tid, ptr::null_mut(), registers.as_mut_ptr() as usize)?;
    // SAFETY: any bytes are such a struct of integers.
    Ok(unsafe { registers.assume_init() })
}

/// Replaces the general registers of a stopped thread.
pub(super) fn set_registers(tid: Tid, registers: &libc::user_regs_struct) -> io::Result<()> {
    request(libc::PTRACE_SETREGS, tid, ptr::null_mut(), ptr::from_ref(registers) as usize)
}

/// The XSAVE area of a stopped thread, in the standard format.
pub(super) fn xsave_area(tid: Tid) -> io::Result<Vec<u8>> {
    // AMX needs 11 KiB (Intel's manual, 13.5); there is room for more.
    let mut area = vec![0_u8; 1 << 15];
    let mut vector = libc::iovec { iov_base: area.as_mut_ptr().cast(), iov_len: area.len() };
    let which = ptr::without_provenance_mut(NT_X86_XSTATE);
    request(libc::PTRACE_GETREGSET, tid, which, (&raw mut vector) as usize)?;
    area.truncate(vector.iov_len);
    Ok(area)
}

/// The signals that a stopped thread blocks; those that it goes back to, if a system call has
/// replaced them for its time.
pub(super) fn signal_mask(tid: Tid) -> io::Result<u64> {
    let mut mask = 0_u64;
    let size = ptr::without_provenance_mut(size_of::<u64>());
    request(libc::PTRACE_GETSIGMASK, tid, size, (&raw mut mask) as usize)?;
    Ok(mask)
}

/// Replaces the signals that a stopped thread blocks.
pub(super) fn set_signal_mask(tid: Tid, mask: u64) -> io::Result<()> {
    let size = ptr::without_provenance_mut(size_of::<u64>());
    request(libc::PTRACE_SETSIGMASK, tid, size, (&raw const mask) as usize)
}

/// The address of a stopped thread's `struct rseq`; 0 if it has none.
pub(super) fn rseq_area(tid: Tid) -> io::Result<u64> {
    // rseq_abi_pointer, rseq_abi_size and signature, flags and pad.
    let mut configuration = [0_u64; 3];
    let size = ptr::without_provenance_mut(size_of_val(&configuration));
    request(GET_RSEQ_CONFIGURATION, tid, size, (&raw mut configuration) as usize)?;
    Ok(configuration[0])
}

/// Looks whether a traced thread has stopped, without waiting.
pub(super) fn look(tid: Tid) -> io::Result<Wait> {
    wait(tid, libc::WNOHANG)
}

/// Waits until a traced child stops, or has ended.
pub(super) fn next_of_child(tid: Tid) -> io::Result<Result<Wait, End>> {
    let mut status = 0;
    loop {
        // SAFETY: waitpid writes one integer.
        let found = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
        if found == tid {
            let has_ended = !libc::WIFSTOPPED(status);
            return Ok(if has_ended { Err(End(status)) } else { Ok(meaning(status)) });
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}

/// Waits until a traced thread stops or ends.
pub(super) fn wait_for(tid: Tid) -> io::Result<Wait> {
    wait(tid, 0)
}

fn wait(tid: Tid, flags: i32) -> io::Result<Wait> {
    let mut status = 0;
    loop {
        // SAFETY: waitpid writes one integer; it is asked for a thread that leaktrace traces.
        let found = unsafe { libc::waitpid(tid, &raw mut status, flags | libc::__WALL) };
        match found {
            0 => return Ok(Wait::Running),
            -1 => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EINTR) => {}
                error if error.raw_os_error() == Some(libc::ECHILD) => return Ok(Wait::Ended),
                error => return Err(error),
            },
            _ => return Ok(meaning(status)),
        }
    }
}

/// What a status of waitpid(2) says (man 2 ptrace, "Stopped states").
fn meaning(status: i32) -> Wait {
    if !libc::WIFSTOPPED(status) {
        return Wait::Ended;
    }
    match (status >> 16, libc::WSTOPSIG(status)) {
        (EVENT_STOP, libc::SIGTRAP) => Wait::Held,
        (EVENT_STOP, _) => Wait::Stopped,
        (0, signal) if signal == libc::SIGTRAP | 0x80 => Wait::Call,
        (0, signal) => Wait::Signal(signal),
        (event, _) => Wait::Event(event),
    }
}

fn request(
    request: libc::c_uint,
    tid: Tid,
    address: *mut libc::c_void,
    data: usize,
) -> io::Result<()> {
    // SAFETY: each caller passes what its request takes: integers, or addresses of its own
    // variables of the sizes that the request reads or writes.
    let result = unsafe { libc::ptrace(request, tid, address, data) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_told_apart() {
        let stopped = |signal: i32, event: i32| 0x7f | signal << 8 | event << 16;
        assert_eq!(meaning(stopped(libc::SIGTRAP, 128)), Wait::Held);
        // With its whole process.
        assert_eq!(meaning(stopped(libc::SIGSTOP, 128)), Wait::Stopped);
        assert_eq!(meaning(stopped(libc::SIGTRAP, 3)), Wait::Event(libc::PTRACE_EVENT_CLONE));
        assert_eq!(meaning(stopped(libc::SIGTRAP | 0x80, 0)), Wait::Call);
        assert_eq!(meaning(stopped(libc::SIGTRAP, 0)), Wait::Signal(libc::SIGTRAP));
        // A real-time signal.
        assert_eq!(meaning(stopped(40, 0)), Wait::Signal(40));
        assert_eq!(meaning(0), Wait::Ended);
        assert_eq!(meaning(9), Wait::Ended);
    }
}
