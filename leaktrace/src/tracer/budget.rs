//! The governor of `--max-overhead`: decides what to do when the probes cost too much.
//!
//! The governor is pure: its caller tells it the cost, and it answers with an action. First it
//! samples, and makes sampling coarser as far as that goes. Sampling does not save the cost of
//! traps: where the traps alone cost too much, the governor removes the probes of allocations, and
//! then those of frees. Removed probes do not come back, as nothing makes up for frees that were
//! not seen. Sampling becomes finer again when the traced processes are quiet.

use std::{collections::VecDeque, time::Duration};

use leaktrace_common::sampling;

use crate::snapshot::{Budget, BudgetAction, BudgetStep};

/// Time between two looks.
pub(super) const PERIOD: Duration = Duration::from_millis(250);
/// Time over which a cost is looked at before probes are removed.
const WINDOW: Duration = Duration::from_secs(1);
/// Probes that cost this many times the budget are removed without waiting for [`WINDOW`].
const AT_ONCE: u64 = 5;
/// How long the processes have to be quiet before sampling becomes finer.
const CALM: Duration = Duration::from_secs(10);
/// The first sampling interval, and the finest one that the governor goes back to, in bytes.
const FINEST_BYTES: u32 = 4096;
/// The factor by which the governor changes the interval.
const FACTOR: u32 = 4;
/// Nanoseconds that the programs take at most for an allocation that is not recorded, or for a free
/// of such a block: about the cost of an early exit. A lower measured figure takes its place.
const LEAST_PROGRAM_NS: u64 = 150;

/// What the probes have cost since they were attached, in nanoseconds, and the counts of their
/// hits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Cost of traps at the entries of allocating functions.
    pub(super) entries_ns: u64,
    /// Number of traps at the entries of allocating functions.
    pub(super) entries: u64,
    /// Cost of traps at the returns of allocating functions.
    pub(super) returns_ns: u64,
    /// Cost of traps at freeing functions.
    pub(super) frees_ns: u64,
    /// Number of traps at freeing functions.
    pub(super) frees: u64,
    /// The run time of the programs.
    pub(super) programs_ns: u64,
}

impl Usage {
    fn since(self, earlier: Self) -> Self {
        Self {
            entries_ns: self.entries_ns.saturating_sub(earlier.entries_ns),
            entries: self.entries.saturating_sub(earlier.entries),
            returns_ns: self.returns_ns.saturating_sub(earlier.returns_ns),
            frees_ns: self.frees_ns.saturating_sub(earlier.frees_ns),
            frees: self.frees.saturating_sub(earlier.frees),
            programs_ns: self.programs_ns.saturating_sub(earlier.programs_ns),
        }
    }

    fn total_ns(self) -> u64 {
        self.entries_ns + self.returns_ns + self.frees_ns + self.programs_ns
    }

    /// Run time of the programs for a hit that leads to no record.
    fn bare_program_ns(self) -> u64 {
        let hits = (self.entries + self.frees).max(1);
        (self.programs_ns / hits).min(LEAST_PROGRAM_NS)
    }

    /// The cost that is left when nothing is recorded.
    fn floor_ns(self) -> u64 {
        self.entries_ns + self.frees_ns + (self.entries + self.frees) * self.bare_program_ns()
    }

    /// The cost that is left when only frees have probes.
    fn frees_only_ns(self) -> u64 {
        self.frees_ns + self.frees * self.bare_program_ns()
    }
}

/// What the probes still see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Allocations and frees, with this sampling interval; 0 means that every block is recorded.
    All(u32),
    FreesOnly,
    Nothing,
}

/// Decides when to sample and when to remove probes.
#[derive(Debug)]
pub(super) struct Governor {
    max_ppm: u32,
    /// The sampling interval that the user asked for; 0 if none.
    asked_bytes: u32,
    state: State,
    /// The looks since the last step, oldest first, none older than [`WINDOW`].
    looks: VecDeque<(Duration, Usage)>,
    quiet_since: Option<Duration>,
    cost_ppm: Option<u64>,
    steps: Vec<BudgetStep>,
}

impl Governor {
    pub(super) fn new(max_ppm: u32, asked_bytes: u32) -> Self {
        Self {
            max_ppm,
            asked_bytes,
            state: State::All(asked_bytes),
            looks: VecDeque::new(),
            quiet_since: None,
            cost_ppm: None,
            steps: Vec::new(),
        }
    }

    /// What the governor did so far, for the report.
    pub(super) fn budget(&self) -> Budget {
        Budget { max_ppm: self.max_ppm, cost_ppm: self.cost_ppm, steps: self.steps.clone() }
    }

