//! A storm on a kernel that hides some frees: what looks leaked for that reason says so.

use std::{collections::BTreeMap, time::Duration};

use leaktrace_tests::{
    report::{Site, number},
    storm::{Storm, slab_objects},
    traced::Traced,
};

#[test]
fn blocks_that_were_freed_unseen_are_doubted_and_held_ones_are_not() {
    let mut traced = Traced::start(&["kernel", "--kind", "slab", "-i", "1s"]);
    traced.next_report(Duration::from_secs(30));
    let before: BTreeMap<String, i64> = slab_objects().unwrap().into_iter().collect();
    let held: Vec<_> = (0..400).map(|_| std::io::pipe().unwrap()).collect();
    let rounds = Storm::start().blow(Duration::from_secs(8));
    traced.next_report(Duration::from_secs(30));
    let after = slab_objects().unwrap();
    let report = traced.interrupt().final_report().clone();
    let is_doubted = |site: &Site<'_>| !site.value["doubt"].is_null();
    let pipes: Vec<Site<'_>> = report
        .sites()
        .into_iter()
        .filter(|site| site.symbols().first() == Some(&"alloc_pipe_info"))
        .filter(|site| number(site.value, "outstanding_count") > 0)
        .collect();
    let count: u64 = pipes.iter().map(|site| site.held_by(std::process::id())).sum();
    assert_eq!(count, 800, "{rounds:?}\n{}", report.outline());
    let mut blocks: BTreeMap<String, (u64, bool)> = BTreeMap::new();
    for site in report.sites() {
        let cache = site.value["cache"].as_str().unwrap_or_default().to_owned();
        let entry = blocks.entry(cache).or_default();
        entry.0 += number(site.value, "outstanding_count");
        entry.1 |= is_doubted(&site);
    }
    // What the kernel's own count does not bear out, with a margin for the moments of reading.
    for (cache, now) in after {
        let growth = now - before.get(&cache).copied().unwrap_or(0);
        let (outstanding, doubted) = blocks.get(&cache).copied().unwrap_or_default();
        let is_explained = (outstanding as i64) < 2 * growth.max(0) + 512;
        assert!(is_explained || doubted, "{cache}: {outstanding} blocks, {growth} in slabinfo");
    }
    // What the pipes take grows by so many objects in truth.
    for site in &pipes {
        assert!(!is_doubted(site), "{}", site.value);
    }
    drop(held);
}
