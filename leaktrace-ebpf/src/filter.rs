//! Which allocations are wanted.

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};

use crate::maps::{FILTER_COMMS, FILTER_TGIDS, config};

/// Whether allocations of this size are tracked.
#[inline(always)]
pub(crate) fn wants_size(size_bytes: u64) -> bool {
    size_bytes >= config!(min_size_bytes) && size_bytes <= config!(max_size_bytes)
}

/// Whether leaktrace itself runs: its own kernel allocations are not tracked.
#[inline(always)]
pub(crate) fn is_own() -> bool {
    (bpf_get_current_pid_tgid() >> 32) as u32 == config!(own_tgid)
}

/// The running process, if its kernel allocations are tracked.
#[inline(always)]
pub(crate) fn wanted_tgid() -> Option<u32> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if tgid == config!(own_tgid) {
        return None;
    }
    // SAFETY: the value is not looked at, only its presence.
    if config!(filter_tgids) != 0 && unsafe { FILTER_TGIDS.get(tgid) }.is_none() {
        return None;
    }
    if config!(filter_comms) != 0 {
        let comm = bpf_get_current_comm().ok()?;
        // SAFETY: as above.
        unsafe { FILTER_COMMS.get(comm) }?;
    }
    Some(tgid)
}
