//! Processes that are traced by their command or control group, now and later.
//!
//! Probes of such a session reach every process that maps the same file: these programs are static,
//! and copies that nobody else runs.

use std::{path::Path, process::Command};

use leaktrace_tests::{
    SOON,
    groups::Groups,
    leaker::{Leaker, children_of},
    program::private_copy,
    report::{Amounts, Report},
    traced::Traced,
};

/// How many processes were not traced from their start on.
fn late(report: &Report) -> u64 {
    let unseen = report.value["loss"]["unseen"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut texts = unseen.iter().filter_map(|text| text.as_str());
    let text = texts.find(|text| text.contains("from some time after their start"));
    text.and_then(|text| text.rsplit(": ").next()?.parse().ok()).unwrap_or_default()
}

fn ended(report: &Report) -> u64 {
    report.value["processes_ended"].as_u64().unwrap_or_default()
}

fn start(program: &Path) -> Leaker {
    Leaker::launch(Command::new(program).arg("1"))
}

/// The first process of a command brings a C library that nobody has seen, and is traced once that
/// is known; a later one is traced from its first instruction on, and so are its children.
#[test]
fn a_command_is_traced_whenever_it_runs() {
    let (_folder, program) = private_copy("family", "lt-family");
    let mut traced = Traced::start(&["user", "--comm", "lt-family", "--interval", "100ms"]);
    let mut first = start(&program);
    traced.wait_report("the first process is traced", SOON, |report| late(report) == 1);
    let mut second = start(&program);
    let mut leaves = Vec::new();
    for leaker in [&mut first, &mut second] {
        leaker.advance("round");
        leaves.extend(children_of(&leaker.advance("holding").line));
    }
    let report = traced.interrupt().final_report().clone();
    for leaker in [&first, &second] {
        report.assert_sites(leaker.pid(), &leaker.stage().sites());
    }
    for (leaf, expected) in leaves {
        report.assert_sites(leaf, &expected);
    }
    // The twenty children have left.
    assert_eq!(ended(&report), 20, "{}", report.outline());
    assert_eq!(report.sum(|site| site.has_frame("site_child")), Amounts::default());
    assert_eq!(late(&report), 1, "{}", report.outline());
    first.end();
    second.end();
}

/// Named processes and those of a command are traced together; a command that nobody runs is
/// waited for.
#[test]
fn what_any_option_names_is_traced() {
    let (_first, by_name) = private_copy("family", "lt-by-name");
    let (_second, by_comm) = private_copy("family", "lt-by-comm");
    let (_third, neighbour) = private_copy("family", "lt-neighbour");
    let mut leakers = [start(&by_name), start(&by_comm), start(&neighbour)];
    let pid = leakers[0].pid_arg();
    let traced = Traced::start(&[
        "user",
        "-p",
        &pid,
        "--comm",
        "lt-by-comm",
        "--comm",
        "lt-nobody",
        "-i",
        "1h",
    ]);
    let mut leaves = Vec::new();
    for leaker in &mut leakers {
        leaker.advance("round");
        leaves.extend(children_of(&leaker.advance("holding").line));
    }
    let ended = traced.interrupt();
    let report = ended.final_report();
    for leaker in &leakers[..2] {
        report.assert_sites(leaker.pid(), &leaker.stage().sites());
    }
    // No child was asked for of the one that was named.
    let (leaf, expected) = &leaves[1];
    report.assert_sites(*leaf, expected);
    let wanted = [leakers[0].pid(), leakers[1].pid(), *leaf];
    let others = report.sum(|site| !site.pid().is_some_and(|pid| wanted.contains(&pid)));
    assert_eq!(others, Amounts::default(), "{}", report.outline());
    report.assert_complete();
    let stderr = &ended.finished.stderr;
    assert!(stderr.contains("`lt-nobody`") && !stderr.contains("`lt-by-comm`"), "{stderr}");
    for leaker in leakers {
        leaker.end();
    }
}

/// With the command, the process leaves: it is another's business then.
#[test]
fn a_process_that_executes_another_command_leaves() {
    let (_folder, program) = private_copy("execer-static", "lt-execer");
    let mut leaker = Leaker::launch(&mut Command::new(&program));
    let pid = leaker.pid();
    let mut traced = Traced::start(&["user", "--comm", "lt-execer", "--interval", "100ms"]);
    let before = leaker.advance("before").site("site_before_exec");
    traced.wait_report("its blocks are held", SOON, |report| {
        report.sum_in(pid, "site_before_exec") == before
    });
    leaker.advance("after");
    let report = traced.interrupt().final_report().clone();
    assert_eq!(ended(&report), 1, "{}", report.outline());
    assert_eq!(report.sum(|_| true), Amounts::default(), "{}", report.outline());
    report.assert_complete();
    leaker.end();
}

/// Sixty processes come and go, whose blocks are three times as many as there is room for: what
/// one held is given to others once it has ended.
#[test]
fn processes_that_ended_leave_room_for_others() {
    let (_folder, program) = private_copy("family", "lt-purge");
    let mut leaker = Leaker::launch(Command::new(&program).arg("6"));
    let args = ["user", "--comm", "lt-purge", "--max-outstanding", "1000", "--interval", "50ms"];
    let mut traced = Traced::start(&args);
    for round in 1..=6 {
        leaker.advance("round");
        traced.wait_report("ten more have ended", SOON, |report| ended(report) == round * 10);
    }
    leaker.advance("holding");
    let report = traced.interrupt().final_report().clone();
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    let left = report.sum(|site| site.has_frame("site_child"));
    assert_eq!(left, Amounts::default(), "{}", report.outline());
    assert_eq!(report.loss("missed_allocs"), 0, "{}", report.outline());
    report.assert_complete();
    leaker.end();
}

/// A process in the group, and one that is moved there later; a third one is never in it.
#[test]
fn a_control_group_is_traced_with_those_who_come() {
    let groups = Groups::new();
    let (_folder, program) = private_copy("family", "lt-grouped");
    let mut leakers = [start(&program), start(&program), start(&program)];
    groups.take(leakers[0].pid());
    let outer = groups.outer().display().to_string();
    let mut traced = Traced::start(&["user", "--cgroup", &outer, "--interval", "100ms"]);
    groups.take(leakers[1].pid());
    traced.wait_report("the second one is traced", SOON, |report| late(report) == 1);
    let mut leaves = Vec::new();
    for leaker in &mut leakers {
        leaker.advance("round");
        leaves.extend(children_of(&leaker.advance("holding").line));
    }
    let report = traced.interrupt().final_report().clone();
    for (leaker, (leaf, expected)) in leakers[..2].iter().zip(&leaves) {
        report.assert_sites(leaker.pid(), &leaker.stage().sites());
        report.assert_sites(*leaf, expected);
    }
    let neighbours = [leakers[2].pid(), leaves[2].0];
    let of_neighbours = report.sum(|site| site.pid().is_some_and(|pid| neighbours.contains(&pid)));
    assert_eq!(of_neighbours, Amounts::default(), "{}", report.outline());
    assert_eq!((ended(&report), late(&report)), (20, 1), "{}", report.outline());
    for leaker in leakers {
        leaker.end();
    }
}
