//! How a session begins and ends: counts and durations, Ctrl-C, the target's exit, a closed
//! stdout, SIGKILL.

use std::{
    io::Read,
    process::{Command, Stdio},
};

use leaktrace_tests::{
    SOON,
    binary::{leaktrace, require_root, run},
    child::shell_code,
    kernel::loaded_programs,
    leaker::Leaker,
    program::build_program,
    report::number,
    traced::{Ended, Traced},
    wait_until,
};

#[test]
fn the_end_of_the_process_ends_the_session_with_a_final_report() {
    let mut leaker = Leaker::start("many", &[]);
    let pid = leaker.pid();
    let traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--interval", "1h"]);
    let expected = leaker.advance("holding").sites();
    leaker.end();
    let ended = traced.wait();
    let report = ended.final_report();
    // Its names were learnt while it lived.
    report.assert_sites(pid, &expected);
    report.assert_complete();
}

#[test]
fn an_interrupt_ends_the_session_with_a_final_report() {
    let leaker = Leaker::start("many", &[]);
    let mut traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--interval", "200ms"]);
    traced.wait_report("nothing is asked of it", SOON, |report| !report.is_final());
    traced.interrupt().final_report();
    // Leaves the target as it was.
    let mut leaker = leaker;
    leaker.advance("holding");
    leaker.end();
}

#[test]
fn sigterm_ends_the_session_like_ctrl_c() {
    let leaker = Leaker::start("many", &[]);
    let mut traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--interval", "1h"]);
    traced.signal(libc::SIGTERM);
    traced.wait().final_report();
}

#[test]
fn count_ends_after_so_many_reports() {
    let leaker = Leaker::start("many", &[]);
    let traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "-i", "200ms", "-c", "3"]);
    let ended = traced.wait();
    ended.final_report();
    assert_eq!(ended.reports.len(), 3, "reports of --count 3");
}

#[test]
fn duration_ends_with_one_final_report() {
    let leaker = Leaker::start("many", &[]);
    let traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "-i", "1h", "-d", "500ms"]);
    let ended = traced.wait();
    check_duration(&ended, 500);
}

#[test]
fn duration_ends_kernel_mode_with_one_final_report() {
    let ended = Traced::start(&["kernel", "-i", "1h", "-d", "2s"]).wait();
    check_duration(&ended, 2000);
}

/// One report, after the whole duration; how long the machine then takes for it is not known.
fn check_duration(ended: &Ended, duration_ms: u64) {
    let elapsed_ms = number(&ended.final_report().value, "elapsed_ms");
    assert!(elapsed_ms >= duration_ms, "elapsed_ms: {elapsed_ms}");
    assert_eq!(ended.reports.len(), 1, "reports of one duration, shorter than the interval");
}

#[test]
fn write_takes_the_report_from_stdout() {
    let leaker = Leaker::start("many", &[]);
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let file = folder.path().join("report.json");
    let args = ["user", "-p", &leaker.pid_arg(), "-f", "json", "-d", "300ms", "-w"];
    require_root();
    let finished = run(leaktrace(&args).arg(&file));
    assert_eq!((finished.code, finished.stdout.as_str()), (0, ""), "stderr:\n{}", finished.stderr);
    let reports = leaktrace_tests::traced::read_reports(&file);
    Ended { reports, finished }.final_report();
}

/// `leaktrace ... | head -1` is no error.
#[test]
fn a_closed_stdout_ends_quietly() {
    require_root();
    let mut leaker = Leaker::start("many", &[]);
    let mut command = leaktrace(&["user", "-p", &leaker.pid_arg(), "-f", "json", "-i", "100ms"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    drop(child.stdout.take());
    let mut status = None;
    wait_until("leaktrace noticed that stdout is closed", SOON, || {
        status = child.try_wait().unwrap_or_else(|error| panic!("{error}"));
        status.is_some()
    });
    let mut stderr = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        pipe.read_to_string(&mut stderr).unwrap_or_else(|error| panic!("{error}"));
    }
    assert_eq!(status.map(shell_code), Some(0), "exit code; stderr:\n{stderr}");
    for word in ["panic", "error", "Broken pipe"] {
        assert!(!stderr.contains(word), "{word:?} on stderr:\n{stderr}");
    }
    leaker.advance("holding");
    leaker.end();
}

#[test]
fn sigkill_leaves_nothing_attached_and_the_target_unharmed() {
    require_root();
    let before = loaded_programs();
    let mut leaker = Leaker::start("semantics", &[]);
    let traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--interval", "1h"]);
    let ours = move || {
        let mut programs = loaded_programs();
        programs.retain(|id, _| !before.contains_key(id));
        programs
    };
    assert!(!ours().is_empty(), "no BPF program named lt_... while leaktrace traces");
    traced.kill();
    // The kernel drops links and programs with the last descriptor, some time after the exit.
    wait_until("no BPF program named lt_... is left", SOON, || ours().is_empty());
    leaker.advance("holding");
    leaker.end();
}

#[test]
fn sigkill_of_kernel_mode_leaves_nothing_attached() {
    require_root();
    let before = loaded_programs();
    let traced = Traced::start(&["kernel", "--interval", "1h"]);
    let ours = move || {
        let mut programs = loaded_programs();
        programs.retain(|id, _| !before.contains_key(id));
        programs
    };
    assert!(!ours().is_empty(), "no BPF program named lt_... while leaktrace traces");
    traced.kill();
    wait_until("no BPF program named lt_... is left", SOON, || ours().is_empty());
}

/// "Ctrl-C ends with a report", says the note: from then on it does.
#[test]
fn an_interrupt_right_after_the_note_ends_with_a_final_report() {
    let mut leaker = Leaker::start("many", &[]);
    for _ in 0..20 {
        let traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--interval", "1h"]);
        traced.interrupt().final_report();
    }
    leaker.advance("holding");
    leaker.end();
}

/// It has no libc to probe: one clear line, nothing attached, and no harm.
#[test]
fn a_static_process_is_refused_in_one_line() {
    let mut leaker = Leaker::start("many-static", &[]);
    require_root();
    let finished = run(&mut leaktrace(&["user", "-p", &leaker.pid_arg(), "-d", "1s"]));
    assert_eq!(finished.code, 2, "exit code; stderr:\n{}", finished.stderr);
    assert_eq!(finished.stdout, "", "stdout");
    assert_eq!(finished.stderr.lines().count(), 1, "lines on stderr:\n{}", finished.stderr);
    for part in [leaker.pid_arg().as_str(), "libc"] {
        assert!(finished.stderr.contains(part), "no {part:?} in {:?}", finished.stderr);
    }
    leaker.advance("holding");
    leaker.end();
}

/// A process that has ended but is not waited for yet has no memory to trace.
#[test]
fn a_zombie_is_refused_in_one_line() {
    require_root();
    let mut zombie = Command::new(build_program("many"));
    let mut zombie = zombie
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{error}"));
    let pid = zombie.id().to_string();
    wait_until("it is a zombie", SOON, || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains(") Z ")
    });
    let finished = run(&mut leaktrace(&["user", "-p", &pid, "-d", "1s"]));
    assert_eq!(finished.code, 2, "exit code; stderr:\n{}", finished.stderr);
    assert_eq!(finished.stderr.lines().count(), 1, "lines on stderr:\n{}", finished.stderr);
    assert!(finished.stderr.contains(&pid), "no {pid} in {:?}", finished.stderr);
    zombie.wait().unwrap_or_else(|error| panic!("{error}"));
}
