//! The bpf(2) commands that aya has no wrapper for.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type};

use super::refusal;
use crate::error::Error;

/// Calls bpf(2) with an attribute that `fill` writes into a zeroed one.
///
/// # Safety
///
/// Every pointer that `fill` writes stays valid during the call, for the length that the
/// command reads or writes.
unsafe fn bpf(command: bpf_cmd, fill: impl FnOnce(&mut bpf_attr)) -> io::Result<(i32, bpf_attr)> {
    // SAFETY: bpf_attr is a union of plain integers: all zeroes is a valid value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    fill(&mut attr);
    // SAFETY: the attribute lives during the call; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut attr, size_of::<bpf_attr>())
    };
    match result {
        0.. => Ok((result as i32, attr)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes ownership of a descriptor that bpf(2) returned.
fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Loads BTF (`BPF_BTF_LOAD`).
pub(super) fn load_btf(data: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: `data` outlives the call and has the length given.
    let (fd, _) = unsafe {
        bpf(bpf_cmd::BPF_BTF_LOAD, |attr| {
            attr.__bindgen_anon_7.btf = data.as_ptr() as u64;
            attr.__bindgen_anon_7.btf_size = data.len() as u32;
        })
    }?;
    Ok(owned(fd))
}

/// What [`load_program`] needs to know.
pub(super) struct ProgramImage<'a> {
    pub(super) name: &'a str,
    pub(super) expected_attach_type: u32,
    pub(super) function: &'a aya_obj::obj::Function,
    pub(super) license: &'a std::ffi::CStr,
    pub(super) btf: BorrowedFd<'a>,
}

/// Loads a program of type kprobe (`BPF_PROG_LOAD`).
pub(super) fn load_program(image: &ProgramImage<'_>) -> Result<OwnedFd, Error> {
    let attempt = |log: Option<&mut Vec<u8>>| {
        let function = image.function;
        let func_info = function.func_info.func_info_bytes();
        let line_info = function.line_info.line_info_bytes();
        // SAFETY: all buffers outlive the call and have the lengths given.
        unsafe {
            bpf(bpf_cmd::BPF_PROG_LOAD, |attr| {
                let load = &mut attr.__bindgen_anon_3;
                load.prog_type = aya_obj::generated::bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32;
                load.expected_attach_type = image.expected_attach_type;
                load.insns = function.instructions.as_ptr() as u64;
                load.insn_cnt = function.instructions.len() as u32;
                load.license = image.license.as_ptr() as u64;
                for (to, from) in load.prog_name.iter_mut().zip(image.name.bytes().take(15)) {
                    *to = from as std::ffi::c_char;
                }
                load.prog_btf_fd = image.btf.as_raw_fd() as u32;
                load.func_info = func_info.as_ptr() as u64;
                load.func_info_cnt = function.func_info.len() as u32;
                load.func_info_rec_size = function.func_info_rec_size as u32;
                load.line_info = line_info.as_ptr() as u64;
                load.line_info_cnt = function.line_info.len() as u32;
                load.line_info_rec_size = function.line_info_rec_size as u32;
                if let Some(log) = log {
                    load.log_level = 1;
                    load.log_buf = log.as_mut_ptr() as u64;
                    load.log_size = log.len() as u32;
                }
            })
        }
    };
    match attempt(None) {
        Ok((fd, _)) => Ok(owned(fd)),
        Err(refusal) => {
            let mut log = vec![0; 1 << 20];
            if let Ok((fd, _)) = attempt(Some(&mut log)) {
                return Ok(owned(fd));
            }
            let text = String::from_utf8_lossy(&log);
            Err(refusal::refused(image.name, &refusal, text.trim_end_matches('\0')))
        }
    }
}

/// Where one uprobe_multi or session link attaches, and with which cookies.
pub(super) struct MultiLink<'a> {
    pub(super) attach_type: u32,
    pub(super) path: &'a std::ffi::CStr,
    pub(super) offsets: &'a [u64],
    pub(super) cookies: &'a [u64],
    pub(super) pid: u32,
    pub(super) at_return: bool,
}

