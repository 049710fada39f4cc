//! Compares the tracked blocks of each slab cache with the kernel's own count. If the cache has
//! grown by less than its outstanding blocks, either older blocks were freed in their place or
//! frees of them were not seen. Nobody can tell which, and neither is a leak. If the cache has
//! grown by more, objects came into being in a way that no probe sees.

use std::collections::BTreeMap;

use crate::{
    analyze::{KMALLOC, cache_class},
    snapshot::{CacheGrowth, Snapshot},
};

/// A cache whose outstanding blocks are more than the cache grew by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Blocks from the cache that are outstanding, over all call sites.
    pub outstanding: u64,
    /// Objects in use now, less those at the start.
    pub growth: i64,
}

/// A cache that grew by more than its outstanding blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untold {
    /// The cache's name; for kmalloc's caches `kmalloc-*` with their size, as the kernel does not
    /// always tell which of them a block is from.
    pub cache: String,
    /// Objects in use now, less those at the start.
    pub growth: u64,
    /// Blocks from the cache that are outstanding, over all call sites.
    pub outstanding: u64,
}

/// Objects that a cache may hold more, or fewer, than the kernel counts: those that CPUs keep for
/// their next allocations.
const AT_HAND: i64 = 256;
/// Objects of kmalloc that may wait for RCU to free them. They count as freed once they are handed
/// to `kfree_rcu`, which gathers objects for some jiffies and then waits for a grace period
/// (schedule_delayed_monitor_work(), kernel/rcu/tree.c, 6.4 to 6.14).
const WAITING_FOR_RCU: u64 = 20_000;
/// Caches that leaktrace fills itself, whose own allocations are not tracked: it reads files of
/// each holder in /proc, and the kernel keeps the inodes of these files. No cache of these is ever
/// filled in bulk.
const FILLED_BY_US: [&str; 3] = ["proc_inode_cache", "dentry", "lsm_inode_cache"];
/// What the tracked blocks of a cache add up to.
#[derive(Clone, Copy, Debug, Default)]
struct Tracked {
    outstanding: u64,
    freed: u64,
}

/// The results of both comparisons.
pub(super) struct Reconciled {
    /// The caches that grew by less than their outstanding blocks.
    pub(super) doubts: BTreeMap<String, Doubt>,
    /// The caches that grew by more than their outstanding blocks.
    pub(super) untold: Vec<Untold>,
}

pub(super) fn reconcile(snapshot: &Snapshot) -> Reconciled {
    let mut tracked: BTreeMap<&str, Tracked> = BTreeMap::new();
    for site in &snapshot.sites {
        if let Some(cache) = &site.cache {
            let sum = tracked.entry(cache).or_default();
            sum.outstanding += site.allocated.minus(site.freed).count;
            sum.freed += site.freed.count;
        }
    }
    // Of blocks that a filter leaves out nothing is known, and what was missed is told already.
    let is_whole = !snapshot.loss.filtered && snapshot.loss.missed_allocs() == 0;
    let untold = if is_whole { untold(&tracked, &snapshot.cache_growth) } else { Vec::new() };
    Reconciled { doubts: compare(&tracked, &snapshot.cache_growth), untold }
}

fn compare(
    tracked: &BTreeMap<&str, Tracked>,
    grown: &BTreeMap<String, CacheGrowth>,
) -> BTreeMap<String, Doubt> {
    tracked
        .iter()
        .filter_map(|(cache, Tracked { outstanding, .. })| {
            let (outstanding, growth) = (*outstanding, grown.get(*cache)?.objects);
            // That it shrank is no reason for more doubt.
            let explained = growth.max(0).saturating_mul(2).saturating_add(AT_HAND);
            let is_doubtful = i64::try_from(outstanding).is_ok_and(|count| count > explained);
            is_doubtful.then(|| ((*cache).to_owned(), Doubt { outstanding, growth }))
        })
        .collect()
}

