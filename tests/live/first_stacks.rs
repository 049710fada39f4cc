//! The first stacks of a process image, before leaktrace has read what it maps: the programs ask
//! the kernel, and find the tables of files that were mapped before by anybody.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use leaktrace_tests::{
    SOON,
    binary::{leaktrace, require_root, run_with_input},
    kernel::kernel_release,
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

/// No stack is cut in an object whose table is there already: the children that are cut in an object
/// are the first ones that use it.
fn check_children(ls: &str, count: usize) {
    for (object, children) in cut_children(ls, count) {
        let last = children.last().copied().unwrap_or_default();
        assert!(last <= WAITING, "cut in {object}: {children:?} of the children");
    }
}

/// Runs `ls` so many times, each in a child of its own. None is harmed; gives those with a stack
/// that is cut in an object for want of its table.
fn cut_children(ls: &str, count: usize) -> BTreeMap<String, BTreeSet<usize>> {
    require_root();
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let path = folder.path().join("report.json");
    let script = format!(
        "i=0; while [ $i -lt {count} ]; do {ls} /usr/share >/dev/null || exit; i=$((i+1)); done"
    );
    let mut command = leaktrace(&["run", "--children", "-f", "json", "-T", "1000000", "-w"]);
    command.arg(&path).args(["--", "sh", "-c", &script]);
    let finished = run_with_input(&mut command, "");
    assert_eq!(finished.code, 0, "exit code; stderr:\n{}", finished.stderr);
    let reports = read_reports(&path);
    let report = reports.last().unwrap_or_else(|| panic!("no report"));

    // In the order in which they began.
    let processes = report.value["processes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pid = |value: &serde_json::Value| value["pid"].as_u64().unwrap_or_default();
    let order: BTreeMap<u64, usize> = processes.iter().map(pid).zip(0..).collect();
    assert_eq!(order.len(), count + 1, "traced processes:\n{}", report.outline());
    let mut cut: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    let (mut stacks, mut without_mapping) = (0, 0);
    for site in report.sites() {
        stacks += 1;
        without_mapping += usize::from(reason(&site) == "an address in no known mapping");
        if reason(&site) == "the library's unwind table was not built yet" {
            let last = site.value["stack"].as_array().and_then(|stack| stack.last());
            let object = last.and_then(|frame| frame["object"].as_str()).unwrap_or_default();
            cut.entry(object.to_owned())
                .or_default()
                .extend(order.get(&pid(&site.value["process"])));
        }
    }
    assert!(stacks > 5 * count, "{stacks} stacks");
    assert_eq!(without_mapping, 0, "of {stacks} stacks");
    cut
}

#[test]
fn two_hundred_short_children_wait_for_no_table_twice() {
    check_children("ls", 200);
}

/// An overlay of two folders, as containers have them.
struct Overlay(tempfile::TempDir);

impl Overlay {
    fn with(file: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let at = |name: &str| folder.path().join(name);
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(at(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        fs::copy(file, at("lower").join("program")).unwrap_or_else(|error| panic!("{error}"));
        let path = |name: &str| at(name).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            path("lower"),
            path("upper"),
            path("work")
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(at("merged"));
        assert!(mount.status().is_ok_and(|status| status.success()), "{mount:?}");
        Self(folder)
    }

    fn program(&self) -> PathBuf {
        self.0.path().join("merged/program")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path().join("merged")).status();
    }
}

/// What overlayfs maps is a file below its own, with other numbers.
#[test]
fn short_children_from_an_overlay_wait_for_no_table_twice() {
    let overlay = Overlay::with(Path::new("/bin/ls"));
    let program = overlay.program().display().to_string();
    if kernel_release() >= (6, 8) {
        check_children(&program, 100);
    } else {
        // /proc has the numbers of the file below, which are not those of the one that was opened:
        // any child may be cut, but not in a library.
        let cut = cut_children(&program, 100);
        let others: Vec<_> = cut.iter().filter(|(object, _)| **object != program).collect();
        assert!(others.iter().all(|(_, cut)| cut.iter().all(|at| *at <= WAITING)), "{others:?}");
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
