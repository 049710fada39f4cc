//! One session over the whole corpus, and what came out.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use leaktrace_tests::{
    report::{Report, Site, number},
    traced::Traced,
};

use crate::{
    cases::{CASES, Case},
    judge::{self, Said},
    start::Running,
};

/// How long the corpus is traced.
const TRACED: &str = "2m";

/// The whole run.
pub(crate) struct Run {
    cases: Vec<(&'static Case, u32)>,
    reports: Vec<Report>,
}

/// What came out of one case.
pub(crate) struct Outcome {
    pub(crate) case: &'static Case,
    /// What the final report says.
    pub(crate) said: Said,
    /// Since when the reports have said so without a break.
    since: Duration,
    /// Rows that some report called a leak and that are none: function, verdict and the first time.
    pub(crate) false_leaks: Vec<String>,
    /// Whether the first of its rows in the final report is a true leak.
    pub(crate) is_first: bool,
    /// The words of the row that speaks for it.
    class: String,
    confidence: String,
    evidence: String,
}

impl Run {
    /// Starts every case, traces all of them in one session with the default options, and ends
    /// them.
    pub(crate) fn new() -> Self {
        let mut running: Vec<Running> =
            CASES.iter().map(|case| Running::start(case.start)).collect();
        let pids: Vec<String> = running.iter().map(|running| running.pid().to_string()).collect();
        let mut args = vec!["user", "-d", TRACED];
        args.extend(pids.iter().flat_map(|pid| ["-p", pid]));
        let traced = Traced::start(&args);
        running.iter_mut().for_each(Running::go);
        let ended = traced.wait();
        for (running, case) in running.iter().zip(CASES) {
            running.assert_alive(case.name);
        }
        ended.final_report().assert_complete();
        let pids = running.iter().map(Running::pid);
        Self { cases: CASES.iter().zip(pids).collect(), reports: ended.reports }
    }

    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        self.cases.iter().map(|(case, pid)| self.outcome(case, *pid)).collect()
    }

    fn outcome(&self, case: &'static Case, pid: u32) -> Outcome {
        let mut spans: Vec<(Said, Duration)> = Vec::new();
        let mut false_leaks = BTreeMap::new();
        for report in &self.reports {
            let rows = judge::rows(report, pid);
            let time = Duration::from_millis(number(&report.value, "elapsed_ms"));
            let said = judge::said(case, &rows);
            if spans.last().is_none_or(|(before, _)| *before != said) {
                spans.push((said, time));
            }
            for site in judge::false_leaks(case, &rows) {
                false_leaks.entry(name(&site)).or_insert_with(|| words(&site, time));
            }
        }
        let Some((said, since)) = spans.pop() else { panic!("no report") };
        let last = self.reports.last().map(|report| judge::rows(report, pid)).unwrap_or_default();
        let main = judge::main_row(case, &last);
        let text = |of: fn(&Site<'_>) -> String| main.as_ref().map(of).unwrap_or_default();
        Outcome {
            case,
            said,
            since,
            false_leaks: false_leaks.into_values().collect(),
            is_first: last.first().is_some_and(|site| judge::is_true_leak(site, case)),
            class: text(|site| judge::class(site).to_owned()),
            confidence: text(|site| match number(site.value, "outstanding_count") {
                0 => "nothing is outstanding".to_owned(),
                _ => judge::confidence(site).to_owned(),
            }),
            evidence: text(evidence),
        }
    }

    /// The case's rows in the final report, for a failure.
    pub(crate) fn outline(&self, name: &str) -> String {
        let Some((_, pid)) = self.cases.iter().find(|(case, _)| case.name == name) else {
            return String::new();
        };
        let Some(report) = self.reports.last() else { return String::new() };
        let mut text = format!("{name}:\n");
        for site in judge::rows(report, *pid) {
            let _ = writeln!(
                text,
                "  {} {} of {} blocks, {} B: {}/{} {} {}",
                self::name(&site),
                site.value["outstanding_count"],
                site.value["allocated_count"],
                site.value["outstanding_bytes"],
                judge::confidence(&site),
                judge::class(&site),
                evidence(&site),
                site.value["reachability"],
            );
        }
        text
    }
}

fn evidence(site: &Site<'_>) -> String {
    site.value["verdict"]["evidence"].as_str().unwrap_or_default().to_owned()
}

/// The innermost functions of a row.
fn name(site: &Site<'_>) -> String {
    let symbols = site.symbols();
    symbols.iter().take(4).copied().collect::<Vec<_>>().join(" < ")
}

fn words(site: &Site<'_>, time: Duration) -> String {
    let confidence = judge::confidence(site);
    format!("{} after {} s: {confidence}, {}", name(site), time.as_secs(), evidence(site))
}

/// Leaks found, false leaks, leaks missed, cases not told, and cases that count.
pub(crate) struct Score {
    found: usize,
    false_leaks: usize,
    missed: usize,
    unknown: usize,
    cases: usize,
}

impl Score {
    pub(crate) fn of(outcomes: &[Outcome]) -> Self {
        let counts = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|o| wanted(o)).count();
        Self {
            found: counts(|outcome| !outcome.case.is_healthy() && outcome.said == Said::Right),
            false_leaks: outcomes.iter().map(|outcome| outcome.false_leaks.len()).sum(),
            missed: counts(|outcome| outcome.said == Said::Missed),
            unknown: counts(|outcome| outcome.said == Said::Unknown),
            cases: counts(|outcome| outcome.said != Said::NotSearched),
        }
    }

    pub(crate) fn precision(&self) -> f64 {
        ratio(self.found, self.found + self.false_leaks)
    }

    pub(crate) fn recall(&self) -> f64 {
        ratio(self.found, self.found + self.missed)
    }

    pub(crate) fn unknown(&self) -> f64 {
        ratio(self.unknown, self.cases)
    }

    pub(crate) fn false_leaks(&self) -> usize {
        self.false_leaks
    }
}

/// A part of a whole; of nothing, nothing.
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// The table, as `docs/verdicts.md` has it.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| case | what it does | truth | said | class | since | evidence |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for outcome in outcomes {
        let truths: Vec<&str> = outcome.case.leaks.iter().map(|leak| leak.class).collect();
        let truth = if truths.is_empty() { "healthy".to_owned() } else { truths.join(", ") };
        let mark = match &outcome.said {
            Said::Right => "",
            Said::Missed => " (missed)",
            Said::Unknown => "",
            Said::NotSearched => " (no search)",
        };
        let _ = writeln!(
            text,
            "| {} | {} | {truth} | {}{mark} | {} | {} s | {} |",
            outcome.case.name,
            outcome.case.what,
            outcome.confidence,
            outcome.class,
            outcome.since.as_secs(),
            outcome.evidence.replace('|', "\\|"),
        );
    }
    let score = Score::of(outcomes);
    let first = outcomes.iter().filter(|outcome| outcome.is_first).count();
    let leaky = outcomes.iter().filter(|outcome| !outcome.case.is_healthy()).count();
    let _ = writeln!(
        text,
        "\n{} cases, {leaky} of them leak: {} found, {} missed, {} false leaks; {} unknown yet \
         ({:.1} %). Precision {:.3}, recall {:.3}. The leak is its process' first row in {first} of \
         {leaky} cases.",
        outcomes.len(),
        score.found,
        score.missed,
        score.false_leaks,
        score.unknown,
        score.unknown() * 100.0,
        score.precision(),
        score.recall(),
    );
    text
}
