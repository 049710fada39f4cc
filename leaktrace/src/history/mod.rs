//! What the counters of each call site were at past moments: few enough moments for days.
//!
//! All call sites have their points at common times. When there are too many, every second one is
//! forgotten, from the first to the last, and later ones come as rarely: so what is left is spread
//! evenly over the whole session. A call site costs memory only where its counters have changed.

use std::collections::HashMap;

use crate::snapshot::{Amount, Counts};

/// Most points in time. An odd number: of the first and the last, both stay when every second is
/// forgotten.
const MOST_POINTS: usize = 129;
/// Fewest points that are left by that, however many call sites there are.
const FEWEST_POINTS: usize = 17;
/// Most changes of counters that are kept over all call sites, at 40 bytes each.
const MOST_CHANGES: usize = 1 << 20;

/// The counters of one call site, or of several together, at one moment. They never decrease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// Time since the start.
    pub ms: u64,
    /// Allocated since the start.
    pub allocated: Amount,
    /// The freed part of `allocated`.
    pub freed: Amount,
}

impl Point {
    /// Allocated and not freed.
    pub fn outstanding(&self) -> Amount {
        self.allocated.minus(self.freed)
    }
}

/// The counters of all call sites over time.
#[derive(Clone, Debug)]
pub struct History {
    /// Time since the start, in milliseconds; the first is 0.
    times: Vec<u64>,
    /// As [`Counts::untracked_frees`], at each of these times.
    untracked_frees: Vec<Option<u64>>,
    sites: HashMap<u64, Track>,
    /// Number of changes over all sites.
    changes: usize,
    /// Time between two points, in milliseconds.
    spacing_ms: u64,
}

/// One call site's counters.
#[derive(Clone, Debug, Default)]
struct Track {
    /// In the order of time.
    changes: Vec<Change>,
    /// Number of the latest [`Counts`] that the site was in.
    seen: u64,
}

/// What the counters were from one point on.
#[derive(Clone, Copy, Debug)]
struct Change {
    /// Index of the point.
    at: u32,
    allocated: Amount,
    freed: Amount,
}

impl Default for History {
    fn default() -> Self {
        Self {
            times: vec![0],
            untracked_frees: vec![Some(0)],
            sites: HashMap::new(),
            changes: 0,
            spacing_ms: 0,
        }
    }
}

impl History {
    /// Takes in the counters of a moment, unless the latest point is too near. Call sites that are
    /// not in it are gone, and forgotten.
    pub fn add(&mut self, counts: &Counts) {
        let last_ms = self.times.last().copied().unwrap_or(0);
        // A moment that is a little early counts.
        if counts.elapsed_ms <= last_ms + self.spacing_ms * 9 / 10 {
            return;
        }
        let at = self.times.len() as u32;
        self.times.push(counts.elapsed_ms);
        self.untracked_frees.push(counts.untracked_frees);
        for site in &counts.sites {
            let track = self.sites.entry(site.id).or_default();
            track.seen = counts.elapsed_ms;
            let is_same = track
                .changes
                .last()
                .is_some_and(|last| last.allocated == site.allocated && last.freed == site.freed);
            if !is_same {
                let (allocated, freed) = (site.allocated, site.freed);
                track.changes.push(Change { at, allocated, freed });
                self.changes += 1;
            }
        }
        let before = self.sites.len();
        self.sites.retain(|_, track| track.seen == counts.elapsed_ms);
        if self.sites.len() < before {
            self.changes = self.sites.values().map(|track| track.changes.len()).sum();
        }
        while self.times.len() > MOST_POINTS
            || (self.changes > MOST_CHANGES && self.times.len() > FEWEST_POINTS)
        {
            self.forget_every_second();
        }
    }

    /// The sum of the counters of several call sites at all times; `now` is the present, and the
    /// last point. The first is at 0, with nothing.
    pub fn series(&self, ids: &[u64], now: Point) -> Vec<Point> {
        let mut points: Vec<Point> =
            self.times.iter().map(|ms| Point { ms: *ms, ..Point::default() }).collect();
        for track in ids.iter().filter_map(|id| self.sites.get(id)) {
            let ends = track.changes.iter().skip(1).map(|next| next.at as usize);
            for (change, end) in track.changes.iter().zip(ends.chain([points.len()])) {
                for point in points.iter_mut().take(end).skip(change.at as usize) {
                    point.allocated = point.allocated.plus(change.allocated);
                    point.freed = point.freed.plus(change.freed);
                }
            }
        }
        while points.len() > 1 && points.last().is_some_and(|last| last.ms >= now.ms) {
            points.pop();
        }
        points.push(now);
        points
    }

    /// Number of frees of untracked blocks up to a time; `None` where it is not known.
    pub fn untracked_frees(&self, ms: u64) -> Option<u64> {
        let at = self.times.partition_point(|time| *time <= ms).checked_sub(1)?;
        self.untracked_frees.get(at).copied().flatten()
    }

    fn forget_every_second(&mut self) {
        self.times = self.times.iter().copied().step_by(2).collect();
        self.untracked_frees = self.untracked_frees.iter().copied().step_by(2).collect();
        for track in self.sites.values_mut() {
            let mut kept: Vec<Change> = Vec::with_capacity(track.changes.len() / 2 + 1);
            for change in &track.changes {
                // What changed at a forgotten point shows at the next one.
                let moved = Change { at: change.at.div_ceil(2), ..*change };
                match kept.last_mut() {
                    Some(last) if last.at == moved.at => *last = moved,
                    _ => kept.push(moved),
                }
            }
            track.changes = kept;
        }
        self.changes = self.sites.values().map(|track| track.changes.len()).sum();
        let mean = self.times.last().copied().unwrap_or(0) / (self.times.len() as u64 - 1).max(1);
        self.spacing_ms = mean;
    }
}

#[cfg(test)]
mod tests;
