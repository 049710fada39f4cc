//! How fast outstanding memory grows, whatever it does in between.
//!
//! A trend is taken over the lower envelope: at each moment, the least that is outstanding from then
//! on. Blocks that come and go do not lift it, however many they are at a moment.

use crate::history::Point;

/// Intervals that the time is cut into.
pub(super) const INTERVALS: usize = 12;
/// Points that a slope is taken over; more cost time and tell no more.
const SLOPE_POINTS: usize = 24;
/// Two-sided 95 % of the normal distribution.
const Z: f64 = 1.96;

/// Growth, in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Slope {
    /// The median of all slopes between two points (Theil and Sen).
    pub(super) per_s: f64,
    /// The ends of its 95 % interval (Sen 1968).
    pub(super) low: f64,
    pub(super) high: f64,
}

/// The lower envelope of outstanding bytes, or blocks, from `from_ms` on.
pub(super) struct Envelope {
    /// Milliseconds and the least that is outstanding from then on.
    points: Vec<(f64, f64)>,
}

impl Envelope {
    /// Of `value`s from `from_ms` on.
    pub(super) fn of(points: &[Point], from_ms: u64, value: impl Fn(&Point) -> u64) -> Self {
        let mut least = f64::INFINITY;
        let mut envelope: Vec<(f64, f64)> = points
            .iter()
            .rev()
            .take_while(|point| point.ms >= from_ms)
            .map(|point| {
                least = least.min(value(point) as f64);
                (point.ms as f64, least)
            })
            .collect();
        envelope.reverse();
        Self { points: envelope }
    }

    /// The value at a time, between the points on a straight line.
    pub(super) fn at(&self, ms: f64) -> f64 {
        interpolate(&self.points, ms)
    }

    /// In how many of how many equal intervals it has grown.
    pub(super) fn grew(&self) -> (usize, usize) {
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else {
            return (0, 0);
        };
        let of = INTERVALS.min(self.points.len().saturating_sub(1));
        let width = (last.0 - first.0) / of.max(1) as f64;
        let edge = |index: usize| self.at(first.0 + width * index as f64);
        ((0..of).filter(|index| edge(index + 1) > edge(*index)).count(), of)
    }

    /// The slope a second; `None` for fewer than four points.
    pub(super) fn slope(&self) -> Option<Slope> {
        let step = self.points.len().div_ceil(SLOPE_POINTS).max(1);
        // From the end, as the last point is the freshest.
        let some: Vec<(f64, f64)> = self.points.iter().rev().step_by(step).copied().collect();
        if some.len() < 4 {
            return None;
        }
        let mut slopes = Vec::with_capacity(some.len() * some.len() / 2);
        for (index, late) in some.iter().enumerate() {
            for early in some.iter().skip(index + 1) {
                let seconds = (late.0 - early.0) / 1000.0;
                if seconds > 0.0 {
                    slopes.push((late.1 - early.1) / seconds);
                }
            }
        }
        slopes.sort_unstable_by(f64::total_cmp);
        let n = some.len() as f64;
        let spread = Z * (n * (n - 1.0) * (2.0 * n + 5.0) / 18.0).sqrt();
        let pairs = slopes.len() as f64;
        let at = |rank: f64| {
            let index = (rank.round().max(0.0) as usize).min(slopes.len().saturating_sub(1));
            slopes.get(index).copied()
        };
        Some(Slope {
            per_s: at((pairs - 1.0) / 2.0)?,
            low: at((pairs - spread) / 2.0)?,
            high: at((pairs + spread) / 2.0)?,
        })
    }
}

/// The value of a line through points, in the order of their first numbers.
pub(super) fn interpolate(points: &[(f64, f64)], at: f64) -> f64 {
    let after = points.partition_point(|point| point.0 <= at);
    match (after.checked_sub(1).and_then(|before| points.get(before)), points.get(after)) {
        (None, Some(first)) => first.1,
        (Some(last), None) => last.1,
        (Some(before), Some(next)) => {
            before.1 + (next.1 - before.1) * (at - before.0) / (next.0 - before.0)
        }
        (None, None) => 0.0,
    }
}
