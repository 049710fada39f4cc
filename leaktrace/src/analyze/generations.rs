//! Of the blocks that were allocated in each part of the time: how many are still alive?
//!
//! That tells a leak from everything that comes and goes, whatever its rhythm: the blocks of a leak
//! are of all ages, those of a cache that has filled up, of a batch or of a queue are not.

use super::trend::{Envelope, interpolate};
use crate::{history::Point, snapshot::GENERATIONS};

/// The generations of a call site, in equal parts of the time since its first allocation.
#[derive(Clone, Debug)]
pub(super) struct Generations {
    /// Blocks that are alive, oldest generation first.
    pub(super) alive: Vec<f64>,
    /// Blocks that were allocated.
    pub(super) allocated: Vec<f64>,
    /// Whether each block's own time was seen; else it is only known by how much outstanding blocks
    /// have grown for good.
    pub(super) are_exact: bool,
}

/// Fewest generations of the session's that do for a call site.
const FEWEST: usize = GENERATIONS / 2;

impl Generations {
    /// Of a call site whose first allocation was after `since_ms`; `born` has the blocks that are
    /// alive by parts of the whole session.
    pub(super) fn of(points: &[Point], since_ms: u64, born: Option<&[u64; GENERATIONS]>) -> Self {
        let now_ms = points.last().map_or(0, |last| last.ms);
        let all: Vec<(f64, f64)> =
            points.iter().map(|point| (point.ms as f64, point.allocated.count as f64)).collect();
        let allocated = |from: f64, width: f64, parts: usize| -> Vec<f64> {
            let edge = |part: usize| interpolate(&all, from + width * part as f64);
            (0..parts).map(|part| edge(part + 1) - edge(part)).collect()
        };
        let session_width = now_ms as f64 / GENERATIONS as f64;
        let skipped = (since_ms as f64 / session_width.max(1.0)) as usize;
        if let Some(born) = born
            && GENERATIONS - skipped.min(GENERATIONS) >= FEWEST
        {
            let alive: Vec<f64> = born.iter().skip(skipped).map(|count| *count as f64).collect();
            let from = session_width * skipped as f64;
            let allocated = allocated(from, session_width, alive.len());
            return Self { alive, allocated, are_exact: true };
        }
        let width_ms = now_ms.saturating_sub(since_ms) as f64 / GENERATIONS as f64;
        let envelope = Envelope::of(points, since_ms, |point| point.outstanding().count);
        let edge = |part: usize| envelope.at(since_ms as f64 + width_ms * part as f64);
        let mut alive: Vec<f64> =
            (0..GENERATIONS).map(|part| edge(part + 1) - edge(part)).collect();
        if let Some(first) = alive.first_mut() {
            *first += edge(0);
        }
        let allocated = allocated(since_ms as f64, width_ms, GENERATIONS);
        Self { alive, allocated, are_exact: false }
    }

    /// Number of generations.
    pub(super) fn len(&self) -> usize {
        self.alive.len()
    }

    /// Number of generations of which a block is alive, of those in `range`.
    pub(super) fn alive_in(&self, range: std::ops::Range<usize>) -> usize {
        self.alive.iter().take(range.end).skip(range.start).filter(|alive| **alive > 0.0).count()
    }

    /// Blocks alive and allocated of the generations in `range`.
    pub(super) fn sums(&self, range: std::ops::Range<usize>) -> (f64, f64) {
        let sum = |list: &[f64]| list.iter().take(range.end).skip(range.start).sum();
        (sum(&self.alive), sum(&self.allocated))
    }
}
