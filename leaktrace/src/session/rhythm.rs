//! When the counters are sampled between reports.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest time between two samples.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST: Duration = Duration::from_secs(600);
/// Samples over a whole session, at least where the shortest time allows so many; a history keeps
/// about as many.
const SAMPLES: u32 = 128;
/// A sample may cost one part in so many of a CPU's time.
const COST: u32 = 1000;

/// When the next sample is due.
pub(super) struct Rhythm {
    start: Instant,
    due: Instant,
}

impl Rhythm {
    pub(super) fn new(start: Instant) -> Self {
        Self { start, due: start + SHORTEST }
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Takes in that a sample was taken: the more costly samples are, and the longer the session
    /// runs, the later is the next one.
    pub(super) fn sampled(&mut self, began: Instant, ended: Instant) {
        let by_age = (ended - self.start) / SAMPLES;
        let by_cost = (ended - began) * COST;
        self.due = began + by_age.max(by_cost).clamp(SHORTEST, LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_become_rarer_with_time_and_with_cost() {
        let start = Instant::now();
        let mut rhythm = Rhythm::new(start);
        let mut after = |age_s: u64, cost_ms: u64| {
            let began = start + Duration::from_secs(age_s);
            rhythm.sampled(began, began + Duration::from_millis(cost_ms));
            rhythm.due() - began
        };
        assert_eq!(after(5, 0), SHORTEST);
        assert_eq!(after(1280, 0), Duration::from_secs(10));
        assert_eq!(after(5, 20), Duration::from_secs(20));
        assert_eq!(after(86_400 * 30, 0), LONGEST);
    }
}
