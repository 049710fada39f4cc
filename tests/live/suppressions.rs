//! Rules of LeakSanitizer's and Valgrind's for what is not to be shown.

use std::{fs, path::Path, process::Command};

use leaktrace_tests::{
    binary::{Finished, leaktrace, run},
    program::build_program,
    report::{Report, number},
};
use serde_json::Value;

use super::start::trace;

const LEAK: i32 = 9;

/// A program, and its arguments.
fn programs() -> [Vec<String>; 2] {
    let path = |name| build_program(name).display().to_string();
    [vec![path("keeps"), "strdup".into()], vec![path("newleaks")]]
}

/// The report of a program with rules in a file.
fn trace_with(rules: &str, argv: &[String], folder: &Path) -> (Finished, Report) {
    let file = folder.join("rules");
    fs::write(&file, rules).unwrap_or_else(|error| panic!("{error}"));
    let file = file.display().to_string();
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    // One of the programs can still reach its block at its end.
    let counts = ["--error-exitcode", "9", "--leak-kinds", "reachable"];
    trace(&[&counts[..], &["--suppressions", &file]].concat(), &argv)
}

fn suppressed(report: &Report) -> &[Value] {
    report.value["suppressed"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Blocks of a suppression as they stand in a text between other lines.
fn blocks_in(text: &str) -> String {
    let mut is_in = false;
    let lines = text.lines().filter(|line| {
        is_in |= *line == "{";
        let is_part = is_in;
        is_in &= *line != "}";
        is_part
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// The rules that Valgrind itself writes for a program's leaks suppress these leaks, and all of them.
#[test]
fn rules_that_valgrind_writes_suppress_what_it_found() {
    for argv in programs() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("valgrind");
        command.args(["--leak-check=full", "--show-leak-kinds=all", "--gen-suppressions=all"]);
        let found = run(command.args(&argv));
        let rules = blocks_in(&found.stderr);
        assert!(rules.contains("Memcheck:Leak"), "{}", found.stderr);
        let (finished, report) = trace_with("", &argv, folder.path());
        let leaked = report.sum(|_| true);
        assert!(finished.code == LEAK && leaked.outstanding_count > 0, "{}", report.outline());
        let (finished, report) = trace_with(&rules, &argv, folder.path());
        assert_eq!(finished.code, 0, "{rules}\n{}", report.outline());
        assert!(report.sites().is_empty(), "{rules}\n{}", report.outline());
        let all = suppressed(&report).iter().map(|one| number(one, "outstanding_count"));
        assert_eq!(all.sum::<u64>(), leaked.outstanding_count, "{}", report.value["suppressed"]);
    }
}

/// What leaktrace writes suppresses what it has shown, for itself and for Valgrind.
#[test]
fn rules_that_leaktrace_writes_work_for_valgrind_too() {
    for argv in programs() {
        let folder = tempfile::tempdir().unwrap();
        let report = folder.path().join("report");
        let mut command = leaktrace(&["run", "--gen-suppressions", "-w"]);
        run(command.arg(&report).arg("--").args(&argv));
        let text = fs::read_to_string(&report).unwrap();
        let rules = blocks_in(&text);
        assert!(rules.contains("Memcheck:Leak"), "{text}");
        let (finished, report) = trace_with(&rules, &argv, folder.path());
        assert_eq!((finished.code, report.sites().len()), (0, 0), "{rules}\n{}", report.outline());
        if argv.len() > 1 {
            // To Valgrind its block is in use.
            continue;
        }
        let file = folder.path().join("rules");
        let mut command = Command::new("valgrind");
        command.args(["--leak-check=full", "--show-leak-kinds=definite", "--error-exitcode=7"]);
        command.arg(format!("--suppressions={}", file.display()));
        let finished = run(command.args(&argv));
        assert_eq!(finished.code, 0, "{rules}\n{}", finished.stderr);
        let without = run(Command::new("valgrind")
            .args(["--leak-check=full", "--error-exitcode=7"])
            .args(&argv));
        assert_eq!(without.code, 7, "{}", without.stderr);
    }
}

/// Lines of LeakSanitizer's: by function, by object, and those that nothing matches.
#[test]
fn lines_suppress_by_any_frame_and_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let [_, argv] = programs();
    for rule in ["leak:json::Parser::parse", "leak:load_file", "leak:^_ZN4json", "leak:/newleaks$"]
    {
        let rules = format!("# rules\nleak:nobody\n{rule}\nleak:__libc_start_main\n");
        let (finished, report) = trace_with(&rules, &argv, folder.path());
        assert_eq!((finished.code, report.sites().len()), (0, 0), "{rule}: {}", report.outline());
        let told: Vec<(bool, u64, u64, u64)> = suppressed(&report)
            .iter()
            .map(|one| {
                let figure = |name| number(one, name);
                let used = one["used"] == true;
                (used, figure("line"), figure("outstanding_count"), figure("outstanding_bytes"))
            })
            .collect();
        assert_eq!(told, [(false, 2, 0, 0), (true, 3, 3, 99), (false, 4, 0, 0)], "{rule}");
        assert_eq!(number(&report.value["totals"], "outstanding_count"), 0, "{rule}");
    }
    // A rule for the library with operator new, and one for the C library, match no call of it.
    for rule in ["leak:libstdc++", "leak:libc.so", "leak:^parse"] {
        let (finished, report) = trace_with(&format!("{rule}\n"), &argv, folder.path());
        let is_caller = rule == "leak:libc.so";
        // The C library calls main.
        assert_eq!(finished.code == LEAK, !is_caller, "{rule}: {}", report.outline());
    }
}

#[test]
fn the_text_counts_what_is_suppressed() {
    let folder = tempfile::tempdir().unwrap();
    let (rules, report) = (folder.path().join("rules"), folder.path().join("report"));
    fs::write(&rules, "leak:load_file\nleak:nobody\n").unwrap();
    let mut command = leaktrace(&["run", "--suppressions"]);
    command.arg(&rules).arg("-w").arg(&report).arg("--").arg(build_program("newleaks"));
    assert_eq!(run(&mut command).code, 0);
    let text = fs::read_to_string(&report).unwrap();
    let rules = rules.display();
    let line = format!("\n  99 B in 3 blocks by `leak:load_file` ({rules}:1)\n");
    assert!(text.contains(&format!("suppressed, and in no figure above:{line}")), "{text}");
    let unused = format!("nothing outstanding matches:\n  `leak:nobody` ({rules}:2)\n");
    assert!(text.contains(&unused), "{text}");
}
