//! Reads the counters of all call sites, and nothing else: no stack, no block, no file. It costs
//! some tens of nanoseconds a call site.

use leaktrace_common::{KERNEL_SPACE, LossReason};

use super::{Collector, estimates, site_id};
use crate::snapshot::{Counts, SiteCounts};

impl Collector {
    /// The counters of all call sites now.
    pub fn counts(&self) -> Counts {
        let mut sites: Vec<SiteCounts> = self
            .maps
            .sites()
            .iter()
            .map(|(_, record)| record)
            .filter(|record| {
                let space = record.key.space;
                record.allocated_count > 0 && (space == KERNEL_SPACE || self.images.has(space))
            })
            .map(|record| {
                let figures = estimates::figures(record, self.is_sampled);
                let (allocated, freed) = (figures.allocated, figures.freed);
                SiteCounts { id: site_id(&record.key), allocated, freed }
            })
            .collect();
        sites.extend(self.map_counts());
        Counts {
            elapsed_ms: self.started.elapsed().as_millis() as u64,
            untracked_frees: self.unfiltered.then(|| self.maps.loss(LossReason::UntrackedFree)),
            sites,
        }
    }
}
