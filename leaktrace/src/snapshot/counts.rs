//! The counters of all call sites at one moment: what is left of a Snapshot where nothing but
//! figures is wanted.

use super::{Amount, Snapshot};
use leaktrace_common::LossReason;

/// The counters of all call sites at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Time since the probes were attached.
    pub elapsed_ms: u64,
    /// Number of frees so far of blocks that are not tracked, most of them older than the trace;
    /// `None` where a filter leaves out allocations, as such frees mean nothing then.
    pub untracked_frees: Option<u64>,
    /// Every call site that has allocated.
    pub sites: Vec<SiteCounts>,
}

/// The counters of one call site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiteCounts {
    /// As [`super::Site::id`].
    pub id: u64,
    /// Allocated since the start; an estimate where blocks are sampled.
    pub allocated: Amount,
    /// The freed part of `allocated`.
    pub freed: Amount,
}

impl Counts {
    /// The counters in a snapshot.
    pub fn of(snapshot: &Snapshot) -> Self {
        let loss = &snapshot.loss;
        Self {
            elapsed_ms: snapshot.elapsed_ms,
            untracked_frees: (!loss.filtered).then(|| loss.count(LossReason::UntrackedFree)),
            sites: snapshot
                .sites
                .iter()
                .map(|site| SiteCounts {
                    id: site.id,
                    allocated: site.allocated,
                    freed: site.freed,
                })
                .collect(),
        }
    }
}
