//! Verdicts on programs with a known truth, half of them healthy: what is said to leak leaks, what
//! leaks is said to, and it stands first.
//!
//! All programs run at once under one session of two minutes, with the default options.

#![allow(clippy::print_stdout, reason = "the table is what one wants to see")]

mod cases;
mod judge;
mod kernel;
mod run;
mod start;

use std::sync::LazyLock;

use judge::Said;
use run::{Run, Score, table};

/// Both tests look at the same run.
static RUN: LazyLock<Run> = LazyLock::new(Run::new);

#[test]
fn half_of_the_corpus_is_healthy() {
    let healthy = cases::CASES.iter().filter(|case| case.is_healthy()).count();
    assert!(cases::CASES.len() >= 40 && healthy * 2 >= cases::CASES.len(), "{healthy} healthy");
    let names: std::collections::BTreeSet<_> = cases::CASES.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases::CASES.len(), "each case has a name of its own");
}

#[test]
fn verdicts_of_the_corpus() {
    let outcomes = RUN.outcomes();
    println!("{}", table(&outcomes));
    let score = Score::of(&outcomes);
    let mut wrong = String::new();
    for outcome in &outcomes {
        for words in &outcome.false_leaks {
            wrong += &format!("false leak in {}: {words}\n", outcome.case.name);
        }
        if outcome.said != Said::Right {
            wrong += &RUN.outline(outcome.case.name);
        }
    }
    println!("{wrong}");
    assert_eq!(score.false_leaks(), 0, "false leaks");
    assert!(score.precision() >= 0.95, "precision {}", score.precision());
    assert!(score.recall() >= 0.95, "recall {}", score.recall());
    assert!(score.unknown() <= 0.1, "unknown yet: {}", score.unknown());
}

#[test]
fn the_leak_stands_first() {
    let outcomes = RUN.outcomes();
    let leaky: Vec<_> = outcomes.iter().filter(|outcome| !outcome.case.is_healthy()).collect();
    let later: Vec<_> = leaky.iter().filter(|outcome| !outcome.is_first).collect();
    for outcome in &later {
        println!("not first: {}", RUN.outline(outcome.case.name));
    }
    assert!(later.len() * 20 <= leaky.len(), "{} of {} are not first", later.len(), leaky.len());
}
