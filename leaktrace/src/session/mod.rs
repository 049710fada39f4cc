//! The loop of a tracing session: runs one tracer, and asks it for reports when they are due.

mod rhythm;
mod signals;
pub mod spec;

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use self::{rhythm::Rhythm, signals::Signals, spec::Spec};
use crate::{
    error::Error,
    host::features::HostFacts,
    snapshot::{Counts, Snapshot},
    tracer::{
        End, Tracer,
        wait::{wait_for_tick, wait_until},
    },
};

/// Time after the start before which no block is old enough for a verdict, and some more, for blocks
/// to be there.
const FIRST_SCAN: Duration = Duration::from_secs(6);

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The time was up, somebody stopped the session, or every traced process has ended.
    Done,
    /// The command of `leaktrace run` has ended.
    CommandEnded {
        /// The command's exit code; 128 and the signal's number if a signal ended it.
        code: u8,
    },
}

/// What a session tells.
#[derive(Clone, Debug)]
pub enum Told {
    /// A report is due.
    Report(Box<Snapshot>),
    /// How far the counters are, between reports.
    Counts(Counts),
}

/// Traces as `spec` says, and passes each due snapshot to `sink`, with samples in between.
///
/// `note` takes lines for the person at the terminal.
///
/// # Errors
///
/// [`Error::Usage`] for a target that cannot be traced; [`Error::Host`], [`Error::Refused`] and
/// [`Error::Kernel`] where the host does not allow it; and any error of `sink`.
pub fn run(
    spec: &Spec,
    facts: &HostFacts,
    sink: &mut dyn FnMut(Told) -> Result<(), Error>,
    note: &mut dyn FnMut(&str),
) -> Result<Outcome, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::kernel("cannot start the event loop", error))?;
    runtime.block_on(async {
        // Before anything is attached: from here on Ctrl-C ends with a report.
        let mut signals = Signals::new()?;
        let mut tracer = Tracer::start(&spec.target, &spec.trace, facts, note)?;
        let outcome = follow(&mut tracer, spec, &mut signals, sink, note).await;
        tracer.end(note);
        outcome
    })
}

/// Reports until the time is up, somebody stops the session, or nothing is left to trace.
async fn follow(
    tracer: &mut Tracer,
    spec: &Spec,
    signals: &mut Signals,
    sink: &mut dyn FnMut(Told) -> Result<(), Error>,
    note: &mut dyn FnMut(&str),
) -> Result<Outcome, Error> {
    let schedule = spec.schedule;
    let start = Instant::now();
    let mut ticks = schedule.interval.map(|interval| {
        let mut ticks = tokio::time::interval_at(start + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks
    });
    let deadline = schedule.duration.map(|duration| start + duration);
    // The end that is known beforehand: the scans begin so early that its report is on time.
    let counted = schedule.interval.zip(schedule.count).map(|(interval, count)| {
        start + interval.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
    });
    let end = deadline.into_iter().chain(counted).min();
    let mut scan_at = end.zip(tracer.scan_time()).map(|(end, time)| {
        // Not before there are blocks that are old enough.
        (end - time.min(end - start)).max(start + FIRST_SCAN).min(end)
    });
    let mut reports = 0;
    let mut rhythm = Rhythm::new(start);
    loop {
        let outcome = tokio::select! {
            biased;
            number = signals.next() => {
                // A command gets the signal; the session ends when it does.
                if tracer.forward(number) {
                    continue;
                }
                // Those that are under way are to be waited for no longer.
                tracer.skip_scans();
                Some(Outcome::Done)
            }
            step = tracer.step() => {
                let step = step?;
                step.notes.iter().for_each(|line| note(line));
                match step.end {
                    None => continue,
                    Some(End::Processes) => {
                        note("the traced process has ended");
                        Some(Outcome::Done)
                    }
                    Some(End::Leaving) => {
                        tracer.begin_exit_scan()?;
                        finish_scans(tracer, signals, note).await?;
                        tracer.let_go();
                        continue;
                    }
                    Some(End::Command { code }) => Some(Outcome::CommandEnded { code }),
                }
            }
            () = wait_until(Some(rhythm.due())) => {
                let began = Instant::now();
                sink(Told::Counts(tracer.sample()?))?;
                rhythm.sampled(began, Instant::now());
                continue;
            }
            () = wait_until(deadline) => Some(Outcome::Done),
            () = wait_until(scan_at) => {
                scan_at = None;
                let line = tracer.begin_scans(end.map(Instant::into_std))?;
                line.iter().for_each(|line| note(line));
                continue;
            }
            () = wait_for_tick(ticks.as_mut()) => {
                reports += 1;
                schedule.count.is_some_and(|count| reports >= count).then_some(Outcome::Done)
            }
        };
        if outcome == Some(Outcome::Done) {
            if let Some(line) = tracer.begin_scans(deadline.map(Instant::into_std))? {
                note(&line);
            }
            finish_scans(tracer, signals, note).await?;
        }
        let snapshot = tracer.snapshot(&spec.view, outcome.is_some())?;
        sink(Told::Report(Box::new(snapshot)))?;
        if let Some(outcome) = outcome {
            return Ok(outcome);
        }
    }
}

/// Waits for the scans that are under way; a signal ends them.
async fn finish_scans(
    tracer: &mut Tracer,
    signals: &mut Signals,
    note: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let Some(mut scans) = tracer.take_scans() else { return Ok(()) };
    let (mut is_skipped, mut has_ended) = (false, false);
    let found = loop {
        tokio::select! {
            biased;
            _ = signals.next() => {
                if is_skipped {
                    break scans.without_answer("the scan was skipped");
                }
                is_skipped = true;
                scans.skip();
            }
            found = scans.done() => break found,
            // Processes go on, begin and end meanwhile; the tracer remembers the last end.
            step = tracer.step(), if !has_ended => {
                let step = step?;
                step.notes.iter().for_each(|line| note(line));
                has_ended = step.end.is_some();
            }
        }
    };
    tracer.give_scans(found);
    Ok(())
}
