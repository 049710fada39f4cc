//! What a report says of call sites that leak, and of those that only look like it.

use leaktrace_tests::{
    leaker::Leaker,
    report::{Report, Site},
    traced::Traced,
};

/// The only row that has a function in its stack.
fn row<'a>(report: &'a Report, function: &str) -> Site<'a> {
    let mut rows = report.sites().into_iter().filter(|site| site.has_frame(function));
    match (rows.next(), rows.next()) {
        (Some(row), None) => row,
        _ => panic!("not one row of {function}:\n{}", report.outline()),
    }
}

fn check(report: &Report, function: &str, confidence: &str, classes: &[&str]) {
    let verdict = &row(report, function).value["verdict"];
    assert_eq!(verdict["confidence"], confidence, "{function}: {verdict}");
    let class = verdict["class"].as_str().unwrap_or_default();
    assert!(classes.contains(&class), "{function}: {verdict}");
    assert!(verdict["evidence"].as_str().is_some_and(|text| !text.is_empty()), "{verdict}");
}

/// One report at the end has all verdicts: the counters are sampled before it.
#[test]
fn one_final_report_tells_leaks_from_caches() {
    let mut leaker = Leaker::start("verdicts", &[]);
    let traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "-d", "60s", "-i", "1h"]);
    leaker.advance("running");
    let ended = traced.wait();
    assert_eq!(ended.reports.len(), 1);
    let report = ended.final_report();
    check(report, "site_rare", "likely", &["steady", "sporadic"]);
    check(report, "site_cache", "healthy", &["saturating", "in use"]);
    check(report, "site_batch", "healthy", &["in use"]);
    check(report, "site_pool", "healthy", &["in use"]);
    // By its figures alone it would be too early; but nobody has the addresses of its blocks. The
    // rate is that of the program.
    check(report, "site_steady", "likely", &["steady"]);
    let steady = row(report, "site_steady").value;
    let rate = steady["growth_bytes_per_s"].as_f64().unwrap_or_default();
    assert!((4_500.0..5_100.0).contains(&rate), "{rate} instead of 4,800 bytes a second");
    let evidence = steady["verdict"]["evidence"].as_str().unwrap_or_default();
    assert!(evidence.contains("was seen in any of"), "{evidence}");
    // What leaks comes first, by its growth.
    let order = ["site_steady", "site_rare"];
    for (site, function) in report.sites().iter().zip(order) {
        assert!(site.has_frame(function), "{function}:\n{}", report.outline());
    }
    let summary = &report.value["summary"];
    assert_eq!(summary["verdict"], "leaking", "{summary}");
    assert_eq!((&summary["leaking_sites"], &summary["unknown_sites"]), (&2.into(), &0.into()));
    leaker.end();
}
