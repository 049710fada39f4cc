//! The BPF programs that the kernel has loaded, asked with bpf(2).

use std::{collections::BTreeMap, fs};

// include/uapi/linux/bpf.h
const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// `struct { __u32 start_id; __u32 next_id; __u32 open_flags; }` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct IdAttr {
    pub(crate) id: u32,
    pub(crate) next_id: u32,
    pub(crate) open_flags: u32,
}

/// `struct { __u32 bpf_fd; __u32 info_len; __u64 info; }` of `union bpf_attr`.
#[repr(C)]
pub(crate) struct InfoAttr {
    pub(crate) fd: u32,
    pub(crate) info_len: u32,
    pub(crate) info: u64,
}

/// The start of `struct bpf_prog_info`, up to its name (offset 64).
#[repr(C, align(8))]
struct ProgramInfo {
    before_name: [u8; 64],
    name: [u8; 16],
}

pub(crate) fn bpf<T>(command: libc::c_int, attr: &mut T) -> std::io::Result<i32> {
    // SAFETY: attr is a live, initialized prefix of union bpf_attr of the size given; the kernel
    // reads the rest as zero. The only pointers in it point to live values of the length given
    // (`InfoAttr::info`), or of the map's sizes (`ElementAttr`).
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// The name of a loaded program; none when it was unloaded meanwhile.
fn program_name(id: u32) -> Option<String> {
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut IdAttr { id, ..IdAttr::default() }).ok()?;
    let mut info = ProgramInfo { before_name: [0; 64], name: [0; 16] };
    let mut attr = InfoAttr {
        fd: fd.unsigned_abs(),
        info_len: u32::try_from(size_of::<ProgramInfo>()).ok()?,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    let result = bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr);
    // SAFETY: the descriptor was made above and is used nowhere else.
    unsafe { libc::close(fd) };
    result.unwrap_or_else(|error| panic!("BPF_OBJ_GET_INFO_BY_FD of program {id}: {error}"));
    let length = info.name.iter().position(|byte| *byte == 0).unwrap_or(info.name.len());
    Some(String::from_utf8_lossy(&info.name[..length]).into_owned())
}

/// Major and minor number of the running kernel.
///
/// # Panics
///
/// When they cannot be read.
pub fn kernel_release() -> (u32, u32) {
    let path = "/proc/sys/kernel/osrelease";
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut numbers = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// leaktrace's programs in the kernel now, by ID: those whose name begins with `lt_`.
///
/// # Panics
///
/// When not root.
pub fn loaded_programs() -> BTreeMap<u32, String> {
    let mut programs = BTreeMap::new();
    let mut attr = IdAttr::default();
    loop {
        match bpf(BPF_PROG_GET_NEXT_ID, &mut attr) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return programs,
            Err(error) => panic!("BPF_PROG_GET_NEXT_ID: {error}"),
        }
        attr.id = attr.next_id;
        if let Some(name) = program_name(attr.id).filter(|name| name.starts_with("lt_")) {
            programs.insert(attr.id, name);
        }
    }
}

/// How many instructions the verifier looked at, for each program that a process holds: name and
/// count.
///
/// # Panics
///
/// When not root, or when the process has ended.
pub fn verified_instructions(pid: u32) -> Vec<(String, u64)> {
    verified_programs(pid).into_iter().map(|(_, name, count)| (name, count)).collect()
}

/// As [`verified_instructions`], with the programs' IDs.
pub(crate) fn verified_programs(pid: u32) -> Vec<(u32, String, u64)> {
    let mut programs = Vec::new();
    for text in descriptors(pid) {
        // Links have a `prog_id:` too, but not the other.
        let fields = (field(&text, "prog_id:"), field(&text, "verified_insns:"));
        if let (Some(id), Some(count)) = fields {
            let id = u32::try_from(id).unwrap_or_else(|error| panic!("{error}"));
            programs.extend(program_name(id).map(|name| (id, name, count)));
        }
    }
    programs
}

/// How many links a process holds that put probes into files.
///
/// # Panics
///
/// When the process has ended.
pub fn probe_links(pid: u32) -> usize {
    let kind = |text: &String| {
        text.lines()
            .find_map(|line| line.strip_prefix("link_type:"))
            .map(|kind| kind.trim().to_owned())
    };
    let kinds = descriptors(pid).iter().filter_map(kind).collect::<Vec<_>>();
    kinds.iter().filter(|kind| ["uprobe_multi", "perf"].contains(&kind.as_str())).count()
}

/// A field of all descriptors of a process that have it.
pub(crate) fn descriptor_fields(pid: u32, name: &str) -> Vec<u64> {
    descriptors(pid).iter().filter_map(|text| field(text, name)).collect()
}

/// What the kernel tells of each descriptor of a process.
fn descriptors(pid: u32) -> Vec<String> {
    let folder = format!("/proc/{pid}/fdinfo");
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("cannot read {folder}: {error}"));
    // A descriptor may be closed meanwhile.
    entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).collect()
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}
