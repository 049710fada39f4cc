//! What leaktrace says without tracing anything: help, bad usage, a host that does not allow it.
//! Needs no root.

use std::{
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Stdio},
};

use leaktrace_tests::binary::{Finished, leaktrace, leaktrace_bin, run};

/// `--help` of a verb, or of leaktrace itself.
fn help(verb: &[&str]) -> String {
    let finished = run(leaktrace(verb).arg("--help"));
    assert_eq!((finished.code, finished.stderr.as_str()), (0, ""), "exit code and stderr");
    finished.stdout
}

#[test]
fn help_of_leaktrace() {
    insta::assert_snapshot!(help(&[]));
}

#[test]
fn help_of_kernel() {
    insta::assert_snapshot!(help(&["kernel"]));
}

#[test]
fn help_of_user() {
    insta::assert_snapshot!(help(&["user"]));
}

#[test]
fn help_of_run() {
    insta::assert_snapshot!(help(&["run"]));
}

#[test]
fn help_of_doctor() {
    insta::assert_snapshot!(help(&["doctor"]));
}

#[test]
fn version_names_the_program() {
    let finished = run(&mut leaktrace(&["--version"]));
    assert_eq!(finished.code, 0, "stderr:\n{}", finished.stderr);
    assert_eq!(finished.stdout, concat!("leaktrace ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// Bad usage: exit code 2, nothing on stdout, no panic, and every part on stderr.
fn check_usage(args: &[&str], parts: &[&str]) {
    let Finished { code, stdout, stderr } = run(&mut leaktrace(args));
    assert_eq!((code, stdout.as_str()), (2, ""), "exit code and stdout of {args:?}:\n{stderr}");
    assert!(!stderr.contains("panicked"), "stderr of {args:?}:\n{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "no {part:?} on stderr of {args:?}:\n{stderr}");
    }
}

/// What is typed is quoted, and must not reach the terminal as it is.
#[test]
fn hostile_arguments_are_escaped() {
    let evil = "\u{1b}]0;evil\u{7}\u{202e}\nleaktrace: all is well";
    for args in [
        &[evil] as &[&str],
        &["kernel", evil],
        &["kernel", "--cache", evil, "--interval", evil],
        &["kernel", "--gfp", evil],
        &["kernel", "--pair", evil],
        &["user", "-p", "1", "--pair", evil],
        &["kernel", "--comm", evil],
        &["kernel", "--cgroup", evil],
        &["kernel", "--debug-dir", evil],
        &["user", "--pid", evil],
        &["user", "--comm", evil],
        &["user", "--cgroup", evil],
        &["user", "--all", "--write", "/no/such/folder/\u{1b}]0;evil\u{7}"],
        &["run", evil],
        &["run", "--error-exitcode", evil, "--", "true"],
        &["doctor", evil],
        &["doctor", "--format", evil],
    ] {
        let Finished { code, stdout, stderr } = run(&mut leaktrace(args));
        assert_eq!((code, stdout.as_str()), (2, ""), "exit code and stdout of {args:?}:\n{stderr}");
        assert!(stderr.contains("\\x1b]0;evil"), "stderr of {args:?}: {stderr:?}");
        assert_eq!(stderr.lines().count(), 1, "stderr of {args:?}: {stderr:?}");
        let line = stderr.trim_end_matches('\n');
        assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{args:?}: {line:?}");
    }
}

#[test]
fn no_verb_is_bad_usage() {
    check_usage(&[], &["Usage"]);
}

#[test]
fn an_unknown_verb_is_bad_usage() {
    check_usage(&["kernal"], &["kernal", "kernel"]);
}

#[test]
fn an_unknown_flag_is_bad_usage() {
    check_usage(&["kernel", "--intervall", "5s"], &["--intervall", "--interval"]);
}

#[test]
fn an_interval_of_zero_is_bad_usage() {
    check_usage(&["kernel", "--interval", "0"], &["--interval"]);
    check_usage(&["kernel", "--interval", "0s"], &["--interval"]);
}

#[test]
fn times_that_do_not_parse_are_bad_usage() {
    for (flag, time) in [
        ("--interval", "fast"),
        ("--interval", ""),
        ("--duration", "-1s"),
        ("--duration", "5 parsecs"),
        ("--older", "1e999s"),
    ] {
        check_usage(&["kernel", &format!("{flag}={time}")], &[flag]);
    }
}

/// One line each, and what to write.
#[test]
fn pairs_that_do_not_parse_are_bad_usage() {
    for (pair, cause) in [
        ("fopen", "write ACQUIRE:RELEASE, as fopen:fclose"),
        ("fopen:", "a function has no name"),
        ("Pool::get:Pool::put", "write C++ and Rust functions by their symbols"),
        ("get(size=9):put", "`9` is no argument; write 1 to 6"),
        ("get(bytes=1):put", "bytes is no option of get; write key=N, out=N, size=N"),
        ("get(if=zero):put", "name the key with key=N or out=N"),
        ("get:get", "get cannot do both"),
        ("get:put(key=1),put(key=2)", "put releases twice"),
    ] {
        for verb in [&["kernel"] as &[&str], &["user", "-p", "1"]] {
            let args = [verb, &["--pair", pair]].concat();
            check_usage(&args, &["--pair", cause]);
            let stderr = run(&mut leaktrace(&args)).stderr;
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
    }
    check_usage(&["run", "--pair", "a:b", "--sample-bytes", "64KiB", "--", "true"], &["--pair"]);
    check_usage(&["kernel", "--pair", "a:b", "--cache", "dentry"], &["--cache", "--kind slab"]);
}

#[test]
fn sizes_that_do_not_parse_are_bad_usage() {
    for (flag, size) in [
        ("--min-size", "big"),
        ("--min-size", "-1"),
        ("--max-size", "1XiB"),
        ("--max-size", ""),
        ("--max-size", "99999999999999999999"),
    ] {
        check_usage(&["kernel", &format!("{flag}={size}")], &[flag]);
    }
}

#[test]
fn numbers_out_of_range_are_bad_usage() {
    for (flag, value) in [
        ("--count", "0"),
        ("--top", "many"),
        ("--max-depth", "0"),
        ("--max-depth", "128"),
        ("--max-outstanding", "0"),
    ] {
        check_usage(&["kernel", &format!("{flag}={value}")], &[flag]);
    }
    check_usage(&["run", "--error-exitcode=256", "--", "true"], &["--error-exitcode"]);
}

#[test]
fn a_lower_bound_above_the_upper_one_is_bad_usage() {
    check_usage(&["kernel", "-z", "2KiB", "-Z", "1KiB"], &["--min-size", "--max-size"]);
}

#[test]
fn words_that_are_no_choice_are_bad_usage() {
    for (flag, word, choice) in [
        ("--format", "yaml", "json"),
        ("--sort", "colour", "bytes"),
        ("--stacks", "some", "all"),
        ("--by", "driver", "module"),
    ] {
        check_usage(&["kernel", &format!("{flag}={word}")], &[flag, word, choice]);
    }
}

/// The line that is wrong is named.
#[test]
fn malformed_suppressions_are_bad_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules");
    let path = file.display().to_string();
    let check = |text: &str, parts: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let parts = [&["--suppressions", &path], parts].concat();
        check_usage(&["run", "--suppressions", &path, "--", "true"], &parts);
    };
    check("leak:a\n\nrace:b\n", &["line 3", "`race:b` is neither"]);
    check("{\nname\nMemcheck:Leak\nfun:x\n", &["line 1", "no `}`"]);
    check("{\nname\nMemcheck:Leak\nfan:x\n}\n", &["line 4", "fun:NAME"]);
    check("leak:\u{1b}[2J\n\u{1b}[2J\n", &["line 2", "\\x1b"]);
    check_usage(&["user", "-p", "1", "--suppressions", "/no/such"], &["/no/such", "No such file"]);
    check_usage(&["run", "--gen-suppressions", "-f", "json", "--", "true"], &["--gen-suppr"]);
}

#[test]
fn filters_for_what_is_not_there_are_bad_input() {
    let mend = "no module has such a name";
    check_usage(&["kernel", "--module", "drivers/x.ko"], &["--module drivers/x.ko", mend]);
    check_usage(&["kernel", "--module", ""], &["--module", mend]);
    check_usage(&["kernel", "--not-module", "a/b"], &["--not-module a/b", mend]);
    let (both, mend) = ("nothing would be left", "leave one of them out");
    check_usage(&["kernel", "--cache", "x", "--not-cache", "x"], &["--not-cache x", both, mend]);
    check_usage(&["kernel", "--module", "a-b", "--not-module", "a_b"], &["a_b", both, mend]);
    check_usage(&["kernel", "--not-cache", ""], &["--not-cache ``", "1 to 31 bytes"]);
    check_usage(&["kernel", "--pair", "a:b", "--unreclaimable"], &["--unreclaimable", mend]);
    let nearest = ["--gfp `GFP_ATOMC`", "GFP_ATOMIC"];
    check_usage(&["kernel", "--gfp", "GFP_ATOMC"], &nearest);
    check_usage(&["kernel", "--gfp", "ZERO"], &["--gfp `ZERO`", "__GFP_ZERO"]);
}

/// Processes have neither modules nor slab caches.
#[test]
fn a_process_has_no_sums_by_module() {
    check_usage(&["user", "-p", "1", "--by", "module"], &["--by", "module", "site, process"]);
    check_usage(&["run", "--by", "cache", "--", "true"], &["--by", "cache", "site, process"]);
}

#[test]
fn user_without_a_process_is_bad_usage() {
    check_usage(&["user"], &["-p", "--comm", "--cgroup", "--all"]);
    check_usage(&["user", "--all", "--comm", "a"], &["--all", "--comm"]);
    check_usage(&["user", "--comm", ""], &["--comm"]);
    check_usage(&["user", "--cgroup", "/no/such/group"], &["/no/such/group", "/proc/PID/cgroup"]);
}

#[test]
fn run_without_a_command_is_bad_usage() {
    check_usage(&["run"], &["COMMAND"]);
    check_usage(&["run", "--"], &["COMMAND"]);
}

#[test]
fn a_missing_process_is_bad_input() {
    // Above the highest that Linux gives (PID_MAX_LIMIT, 4,194,304).
    check_usage(&["user", "-p", "4194305", "-d", "1s"], &["no process 4194305"]);
    check_usage(&["kernel", "-p", "4194305", "-d", "1s"], &["no process 4194305"]);
}

#[test]
fn a_process_id_that_is_no_number_is_bad_usage() {
    for pid in ["0", "-1", "init", "99999999999"] {
        check_usage(&["user", &format!("--pid={pid}")], &["--pid"]);
    }
}

#[test]
fn an_unwritable_file_is_bad_input() {
    let own = std::process::id().to_string();
    for file in ["/nonexistent/folder/report.json", "/"] {
        check_usage(&["user", "-p", &own, "-d", "1s", "-w", file], &[file]);
        check_usage(&["kernel", "-d", "1s", "--write", file], &[file]);
        check_usage(&["run", "-w", file, "--", "true"], &[file]);
    }
}

/// What `leaktrace --help` says with this as its standard output, and its exit code.
fn help_into(stdout: impl Into<Stdio>) -> (i32, String) {
    let mut command = leaktrace(&["--help"]);
    let output = command.stdout(stdout).output().unwrap_or_else(|error| panic!("{error}"));
    let Finished { code, stderr, .. } = Finished::from_output(output);
    (code, stderr)
}

#[test]
fn an_error_tells_its_cause() {
    let full = std::fs::File::create("/dev/full").unwrap_or_else(|error| panic!("{error}"));
    let line = "leaktrace: cannot print the help: No space left on device (os error 28)\n";
    assert_eq!(help_into(full), (2, line.to_owned()));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap_or_else(|error| panic!("{error}"));
    drop(reader);
    assert_eq!(help_into(writer), (0, String::new()));
}

/// Runs leaktrace as nobody (or as the one who runs the tests, who is not root either).
fn run_as_nobody(args: &[&str]) -> Finished {
    // Nobody may not see the folder of the build: the copy is for all to see.
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let copy = folder.path().join("leaktrace");
    let allow = |path: &std::path::Path| {
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path, all).unwrap_or_else(|error| panic!("{error}"));
    };
    // By another process: a file that we write is still open in what another test has just forked,
    // and cannot be executed as long as it is.
    let copied = run(Command::new("cp").arg(leaktrace_bin()).arg(&copy));
    assert_eq!(copied.code, 0, "{}", copied.stderr);
    allow(folder.path());
    allow(&copy);
    let mut command = Command::new(&copy);
    command.args(args).current_dir("/").env("NO_COLOR", "1");
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(65534).gid(65534);
    }
    run(&mut command)
}

#[test]
fn tracing_without_root_says_so() {
    let own = std::process::id().to_string();
    let verbs: [&[&str]; 3] = [
        &["kernel", "-d", "1s"],
        &["user", "-p", &own, "-d", "1s"],
        &["run", "-d", "1s", "--", "echo", "started"],
    ];
    for args in verbs {
        let Finished { code, stdout, stderr } = run_as_nobody(args);
        assert_eq!((code, stdout.as_str()), (3, ""), "exit code and stdout of {args:?}:\n{stderr}");
        assert!(stderr.contains("root"), "no \"root\" on stderr of {args:?}:\n{stderr}");
        assert_eq!(stderr.lines().count(), 1, "lines on stderr of {args:?}:\n{stderr}");
    }
}

/// The first command that anybody types may be typed by anybody.
#[test]
fn doctor_without_root_tells_what_is_missing() {
    let Finished { code, stdout, stderr } = run_as_nobody(&["doctor"]);
    assert!(!stderr.contains("panicked"), "stderr:\n{stderr}");
    assert!([0, 3].contains(&code), "exit code {code}; stderr:\n{stderr}");
    assert!(stdout.contains("root") || stdout.contains("CAP_"), "no word of root in:\n{stdout}");
}
