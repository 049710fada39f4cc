//! On a kernel that is too old (Debian's 5.10): every way in says so, in one line.

use leaktrace_tests::binary::{Finished, leaktrace, require_root, run};

/// What 5.10 lacks and where it comes from, as each mode says it.
const REASON: [&str; 3] = ["atomic operations with results", "Linux 5.12", "Linux 5.15 or newer"];

/// Exit code 3, nothing on stdout, one line on stderr that has the reason.
#[track_caller]
fn check_refused(args: &[&str]) {
    let Finished { code, stdout, stderr } = run(&mut leaktrace(args));
    assert_eq!((code, stdout.as_str()), (3, ""), "exit code and stdout of {args:?}:\n{stderr}");
    assert_eq!(stderr.lines().count(), 1, "lines on stderr of {args:?}:\n{stderr}");
    for part in REASON {
        assert!(stderr.contains(part), "no {part:?} on stderr of {args:?}:\n{stderr}");
    }
}

#[test]
fn doctor_says_no_with_the_reason() {
    require_root();
    let Finished { code, stdout, stderr } = run(&mut leaktrace(&["doctor"]));
    assert_eq!((code, stderr.as_str()), (0, ""), "exit code and stderr");
    for mode in ["kernel", "user"] {
        let start = format!("missing   {mode} mode's programs");
        let line = stdout.lines().find(|line| line.starts_with(&start));
        let line = line.unwrap_or_else(|| panic!("no line {start:?} in:\n{stdout}"));
        assert!(REASON.iter().all(|part| line.contains(part)), "no reason in {line}");
    }
    assert!(stdout.ends_with("\nkernel mode: no; user mode: no\n"), "{stdout}");

    let json = run(&mut leaktrace(&["doctor", "--format", "json"]));
    let document: serde_json::Value =
        serde_json::from_str(&json.stdout).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(document["kernel_mode"], false, "{document}");
    assert_eq!(document["user_mode"], false, "{document}");
    let checks = document["checks"].as_array().into_iter().flatten();
    let refused = checks.filter(|check| {
        let detail = check["detail"].as_str().unwrap_or_default();
        check["status"] == "missing" && REASON.iter().all(|part| detail.contains(part))
    });
    assert_eq!(refused.count(), 2, "{document}");
}

#[test]
fn kernel_mode_says_so_in_one_line() {
    require_root();
    check_refused(&["kernel", "-d", "1s"]);
    for kind in ["slab", "vmalloc", "percpu", "pages"] {
        check_refused(&["kernel", "-d", "1s", "--kind", kind]);
    }
}

#[test]
fn user_mode_says_so_in_one_line() {
    require_root();
    let own = std::process::id().to_string();
    check_refused(&["user", "-p", &own, "-d", "1s"]);
    check_refused(&["user", "-p", &own, "-d", "1s", "--kind", "mmap"]);
    check_refused(&["user", "-p", &own, "-d", "1s", "--children"]);
    check_refused(&["user", "--comm", "no-such-command", "-d", "1s"]);
    check_refused(&["user", "--all", "-d", "1s"]);
}

/// The command has not run.
#[test]
fn run_says_so_in_one_line() {
    require_root();
    check_refused(&["run", "--", "echo", "started"]);
    check_refused(&["run", "--max-overhead", "2%", "--", "echo", "started"]);
}

#[test]
fn the_verifier_is_heard_with_v() {
    require_root();
    let Finished { code, stderr, .. } = run(&mut leaktrace(&["kernel", "-d", "1s", "-v"]));
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("BPF_STX uses reserved fields"), "{stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(REASON.iter().all(|part| last.contains(part)), "no reason in the last line:\n{stderr}");
}
