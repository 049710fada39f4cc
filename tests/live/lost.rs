//! `run` judges a command at its exit, as Valgrind and LeakSanitizer do, and its exit code says so.

use std::{fs, process::Command};

use leaktrace_tests::{
    binary::{leaktrace, require_root, run},
    program::build_program,
    report::Report,
};

/// The classes, as Valgrind and leaktrace call them.
const CLASSES: [(&str, &str); 4] = [
    ("definitely lost", "definitely_lost"),
    ("indirectly lost", "indirectly_lost"),
    ("possibly lost", "possibly_lost"),
    ("still reachable", "still_reachable"),
];

/// Bytes and blocks of each class.
type Verdict = [(u64, u64); 4];

fn by_valgrind(argv: &[&str]) -> Verdict {
    let mut command = Command::new("valgrind");
    command.args(["--leak-check=full", "--leak-check-heuristics=none", "--run-libc-freeres=no"]);
    let text = run(command.args(argv)).stderr;
    CLASSES.map(|(name, _)| {
        let line = text.lines().find_map(|line| line.split_once(&format!("{name}: ")));
        let mut numbers = line
            .map(|(_, rest)| rest.split(' '))
            .into_iter()
            .flatten()
            .filter_map(|word| word.replace(',', "").parse().ok());
        // Without the line every block was freed.
        assert!(line.is_some() || text.contains("no leaks are possible"), "{text}");
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    })
}

/// Runs a command; returns its exit code, what was written to standard error, and the report.
fn by_leaktrace(options: &[&str], argv: &[&str]) -> (i32, String, Report) {
    require_root();
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let path = folder.path().join("report");
    let mut command = leaktrace(&["run", "-f", "json", "-T", "100000", "-w"]);
    let ended = run(command.arg(&path).args(options).arg("--").args(argv));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    (ended.code, ended.stderr, Report::parse(text.trim_end()))
}

fn verdict(report: &Report) -> Verdict {
    CLASSES.map(|(_, class)| {
        let sum = |unit: &str| {
            let sites = report.value["sites"].as_array().into_iter().flatten();
            sites.filter_map(|site| site["reachability"][format!("{class}_{unit}")].as_u64()).sum()
        };
        (sum("bytes"), sum("count"))
    })
}

/// Block for block, on programs of a few blocks each.
#[test]
fn the_classes_are_those_of_valgrind() {
    let program = build_program("lost").display().to_string();
    // In `thread`, leaktrace also finds what a dead thread has left in the stack that glibc keeps.
    for name in [
        "nothing",
        "ten",
        "list",
        "cycle",
        "self",
        "tree",
        "shared",
        "realloc",
        "overwritten",
        "strings",
        "global",
        "interior",
        "interior-chain",
        "local",
        "specific",
        "frame",
        "big",
        "zero",
        "freed",
    ] {
        let argv = [program.as_str(), name];
        let expected = by_valgrind(&argv);
        let (code, stderr, report) = by_leaktrace(&["-q", "--error-exitcode", "9"], &argv);
        assert_eq!(verdict(&report), expected, "{name}: {}", report.outline());
        assert_eq!(report.value["scans"][0]["way"], "exit", "{}", report.value["scans"]);
        let is_lost = expected[0].1 + expected[1].1 > 0;
        assert_eq!(code, if is_lost { 9 } else { 0 }, "exit code of {name}; {stderr}");
    }
}

#[test]
fn leak_kinds_choose_what_counts() {
    let program = build_program("lost").display().to_string();
    for (name, kinds, expected) in [
        ("interior", "definite,indirect", 0),
        ("interior", "possible", 9),
        ("global", "definite,indirect,possible", 0),
        ("global", "reachable", 9),
        ("list", "indirect", 9),
        ("ten", "indirect", 0),
        ("print", "definite,indirect,possible,reachable", 0),
    ] {
        let options = ["-q", "--error-exitcode", "9", "--leak-kinds", kinds];
        let (code, _, report) = by_leaktrace(&options, &[&program, name]);
        assert_eq!(code, expected, "{name} by {kinds}: {}", report.outline());
    }
}

