//! What the C library keeps for itself is no leak of the program, and what looks like it is.

use leaktrace_tests::{program::build_program, report::Report};

use super::start::trace;

const LEAK: i32 = 9;

/// Runs a command with `--error-exitcode 9`; its exit code must be `expected`.
fn check(argv: &[&str], expected: i32) -> Report {
    // Whatever leads to them: what is kept must be told from what is not.
    let options = ["--error-exitcode", "9", "--leak-kinds", "reachable"];
    let (finished, report) = trace(&options, argv);
    let code = finished.code;
    assert_eq!(code, expected, "{argv:?}: {}\n{}", report.value["kept"], report.outline());
    report.assert_complete();
    report
}

fn keeps(argument: &str) -> Vec<String> {
    let program = build_program("keeps").display().to_string();
    [program, argument.to_owned()].into_iter().filter(|word| !word.is_empty()).collect()
}

fn check_keeps(argument: &str, expected: i32) -> Report {
    let argv = keeps(argument);
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    check(&argv, expected)
}

#[test]
fn what_the_c_library_keeps_is_no_leak() {
    let report = check_keeps("", 0);
    assert_eq!(report.sum(|_| true).outstanding_count, 0, "{}", report.outline());
    // Four threads at once, a locale, a buffer, a user.
    let kept = report.kept("c_library");
    assert!(kept.outstanding_count > 10, "{kept:?}");
    for argv in [&["/usr/bin/printf", "x"][..], &["cat", "/etc/passwd"], &["/usr/bin/echo", "x"]] {
        let report = check(argv, 0);
        assert!(report.kept("c_library").outstanding_count > 0, "{argv:?}: {}", report.outline());
    }
}

#[test]
fn a_copy_that_the_c_library_makes_is_the_callers() {
    let report = check_keeps("strdup", LEAK);
    assert_eq!(report.sum(|_| true).outstanding_count, 1, "{}", report.outline());
    assert_eq!(report.sum(|site| site.has_frame("site_strdup")).outstanding_bytes, 23);
}

/// The stream and its buffer; that of standard output is told apart from it.
#[test]
fn an_open_stream_and_its_buffer_are_the_callers() {
    let report = check_keeps("fopen", LEAK);
    assert_eq!(report.sum(|_| true).outstanding_count, 2, "{}", report.outline());
    let of_site = report.sum(|site| site.has_frame("site_fopen"));
    assert_eq!(of_site.outstanding_count, 2, "{}", report.outline());
}

/// More than stacks can be kept for.
#[test]
fn threads_that_nobody_joins_are_a_leak() {
    let report = check_keeps("threads", LEAK);
    let of_site = report.sum(|site| site.has_frame("site_threads"));
    assert!(of_site.outstanding_count > 5, "{}", report.outline());
}
