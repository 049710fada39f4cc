//! A minute of network traffic, walks over files and new processes on all CPUs, in the machine of
//! `cargo xtask vm`, whose kernel lets every free be seen: nothing may look leaked that the kernel
//! does not hold, by its own count.

#![allow(clippy::print_stdout, reason = "the table is what one wants to see")]

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use leaktrace_tests::{
    SOON,
    report::{Amounts, Report, number},
    storm::{Storm, slab_objects},
    traced::Traced,
};
use serde_json::Value;

/// How long it lasts.
const STORM: Duration = Duration::from_secs(60);

/// The cache of vmalloc's areas. A freed one is kept until 32 MiB and more of them wait
/// (`free_vmap_area_noflush`, `lazy_max_pages`, mm/vmalloc.c, 6.1 to 7.2): newer ones may come in
/// the place of all that waited at the start, but not be more than there are.
const LAZY: &str = "vmap_area";
/// Blocks of caches that did not grow, where older ones were freed and newer ones stay. Their
/// number does not depend on how much the storm did: 21 of 490 thousand events, 18 of 2.6 million.
const IN_PLACE_OF_OLDER: u64 = 100;

/// Outstanding blocks, and all that were allocated, by slab cache.
fn by_cache(report: &Report) -> BTreeMap<String, (u64, u64)> {
    let groups = report.value["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
    groups
        .iter()
        .filter_map(|group| {
            let figures = (number(group, "outstanding_count"), number(group, "allocated_count"));
            Some((group["name"].as_str()?.to_owned(), figures))
        })
        .collect()
}

#[test]
fn a_storm_leaves_nothing_that_the_kernel_does_not_hold() {
    let mut traced = Traced::start(&["kernel", "--kind", "slab", "--by", "cache", "-i", "2s"]);
    traced.next_report(SOON);
    let before: BTreeMap<String, i64> = slab_objects().unwrap().into_iter().collect();
    let rounds = Storm::start().blow(STORM);
    // What RCU and work items still have to free.
    traced.next_report(SOON);
    traced.next_report(SOON);
    let after = slab_objects().unwrap();
    let report = traced.interrupt().final_report().clone();

    let tracked = by_cache(&report);
    println!("{rounds:?}");
    println!("{:<28} {:>12} {:>12} {:>12}", "cache", "allocated", "outstanding", "slabinfo");
    let mut without_growth = 0;
    for (cache, now) in after {
        let Some((outstanding, allocated)) = tracked.get(&cache) else { continue };
        let growth = now - before.get(&cache).copied().unwrap_or(0);
        if *outstanding > 0 {
            println!("{cache:<28} {allocated:>12} {outstanding:>12} {growth:>12}");
        }
        if cache == LAZY {
            let held = u64::try_from(now).unwrap_or(0);
            assert!(*outstanding <= held, "{outstanding} of {cache}, which holds {held}");
        } else if growth <= 0 {
            without_growth += outstanding;
        }
    }
    let totals = Amounts::of(&report.value["totals"]);
    let events = totals.allocated_count + totals.freed_count;
    // Which programs the kernel refused to run, and how often: they were running on that CPU.
    let refused = report.value["loss"]["recursion_misses"].as_object();
    let refused: u64 = refused.into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
    println!("events: {events}, refused: {refused}, without growth: {without_growth}");
    println!("loss: {}", report.value["loss"]);
    for (what, rounds, least) in [
        ("connections", &rounds.connections, 1000),
        ("files", &rounds.files, 1000),
        ("processes", &rounds.processes, 50),
    ] {
        let rounds = rounds.load(Ordering::Relaxed);
        assert!(rounds > least, "too weak a storm: {rounds} {what}");
    }
    assert!(events > 200_000, "too weak a storm: {events} events");
    let allowed = events / 10_000;
    assert!(report.loss("missed_frees") <= allowed, "loss: {}", report.value["loss"]);
    assert_eq!(report.loss("missed_allocs"), 0, "loss: {}", report.value["loss"]);
    assert!(
        without_growth <= IN_PLACE_OF_OLDER,
        "{without_growth} blocks outstanding in caches that did not grow, of {events} events"
    );
    // The compiler may inline what gives packets' heads back to a CPU, which keeps 64 of them.
    let unseen = report.value["loss"]["unseen"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_of_heads = |line: &Value| line.as_str().unwrap_or_default().contains("heads of packets");
    assert!(unseen.iter().all(is_of_heads), "{unseen:?}");
    let doubts: Vec<_> =
        report.sites().into_iter().filter(|site| !site.value["doubt"].is_null()).collect();
    assert!(doubts.is_empty(), "{doubts:?}");
}
