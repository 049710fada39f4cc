//! `--sample-bytes` and `--max-overhead`: estimates against the program's own count, and what is
//! done where the probes cost too much.

use leaktrace_tests::{
    SOON,
    leaker::Leaker,
    report::{Amounts, Report, number},
    traced::Traced,
};
use serde_json::Value;

/// The sampling interval of the test: small blocks of 16 bytes have a chance of 1 in 256.
const INTERVAL: u64 = 4096;
/// Small blocks: some 256 of them are recorded.
const SMALL: u64 = 65_536;

/// Small and large blocks from one stack, and calls within calls, twice: estimates lie within the
/// error that sampling has, and nothing is left of them once all is freed.
#[test]
fn estimates_are_near_and_vanish_with_their_blocks() {
    let mut leaker = Leaker::start("sampling", &[&SMALL.to_string(), "2"]);
    let pid = leaker.pid();
    let args = ["user", "-p", &leaker.pid_arg(), "--sample-bytes", "4KiB", "--interval", "200ms"];
    let mut traced = Traced::start(&args);
    for _ in 0..2 {
        let (mixed, nested) = {
            let stage = leaker.advance("holding");
            (stage.site("site_mixed"), stage.site("site_nested"))
        };
        let report = traced.next_fresh_report(SOON);
        // 16 of the blocks are of 4 MiB, and exact.
        check_estimate(&report, pid, "site_mixed", mixed, (16, SMALL));
        check_estimate(&report, pid, "site_nested", nested, (48, SMALL / 4));
        assert_eq!(number(&report.value, "sample_bytes"), INTERVAL);
        // What reallocarray calls is no call of its own, recorded or not.
        let inner = report.sum(|site| site.value["function"] == "realloc");
        assert_eq!(inner, Amounts::default(), "{}", report.outline());
        leaker.advance("freed");
        traced.wait_report("nothing is left", SOON, |report| {
            report.value["totals"]["outstanding_count"] == 0
                && report.value["totals"]["outstanding_bytes"] == 0
                && report.value["totals"]["freed_count"]
                    == report.value["totals"]["allocated_count"]
        });
    }
    let report = traced.interrupt().final_report().clone();
    report.assert_complete();
    leaker.end();
}

/// Count and bytes of a call site within five standard errors (once in two million); `small` is
/// the size of the blocks that are sampled, and their number.
fn check_estimate(report: &Report, pid: u32, site: &str, truth: Amounts, small: (u64, u64)) {
    let (size, count) = small;
    let probability = size as f64 / INTERVAL as f64;
    let error = (count as f64 * (1.0 - probability) / probability).sqrt();
    let seen = report.sum_in(pid, site);
    let off = seen.outstanding_count as f64 - truth.outstanding_count as f64;
    let off_bytes = seen.outstanding_bytes as f64 - truth.outstanding_bytes as f64;
    let outline = report.outline();
    assert!(off.abs() < 5.0 * error, "{site}: {off} blocks off, error {error}:\n{outline}");
    let error_bytes = error * size as f64;
    assert!(off_bytes.abs() < 5.0 * error_bytes, "{site}: {off_bytes} bytes off:\n{outline}");
    let estimated = report.sites().into_iter().filter(|found| found.has_frame(site));
    assert!(estimated.into_iter().all(|found| found.value["estimated"] == true), "{outline}");
}

fn budget(report: &Report) -> &Value {
    let budget = &report.value["budget"];
    assert!(budget.is_object(), "no budget:\n{}", report.outline());
    budget
}

/// One trap costs more than the loop's whole work: the probes are taken away, and the report says
/// from when on it is partial.
#[test]
fn a_hot_loop_is_let_go() {
    let mut leaker = Leaker::start("paced", &["1000000"]);
    let pid = leaker.pid_arg();
    let args = ["user", "-p", &pid, "--max-overhead", "2%", "--interval", "200ms"];
    let mut traced = Traced::start(&args);
    leaker.advance("running");
    traced.wait_report("the probes are gone", SOON, |report| {
        let steps = budget(report)["steps"].as_array().map_or(&[][..], Vec::as_slice);
        steps.last().is_some_and(|step| step["action"] == "nothing")
    });
    let report = traced
        .wait_report("nothing is spent", SOON, |report| budget(report)["overhead_percent"] == 0.0);
    assert_eq!(report.value["loss"]["complete"], false);
    let unseen = report.value["loss"]["unseen"].to_string();
    assert!(unseen.contains("after the start on") && unseen.contains("--max-overhead"), "{unseen}");
    let counted = |report: &Report| report.value["totals"]["allocated_count"].as_u64();
    let before = counted(&report);
    let after = traced.interrupt().final_report().clone();
    assert_eq!(counted(&after), before, "something is still traced");
    leaker.end();
}

/// A load whose recording costs too much, but not its traps, is sampled, and goes on so.
#[test]
fn a_steady_load_is_sampled() {
    let mut leaker = Leaker::start("paced", &["20"]);
    let pid = leaker.pid_arg();
    // What it costs on this machine, with all recorded.
    let args = ["user", "-p", &pid, "--max-overhead", "100%", "--interval", "500ms"];
    let mut traced = Traced::start(&args);
    leaker.advance("running");
    let report = traced.wait_report("the cost is known", SOON, |report| {
        budget(report)["overhead_percent"].as_f64().is_some_and(|cost| cost > 0.0)
            && report.value["totals"]["allocated_count"].as_u64() > Some(1000)
    });
    let whole = budget(&report)["overhead_percent"].as_f64().unwrap_or_default();
    assert_eq!(budget(&report)["steps"].as_array().map(Vec::len), Some(0), "{report:?}");
    traced.interrupt().final_report().assert_complete();

    let most = format!("{:.3}%", whole * 0.75);
    let args = ["user", "-p", &pid, "--max-overhead", &most, "--interval", "500ms"];
    let mut traced = Traced::start(&args);
    traced.wait_report("it is sampled", SOON, |report| number(&report.value, "sample_bytes") > 0);
    let report = traced.wait_report("it is within the budget", SOON, |report| {
        let cost = budget(report)["overhead_percent"].as_f64();
        cost.is_some_and(|cost| cost > 0.0 && cost <= whole * 0.75)
    });
    let steps = budget(&report)["steps"].as_array().map_or(&[][..], Vec::as_slice);
    assert!(steps.iter().all(|step| step["action"] == "sample"), "{report:?}");
    traced.interrupt().final_report().assert_complete();
    leaker.end();
}