/// Attaches a program to many offsets of a file (`BPF_LINK_CREATE`).
pub(super) fn create_multi_link(
    program: BorrowedFd<'_>,
    link: &MultiLink<'_>,
) -> io::Result<OwnedFd> {
    // SAFETY: path and arrays outlive the call; both arrays have the count given.
    let (fd, _) = unsafe {
        bpf(bpf_cmd::BPF_LINK_CREATE, |attr| {
            let create = &mut attr.link_create;
            create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
            create.attach_type = link.attach_type;
            let multi = &mut create.__bindgen_anon_3.uprobe_multi;
            multi.path = link.path.as_ptr() as u64;
            multi.offsets = link.offsets.as_ptr() as u64;
            multi.cookies = link.cookies.as_ptr() as u64;
            multi.cnt = link.offsets.len().min(link.cookies.len()) as u32;
            multi.pid = link.pid;
            multi.flags = u32::from(link.at_return);
        })
    }?;
    Ok(owned(fd))
}

/// Gives the program of a kprobe's or kretprobe's link, and how many of its runs the kernel has left out
/// (`BPF_OBJ_GET_INFO_BY_FD`); nothing for other links. Before 6.7 the kernel does not tell how many.
pub(super) fn kprobe_link(link: BorrowedFd<'_>) -> io::Result<Option<(u32, Option<u64>)>> {
    // SAFETY: `bpf_link_info` is made of plain integers: all zeroes is a valid value.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let room = size_of::<bpf_link_info>();
    // SAFETY: `info` outlives the call and has the length given.
    let (_, attr) = unsafe {
        bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, |attr| {
            attr.info.bpf_fd = link.as_raw_fd() as u32;
            attr.info.info_len = room as u32;
            attr.info.info = (&raw mut info) as u64;
        })
    }?;
    if info.type_ != bpf_link_type::BPF_LINK_TYPE_PERF_EVENT as u32 {
        return Ok(None);
    }
    // SAFETY: any bytes are valid integers.
    let probe = unsafe { info.__bindgen_anon_1.perf_event.__bindgen_anon_1.kprobe };
    // SAFETY: the command has this one's fields; the kernel has written how much it knows to tell.
    let told = unsafe { attr.info.info_len } as usize;
    let missed_at = std::mem::offset_of!(
        bpf_link_info,
        __bindgen_anon_1.perf_event.__bindgen_anon_1.kprobe.missed
    );
    Ok(Some((info.prog_id, (told > missed_at).then_some(probe.missed))))
}

/// Reads all entries of a hash map in batches (`BPF_MAP_LOOKUP_BATCH`): 1 million in 0.4 s; one by
/// one they take 3.4 s.
///
/// A batch walks whole buckets, so an entry that stays in place is read exactly once. An entry that
/// comes or goes meanwhile may be read or not.
pub(super) fn read_all<K: Copy, V: Copy>(
    map: impl AsFd,
    mut visit: impl FnMut(&K, &V),
) -> io::Result<()> {
    let map = map.as_fd();
    let mut room: usize = 16 * 1024;
    let (mut keys, mut values) = (Vec::<K>::with_capacity(room), Vec::<V>::with_capacity(room));
    // The position is a bucket number (u32) for hash maps.
    let (mut from, mut to) = ([0u64; 4], [0u64; 4]);
    let mut first = true;
    loop {
        let mut count = 0;
        // SAFETY: both vectors have room for `room` entries; the position buffers are larger
        // than a hash map's position. The count is read back on failure too, as ENOENT marks
        // the last batch.
        let result = unsafe {
            let mut attr: bpf_attr = std::mem::zeroed();
            attr.batch.in_batch = if first { 0 } else { from.as_ptr() as u64 };
            attr.batch.out_batch = to.as_mut_ptr() as u64;
            attr.batch.keys = keys.as_mut_ptr() as u64;
            attr.batch.values = values.as_mut_ptr() as u64;
            attr.batch.count = room as u32;
            attr.batch.map_fd = map.as_raw_fd() as u32;
            let code = libc::syscall(
                libc::SYS_bpf,
                bpf_cmd::BPF_MAP_LOOKUP_BATCH as libc::c_long,
                &raw mut attr,
                size_of::<bpf_attr>(),
            );
            let error = io::Error::last_os_error();
            if code == 0 || error.raw_os_error() == Some(libc::ENOENT) {
                count = attr.batch.count as usize;
                keys.set_len(count);
                values.set_len(count);
            }
            if code == 0 { Ok(()) } else { Err(error) }
        };
        for (key, value) in keys.iter().zip(&values).take(count) {
            visit(key, value);
        }
        keys.clear();
        values.clear();
        match result {
            Ok(()) => {
                std::mem::swap(&mut from, &mut to);
                first = false;
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            // A bucket held more entries than there was room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 22 => {
                room *= 4;
                keys.reserve(room);
                values.reserve(room);
            }
            Err(error) => return Err(error),
        }
    }
}
