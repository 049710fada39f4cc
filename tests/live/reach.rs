//! What is lost and what is held, in processes that nobody stops: the programs say what is true.

use std::process::Command;

use leaktrace_tests::{
    LATE, SOON,
    binary::workspace,
    child::Child,
    leaker::Leaker,
    program::private_copy,
    report::{Report, Site, number},
    traced::Traced,
};
use serde_json::Value;

/// Age at which a block has a verdict, and the time until the scan begins.
const OLD_MS: u64 = 5_200;

/// Waits until the blocks of all call sites that have any are old enough to be judged; each of the
/// programs allocates all of a call site's at once.
fn wait_for_age(traced: &mut Traced) {
    traced.wait_report("the blocks are old", LATE, |report| {
        let sites = report.sites();
        let mut held = sites.iter().filter(|site| number(site.value, "outstanding_count") > 0);
        let is_old = |site: &Site<'_>| site.value["oldest_ms"].as_u64() >= Some(OLD_MS);
        held.clone().next().is_some() && held.all(is_old)
    });
}

/// The final report on a program in its stage `holding`.
fn judge(leaker: &mut Leaker, options: &[&str]) -> Report {
    let pid = leaker.pid_arg();
    let arguments = ["user", "-p", &pid, "--interval", "500ms"];
    let mut traced = Traced::start(&[&arguments, options].concat());
    leaker.advance("holding");
    wait_for_age(&mut traced);
    traced.interrupt().final_report().clone()
}

/// One sum of the verdicts on the call sites with a function in their stack.
fn sum(report: &Report, function: &str, what: &str) -> u64 {
    let sites = report.sites();
    let own = sites.iter().filter(|site| site.has_frame(function));
    own.filter_map(|site| site.value["reachability"][what].as_u64()).sum()
}

/// Definitely, indirectly and possibly lost, reachable, not judged.
fn verdicts(report: &Report, function: &str) -> [u64; 5] {
    ["definitely_lost", "indirectly_lost", "possibly_lost", "still_reachable", "not_judged"]
        .map(|what| sum(report, function, &format!("{what}_count")))
}

/// Compares the verdicts on each class of blocks with what the program says of it. Up to `stale`
/// blocks of a class may be held by addresses that the allocator has left behind; nothing that is
/// held may be called lost.
fn check_classes(program: &str, stale: u64) {
    let mut leaker = Leaker::start(program, &[]);
    let report = judge(&mut leaker, &[]);
    report.assert_complete();
    let classes = leaker.stage().line["classes"].as_array().cloned().unwrap_or_default();
    assert!(classes.len() > 20, "{:?}", leaker.stage());
    let mut differences = String::new();
    for class in classes {
        let name = class["name"].as_str().unwrap_or_default();
        let of = |what| number(&class, what);
        let expected = [of("definite"), of("indirect"), of("possible"), of("reachable"), 0];
        let got = verdicts(&report, name);
        let lost = |[definitely, indirectly, ..]: [u64; 5]| definitely + indirectly;
        let is_stale = lost(got) + stale >= lost(expected)
            && lost(got) < lost(expected)
            && got.iter().sum::<u64>() == expected.iter().sum::<u64>();
        if got != expected && !is_stale {
            differences += &format!("{name}: expected {expected:?}, got {got:?}\n");
        }
    }
    assert!(differences.is_empty(), "{program}:\n{differences}scans: {}", report.value["scans"]);
    let scan = &report.value["scans"][0];
    assert_eq!((&scan["way"], &scan["refused"]), (&Value::from("live"), &Value::Null), "{scan}");
    assert!(number(scan, "scans") >= 3 && number(scan, "bytes") > 100_000, "{scan}");
    leaker.end();
}

/// Blocks that only memory from before the trace holds are reachable: other tools call them lost.
#[test]
fn each_way_to_hold_a_block_is_seen() {
    check_classes("reach", 0);
}

#[test]
fn each_allocator_s_blocks_are_judged() {
    for program in ["reach-mimalloc", "reach-musl", "reach-tcmalloc"] {
        check_classes(program, 0);
    }
    // Its caches keep some addresses that they have given out.
    check_classes("reach-jemalloc", 3);
}

/// The holders of a function's blocks: kind, name and share in percent, most bytes first.
fn holders(report: &Report, function: &str) -> Vec<(String, String, u64)> {
    let sites = report.sites();
    let mut all: Vec<(String, String, u64)> = Vec::new();
    for site in sites.iter().filter(|site| site.has_frame(function)) {
        for held in site.value["held_by"].as_array().into_iter().flatten() {
            let text = |key: &str| held[key].as_str().unwrap_or_default().to_owned();
            let bytes = number(held, "bytes");
            let (root, name) = (text("root"), text("name"));
            match all.iter_mut().find(|known| (&known.0, &known.1) == (&root, &name)) {
                Some(known) => known.2 += bytes,
                None => all.push((root, name, bytes)),
            }
        }
    }
    let total: u64 = all.iter().map(|held| held.2).sum();
    all.iter_mut().for_each(|held| held.2 = held.2 * 100 / total.max(1));
    all.sort_by_key(|held| std::cmp::Reverse(held.2));
    all
}

#[test]
fn who_hoards_is_named() {
    let mut leaker = Leaker::start("hoards", &[]);
    let report = judge(&mut leaker, &[]);
    for (function, root, name) in [
        ("grow_sessions", "global", "g_sessions"),
        ("grow_cache", "global", "cache"),
        ("grow_registry", "global", "registry"),
        ("grow_recent", "thread_local", "recent"),
        ("grow_list", "stack", "main"),
    ] {
        let held = holders(&report, function);
        let [definitely, indirectly, ..] = verdicts(&report, function);
        assert_eq!((definitely, indirectly), (0, 0), "{function}: {held:?}");
        let first = held.first().unwrap_or_else(|| panic!("{function} is held by nobody"));
        assert!(first.0 == root && first.1.contains(name) && first.2 >= 95, "{function}: {held:?}");
    }
    leaker.end();
}

