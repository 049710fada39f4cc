//! What the call sites of slab caches hold that the kernel takes back under pressure.

use super::{Confidence, Group, Totals};
use crate::snapshot::Snapshot;

/// The call sites of reclaimable slab caches, shown or not. They are call sites as all others, and
/// in all sums; they only come last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reclaimed {
    /// Number of those with outstanding blocks.
    pub sites: usize,
    /// The figures of all of them.
    pub totals: Totals,
    /// Whether a list of known caches told them, as the kernel does not.
    pub is_listed: bool,
}

/// Sums them up; `None` if nothing of them is outstanding.
pub(super) fn sum(groups: &[Group], snapshot: &Snapshot) -> Option<Reclaimed> {
    let mut all = Reclaimed {
        sites: 0,
        totals: Totals::default(),
        is_listed: snapshot.reclaimable.is_listed,
    };
    for group in groups.iter().filter(|group| group.is_reclaimable()) {
        all.sites += usize::from(group.totals.outstanding.count > 0);
        all.totals.add(&group.totals);
    }
    (all.sites > 0).then_some(all)
}

impl Group {
    /// Whether the kernel takes unused blocks of this call site back under pressure. It does not take
    /// what is certainly leaked.
    pub fn is_reclaimable(&self) -> bool {
        // All rows of a call site are of one slab cache.
        self.verdict.confidence != Confidence::Certain
            && self.rows.iter().any(|row| row.is_reclaimable)
    }
}
