//! Sentences on what of the traced processes is not in the figures.

use std::collections::HashSet;

use super::{
    growth::GrowthWatch,
    processes::{Counts, Processes},
};
use crate::{bpf::spaces::too_many, collect::Collector};

/// Most processes without a known allocator that a report names.
const BARE_SHOWN: usize = 3;

impl Processes {
    /// Sentences on what of the processes is not in the figures, for the report.
    pub(super) fn unseen(&self, collector: &Collector) -> Vec<String> {
        let failed = self.failed.iter().map(|(pid, cause)| format!("process {pid}: {cause}"));
        let Counts { late, unread, without, refused, images } = &self.counts;
        // One that is due for a look may be about to map its C library.
        let bare = self.traced.iter().filter(|(_, traced)| {
            self.traces_malloc && traced.due.is_none() && traced.allocators.is_empty()
        });
        let bare: HashSet<u32> = bare.map(|(pid, _)| *pid).collect();
        let names: Vec<String> = collector
            .processes()
            .filter(|process| bare.contains(&process.pid))
            .take(BARE_SHOWN)
            .map(|process| format!("{} {}", process.pid, process.comm))
            .collect();
        let bare_count = without + bare.len() as u64;
        let names =
            if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        let counts = [
            (
                *late,
                "traced from some time after their start, or after their C library's, on".into(),
            ),
            (*unread, "that ended before what they map could be read: stacks without names".into()),
            (bare_count, format!("in which no allocator was found{names}")),
            (refused.len() as u64, format!("not traced: {}", too_many())),
            (*images, "not traced: there were too many process images".into()),
        ];
        let counts = counts.into_iter().filter(|(count, _)| *count > 0).map(
            |(count, what): (u64, String)| {
                format!("processes {what}: {}", crate::units::format_count(count))
            },
        );
        let unprobed = self.unprobed.iter().chain(&self.without_return).cloned();
        let grown = self.growth.iter().flat_map(GrowthWatch::found).cloned();
        let pairs = self.pairs.iter().flat_map(super::pairs::TracedPairs::unseen);
        let others = counts.chain(grown).chain(self.requested.missing()).chain(pairs);
        failed.chain(unprobed).chain(others).collect()
    }
}
