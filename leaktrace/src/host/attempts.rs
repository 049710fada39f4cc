//! Asks the kernel what it allows, by trying it with a program that does nothing.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::{
    btf::{Btf, BtfKind},
    generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_type},
};

use super::answer::Answer;

/// The attach type of session links, from 6.13; newer than the bindings.
const BPF_TRACE_UPROBE_SESSION: u32 = 57;
/// The instructions `r0 = 0; exit`.
const NOTHING: [u64; 2] = [0xb7, 0x95];
/// A kernel function that only the kernel's own tests call.
const FENTRY_TARGET: &str = "bpf_fentry_test1";

/// Calls bpf(2) with an attribute that `fill` writes into a zeroed one; returns the descriptor that
/// bpf(2) returns.
///
/// # Safety
///
/// The command returns a descriptor, and every pointer that `fill` writes stays valid during
/// the call, for the length that the command reads.
unsafe fn bpf(command: bpf_cmd, fill: impl FnOnce(&mut bpf_attr)) -> io::Result<OwnedFd> {
    // SAFETY: bpf_attr is a union of plain integers: all zeroes is a valid value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    fill(&mut attr);
    // SAFETY: the attribute lives during the call; the rest is the caller's promise.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut attr, size_of::<bpf_attr>())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn load(kind: bpf_prog_type, attach_type: u32, btf_id: u32) -> io::Result<OwnedFd> {
    // SAFETY: instructions and licence are constants, with the count given and a final NUL.
    unsafe {
        bpf(bpf_cmd::BPF_PROG_LOAD, |attr| {
            let load = &mut attr.__bindgen_anon_3;
            load.prog_type = kind as u32;
            load.expected_attach_type = attach_type;
            load.insns = NOTHING.as_ptr() as u64;
            load.insn_cnt = NOTHING.len() as u32;
            load.license = c"GPL".as_ptr() as u64;
            load.attach_btf_id = btf_id;
        })
    }
}

/// Attaches a raw tracepoint program; without a name, to the function that it was loaded for.
fn open_raw(program: BorrowedFd<'_>, name: Option<&CStr>) -> io::Result<OwnedFd> {
    // SAFETY: the name outlives the call.
    unsafe {
        bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, |attr| {
            attr.raw_tracepoint.name = name.map_or(0, |name| name.as_ptr() as u64);
            attr.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
        })
    }
}

/// Asks for a multi link on `/`, which no kernel grants: the error shows what the kernel knows.
fn refused_link(program: BorrowedFd<'_>, attach_type: u32, pid: u32) -> Option<i32> {
    let offset = 0u64;
    // SAFETY: path and offset outlive the call; there is one offset.
    let link = unsafe {
        bpf(bpf_cmd::BPF_LINK_CREATE, |attr| {
            let create = &mut attr.link_create;
            create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
            create.attach_type = attach_type;
            let multi = &mut create.__bindgen_anon_3.uprobe_multi;
            multi.path = c"/".as_ptr() as u64;
            multi.offsets = &raw const offset as u64;
            multi.cnt = 1;
            multi.pid = pid;
        })
    };
    link.err().and_then(|error| error.raw_os_error())
}

/// Whether the kernel loads a raw tracepoint program.
pub(super) fn raw_tracepoint() -> Answer {
    load(bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0).into()
}

/// Whether a program can be attached to the slab allocator's tracepoints.
pub(super) fn slab_tracepoints() -> Answer {
    let attempt = || {
        let program = load(bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0)?;
        for name in [c"kmalloc", c"kfree", c"kmem_cache_alloc", c"kmem_cache_free"] {
            open_raw(program.as_fd(), Some(name))?;
        }
        Ok(())
    };
    attempt().into()
}

/// Whether one link can attach to many functions of one process (6.6; sound from 6.10).
pub(super) fn uprobe_multi() -> Answer {
    multi(bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32)
}

/// Whether one link can attach to entries and returns (6.13).
pub(super) fn session() -> Answer {
    multi(BPF_TRACE_UPROBE_SESSION)
}

fn multi(attach_type: u32) -> Answer {
    let program = match load(bpf_prog_type::BPF_PROG_TYPE_KPROBE, attach_type, 0) {
        Ok(program) => program,
        Err(error) => return Answer::No(error.to_string()),
    };
    // Where it is known, the path is refused as no regular file; elsewhere the type is.
    match refused_link(program.as_fd(), attach_type, 0) {
        Some(libc::EBADF) => {}
        Some(libc::EINVAL) => return Answer::No("the kernel does not know it".to_owned()),
        Some(other) => return Answer::No(io::Error::from_raw_os_error(other).to_string()),
        None => return Answer::Unknown("the kernel granted a link that makes no sense".to_owned()),
    }
    // The first kernels with multi links took the process for a thread, and told so by looking
    // for it before they check its ID.
    match refused_link(program.as_fd(), attach_type, u32::MAX) {
        Some(libc::EINVAL) => Answer::Yes,
        _ => Answer::No("the kernel would trace one thread of a process".to_owned()),
    }
}

/// Whether a program can be attached to a kernel function's entry.
pub(super) fn fentry() -> Answer {
    let target =
        Btf::from_sys_fs().and_then(|btf| btf.id_by_type_name_kind(FENTRY_TARGET, BtfKind::Func));
    let target = match target {
        Ok(target) => target,
        Err(error) => return Answer::Unknown(format!("{FENTRY_TARGET}: {error}")),
    };
    let attach_type = bpf_attach_type::BPF_TRACE_FENTRY as u32;
    load(bpf_prog_type::BPF_PROG_TYPE_TRACING, attach_type, target)
        .and_then(|program| open_raw(program.as_fd(), None))
        .into()
}
