//! What a report could not see, in sentences.

use std::collections::BTreeMap;

use leaktrace_common::LossReason;

use super::{Doubt, Totals, Untold};
use crate::{
    snapshot::{BudgetAction, Loss, Mode, Snapshot},
    units::{format_bytes, format_count, format_ms, format_ppm},
};

/// How far a report can be trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Whether every allocation and free since the start is in the figures.
    pub complete: bool,
    /// What leaktrace missed, one sentence each; empty if complete.
    pub missed: Vec<String>,
    /// Facts that take nothing away from the figures, but are good to know.
    pub notes: Vec<String>,
    /// The figures behind the sentences.
    pub loss: Loss,
    /// Slab caches that grew by more than the probes saw.
    pub untold: Vec<Untold>,
}

pub(super) fn trust(
    snapshot: &Snapshot,
    totals: &Totals,
    doubts: &BTreeMap<String, Doubt>,
    untold: Vec<Untold>,
) -> Trust {
    let (loss, mode) = (&snapshot.loss, snapshot.mode);
    let mut missed: Vec<String> = Vec::new();
    let mut notes: Vec<String> = Vec::new();
    for (reason, count) in &loss.reasons {
        let sentence = counted(*count, reason.sentence());
        match reason {
            // No C library is at work there.
            LossReason::UntrackedFree if mode == Mode::Kernel => notes.push(counted(
                *count,
                "frees of blocks that are not tracked (allocated before tracing began)",
            )),
            LossReason::SkippedReturn if mode == Mode::Kernel => missed.push(counted(
                *count,
                "allocations missed: calls of vmalloc or of a function of --pair that have not \
                 returned, or whose return the kernel had no room to watch",
            )),
            LossReason::UntrackedFree | LossReason::UntrackedRelease | LossReason::Thrown => {
                notes.push(sentence);
            }
            _ => missed.push(sentence),
        }
    }
    for (program, count) in &loss.recursion_misses {
        let what = format!(
            "events missed: the kernel refused {program} while a program ran on that CPU, or for want \
             of room"
        );
        missed.push(counted(*count, &what));
    }
    missed.extend(loss.unseen.iter().map(|what| format!("not seen: {what}")));
    missed.extend(untold.iter().map(|Untold { cache, growth, outstanding }| {
        format!(
            "slab cache {cache} grew by {} objects, by /proc/slabinfo, of which {} are \
             outstanding here: the others were allocated in a way that no probe saw",
            format_count(*growth),
            format_count(*outstanding)
        )
    }));
    if !doubts.is_empty() {
        let caches: Vec<&str> = doubts.keys().map(String::as_str).collect();
        notes.push(format!(
            "slab caches that did not grow as their outstanding blocks did, by /proc/slabinfo (older \
             blocks were freed meanwhile, or frees were not seen): {}",
            caches.join(", ")
        ));
    }
    notes.extend(sampling(snapshot, totals));
    if snapshot.processes_ended > 0 {
        notes.push(format!(
            "processes that have ended or executed something else, and left with all that they held: \
             {}",
            format_count(snapshot.processes_ended)
        ));
    }
    if loss.stacks_truncated > 0 {
        notes.push(format!(
            "stacks that are cut short, each with its reason: {}",
            format_count(loss.stacks_truncated)
        ));
    }
    Trust {
        complete: loss.is_complete() && untold.is_empty(),
        missed,
        notes,
        loss: loss.clone(),
        untold,
    }
}

/// Nouns that sentences of losses count, in the plural.
const COUNTED: [&str; 6] = ["allocations", "calls", "events", "frees", "releases", "returns"];

/// A count and its sentence; a count of one gets no plural.
fn counted(count: u64, sentence: &str) -> String {
    let mut words: Vec<&str> = sentence.split(' ').collect();
    if count == 1
        && let Some(noun) = words.iter_mut().take(2).find(|word| COUNTED.contains(word))
    {
        *noun = noun.trim_end_matches('s');
    }
    format!("{} {}", format_count(count), words.join(" "))
}

/// What the estimates are based on, and why.
fn sampling(snapshot: &Snapshot, totals: &Totals) -> Vec<String> {
    let mut notes = Vec::new();
    let interval = snapshot.sample_bytes;
    if interval > 0 || totals.sampled.is_some() {
        let bytes = format_bytes(interval);
        let now = if snapshot.budget.is_some() { " now" } else { "" };
        notes.push(format!(
            "sampled: one block in every {bytes} asked for is recorded{now}, and all from that \
             size on; figures with ~ are estimates"
        ));
    }
    let Some(budget) = &snapshot.budget else { return notes };
    let max = format_ppm(u64::from(budget.max_ppm));
    let first = budget.steps.iter().find(|step| matches!(step.action, BudgetAction::SampleBy(_)));
    if let Some(step) = first {
        notes.push(format!(
            "sampled to keep to --max-overhead {max}: from {} after the start on, when the probes \
             cost {} of a CPU",
            format_ms(step.elapsed_ms),
            format_ppm(step.cost_ppm)
        ));
    }
    if let Some(cost) = budget.cost_ppm {
        let cost = format_ppm(cost);
        notes.push(format!("the probes cost {cost} of a CPU lately (--max-overhead {max})"));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(counted(1, "frees of blocks"), "1 free of blocks");
        assert_eq!(counted(1, "allocator calls never returned"), "1 allocator call never returned");
        assert_eq!(counted(1, "process events missed"), "1 process event missed");
        assert_eq!(counted(1234, "frees of blocks"), "1,234 frees of blocks");
    }
}
