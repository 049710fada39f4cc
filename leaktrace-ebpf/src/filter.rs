//! The filters: which allocations are tracked.

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_probe_read_kernel,
        generated::{bpf_get_current_ancestor_cgroup_id, bpf_probe_read_kernel_str},
    },
};
use leaktrace_common::{
    CGROUPS, CgroupTest, Choice, Follow, GFP_TESTS, GfpTest, Kind, SiteVerdict, StackMode,
    TEXT_RANGES, TextRange,
};

use crate::{
    ledger,
    maps::{
        CONFIG, FILTER_CACHES, FILTER_COMMS, FILTER_KMALLOC, FILTER_TGIDS, MODULE_TEXT, config,
    },
    stack, task,
};

/// Whether allocations of this size are tracked.
#[inline(always)]
pub(crate) fn wants_size(size_bytes: u64) -> bool {
    size_bytes >= config!(min_size_bytes) && size_bytes <= config!(max_size_bytes)
}

/// Whether the running process is leaktrace, whose own kernel allocations are not tracked.
#[inline(always)]
pub(crate) fn is_own() -> bool {
    (bpf_get_current_pid_tgid() >> 32) as u32 == config!(own_tgid)
}

/// The running process, if its kernel allocations are tracked. For `slot` see
/// [`stack::read_kernel`].
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
    if config!(filter_comms) != 0 && leaktrace_has_comm() == 0 {
        return None;
    }
    if config!(filter_cgroups) != 0 && leaktrace_is_in_cgroups() == 0 {
        return None;
    }
    Some(tgid)
}

/// Whether the filter names the command name of the running thread or of its process: threads give
/// themselves names of their own. Global and not inlined, as [`leaktrace_has_gfp`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_has_comm() -> u32 {
    // SAFETY: the value is not looked at, only its presence.
    let is_wanted = |comm: [u8; 16]| unsafe { FILTER_COMMS.get(comm) }.is_some();
    if bpf_get_current_comm().is_ok_and(is_wanted) {
        return 1;
    }
    match task::leader() {
        Some(leader) => u32::from(task::comm(leader).is_some_and(is_wanted)),
        None => 0,
    }
}

/// Whether the filters want a process like the running one to be traced once it begins (`--all`,
/// `--comm` and `--cgroup` of user mode). A child starts with its parent's command name and control
/// group.
#[inline(always)]
pub(crate) fn follows_current() -> bool {
    if is_own() {
        return false;
    }
    if config!(follow) & Follow::ALL != 0 {
        return true;
    }
    // SAFETY: the value is not looked at, only its presence.
    let has_comm = |comm| unsafe { FILTER_COMMS.get(comm) }.is_some();
    (config!(filter_comms) != 0 && bpf_get_current_comm().is_ok_and(has_comm))
        || (config!(filter_cgroups) != 0 && leaktrace_is_in_cgroups() != 0)
}

/// Whether the running task is in a control group that the filter names, or below one. Global and
/// not inlined, as [`leaktrace_has_gfp`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_is_in_cgroups() -> u32 {
    let tests = (&raw const CONFIG.cgroups).cast::<CgroupTest>();
    let mut at = 0;
    while at < CGROUPS {
        // SAFETY: within the array; volatile, as the loader patches it. The helper has no
        // preconditions.
        unsafe {
            let test = core::ptr::read_volatile(tests.add(at));
            if test.id != 0 && bpf_get_current_ancestor_cgroup_id(test.level as i32) == test.id {
                return 1;
            }
        }
        at += 1;
    }
    0
}

/// Whether allocations with these GFP flags are tracked. The flags are no part of a call site, as
/// one call may be made with any flags.
#[inline(always)]
pub(crate) fn wants_gfp(gfp: u32) -> bool {
    config!(filter_gfp) == 0 || leaktrace_has_gfp(gfp) != 0
}

