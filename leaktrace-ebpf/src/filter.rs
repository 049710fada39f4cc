//! Which allocations are wanted.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid},
};

use crate::{
    maps::{FILTER_COMMS, FILTER_TGIDS, config},
    stack,
};

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

/// The running process, if its kernel allocations are tracked. `slot` as for
/// [`stack::take_kernel`].
#[inline(always)]
pub(crate) fn wanted_tgid<C: EbpfContext>(ctx: &C, slot: u32) -> Option<u32> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // What an interrupt of leaktrace allocates is not leaktrace's.
    if tgid == config!(own_tgid) && !stack::is_interrupt(ctx, slot) {
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
