//! A million allocator calls of 8 threads: each call site's figures are the program's own.

use leaktrace_tests::{
    leaker::Leaker,
    report::{Amounts, Report},
    traced::Traced,
};

/// Allocator calls that the program makes.
const CALLS: u64 = 1_000_000;

/// Traces the program up to a stage; returns it there, with the final report.
fn trace_until(stages: &[&str]) -> (Leaker, Report) {
    let mut leaker = Leaker::start("exact", &[]);
    // One report, the final one: what is asserted is what a user gets at Ctrl-C.
    let traced = Traced::start(&[
        "user",
        "-p",
        &leaker.pid_arg(),
        "--interval",
        "1h",
        "--max-outstanding",
        "1000000",
    ]);
    for stage in stages {
        leaker.advance(stage);
    }
    let report = traced.interrupt().final_report().clone();
    (leaker, report)
}

/// Checks that the report has the program's figures, and returns the sum of them.
fn check(leaker: &Leaker, report: &Report) -> Amounts {
    let sites = leaker.stage().sites();
    report.assert_sites(leaker.pid(), &sites);
    report.assert_complete();
    let sum = sites.into_iter().fold(Amounts::default(), |sum, (_, amounts)| sum + amounts);
    assert_eq!(sum.allocated_count, CALLS, "the program's own count");
    sum
}

#[test]
fn blocks_that_are_held_are_counted_exactly() {
    let (mut leaker, report) = trace_until(&["holding"]);
    let sum = check(&leaker, &report);
    assert!(sum.outstanding_count > 350_000, "the program holds too little: {sum:?}");
    leaker.advance("freed");
    leaker.end();
}

#[test]
fn blocks_that_are_freed_are_counted_exactly() {
    let (leaker, report) = trace_until(&["holding", "freed"]);
    let sum = check(&leaker, &report);
    assert_eq!(sum.outstanding_count, 0, "the program's own count");
    // Untracked frees there are: glibc empties the caches of the threads that have ended.
    leaker.end();
}
