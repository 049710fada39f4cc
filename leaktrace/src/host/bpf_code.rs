//! Where the code of the kernel's BPF programs lies; /proc/kallsyms tells only where it begins.

use std::{
    mem::offset_of,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

/// Commands of bpf(2), include/uapi/linux/bpf.h.
const PROG_GET_NEXT_ID: i32 = 11;
const PROG_GET_FD_BY_ID: i32 = 13;
const OBJ_GET_INFO_BY_FD: i32 = 15;

/// Most functions of one program: `BPF_MAX_SUBPROGS` (include/linux/bpf_verifier.h) and the main
/// one.
const MOST_FUNCTIONS: usize = 257;

/// The beginning of `struct bpf_prog_info`, up to the last member that is read.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    /// The members from `type` to `netns_ino`.
    before: [u8; 104],
    nr_jited_ksyms: u32,
    nr_jited_func_lens: u32,
    jited_ksyms: u64,
    jited_func_lens: u64,
}

const _: () = assert!(offset_of!(Info, nr_jited_ksyms) == 104 && size_of::<Info>() == 128);

/// `union bpf_attr` for these commands.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attr {
    /// The ID or the descriptor of the program.
    subject: u32,
    /// The next ID, or the size of the memory that `info` points to.
    other: u32,
    info: u64,
}

/// Start and end of each function of each program; empty where the kernel does not tell.
pub fn ranges() -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let mut attr = Attr::default();
    while bpf(PROG_GET_NEXT_ID, &mut attr).is_some() {
        attr = Attr { subject: attr.other, ..Attr::default() };
        let mut of_program = attr;
        // It may have gone since.
        if let Some(fd) = bpf(PROG_GET_FD_BY_ID, &mut of_program) {
            // SAFETY: the kernel has just made this descriptor for us alone.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            ranges.extend(functions(fd.as_raw_fd()));
        }
    }
    ranges
}

/// Start and end of each function of one program.
fn functions(fd: RawFd) -> Vec<(u64, u64)> {
    let mut starts = [0_u64; MOST_FUNCTIONS];
    let mut lengths = [0_u32; MOST_FUNCTIONS];
    let mut info = Info {
        before: [0; 104],
        nr_jited_ksyms: MOST_FUNCTIONS as u32,
        nr_jited_func_lens: MOST_FUNCTIONS as u32,
        jited_ksyms: starts.as_mut_ptr() as u64,
        jited_func_lens: lengths.as_mut_ptr() as u64,
    };
    let mut attr =
        Attr { subject: fd as u32, other: size_of::<Info>() as u32, info: (&raw mut info) as u64 };
    if bpf(OBJ_GET_INFO_BY_FD, &mut attr).is_none() {
        return Vec::new();
    }
    let count = info.nr_jited_ksyms.min(info.nr_jited_func_lens) as usize;
    let both = starts.into_iter().zip(lengths).take(count);
    both.filter(|(start, _)| *start != 0)
        .map(|(start, length)| (start, start.saturating_add(u64::from(length))))
        .collect()
}

/// Calls bpf(2); `None` where it fails.
fn bpf(command: i32, attr: &mut Attr) -> Option<RawFd> {
    // SAFETY: `attr` has the size given; where it points to something, that lives on and has the
    // size that the caller says.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<Attr>())
    };
    RawFd::try_from(result).ok().filter(|result| *result >= 0)
}
