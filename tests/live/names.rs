//! Names in reports and in what is said beside them: no lie, and no escape.

use std::{fs, process::Command};

use leaktrace_tests::{
    binary::{Finished, leaktrace, run},
    leaker::Leaker,
    program::private_copy,
    traced::Traced,
};

/// A demangler takes each of these for a type, or a name of the standard library.
#[test]
fn short_names_of_c_stay_what_they_are() {
    let mut leaker = Leaker::start("short", &[]);
    let traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--interval", "1h"]);
    leaker.advance("holding");
    let ended = traced.interrupt();
    let report = ended.final_report();
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    let sites = report.sites();
    let Some(site) = sites.iter().find(|site| site.has_frame("w")) else {
        panic!("no such site:\n{}", report.outline());
    };
    let symbols = site.symbols();
    assert!(symbols.starts_with(&["w", "i", "v", "f", "x", "St", "main"]), "{symbols:?}");
    leaker.end();
}

/// A title of the terminal, and a line that looks like leaktrace's own.
const EVIL: &str = "\u{1b}]0;evil\u{7}\nok";

/// That nothing but text and line ends reached standard error, and that the name was told.
fn assert_harmless(what: &str, stderr: &str) {
    assert!(stderr.contains("\\x1b]0;evil\\x07"), "{what} does not tell it: {stderr:?}");
    let harmless = |c: char| c == '\n' || !c.is_control();
    assert!(stderr.chars().all(harmless), "{what}: {stderr:?}");
    assert!(stderr.lines().all(|line| line.starts_with("leaktrace: ")), "{what}: {stderr:?}");
}

#[test]
fn hostile_names_of_processes_are_escaped_in_notes() {
    let (folder, program) = private_copy("many", EVIL);
    let mut leaker = Leaker::launch(&mut Command::new(&program));
    let traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--verbose"]);
    leaker.advance("holding");
    assert_harmless("user", &traced.interrupt().finished.stderr);
    leaker.end();

    let program = folder.path().join(EVIL).display().to_string();
    fs::copy("/bin/true", &program).unwrap_or_else(|error| panic!("{error}"));
    let Finished { code, stderr, .. } = run(&mut leaktrace(&["run", "-v", "--", &program]));
    assert_eq!(code, 0, "{stderr:?}");
    assert_harmless("run", &stderr);

    fs::remove_file(&program).unwrap_or_else(|error| panic!("{error}"));
    let Finished { code, stderr, .. } = run(&mut leaktrace(&["run", "--", &program]));
    assert_ne!(code, 0, "{stderr:?}");
    assert_harmless("run of what is not there", &stderr);
}

#[test]
fn hostile_arguments_are_escaped_in_what_the_host_answers() {
    for args in [
        &["kernel", "--cache", EVIL, "--duration", "10ms"] as &[&str],
        &["kernel", "--module", EVIL, "--duration", "10ms"],
    ] {
        assert_harmless(args[1], &run(&mut leaktrace(args)).stderr);
    }
}