/// Whether one of the tests of GFP flags holds. Global and not inlined, so that the verifier checks
/// the loop once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_has_gfp(gfp: u32) -> u32 {
    let tests = (&raw const CONFIG.gfp).cast::<GfpTest>();
    let mut at = 0;
    while at < GFP_TESTS {
        // SAFETY: within the array; volatile, as the loader patches it.
        let test = unsafe { core::ptr::read_volatile(tests.add(at)) };
        if gfp & test.mask == test.value {
            return 1;
        }
        at += 1;
    }
    0
}

/// The [`SiteVerdict`] on a call site, by its slab cache and by its module; found once for each
/// call site. `base` is the index of the site's record without stack.
#[inline(always)]
pub(crate) fn site_verdict(base: u32, kind: Kind, detail: u64, call_site: u64) -> u32 {
    if config!(filter_caches) == Choice::ALL && config!(filter_modules) == Choice::ALL {
        return SiteVerdict::Wanted as u32;
    }
    let known = ledger::verdict(base);
    if known != SiteVerdict::Unknown as u32 {
        return known;
    }
    let verdict = if !wants_cache(kind, detail) {
        SiteVerdict::Unwanted
    } else if config!(filter_modules) == Choice::ALL {
        SiteVerdict::Wanted
    } else if config!(filter_modules) == Choice::ALL_BUT {
        // Of the callers, userspace asks the stacks that are known.
        match leaktrace_in_text(call_site) {
            0 => SiteVerdict::Wanted,
            _ => SiteVerdict::Unwanted,
        }
    } else if leaktrace_in_text(call_site) != 0 {
        SiteVerdict::Wanted
    } else if config!(stack_mode) == StackMode::Site as u32 {
        SiteVerdict::Unwanted
    } else {
        SiteVerdict::ByStack
    } as u32;
    ledger::set_verdict(base, verdict);
    verdict
}

#[inline(always)]
pub(crate) fn wants_cache(kind: Kind, detail: u64) -> bool {
    if config!(filter_caches) == Choice::ALL {
        return true;
    }
    // SAFETY: values are not looked at, only their presence.
    let is_named = unsafe {
        match kind {
            Kind::Kmalloc => FILTER_KMALLOC.get(detail).is_some(),
            Kind::KmemCache => match cache_name(detail) {
                Some(name) => FILTER_CACHES.get(name).is_some(),
                None => false,
            },
            // What a function gives is in no cache that is known.
            Kind::Pair => return true,
            _ => false,
        }
    };
    is_named == (config!(filter_caches) == Choice::ONLY)
}

/// Whether a return address lies in a module that the filter names. Global and not inlined, as
/// [`leaktrace_has_gfp`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_in_text(return_address: u64) -> u32 {
    for which in 0..2 {
        if let Some(ranges) = MODULE_TEXT.get_ptr(which)
            && is_in_one(ranges.cast(), TEXT_RANGES, return_address) != 0
        {
            return 1;
        }
    }
    0
}

/// Whether a return address lies in one of `count` ranges of [`CONFIG`] or of a map; 1 or 0.
#[inline(always)]
pub(crate) fn is_in_one(ranges: *const TextRange, count: usize, return_address: u64) -> u32 {
    let mut at = 0;
    while at < count {
        // SAFETY: within the caller's array; volatile, as the loader patches it. A range that is
        // being written may hold too much or too little for a moment, in which none of its module's
        // code has run yet, or any more.
        let range = unsafe { core::ptr::read_volatile(ranges.add(at)) };
        // The call lies before its return address.
        if return_address > range.start && return_address <= range.end {
            return 1;
        }
        at += 1;
    }
    0
}

/// The name of a slab cache, read here as userspace cannot read kernel memory.
#[inline(always)]
pub(crate) fn cache_name(cache: u64) -> Option<[u8; 32]> {
    let at = cache.wrapping_add(u64::from(config!(cache_name_offset)));
    // SAFETY: the helpers check the addresses; the buffer has the size given.
    unsafe {
        let name = bpf_probe_read_kernel(at as *const u64).ok()?;
        let mut bytes = [0u8; 32];
        bpf_probe_read_kernel_str(bytes.as_mut_ptr().cast(), 32, name as *const _);
        Some(bytes)
    }
}