#[test]
fn a_second_signal_skips_the_scan() {
    let mut leaker = Leaker::start("reach", &[]);
    let pid = leaker.pid_arg();
    let mut traced = Traced::start(&["user", "-p", &pid, "--interval", "500ms"]);
    leaker.advance("holding");
    wait_for_age(&mut traced);
    traced.signal(libc::SIGINT);
    traced.wait_note("looking through");
    let report = traced.interrupt().final_report().clone();
    assert_eq!(
        report.value["scans"][0]["refused"], "the scan was skipped",
        "{}",
        report.value["scans"]
    );
    assert!(report.sites().iter().all(|site| site.value["reachability"].is_null()));
    assert!(report.sum_in(leaker.pid(), "site_dropped").outstanding_count == 10);
    leaker.end();
}

/// It says so, and all that was counted is still there.
#[test]
fn a_process_that_ends_or_executes_meanwhile_has_no_verdict() {
    let mut leaker = Leaker::start("reach", &[]);
    let mut child = Child::start(Command::new("sleep").arg("600"));
    let (pid, other) = (leaker.pid_arg(), child.pid().to_string());
    let pids = [leaker.pid(), child.pid()];
    let mut traced = Traced::start(&["user", "-p", &pid, "-p", &other, "--interval", "500ms"]);
    leaker.advance("holding");
    wait_for_age(&mut traced);
    traced.signal(libc::SIGINT);
    traced.wait_note("looking through");
    leaker.end();
    let ended = traced.wait();
    let report = ended.final_report();
    let scans = report.value["scans"].as_array().cloned().unwrap_or_default();
    let refused = pids.map(|pid| {
        let scan = scans.iter().find(|scan| scan["pid"] == pid);
        scan.map(|scan| scan["refused"].clone()).unwrap_or_default()
    });
    let expected =
        ["it ended, or executed another file, meanwhile", "none of its blocks is older than 5 s"];
    assert_eq!(refused, expected, "{scans:?}");
    child.signal(libc::SIGKILL);
    assert_eq!(child.wait(SOON), 128 + libc::SIGKILL);
}

#[test]
fn no_verdict_is_given_where_addresses_are_hidden() {
    let (_folder, path) = private_copy("reach", "node");
    let mut leaker = Leaker::launch(&mut Command::new(path));
    let report = judge(&mut leaker, &[]);
    let refused = report.value["scans"][0]["refused"].as_str().unwrap_or_default();
    assert!(refused.contains("JavaScript"), "{}", report.value["scans"]);
    leaker.end();
}

#[test]
fn nothing_is_looked_at_unless_wanted() {
    let mut leaker = Leaker::start("reach", &[]);
    let report = judge(&mut leaker, &["--reachability", "off"]);
    assert!(report.value["scans"].is_null(), "{}", report.value["scans"]);
    leaker.end();
}

/// The report of a session with an end is on time: the scans begin before it.
#[test]
fn a_session_with_an_end_ends_on_time() {
    let mut leaker = Leaker::start("reach", &[]);
    let pid = leaker.pid_arg();
    let traced = Traced::start(&["user", "-p", &pid, "-i", "1h", "-d", "10s"]);
    leaker.advance("holding");
    let report = traced.wait().final_report().clone();
    assert!(
        (10_000..11_000).contains(&number(&report.value, "elapsed_ms")),
        "{}",
        report.value["elapsed_ms"]
    );
    assert_eq!(verdicts(&report, "site_dropped"), [10, 0, 0, 0, 0], "{}", report.value["scans"]);
    leaker.end();
}

/// Two threads move pointers without pause. A single look is wrong about thousands of blocks; no more
/// than one in 100,000 may be wrong after all of them.
#[test]
fn a_busy_interpreter_loses_almost_nothing() {
    let mut command = Command::new("python3");
    command.arg(workspace().join("tests/programs/swapping.py")).args(["200000", "1000"]);
    let mut leaker = Leaker::launch(command.env("PYTHONMALLOC", "malloc"));
    let pid = leaker.pid_arg();
    let arguments = ["user", "-p", &pid, "--interval", "1s", "--max-outstanding", "4000000"];
    let mut traced = Traced::start(&arguments);
    leaker.advance("running");
    let now = number(&traced.next_fresh_report(LATE).value, "elapsed_ms");
    traced.wait_report("the leaked blocks are old", LATE, |report| {
        number(&report.value, "elapsed_ms") >= now + OLD_MS
    });
    let report = traced.interrupt().final_report().clone();
    let (mut planted, mut wrong, mut judged) = (0, 0, 0);
    for site in report.sites() {
        let of = |what: &str| site.value["reachability"][what].as_u64().unwrap_or(0);
        let lost = of("definitely_lost_count") + of("indirectly_lost_count");
        judged += lost + of("possibly_lost_count") + of("still_reachable_count");
        match number(site.value, "largest_bytes") {
            7777 => planted += lost,
            _ => wrong += lost,
        }
    }
    let what = format!("{planted} planted, {wrong} wrong of {judged}: {}", report.value["scans"]);
    assert!(judged >= 1_000_000, "{what}");
    assert!(planted >= 980, "{what}");
    assert!(wrong * 100_000 < judged, "{what}");
}
