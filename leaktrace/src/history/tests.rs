//! What is kept, and what is forgotten.

use super::*;
use crate::snapshot::SiteCounts;

fn amount(count: u64) -> Amount {
    Amount { count, bytes: count * 10 }
}

fn counts(elapsed_ms: u64, sites: &[(u64, u64, u64)]) -> Counts {
    let sites = sites
        .iter()
        .map(|(id, allocated, freed)| SiteCounts {
            id: *id,
            allocated: amount(*allocated),
            freed: amount(*freed),
        })
        .collect();
    Counts { elapsed_ms, untracked_frees: Some(elapsed_ms / 1000), sites }
}

fn outstanding(points: &[Point]) -> Vec<(u64, u64)> {
    points.iter().map(|point| (point.ms, point.outstanding().count)).collect()
}

#[test]
fn several_sites_add_up_at_all_times() {
    let mut history = History::default();
    history.add(&counts(1000, &[(1, 5, 1)]));
    history.add(&counts(2000, &[(1, 5, 1), (2, 7, 7), (3, 1, 0)]));
    history.add(&counts(3000, &[(1, 9, 1), (2, 10, 7), (3, 1, 0)]));
    let now = Point { ms: 3500, allocated: amount(30), freed: amount(9) };
    let points = history.series(&[1, 2, 99], now);
    assert_eq!(outstanding(&points), [(0, 0), (1000, 4), (2000, 4), (3000, 11), (3500, 21)]);
    // The present is never told twice.
    let now = Point { ms: 3000, allocated: amount(30), freed: amount(9) };
    assert_eq!(outstanding(&history.series(&[1], now)).last(), Some(&(3000, 21)));
    assert_eq!(history.series(&[1], now).len(), 4);
    assert_eq!(history.untracked_frees(2999), Some(2));
}

/// A day, each second, with one call site that grows, and one that does no more.
#[test]
fn a_day_is_kept_evenly_in_little_memory() {
    let mut history = History::default();
    for second in 1..=86_400 {
        history.add(&counts(second * 1000, &[(1, second, 0), (2, 50, 3)]));
        assert!(history.times.len() <= MOST_POINTS);
    }
    let now = Point { ms: 86_400_500, allocated: amount(86_400), freed: amount(0) };
    let points = history.series(&[1], now);
    assert!(points.len() > MOST_POINTS / 2, "{}", points.len());
    let mean = 86_400_000 / points.len() as u64;
    for pair in points.windows(2).rev().skip(1) {
        let gap = pair[1].ms - pair[0].ms;
        assert!(gap > mean / 3 && gap < mean * 3, "{gap} ms, {mean} on average");
    }
    assert!(points.iter().all(|point| point.ms / 1000 == point.outstanding().count));
    assert_eq!(history.sites[&2].changes.len(), 1);
    assert!(history.changes < 2 * MOST_POINTS);
}

/// As many call sites as there is room for, all of which change all the time.
#[test]
fn many_busy_sites_have_fewer_points() {
    let mut history = History::default();
    for second in 1..=200 {
        let sites: Vec<_> = (0..32_768).map(|id| (id, second, 0)).collect();
        history.add(&counts(second * 1000, &sites));
        assert!(history.changes <= MOST_CHANGES);
    }
    let now = Point { ms: 200_000, allocated: amount(200), freed: amount(0) };
    let points = history.series(&[77], now);
    assert!(points.len() >= FEWEST_POINTS, "{}", points.len());
    assert!(points.iter().all(|point| point.ms / 1000 == point.outstanding().count));
}

#[test]
fn sites_that_are_gone_are_forgotten() {
    let mut history = History::default();
    history.add(&counts(1000, &[(1, 5, 1), (2, 1, 0)]));
    history.add(&counts(2000, &[(2, 1, 0)]));
    assert_eq!((history.sites.len(), history.changes), (1, 1));
}
