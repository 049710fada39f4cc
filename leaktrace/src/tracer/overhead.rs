//! Keeps the probes within `--max-overhead`: counts their cost, and carries out the governor's
//! actions.

use std::{os::fd::OwnedFd, time::Duration};

use leaktrace_common::Call;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::{
    budget::{Governor, PERIOD, Usage},
    processes::Processes,
};
use crate::{
    attach::user::Prices,
    bpf::Loaded,
    collect::Collector,
    error::Error,
    session::spec::TraceOptions,
    snapshot::{Budget, BudgetAction},
    units::{format_bytes, format_ms, format_ppm},
};

/// The governor, with everything that it needs to know.
pub(super) struct Overhead {
    governor: Governor,
    prices: Prices,
    started: Instant,
    /// Ticks at which the cost is looked at.
    pub(super) ticks: Interval,
    /// Keeps the kernel measuring the run time of programs while it lives.
    _timing: OwnedFd,
}

impl Overhead {
    /// Begins to count; `None` without `--max-overhead`. The caller must be in the event loop.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] where the kernel does not measure the run time of BPF programs.
    pub(super) fn start(
        trace: &TraceOptions,
        processes: &Processes,
    ) -> Result<Option<Self>, Error> {
        let (Some(max_ppm), Some(prices)) = (trace.max_overhead_ppm, processes.probes.prices())
        else {
            return Ok(None);
        };
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Some(Self {
            governor: Governor::new(max_ppm, trace.sample_bytes),
            prices,
            started: Instant::now(),
            ticks,
            _timing: Loaded::time_programs()?,
        }))
    }

    /// What the governor did so far, for the report.
    pub(super) fn budget(&self) -> Budget {
        self.governor.budget()
    }

    /// Looks at the cost of the probes and acts on it; returns what cannot be seen from now on.
    ///
    /// # Errors
    ///
    /// The kernel's error on setting a new sampling interval.
    pub(super) fn look(
        &mut self,
        processes: &mut Processes,
        loaded: &mut Loaded,
        collector: &mut Collector,
    ) -> Result<Option<String>, Error> {
        let programs_ns = processes.probes.run_time_ns(loaded);
        let usage = usage(|call| collector.maps.calls(call), self.prices, programs_ns);
        let elapsed = self.started.elapsed();
        let Some(action) = self.governor.look(elapsed, usage) else { return Ok(None) };
        match action {
            BudgetAction::SampleBy(bytes) => {
                collector.maps.set_sample_bytes(bytes)?;
                return Ok(None);
            }
            BudgetAction::FreesOnly => processes.probes.keep_frees(loaded),
            BudgetAction::Nothing => processes.probes.keep_none(loaded),
        }
        Ok(Some(unseen(action, elapsed, &self.governor.budget())))
    }

    /// The last step, as a note for the person at the terminal.
    pub(super) fn last_step(&self) -> Option<String> {
        let budget = self.governor.budget();
        let step = budget.steps.last()?;
        let (cost, max) = (format_ppm(step.cost_ppm), format_ppm(u64::from(budget.max_ppm)));
        let what = match step.action {
            BudgetAction::SampleBy(bytes) => {
                format!("one block in every {} is recorded now", format_bytes(u64::from(bytes)))
            }
            BudgetAction::FreesOnly => "only frees are traced now".to_owned(),
            BudgetAction::Nothing => "all probes were taken away".to_owned(),
        };
        Some(format!("the probes cost {cost} of a CPU (--max-overhead {max}): {what}"))
    }
}

/// The cost of all hits.
fn usage(hits: impl Fn(Call) -> u64, prices: Prices, programs_ns: u64) -> Usage {
    let [entries, stepped_entries] = [Call::Entry, Call::SteppedEntry].map(&hits);
    let [frees, stepped_frees] = [Call::Free, Call::SteppedFree].map(&hits);
    let Prices { emulated_ns, stepped_ns, return_ns } = prices;
    Usage {
        entries_ns: entries * emulated_ns + stepped_entries * stepped_ns,
        entries: entries + stepped_entries,
        returns_ns: hits(Call::Return) * return_ns + hits(Call::SteppedReturn) * stepped_ns,
        frees_ns: frees * emulated_ns + stepped_frees * stepped_ns,
        frees: frees + stepped_frees,
        programs_ns,
    }
}

/// What is not seen after an action has removed probes.
fn unseen(action: BudgetAction, elapsed: Duration, budget: &Budget) -> String {
    let what = match action {
        BudgetAction::FreesOnly => "allocations",
        _ => "allocations and frees",
    };
    let cost = budget.steps.last().map_or(0, |step| step.cost_ppm);
    format!(
        "{what} from {} after the start on: the probes cost {} of a CPU, more than --max-overhead \
         {} allows, and were taken away; the figures are of what was traced before",
        format_ms(elapsed.as_millis() as u64),
        format_ppm(cost),
        format_ppm(u64::from(budget.max_ppm)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_have_their_prices() {
        let hits = |call| match call {
            Call::Return => 10,
            Call::Entry => 100,
            Call::SteppedEntry => 1,
            Call::Free => 50,
            Call::SteppedFree => 2,
            Call::SteppedReturn => 3,
        };
        let prices = Prices { emulated_ns: 3, stepped_ns: 1000, return_ns: 7 };
        let expected = Usage {
            entries_ns: 1300,
            entries: 101,
            returns_ns: 3070,
            frees_ns: 2150,
            frees: 52,
            programs_ns: 5,
        };
        assert_eq!(usage(hits, prices, 5), expected);
    }
}
