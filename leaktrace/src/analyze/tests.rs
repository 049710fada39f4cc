//! Verdicts on single call sites.

use leaktrace_common::LIFETIME_BUCKETS;

use super::*;
use crate::{
    history::Point,
    snapshot::{
        Amount, GENERATIONS,
        reach::{Reached, Way},
    },
};

/// `allocated` and `freed` blocks of 10 bytes at second 0, 1, 2 and so on.
fn points(seconds: u64, allocated: impl Fn(u64) -> u64, freed: impl Fn(u64) -> u64) -> Vec<Point> {
    let of = |count: u64| Amount { count, bytes: count * 10 };
    (0..=seconds)
        .map(|s| Point { ms: s * 1000, allocated: of(allocated(s)), freed: of(freed(s)) })
        .collect()
}

fn facts(points: &[Point], born: [u64; GENERATIONS]) -> Facts<'_> {
    Facts {
        points,
        born: Some(born),
        lifetimes: [0; LIFETIME_BUCKETS],
        outstanding: points.last().map(Point::outstanding).unwrap_or_default(),
        certain: None,
        distrust: None,
        reached: None,
        has_ended: false,
        is_kernel: false,
    }
}

fn check(facts: &Facts<'_>, class: Class, confidence: Confidence, evidence: &str) -> Verdict {
    let verdict = judge(facts);
    assert_eq!((verdict.class, verdict.confidence), (class, confidence), "{verdict:?}");
    assert!(verdict.evidence.contains(evidence), "{verdict:?}");
    verdict
}

/// One in 10,000, whose fellows are gone within a millisecond.
#[test]
fn a_rare_path_is_found_among_blocks_that_die_soon() {
    let points = points(60, |s| s * 10_000, |s| s * 9_999);
    let mut facts = facts(&points, [4; GENERATIONS]);
    facts.lifetimes[8] = 600_000;
    let evidence = "99.99 % of its blocks die within 512 us, the rest outlives them all";
    let verdict = check(&facts, Class::Steady, Confidence::Likely, evidence);
    assert!(verdict.evidence.starts_with("+35.2 KiB/h, grew in 12 of 12 intervals"), "{verdict:?}");
    assert_eq!((verdict.growth_bytes_per_s, verdict.leaked_bytes), (Some(10.0), 600));
    // The same with frees that leaktrace did not see.
    facts.distrust = Some("frees were missed");
    let verdict = check(&facts, Class::UnknownYet, Confidence::Unknown, "but frees were missed");
    assert_eq!(verdict.ask_again_ms, None);
}

/// What only grows may be a cache; it says when it can be told.
#[test]
fn plain_growth_takes_time() {
    let early = points(120, |s| s * 5, |_| 0);
    let evidence =
        "+175.8 KiB/h, grew in 12 of 12 intervals, blocks of each interval are still alive";
    let verdict =
        check(&facts(&early, [37; GENERATIONS]), Class::UnknownYet, Confidence::Unknown, "");
    assert_eq!((verdict.evidence.as_str(), verdict.growth_bytes_per_s), (evidence, Some(50.0)));
    let late = points(120 + verdict.ask_again_ms.unwrap() / 1000, |s| s * 5, |_| 0);
    check(&facts(&late, [187; GENERATIONS]), Class::Steady, Confidence::Likely, evidence);
}

#[test]
fn what_does_not_grow_is_in_use() {
    // A pool.
    let mut born = [0; GENERATIONS];
    born[0] = 100;
    let pool = points(60, |s| 100.min(s * 100), |_| 0);
    check(&facts(&pool, born), Class::InUse, Confidence::Healthy, "allocated in the beginning");
    // A cache, full after 24 seconds, that evicts nothing.
    let mut born = [40; GENERATIONS];
    born[7..].fill(0);
    let full = points(60, |s| s.min(26) * 10, |_| 0);
    check(&facts(&full, born), Class::Saturating, Confidence::Healthy, "has stopped growing");
    // A queue: all blocks are freed in time.
    let mut born = [0; GENERATIONS];
    born[15] = 30;
    let queue = points(60, |s| s * 10, |s| s.saturating_sub(3) * 10);
    let verdict = check(&facts(&queue, born), Class::InUse, Confidence::Healthy, "does not grow");
    assert_eq!(verdict.growth_bytes_per_s, Some(0.0));
    // The same, by counters alone.
    let mut unread = facts(&queue, born);
    unread.born = None;
    assert_eq!(judge(&unread).confidence, Confidence::Healthy);
}

/// Sockets that somebody opened at once are no start-up of the kernel.
#[test]
fn many_blocks_at_once_stay_unknown_in_the_kernel() {
    let points = points(60, |s| if s < 30 { 0 } else { 400 }, |_| 0);
    let mut born = [0; GENERATIONS];
    born[7] = 400;
    let mut facts = facts(&points, born);
    facts.is_kernel = true;
    let evidence = "allocated within the last 31.0 s and kept, and no more come";
    check(&facts, Class::OneTime, Confidence::Unknown, evidence);
    facts.is_kernel = false;
    check(&facts, Class::InUse, Confidence::Healthy, "does not grow");
}

#[test]
fn a_scan_decides_what_figures_cannot() {
    let few = points(5, |_| 3, |_| 0);
    let amount = |count| Amount { count, bytes: count * 10 };
    let mut facts = facts(&few, [1; GENERATIONS]);
    let lost = Reached { definitely_lost: amount(3), leads: amount(7), ..Reached::default() };
    facts.reached = Some((lost.clone(), Way::AtExit));
    let verdict = check(&facts, Class::OneTime, Confidence::Certain, "30 B in 3 blocks");
    assert_eq!(verdict.leaked_bytes, 100);
    facts.reached = Some((lost, Way::Live { scans: 4, time_ms: 3000 }));
    check(&facts, Class::OneTime, Confidence::Likely, "was seen in any of 4 scans over 3.0 s");
    // One in a hundred thousand may be an error of a live scan.
    let held = Reached {
        definitely_lost: amount(1),
        still_reachable: amount(100_000),
        ..Reached::default()
    };
    facts.reached = Some((held.clone(), Way::Live { scans: 4, time_ms: 3000 }));
    assert!(!judge(&facts).is_leak());
    facts.reached = Some((held, Way::Stopped { time_ms: 9 }));
    assert!(judge(&facts).is_leak());
}

/// A map that only grows is held, and grows all the same.
#[test]
fn what_is_held_and_grows_is_hoarded() {
    let points = points(1200, |s| s * 5, |_| 0);
    let mut facts = facts(&points, [375; GENERATIONS]);
    let still_reachable = Amount { count: 6000, bytes: 60_000 };
    let reached = Reached { still_reachable, ..Reached::default() };
    facts.reached = Some((reached, Way::Live { scans: 3, time_ms: 2000 }));
    check(
        &facts,
        Class::Hoarding,
        Confidence::Likely,
        "all can still be reached, but +175.8 KiB/h",
    );
}
