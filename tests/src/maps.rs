//! What leaktrace's BPF maps hold of a call that is under way, asked with bpf(2).
//!
//! A report has lost it: only blocks that are still outstanding are in it, and addresses of equal
//! names are merged.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use leaktrace_common::{InFlight, StackRecord};

use crate::kernel::{IdAttr, InfoAttr, bpf, descriptor_fields};

// include/uapi/linux/bpf.h
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_GET_FD_BY_ID: libc::c_int = 14;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// `struct { __u32 map_fd; __aligned_u64 key; __aligned_u64 value; __u64 flags; }` of
/// `union bpf_attr`.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The start of `struct bpf_map_info`, up to its name.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    name: [u8; 16],
}

/// A map with keys of eight bytes.
#[derive(Debug)]
struct Map(OwnedFd);

impl Map {
    /// The map of a process that has this name and values of this size.
    fn of_process(pid: u32, name: &str, value_bytes: usize) -> Self {
        let ids = descriptor_fields(pid, "map_id:");
        let mut maps = ids.into_iter().filter_map(|id| {
            let id = u32::try_from(id).ok()?;
            let fd = bpf(BPF_MAP_GET_FD_BY_ID, &mut IdAttr { id, ..IdAttr::default() }).ok()?;
            // SAFETY: the descriptor was just made, and belongs to nobody else.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            let mut info = MapInfo::default();
            let mut attr = InfoAttr {
                fd: fd.as_raw_fd().unsigned_abs(),
                info_len: u32::try_from(size_of::<MapInfo>()).ok()?,
                info: std::ptr::from_mut(&mut info) as u64,
            };
            bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).ok()?;
            let end = info.name.iter().position(|byte| *byte == 0).unwrap_or(info.name.len());
            (&info.name[..end] == name.as_bytes()).then_some((info, fd))
        });
        let Some((info, fd)) = maps.next() else { panic!("process {pid} has no map {name}") };
        let sizes = (info.key_size, info.value_size as usize);
        assert_eq!(sizes, (8, value_bytes), "bytes of keys and values of {name}");
        Self(fd)
    }

    /// The value of a key, into `value`; whether there is one.
    ///
    /// # Safety
    ///
    /// `T` has the size that was given for the map, and may hold any bytes.
    unsafe fn lookup<T>(&self, key: u64, value: &mut T) -> bool {
        let mut attr = ElementAttr {
            map_fd: self.0.as_raw_fd().unsigned_abs(),
            padding: 0,
            key: std::ptr::from_ref(&key) as u64,
            value: std::ptr::from_mut(value) as u64,
            flags: 0,
        };
        match bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) {
            Ok(_) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
            Err(error) => panic!("BPF_MAP_LOOKUP_ELEM: {error}"),
        }
    }
}

/// The maps of a running leaktrace that know of calls and stacks.
#[derive(Debug)]
pub struct CallMaps {
    in_flight: Map,
    stacks: Map,
}

impl CallMaps {
    /// Those of the leaktrace with this process ID.
    ///
    /// # Panics
    ///
    /// When it has none, or others than this source knows.
    pub fn of_process(pid: u32) -> Self {
        Self {
            in_flight: Map::of_process(pid, "IN_FLIGHT", size_of::<InFlight>()),
            stacks: Map::of_process(pid, "STACKS", size_of::<StackRecord>()),
        }
    }

    /// The last allocator call of a thread.
    pub fn last_call(&self, pid: u32, thread: u32) -> Option<InFlight> {
        // SAFETY: all fields are integers, for which zero is a value.
        let mut call: InFlight = unsafe { std::mem::zeroed() };
        let key = (u64::from(pid) << 32) | u64::from(thread);
        // SAFETY: the size was checked, and all fields are integers.
        unsafe { self.in_flight.lookup(key, &mut call) }.then_some(call)
    }

    /// The frames of a stack.
    pub fn stack(&self, id: u64) -> Option<StackRecord> {
        // SAFETY: all fields are integers, for which zero is a value.
        let mut record: StackRecord = unsafe { std::mem::zeroed() };
        // SAFETY: the size was checked, and all fields are integers.
        unsafe { self.stacks.lookup(id, &mut record) }.then_some(record)
    }
}
