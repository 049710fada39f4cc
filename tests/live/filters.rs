//! The bound on outstanding blocks, and the filters by size and age.

use leaktrace_tests::{
    SOON,
    leaker::Leaker,
    report::{Amounts, number},
    traced::Traced,
};

#[test]
fn a_full_table_says_how_many_were_missed() {
    let mut leaker = Leaker::start("many", &[]);
    let pid = leaker.pid_arg();
    let traced =
        Traced::start(&["user", "-p", &pid, "--interval", "1h", "--max-outstanding", "1000"]);
    leaker.advance("holding");
    let ended = traced.interrupt();
    let report = ended.final_report();
    let got = report.sum_in(leaker.pid(), "site_many");
    // There is room for at least so many, and for not many more.
    assert!((1000..2000).contains(&got.outstanding_count), "blocks:\n{}", report.outline());
    assert_eq!(got.outstanding_bytes, got.outstanding_count * 113, "{}", report.outline());
    assert_eq!(
        report.loss("missed_allocs"),
        10_000 - got.outstanding_count,
        "{}",
        report.outline()
    );
    assert_eq!(report.value["loss"]["complete"], false, "loss: {}", report.value["loss"]);
    leaker.end();
}

/// `-z` and `-Z` track what lies between them, bounds included, as if nothing else existed.
#[test]
fn sizes_outside_the_bounds_are_not_tracked() {
    let mut leaker = Leaker::start("semantics", &[]);
    let pid = leaker.pid_arg();
    let traced =
        Traced::start(&["user", "-p", &pid, "--interval", "1h", "-z", "151", "-Z", "1003"]);
    let sites = leaker.advance("holding").sites();
    let ended = traced.interrupt();
    // All blocks of a site have one size there.
    let size = |amounts: &Amounts| amounts.allocated_bytes / amounts.allocated_count.max(1);
    let expected: Vec<(String, Amounts)> = sites
        .into_iter()
        .map(|(name, amounts)| match size(&amounts) {
            151..=1003 => (name, amounts),
            _ => (name, Amounts::default()),
        })
        .collect();
    assert!(
        expected.iter().any(
            |(name, amounts)| name == "case_realloc_shrink" && amounts.outstanding_bytes == 151
        )
    );
    ended.final_report().assert_sites(leaker.pid(), &expected);
    leaker.end();
}

#[test]
fn sizes_take_units() {
    let mut leaker = Leaker::start("semantics", &[]);
    let pid = leaker.pid_arg();
    let traced = Traced::start(&["user", "-p", &pid, "--interval", "1h", "-z", "512KiB"]);
    leaker.advance("holding");
    let ended = traced.interrupt();
    let report = ended.final_report();
    let all = report.sum(|_| true);
    assert_eq!(all.outstanding_count, 1, "blocks of 512 KiB and more:\n{}", report.outline());
    assert_eq!(all.outstanding_bytes, 1_000_003, "their bytes:\n{}", report.outline());
    leaker.end();
}

#[test]
fn blocks_that_are_too_young_are_not_outstanding() {
    let mut leaker = Leaker::start("many", &[]);
    let pid = leaker.pid_arg();
    let traced = Traced::start(&["user", "-p", &pid, "--interval", "1h", "--older", "1h"]);
    leaker.advance("holding");
    let ended = traced.interrupt();
    let report = ended.final_report();
    let got = report.sum_in(leaker.pid(), "site_many");
    assert_eq!(got.outstanding_count, 0, "outstanding for an hour:\n{}", report.outline());
    assert_eq!(got.allocated_count, 10_000, "allocated all the same:\n{}", report.outline());
    leaker.end();
}

#[test]
fn blocks_that_are_old_enough_are_outstanding() {
    let mut leaker = Leaker::start("many", &[]);
    let (pid, pid_arg) = (leaker.pid(), leaker.pid_arg());
    let mut traced = Traced::start(&["user", "-p", &pid_arg, "-i", "200ms", "-o", "1s"]);
    leaker.advance("holding");
    let report = traced.wait_report("all 10,000 blocks are a second old", SOON, |report| {
        report.sum_in(pid, "site_many").outstanding_count == 10_000
    });
    for site in report.sites().into_iter().filter(|site| site.has_frame("site_many")) {
        let oldest = number(site.value, "oldest_ms");
        assert!(oldest >= 1000, "oldest_ms is {oldest} in {}", site.value);
    }
    traced.interrupt().final_report();
    leaker.end();
}
