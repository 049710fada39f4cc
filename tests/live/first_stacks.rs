//! The first stacks of a process image, before leaktrace has read what it maps: the programs ask
//! the kernel, and find the tables of files that were mapped before by anybody.

use std::collections::{BTreeMap, BTreeSet};

use leaktrace_tests::{
    SOON,
    binary::{leaktrace, require_root, run_with_input},
    leaker::Leaker,
    program::build_library,
    report::{Report, Site, number},
    traced::{Traced, read_reports},
};

/// How many children a table may take that was not there: a debug build compiles one of some
/// thousand rows while several children come and go, a release build while one does.
const WAITING: usize = 20;

/// The block of `chain` that its plugin allocates as soon as it is there.
const EARLY: u64 = 29_999;

fn reason<'a>(site: &Site<'a>) -> &'a str {
    site.value["truncated_reason"].as_str().unwrap_or_default()
}

/// No child is harmed, and no stack is cut in an object whose table is there already: the children that are cut in an
/// object are the first ones that use it.
#[test]
fn two_hundred_short_children_wait_for_no_table_twice() {
    require_root();
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let path = folder.path().join("report.json");
    let script = "i=0; while [ $i -lt 200 ]; do ls /usr/share >/dev/null || exit; i=$((i+1)); done";
    let mut command = leaktrace(&["run", "--children", "-f", "json", "-T", "1000000", "-w"]);
    command.arg(&path).args(["--", "sh", "-c", script]);
    let finished = run_with_input(&mut command, "");
    assert_eq!(finished.code, 0, "exit code; stderr:\n{}", finished.stderr);
    let reports = read_reports(&path);
    let report = reports.last().unwrap_or_else(|| panic!("no report"));

    // In the order in which they began.
    let processes = report.value["processes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pid = |value: &serde_json::Value| value["pid"].as_u64().unwrap_or_default();
    let order: BTreeMap<u64, usize> = processes.iter().map(pid).zip(0..).collect();
    assert_eq!(order.len(), 201, "traced processes:\n{}", report.outline());
    let mut cut: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    let (mut stacks, mut without_mapping) = (0, 0);
    for site in report.sites() {
        stacks += 1;
        without_mapping += usize::from(reason(&site) == "an address in no known mapping");
        if reason(&site) == "the library's unwind table was not built yet" {
            let last = site.value["stack"].as_array().and_then(|stack| stack.last());
            let object = last.and_then(|frame| frame["object"].as_str()).unwrap_or_default();
            cut.entry(object).or_default().extend(order.get(&pid(&site.value["process"])));
        }
    }
    assert!(stacks > 1000, "{stacks} stacks");
    assert_eq!(without_mapping, 0, "of {stacks} stacks");
    for (object, children) in &cut {
        let last = children.last().copied().unwrap_or_default();
        assert!(last <= WAITING, "cut in {object}: {children:?} of the children");
    }
}

/// A program executes itself and allocates at once.
#[test]
fn the_first_stacks_after_an_exec_are_whole() {
    let mut leaker = Leaker::start("execer", &[]);
    let traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--interval", "1h"]);
    leaker.advance("before");
    leaker.advance("after");
    let ended = traced.interrupt();
    let report = ended.final_report();
    // All of the new image: also what the program's output takes.
    let sites = report.sites();
    assert!(sites.iter().any(|site| site.has_frame("site_after_exec")), "{}", report.outline());
    for site in sites {
        assert_eq!(reason(&site), "", "{:?} in\n{}", site.symbols(), report.outline());
    }
    leaker.end();
}

/// A process loads a plugin and allocates from it at once; another one has loaded it before.
#[test]
fn the_first_stacks_after_a_dlopen_are_whole() {
    let library = |name| build_library(name).display().to_string();
    let (chain, plugin) = (library("chainlib.so"), library("chainplug.so"));
    let start = || Leaker::start("chain", &[&chain, &plugin]);
    let (mut first, mut second) = (start(), start());
    let (pid, other) = (first.pid_arg(), second.pid_arg());
    let mut traced = Traced::start(&["user", "-p", &pid, "-p", &other, "--interval", "100ms"]);
    let early = |report: &Report, process: &Leaker| {
        let is_early = |site: &&Site<'_>| {
            site.value["process"]["pid"] == process.pid()
                && number(site.value, "largest_bytes") == EARLY
        };
        report.sites().iter().find(is_early).map(|site| reason(site).to_owned())
    };
    first.advance("opened");
    traced.wait_report("the plugin has allocated", SOON, |report| early(report, &first).is_some());
    // At each report leaktrace looks at what it was told of before.
    traced.next_report(SOON);
    second.advance("opened");
    let ended = traced.interrupt();
    let report = ended.final_report();
    assert_eq!(early(report, &second).as_deref(), Some(""), "{}", report.outline());
    for mut leaker in [first, second] {
        leaker.advance("traced");
        leaker.advance("opened");
        leaker.advance("checked");
        leaker.end();
    }
}
