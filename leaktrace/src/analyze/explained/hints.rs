//! What the unexplained part of growth may be, and what would tell: nothing that the data do not
//! allow to be said.

use leaktrace_common::Kind;

use super::{Explained, Sum};
use crate::snapshot::{HostFigure, Snapshot};

/// Memory that may be shared.
pub(super) const SHARED: &str =
    "no block of malloc lies there: it is memory that the process has mapped as shared";

/// What a process holds of the memory that was traced.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    /// Blocks of malloc.
    pub(super) blocks: Sum,
    /// The program's own mappings.
    pub(super) mapped: Sum,
    /// Bytes that allocators have mapped, to give them out as blocks.
    pub(super) allocator_bytes: u64,
}

/// What the rest of a process' growth may be.
pub(super) fn of_process(
    grown: &Explained,
    held: &Held,
    snapshot: &Snapshot,
) -> Option<&'static str> {
    let kinds = &snapshot.user_kinds;
    let has = |kind| kinds.contains(&kind);
    if grown.is_whole() {
        return None;
    }
    if grown.is_too_much() {
        return Some(match held.mapped.asked {
            0 => "some of these blocks were not written to, or lie where freed ones were",
            _ => "some of that was mapped or allocated and not written to",
        });
    }
    let rest = grown.grew_bytes.saturating_sub(grown.explained_bytes + grown.overhead_bytes);
    let between = held.allocator_bytes.saturating_sub(held.blocks.asked + held.blocks.overhead);
    Some(match (has(Kind::Malloc), has(Kind::Mmap)) {
        (true, false) if is_bounded(snapshot) => {
            "the rest may be blocks that --min-size or --max-size leave out, and memory that the \
             process maps itself (try --kind malloc,mmap)"
        }
        (true, false) => {
            "the rest is memory that the process maps itself, or got before and has written to since, \
             or that its allocator keeps free (try --kind malloc,mmap)"
        }
        (false, _) => "the rest may be blocks of malloc (try --kind malloc,mmap)",
        (true, true) if between >= rest / 2 => {
            "the rest is mostly in the allocator's mappings, outside these blocks: freed blocks, and \
             gaps between blocks (fragmentation)"
        }
        (true, true) => {
            "the rest is memory that the process got before and has written to since, or stacks of \
             threads"
        }
    })
}

/// What the rest of the growth of one of the host's figures may be.
pub(super) fn of_host(
    grown: &Explained,
    figure: HostFigure,
    snapshot: &Snapshot,
) -> Option<&'static str> {
    let traces = |kinds: &[Kind]| snapshot.sites.iter().any(|site| kinds.contains(&site.kind));
    if grown.is_whole() {
        return None;
    }
    if grown.is_too_much() {
        return Some("some of that took the place of what was freed meanwhile");
    }
    if snapshot.loss.filtered {
        return Some("the filters leave out allocations");
    }
    Some(match figure {
        HostFigure::UnreclaimableSlab if traces(&[Kind::Kmalloc, Kind::KmemCache]) => {
            "the rest is slabs that are not full, or objects that no probe saw"
        }
        HostFigure::UnreclaimableSlab => "slab memory is not traced (try --kind slab)",
        HostFigure::Percpu if traces(&[Kind::Percpu]) => {
            "the rest is pages of chunks that are not full"
        }
        HostFigure::Percpu => "percpu memory is not traced (try --kind percpu)",
        HostFigure::Vmalloc if traces(&[Kind::Vmalloc]) => {
            "the rest was allocated in a way that no probe saw"
        }
        HostFigure::Vmalloc => "vmalloc is not traced (try --kind vmalloc)",
        HostFigure::KernelStack => {
            "the stacks of new threads; --stacks all tells those that vmalloc gives"
        }
        HostFigure::PageTables if traces(&[Kind::Pages]) => {
            "the rest is tables whose stack is not known"
        }
        HostFigure::PageTables => {
            "processes have mapped or written to more memory (--pages traces the tables)"
        }
    })
}

/// What the rest of a slab cache's growth may be.
pub(super) fn of_cache(grown: &Explained, snapshot: &Snapshot) -> Option<&'static str> {
    if grown.is_whole() {
        return None;
    }
    if grown.is_too_much() {
        return Some("some of that took the place of what was freed meanwhile");
    }
    Some(match snapshot.loss.filtered {
        true => "the filters leave out allocations",
        false => "the rest was allocated in a way that no probe saw, or waits for RCU to free it",
    })
}

/// Whether bounds leave out blocks of malloc: then frees of unknown blocks mean nothing, and no
/// sampling is the reason for that.
fn is_bounded(snapshot: &Snapshot) -> bool {
    snapshot.loss.filtered && snapshot.sample_bytes == 0 && snapshot.budget.is_none()
}
