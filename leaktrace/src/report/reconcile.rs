//! The tracked blocks of each slab cache against the kernel's own count. Where a cache did not grow
//! as they did, older blocks were freed in their place, or frees of them were not seen: which of
//! the two cannot be told, and neither is a leak.

use std::collections::BTreeMap;

use crate::snapshot::Snapshot;

/// A cache whose outstanding blocks are more than the cache grew by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Blocks from the cache that are outstanding, over all call sites.
    pub outstanding: u64,
    /// Objects in use now, less those at the start.
    pub growth: i64,
}

/// Objects that a cache may hold more, or fewer, without counting them: what CPUs keep at hand.
const AT_HAND: i64 = 256;

/// The caches that did not grow as their blocks did.
pub(super) fn doubts(snapshot: &Snapshot) -> BTreeMap<String, Doubt> {
    let mut tracked: BTreeMap<&String, u64> = BTreeMap::new();
    for site in &snapshot.sites {
        if let Some(cache) = &site.cache {
            *tracked.entry(cache).or_default() += site.allocated.minus(site.freed).count;
        }
    }
    compare(&tracked, &snapshot.cache_growth)
}

fn compare(
    tracked: &BTreeMap<&String, u64>,
    grown: &BTreeMap<String, i64>,
) -> BTreeMap<String, Doubt> {
    tracked
        .iter()
        .filter_map(|(cache, outstanding)| {
            let (outstanding, growth) = (*outstanding, *grown.get(*cache)?);
            // That it shrank is no reason for more doubt.
            let explained = growth.max(0).saturating_mul(2).saturating_add(AT_HAND);
            let is_doubtful = i64::try_from(outstanding).is_ok_and(|count| count > explained);
            is_doubtful.then(|| ((*cache).clone(), Doubt { outstanding, growth }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_grew_as_its_blocks_did_is_not_doubted() {
        let names = ["grown", "still", "shrunk", "few", "unknown"].map(str::to_owned);
        let tracked: BTreeMap<&String, u64> =
            names.iter().zip([5000, 5000, 5000, 200, 5000]).collect();
        let growth = [4900, 0, -300, 0];
        let grown: BTreeMap<String, i64> = names.iter().cloned().zip(growth).collect();
        let doubts = compare(&tracked, &grown);
        let caches: Vec<&str> = doubts.keys().map(String::as_str).collect();
        assert_eq!(caches, ["shrunk", "still"]);
        assert_eq!(doubts.get("shrunk"), Some(&Doubt { outstanding: 5000, growth: -300 }));
    }
}