/// What leaks nothing keeps its own exit code, whatever it has not freed.
#[test]
fn clean_programs_keep_their_exit_code() {
    for (line, expected) in PROGRAMS {
        let argv: Vec<&str> = line.split(' ').collect();
        let (code, stderr, report) = by_leaktrace(&["-q", "--error-exitcode", "9"], &argv);
        assert_eq!(code, expected, "{line}: {stderr}\n{}", report.outline());
        assert!(report.value["scans"][0]["refused"].is_null(), "{line}: {}", report.value["scans"]);
    }
}

/// Programs of Debian that leak nothing by Valgrind's count, each with its exit code.
const PROGRAMS: [(&str, i32); 25] = [
    ("ls", 0),
    ("ls -l /usr/share", 0),
    ("cat /etc/passwd", 0),
    ("printf x", 0),
    ("echo x", 0),
    ("grep root /etc/passwd", 0),
    ("grep nobody-is-called-so /etc/passwd", 1),
    ("sed s/a/b/ /etc/passwd", 0),
    ("mawk {n[$1]++} /etc/services", 0),
    ("find /usr/share/doc/bash", 0),
    ("gzip -c /etc/services", 0),
    ("head -1 /etc/passwd", 0),
    ("wc /etc/passwd", 0),
    ("cut -d: -f1 /etc/passwd", 0),
    ("uniq /etc/passwd", 0),
    ("diff /etc/passwd /etc/group", 1),
    ("cmp /etc/passwd /etc/passwd", 0),
    ("id", 0),
    ("env", 0),
    ("sha256sum /etc/passwd", 0),
    ("bash -c :", 0),
    ("git --version", 0),
    ("sqlite3 :memory: .tables", 0),
    ("python3 -c pass", 0),
    ("python3 -c exit(7)", 7),
];

#[test]
fn a_command_that_is_killed_is_not_judged_as_leaking() {
    let argv = ["sh", "-c", "kill -KILL $$"];
    let (code, stderr, report) = by_leaktrace(&["--error-exitcode", "9"], &argv);
    assert_eq!(code, 137, "{stderr}");
    let scan = &report.value["scans"][0];
    let was_judged = scan["refused"].is_null();
    assert!(was_judged || stderr.contains("was not judged, and keeps its exit code"), "{stderr}");
}

#[test]
fn an_exit_code_of_leaks_needs_a_look() {
    let mut command = leaktrace(&["run", "--error-exitcode", "9", "--reachability", "off"]);
    let ended = run(command.args(["--", "true"]));
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(ended.stderr.contains("--leak-kinds reachable"), "{}", ended.stderr);
}

/// Attached: the same answer from a copy and from a stop, as planted.
#[test]
fn processes_are_judged_in_a_snapshot_and_when_stopped() {
    use leaktrace_tests::leaker::Leaker;
    for way in ["snapshot", "stop"] {
        let mut program = Leaker::start("many", &[]);
        let pid = program.pid_arg();
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let path = folder.path().join("report");
        let mut command =
            leaktrace(&["user", "-p", &pid, "--reachability", way, "-f", "json", "-w"]);
        let mut traced = leaktrace_tests::child::Child::start(command.arg(&path));
        traced.wait_stderr("tracing process", leaktrace_tests::SOON);
        program.advance("holding");
        traced.signal(libc::SIGINT);
        let code = traced.wait(leaktrace_tests::LATE);
        assert_eq!(code, 0, "{}", traced.stderr_text());
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{error}"));
        let report = Report::parse(text.lines().next_back().unwrap_or_default());
        let scan = &report.value["scans"][0];
        assert_eq!(scan["way"], way, "{}", report.value["scans"]);
        assert!(scan["limits"].is_null(), "{scan}");
        // The compiler has left out the table of `many`, which nothing reads: its blocks are lost,
        // but for the last ones, whose addresses are left over in registers and on the stack.
        let lost = verdict(&report)[0].1;
        assert!((9_990..=10_000).contains(&lost), "{lost} lost: {}", report.outline());
        program.end();
    }
}
