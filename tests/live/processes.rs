//! Several processes, fork and exec.

use leaktrace_tests::{
    SOON,
    leaker::{Leaker, children_of, sites_of},
    program::build_library,
    report::{Amounts, number},
    traced::Traced,
};

#[test]
fn two_processes_are_counted_apart() {
    let mut first = Leaker::start("many", &[]);
    let mut second = Leaker::start("semantics", &[]);
    let traced = Traced::start(&[
        "user",
        "-p",
        &first.pid_arg(),
        "-p",
        &second.pid_arg(),
        "--interval",
        "1h",
    ]);
    first.advance("holding");
    second.advance("holding");
    let ended = traced.interrupt();
    let report = ended.final_report();
    report.assert_sites(first.pid(), &first.stage().sites());
    report.assert_sites(second.pid(), &second.stage().sites());
    report.assert_complete();
    assert_eq!(report.sum_in(second.pid(), "site_many"), Amounts::default());
    first.end();
    second.end();
}

/// A neighbour that was not asked for runs the same libc, through the same probes.
#[test]
fn an_untraced_process_is_not_counted() {
    let mut traced_one = Leaker::start("many", &[]);
    let mut neighbour = Leaker::start("semantics", &[]);
    let traced = Traced::start(&["user", "-p", &traced_one.pid_arg(), "--interval", "1h"]);
    neighbour.advance("holding");
    traced_one.advance("holding");
    let ended = traced.interrupt();
    let report = ended.final_report();
    report.assert_sites(traced_one.pid(), &traced_one.stage().sites());
    let others = report.sum(|site| site.pid() != Some(traced_one.pid()));
    assert_eq!(others, Amounts::default(), "of other processes:\n{}", report.outline());
    traced_one.end();
    neighbour.end();
}

/// The child frees its copies of the parent's blocks and leaks its own: neither changes what the
/// parent holds.
#[test]
fn a_forked_child_does_not_change_its_parents_account() {
    let mut leaker = Leaker::start("forker", &[]);
    let traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--interval", "1h"]);
    leaker.advance("holding");
    let ended = traced.interrupt();
    let report = ended.final_report();
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    // If the child is reported at all, then with its own account.
    let child = &leaker.stage().line["child"];
    let child_pid = u32::try_from(number(child, "pid")).unwrap_or_default();
    if report.sites().into_iter().any(|site| site.pid() == Some(child_pid)) {
        report.assert_sites(child_pid, &sites_of(child));
    }
    leaker.end();
}

/// A child of fork, a grandchild and one of posix_spawn: each is traced from its first instruction,
/// has its own account, and is still there when it has ended; those of fork have whole stacks.
#[test]
fn children_are_traced_on_demand() {
    let mut leaker = Leaker::start("children", &[]);
    let pid = leaker.pid_arg();
    let mut traced = Traced::start(&["user", "-p", &pid, "--children", "--interval", "100ms"]);
    leaker.advance("made");
    let children = children_of(&leaker.advance("holding").line);
    assert_eq!(children.len(), 3);
    // What a process has executed is named once its mappings are read, while it runs.
    traced.wait_report("all children are known", SOON, |report| {
        children.iter().all(|(pid, sites)| {
            sites.iter().all(|(name, amounts)| report.sum_in(*pid, name) == *amounts)
        })
    });
    leaker.end();
    let report = traced.wait().final_report().clone();
    for (child, expected) in children {
        report.assert_sites(child, &expected);
        let site_name = &expected[0].0;
        // What is executed maps other things than its parent, and they are not known at once.
        if site_name == "site_spawned" {
            continue;
        }
        for site in report.sites().into_iter().filter(|site| site.has_frame(site_name)) {
            assert_eq!(site.value["truncated"], false, "{}", report.outline());
            assert!(site.has_frame("main"), "{}", report.outline());
        }
    }
    report.assert_complete();
}

/// Both children have one number, and their blocks the same addresses: neither is taken for a block
/// of the other whose free was missed.
#[test]
fn a_process_id_that_is_used_again_means_another_process() {
    let mut leaker = Leaker::start("reused", &[]);
    let pid = leaker.pid_arg();
    let traced = Traced::start(&["user", "-p", &pid, "--children", "--interval", "1h"]);
    let children = children_of(&leaker.advance("holding").line);
    let ended = traced.interrupt();
    let report = ended.final_report();
    for (child, expected) in &children {
        report.assert_sites(*child, expected);
    }
    let (first, second) = (children[0].0, children[1].0);
    assert_eq!(first, second);
    let processes = report.value["processes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut exited: Vec<bool> = processes
        .iter()
        .filter(|process| process["pid"] == first)
        .map(|process| process["exited"] == true)
        .collect();
    exited.sort_unstable();
    assert_eq!(exited, [false, true], "{}", report.value["processes"]);
    report.assert_complete();
    leaker.end();
}

/// Ten children of fork that leak at once and end, and one of vfork that executes: nobody waits for
/// leaktrace, and yet each is exact, to its first call, with whole stacks.
#[test]
fn children_that_end_at_once_are_exact() {
    let mut leaker = Leaker::start("family", &["1"]);
    let pid = leaker.pid_arg();
    let traced = Traced::start(&["user", "-p", &pid, "--children", "--interval", "1h"]);
    let mut children = children_of(&leaker.advance("round").line);
    children.extend(children_of(&leaker.advance("holding").line));
    assert_eq!(children.len(), 11);
    let ended = traced.interrupt();
    let report = ended.final_report();
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    for (child, expected) in &children {
        report.assert_sites(*child, expected);
    }
    for site in report.sites().into_iter().filter(|site| site.has_frame("site_child")) {
        assert_eq!(site.value["truncated"], false, "{}", report.outline());
        assert!(site.has_frame("be_child") && site.has_frame("main"), "{}", report.outline());
    }
    report.assert_complete();
    leaker.end();
}

/// Its names were learnt while it was loaded.
#[test]
fn a_library_that_leaks_is_named_after_it_is_gone() {
    let library = build_library("leaklib.so").display().to_string();
    let mut leaker = Leaker::start("plugged", &[&library]);
    let pid = leaker.pid();
    let mut traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--interval", "100ms"]);
    for _ in 0..2 {
        let leaked = leaker.advance("opened").site("site_in_library");
        traced.wait_report("the library is known", SOON, |report| {
            report.sum_in(pid, "site_in_library") == leaked
        });
    }
    leaker.advance("holding");
    let ended = traced.interrupt();
    ended.final_report().assert_sites(pid, &leaker.stage().sites());
    ended.final_report().assert_complete();
    leaker.end();
}

/// The blocks of the old image are gone with it; the new one is traced under the same PID.
#[test]
fn exec_ends_the_old_image_and_the_new_one_is_traced() {
    let mut leaker = Leaker::start("execer", &[]);
    let pid = leaker.pid();
    let mut traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--interval", "500ms"]);
    let before = leaker.advance("before").site("site_before_exec");
    traced.wait_report("the old image's blocks are held", leaktrace_tests::SOON, |report| {
        report.sum_in(pid, "site_before_exec") == before
    });
    let after = leaker.advance("after").site("site_after_exec");
    let ended = traced.interrupt();
    let report = ended.final_report();
    assert_eq!(report.sum_in(pid, "site_after_exec"), after, "new image:\n{}", report.outline());
    let old = report.sum_in(pid, "site_before_exec");
    assert_eq!(old.outstanding_count, 0, "old image:\n{}", report.outline());
    leaker.end();
}
