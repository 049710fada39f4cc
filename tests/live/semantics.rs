//! What each allocator call means, and calls that never return.

use leaktrace_tests::{leaker::Leaker, report::Report, report::Site, traced::Traced};

/// Traces a program in its stage `holding`.
fn trace_holding(program: &str, args: &[&str], options: &[&str]) -> (Leaker, Report) {
    let mut leaker = Leaker::start(program, args);
    let pid = leaker.pid_arg();
    let traced = Traced::start(&[&["user", "-p", &pid, "--interval", "1h"], options].concat());
    leaker.advance("holding");
    let report = traced.interrupt().final_report().clone();
    (leaker, report)
}

fn check_semantics(options: &[&str]) {
    let (leaker, report) = trace_holding("semantics", &[], options);
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    report.assert_complete();
    leaker.end();
}

#[test]
fn every_call_means_what_libc_does() {
    check_semantics(&[]);
}

#[test]
fn every_call_means_the_same_with_probes_at_the_entry() {
    check_semantics(&["--probe-at", "entry"]);
}

#[test]
fn every_call_means_the_same_by_call_site() {
    check_semantics(&["--stacks", "site"]);
}

#[test]
fn every_call_means_the_same_with_adaptive_stacks() {
    check_semantics(&["--stacks", "adaptive"]);
}

/// 100 calls of malloc that were left by longjmp, 200 jumps out of a loop at random; then known
/// leaks, which must be exact.
#[test]
fn leaks_after_longjmp_out_of_malloc_are_exact() {
    let (leaker, report) = trace_holding("longjmp", &[], &[]);
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    leaker.end();
}

/// Four threads end in malloc and four in realloc, whose old blocks are as they were.
#[test]
fn leaks_after_threads_that_end_in_the_allocator_are_exact() {
    let (leaker, report) = trace_holding("quitter", &[], &[]);
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    let reasons = &report.value["loss"]["reasons"];
    assert_eq!(reasons["skipped_return"], 8, "{}", report.outline());
    leaker.end();
}

/// A process that ends with threads in the allocator has lost nothing: their old blocks are there.
#[test]
fn leaks_of_a_process_that_ends_in_the_allocator_are_exact() {
    let mut leaker = Leaker::start("quitter", &["stay"]);
    let pid = leaker.pid();
    let traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--interval", "1h"]);
    let expected = leaker.advance("holding").sites();
    leaker.end();
    let ended = traced.wait();
    ended.final_report().assert_sites(pid, &expected);
    ended.final_report().assert_complete();
}

/// The one call site under `site_deep`.
fn deep_site(report: &Report) -> Site<'_> {
    let sites = report.sites();
    let mut deep = sites.into_iter().filter(|site| site.has_frame("site_deep"));
    match (deep.next(), deep.next()) {
        (Some(site), None) => site,
        _ => panic!("not one site below site_deep:\n{}", report.outline()),
    }
}

#[test]
fn a_stack_of_60_frames_is_whole() {
    let (leaker, report) = trace_holding("deep", &["60"], &[]);
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    let site = deep_site(&report);
    let symbols = site.symbols();
    let descents = symbols.iter().filter(|symbol| **symbol == "descend").count();
    assert_eq!(descents, 60, "frames of descend in {symbols:?}");
    assert!(site.has_frame("main"), "no main in {symbols:?}");
    leaker.end();
}

#[test]
fn a_stack_of_300_frames_is_cut_and_says_so() {
    let (leaker, report) = trace_holding("deep", &["300"], &[]);
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    let site = deep_site(&report);
    assert_eq!(site.value["truncated"], true, "truncated, in {}", site.value);
    assert_eq!(site.symbols().len(), 127, "frames in {:?}", site.symbols());
    assert!(report.loss("stacks_truncated") >= 1, "loss: {}", report.value["loss"]);
    leaker.end();
}

#[test]
fn max_depth_bounds_a_stack() {
    let (leaker, report) = trace_holding("deep", &["60"], &["--max-depth", "20"]);
    let site = deep_site(&report);
    assert_eq!(site.value["truncated"], true, "truncated, in {}", site.value);
    assert_eq!(site.symbols().len(), 20, "frames in {:?}", site.symbols());
    leaker.end();
}