    /// Takes in the cost of the probes up to `elapsed`; returns the action to take, if any.
    pub(super) fn look(&mut self, elapsed: Duration, usage: Usage) -> Option<BudgetAction> {
        let previous = self.looks.back().copied();
        self.looks.push_back((elapsed, usage));
        let (last_at, last) = previous?;
        let (recent, period) = (usage.since(last), elapsed.saturating_sub(last_at));
        let cost_ppm = share_ppm(recent.total_ns(), period)?;
        self.cost_ppm = Some(cost_ppm);
        // The oldest look that is still at least a window ago stays.
        while self.looks.get(1).is_some_and(|(at, _)| elapsed.saturating_sub(*at) >= WINDOW) {
            self.looks.pop_front();
        }
        let action = match self.state {
            State::Nothing => None,
            State::FreesOnly => self
                .is_lasting(elapsed, usage, cost_ppm, Usage::total_ns)
                .then_some(BudgetAction::Nothing),
            State::All(interval) => {
                if cost_ppm <= u64::from(self.max_ppm) {
                    self.when_within(elapsed, cost_ppm, interval)
                } else {
                    self.quiet_since = None;
                    self.when_over(elapsed, usage, recent, period, interval)
                }
            }
        }?;
        self.state = match action {
            BudgetAction::SampleBy(bytes) => State::All(bytes),
            BudgetAction::FreesOnly => State::FreesOnly,
            BudgetAction::Nothing => State::Nothing,
        };
        let elapsed_ms = elapsed.as_millis() as u64;
        self.steps.push(BudgetStep { elapsed_ms, cost_ppm, action });
        // What was seen before says nothing about what comes.
        self.looks.clear();
        self.looks.push_back((elapsed, usage));
        self.quiet_since = None;
        Some(action)
    }

    fn when_over(
        &self,
        elapsed: Duration,
        usage: Usage,
        recent: Usage,
        period: Duration,
        interval: u32,
    ) -> Option<BudgetAction> {
        let floor_ppm = share_ppm(recent.floor_ns(), period)?;
        let coarser = match interval {
            0 => FINEST_BYTES,
            known => known.saturating_mul(FACTOR).min(sampling::MAX_INTERVAL_BYTES),
        };
        let cost_ppm = share_ppm(recent.total_ns(), period)?;
        let is_within = floor_ppm <= u64::from(self.max_ppm);
        if is_within && coarser != interval {
            match self.helped(elapsed, usage, cost_ppm) {
                Some(true) => return Some(BudgetAction::SampleBy(coarser)),
                Some(false) => {}
                None => return None,
            }
        }
        // With nothing coarser left, or nothing gained by it, all of it stays.
        let is_lasting = if is_within {
            self.is_lasting(elapsed, usage, cost_ppm, Usage::total_ns)
        } else {
            self.is_lasting(elapsed, usage, floor_ppm, Usage::floor_ns)
        };
        if !is_lasting {
            return None;
        }
        let frees_ppm = share_ppm(recent.frees_only_ns(), period)?;
        if frees_ppm > u64::from(self.max_ppm) {
            Some(BudgetAction::Nothing)
        } else {
            Some(BudgetAction::FreesOnly)
        }
    }

    /// Whether the last step to coarser sampling has lowered the cost. A step long ago counts as
    /// one that has. `None` where it is too early to say: a single look may come at a bad moment.
    fn helped(&self, elapsed: Duration, usage: Usage, cost_ppm: u64) -> Option<bool> {
        let Some(last) = self.steps.last() else { return Some(true) };
        let since = elapsed.saturating_sub(Duration::from_millis(last.elapsed_ms));
        let was_over = last.cost_ppm > u64::from(self.max_ppm);
        let is_lower = |ppm: u64| ppm * 10 < last.cost_ppm * 9;
        if !was_over || since >= 2 * WINDOW || is_lower(cost_ppm) {
            return Some(true);
        }
        let (at, earlier) = self.looks.front()?;
        let time = elapsed.saturating_sub(*at);
        let average_ppm = share_ppm(usage.since(*earlier).total_ns(), time)?;
        (time >= WINDOW).then(|| is_lower(average_ppm))
    }

    fn when_within(
        &mut self,
        elapsed: Duration,
        cost_ppm: u64,
        interval: u32,
    ) -> Option<BudgetAction> {
        let finest = FINEST_BYTES.max(self.asked_bytes);
        // Recording so many times as much must still be within.
        let is_quiet = cost_ppm * u64::from(FACTOR) <= u64::from(self.max_ppm);
        if !is_quiet || interval <= finest {
            self.quiet_since = None;
            return None;
        }
        let since = *self.quiet_since.get_or_insert(elapsed);
        (elapsed.saturating_sub(since) >= CALM)
            .then(|| BudgetAction::SampleBy((interval / FACTOR).max(finest)))
    }

    /// Whether a part of the cost was too high over a whole window, or is far too high right now.
    fn is_lasting(
        &self,
        elapsed: Duration,
        usage: Usage,
        now_ppm: u64,
        part: fn(Usage) -> u64,
    ) -> bool {
        let max_ppm = u64::from(self.max_ppm);
        if now_ppm > max_ppm * AT_ONCE {
            return true;
        }
        let Some((at, earlier)) = self.looks.front() else { return false };
        let time = elapsed.saturating_sub(*at);
        time >= WINDOW
            && share_ppm(part(usage.since(*earlier)), time).is_some_and(|ppm| ppm > max_ppm)
    }
}

/// The time `part_ns` as a share of `whole`, in millionths.
fn share_ppm(part_ns: u64, whole: Duration) -> Option<u64> {
    let ppm = u128::from(part_ns) * 1_000_000 / whole.as_nanos().max(1);
    (!whole.is_zero()).then(|| u64::try_from(ppm).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
