//! The governor on hand-made loads.

use super::*;

/// A process that allocates and frees blocks of 64 bytes. A trap costs 1 us, and recording a block
/// costs 2 us.
struct Load {
    governor: Governor,
    at: Duration,
    usage: Usage,
    interval: u32,
    state: &'static str,
}

impl Load {
    fn new(max_ppm: u32) -> Self {
        let governor = Governor::new(max_ppm, 0);
        Self { governor, at: Duration::ZERO, usage: Usage::default(), interval: 0, state: "all" }
    }

    /// Runs this many periods with this many pairs a second; returns the actions of the governor.
    fn run(&mut self, periods: u32, pairs_per_s: u64) -> Vec<BudgetAction> {
        let mut done = Vec::new();
        for _ in 0..periods {
            if let Some(action) = self.governor.look(self.at, self.usage) {
                match action {
                    BudgetAction::SampleBy(bytes) => self.interval = bytes,
                    BudgetAction::FreesOnly => self.state = "frees",
                    BudgetAction::Nothing => self.state = "nothing",
                }
                done.push(action);
            }
            self.at += PERIOD;
            let pairs = pairs_per_s / 4;
            if self.state == "all" {
                let recorded = pairs * 64 / u64::from(self.interval.max(64));
                self.usage.entries += pairs;
                self.usage.entries_ns += pairs * 1000;
                self.usage.returns_ns += recorded * 1000;
                self.usage.programs_ns += pairs * 100 + recorded * 2000;
            }
            if self.state != "nothing" {
                self.usage.frees += pairs;
                self.usage.frees_ns += pairs * 1000;
                self.usage.programs_ns += pairs * 100;
            }
        }
        done
    }
}

#[test]
fn a_load_within_the_budget_is_traced_whole() {
    let mut load = Load::new(20_000);
    assert_eq!(load.run(100, 1000), []);
    // 1,000 pairs of 1.1 + 1.1 + 3 us.
    assert_eq!(load.governor.budget().cost_ppm, Some(5200));
}

/// 5,000 pairs cost 2.6 % whole, and 1.1 % with nothing recorded.
#[test]
fn a_load_a_little_over_it_is_sampled() {
    let mut load = Load::new(20_000);
    assert_eq!(load.run(20, 5000), [BudgetAction::SampleBy(4096)]);
    assert!(load.governor.budget().cost_ppm < Some(20_000));
    assert_eq!(load.run(400, 5000), [], "it settles");
    let budget = load.governor.budget();
    assert_eq!(budget.steps.len(), 1);
    assert!((20_000..30_000).contains(&budget.steps[0].cost_ppm), "{budget:?}");
}

/// The traps of a loop that does nothing else cost more than any sampling could save.
#[test]
fn a_hot_loop_is_let_go_at_once() {
    let mut load = Load::new(20_000);
    assert_eq!(load.run(20, 200_000), [BudgetAction::Nothing]);
    assert_eq!(load.governor.budget().steps[0].elapsed_ms, 250);
    assert_eq!(load.run(20, 200_000), [], "it stays so");
    assert_eq!(load.governor.budget().cost_ppm, Some(0));
}

/// 12,000 pairs: 2.4 % of traps, of which 1.2 % of frees.
#[test]
fn frees_are_kept_where_they_are_cheap_enough() {
    let mut load = Load::new(20_000);
    assert_eq!(load.run(20, 12_000), [BudgetAction::FreesOnly]);
    // Not before a whole second.
    assert_eq!(load.governor.budget().steps[0].elapsed_ms, 1000);
    assert_eq!(load.run(20, 12_000), []);
    assert_eq!(load.run(20, 30_000), [BudgetAction::Nothing]);
}

/// Half a second of too many pairs is no reason to take probes away.
#[test]
fn a_burst_passes() {
    let mut load = Load::new(20_000);
    assert_eq!(load.run(8, 1000), []);
    assert_eq!(load.run(2, 12_000), []);
    assert_eq!(load.run(40, 1000), []);
}

#[test]
fn sampling_gets_finer_when_it_is_quiet() {
    let mut load = Load::new(20_000);
    // Of larger blocks: it takes two steps.
    load.governor.state = State::All(16_384);
    load.interval = 16_384;
    assert_eq!(load.run(39, 1000), []);
    assert_eq!(load.run(10, 1000), [BudgetAction::SampleBy(4096)]);
    assert_eq!(load.run(400, 1000), [], "no finer than that");
}

/// The governor never goes below an interval that the user asked for.
#[test]
fn the_interval_asked_for_is_the_finest() {
    let mut governor = Governor::new(20_000, 65_536);
    governor.state = State::All(4 * 65_536);
    let mut done = Vec::new();
    for period in 0..200 {
        done.extend(governor.look(PERIOD * period, Usage::default()));
    }
    assert_eq!(done, [BudgetAction::SampleBy(65_536)]);
}

#[test]
fn the_coarsest_sampling_that_is_too_dear_ends_it() {
    let mut governor = Governor::new(20_000, 1 << 27);
    let mut done = Vec::new();
    // Few and large: each is recorded.
    for period in 0..20_u32 {
        let returns_ns = u64::from(period) * 10_000_000;
        let usage = Usage { returns_ns, ..Usage::default() };
        done.extend(governor.look(PERIOD * period, usage));
        if done.len() == 2 {
            break;
        }
    }
    let coarsest = BudgetAction::SampleBy(sampling::MAX_INTERVAL_BYTES);
    assert_eq!(done, [coarsest, BudgetAction::FreesOnly]);
}

/// The programs take more than expected even when they record nothing. Ever coarser sampling does
/// not help, and the governor does not try it to the end.
#[test]
fn sampling_that_does_not_help_is_not_made_coarser() {
    let mut governor = Governor::new(20_000, 0);
    let mut done = Vec::new();
    for period in 0..20_u32 {
        // 2.6 % of a CPU, 1.3 % of it in the programs.
        let (hits, ns) = (u64::from(period) * 1000, u64::from(period) * 3_250_000);
        let usage = Usage { entries: hits, entries_ns: ns, programs_ns: ns, ..Usage::default() };
        done.extend(governor.look(PERIOD * period, usage));
        if done.len() == 2 {
            break;
        }
    }
    let finest = BudgetAction::SampleBy(FINEST_BYTES);
    assert_eq!(done, [finest, BudgetAction::FreesOnly]);
}

/// A machine that is busy for a moment makes one look expensive. That is no reason to remove
/// probes, but at most a reason to sample more coarsely.
#[test]
fn one_dear_look_does_not_end_sampling() {
    let mut load = Load::new(20_000);
    assert_eq!(load.run(2, 8000), [BudgetAction::SampleBy(4096)]);
    // 1.8 % with that interval; 4.2 % in the fourth look, and 2.4 % over all four.
    assert_eq!(load.run(3, 8000), []);
    load.usage.programs_ns += 6_000_000;
    assert_eq!(load.run(40, 8000), [BudgetAction::SampleBy(16_384)]);
}
