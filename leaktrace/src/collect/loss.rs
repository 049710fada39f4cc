//! What is known to be missing from a snapshot.

use std::{collections::BTreeMap, thread, time::Duration};

use leaktrace_common::LossReason;

use super::{Collector, monotonic_ns};
use crate::snapshot::Loss;

/// After this time without a return, a call of vmalloc or of a pair's function is told.
const LONGEST_CALL_NS: u64 = 10_000_000_000;

/// What the last report waits for calls to return.
const LAST_CALLS: Duration = Duration::from_millis(100);

impl Collector {
    /// Calls of the kernel's functions that have not returned, or were not seen to: of vmalloc and of
    /// pairs. The programs count one when its thread, or another call, comes there again, which may be
    /// never.
    pub(super) fn unreturned(&self, is_final: bool) -> u64 {
        let now_ns = monotonic_ns();
        let before_ns = if is_final { now_ns } else { now_ns.saturating_sub(LONGEST_CALL_NS) };
        let count =
            || self.maps.unreturned_vmallocs(before_ns) + self.maps.unreturned_pairs(before_ns);
        match count() {
            0 => 0,
            // Most of them are about to return.
            _ if is_final => {
                thread::sleep(LAST_CALLS);
                count()
            }
            calls => calls,
        }
    }

    /// What is known to be missing from a snapshot.
    pub(super) fn loss(
        &self,
        recursion_misses: BTreeMap<String, u64>,
        unreturned: u64,
        unseen: &[String],
        stacks_truncated: u64,
    ) -> Loss {
        let more = |reason| match reason {
            LossReason::OutstandingFull => self.lost_mappings(),
            LossReason::SkippedReturn => unreturned,
            _ => 0,
        };
        let reasons = LossReason::ALL
            .into_iter()
            .filter(|reason| {
                let means_nothing =
                    matches!(reason, LossReason::UntrackedFree | LossReason::UntrackedRelease);
                self.unfiltered || !means_nothing
            })
            .map(|reason| (reason, self.maps.loss(reason) + more(reason)))
            .filter(|(_, count)| *count > 0)
            .collect();
        Loss {
            reasons,
            recursion_misses,
            stacks_truncated,
            unseen: unseen.iter().cloned().chain(self.modules.unseen()).collect(),
            blind: self.blind,
            filtered: !self.unfiltered,
        }
    }
}