/// Finds growth beyond the tracked blocks, the objects that CPUs keep, and those that wait for RCU.
fn untold(tracked: &BTreeMap<&str, Tracked>, grown: &BTreeMap<String, CacheGrowth>) -> Vec<Untold> {
    let mut sums: BTreeMap<String, (Tracked, CacheGrowth)> = BTreeMap::new();
    for (cache, growth) in grown {
        if FILLED_BY_US.contains(&cache.as_str()) {
            continue;
        }
        let (_, sum) = sums.entry(cache_class(cache)).or_default();
        sum.objects += growth.objects;
        sum.at_hand += growth.at_hand;
    }
    for (cache, more) in tracked {
        if let Some((sum, _)) = sums.get_mut(&cache_class(cache)) {
            sum.outstanding += more.outstanding;
            sum.freed += more.freed;
        }
    }
    sums.into_iter()
        .filter_map(|(cache, (tracked, growth))| {
            let grown = u64::try_from(growth.objects).ok()?;
            let is_kmalloc = cache.starts_with(KMALLOC);
            let waiting = if is_kmalloc { tracked.freed.min(WAITING_FOR_RCU) } else { 0 };
            let explained = tracked.outstanding + waiting + u64::try_from(growth.at_hand).ok()?;
            let Tracked { outstanding, .. } = tracked;
            (grown > explained).then_some(Untold { cache, growth: grown, outstanding })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown(objects: i64) -> CacheGrowth {
        CacheGrowth { objects, at_hand: 1000, object_bytes: 64 }
    }

    #[test]
    fn a_cache_that_grew_as_its_blocks_did_is_not_doubted() {
        let names = ["grown", "still", "shrunk", "few", "unknown"];
        let counts = [5000, 5000, 5000, 200, 5000];
        let tracked: BTreeMap<&str, Tracked> = names
            .into_iter()
            .zip(counts.map(|outstanding| Tracked { outstanding, freed: 0 }))
            .collect();
        let growth = [4900, 0, -300, 0].map(grown);
        let growth = names.map(str::to_owned).into_iter().zip(growth).collect();
        let doubts = compare(&tracked, &growth);
        let caches: Vec<&str> = doubts.keys().map(String::as_str).collect();
        assert_eq!(caches, ["shrunk", "still"]);
        assert_eq!(doubts.get("shrunk"), Some(&Doubt { outstanding: 5000, growth: -300 }));
    }

    fn check_untold(
        tracked: &[(&str, u64, u64)],
        growth: &[(&str, i64)],
        expected: Option<(&str, u64, u64)>,
    ) {
        let tracked = tracked
            .iter()
            .map(|(name, outstanding, freed)| {
                (*name, Tracked { outstanding: *outstanding, freed: *freed })
            })
            .collect();
        let growth =
            growth.iter().map(|(name, count)| ((*name).to_owned(), grown(*count))).collect();
        let got: Vec<Untold> = untold(&tracked, &growth);
        let expected: Vec<Untold> = expected
            .map(|(cache, growth, outstanding)| Untold {
                cache: cache.to_owned(),
                growth,
                outstanding,
            })
            .into_iter()
            .collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn a_cache_that_grew_by_more_than_its_blocks_is_told_of() {
        check_untold(&[], &[("io_kiocb", 2000)], Some(("io_kiocb", 2000, 0)));
        check_untold(&[("filp", 500, 0)], &[("filp", 2000)], Some(("filp", 2000, 500)));
        check_untold(&[("filp", 1500, 0)], &[("filp", 2000)], None);
        check_untold(&[], &[("filp", 900)], None);
        check_untold(&[], &[("filp", -900)], None);
        // They may be on their way to be freed.
        check_untold(&[("kmalloc-64", 0, 1500)], &[("kmalloc-64", 2000)], None);
    }

    #[test]
    fn the_caches_of_kmalloc_are_compared_by_size() {
        let grown = [("kmalloc-64", 0), ("kmalloc-rnd-03-64", 1500), ("msg_msg-64", 1500)];
        check_untold(&[("kmalloc-64", 2900, 0)], &grown, None);
        let more = [("kmalloc-64", 0), ("kmalloc-rnd-03-64", 9000)];
        check_untold(&[("kmalloc-64", 2000, 0)], &more, Some(("kmalloc-*64", 9000, 2000)));
    }
}
