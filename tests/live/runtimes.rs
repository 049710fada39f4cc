//! Runtimes whose code has no call frame information: V8's builtins, which are part of an object
//! that has some elsewhere, and code made at run time.

use std::process::Command;

use leaktrace_tests::{
    SOON,
    binary::workspace,
    leaker::Leaker,
    report::{Report, Site, number},
    traced::Traced,
};
use serde_json::Value;

/// What each block of `runtime.js` takes.
const BLOCK: u64 = 123_457;

fn frames<'a>(site: &Site<'a>) -> &'a [Value] {
    site.value["stack"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn symbol(frame: &Value) -> &str {
    frame["symbol"].as_str().unwrap_or_default()
}

/// The report of a node that has leaked its five blocks.
fn report_of_node(options: &[&str], traced_by: &[&str]) -> Report {
    // It leaves a log where it runs, and its perf map in /tmp.
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let mut command = Command::new("node");
    command.args(options).arg(workspace().join("tests/programs/runtime.js"));
    let mut leaker = Leaker::launch(command.current_dir(folder.path()));
    let pid = leaker.pid_arg();
    let traced = Traced::start(&[&["user", "-p", &pid, "--interval", "1h"], traced_by].concat());
    leaker.advance("leaked");
    let report = traced.interrupt().final_report().clone();
    leaker.end();
    let _ = std::fs::remove_file(format!("/tmp/perf-{pid}.map"));
    report
}

/// Its one call site of five blocks.
fn leak(report: &Report) -> Site<'_> {
    let sites = report.sites();
    let is_leak = |site: &&Site<'_>| {
        number(site.value, "largest_bytes") == BLOCK && number(site.value, "outstanding_count") == 5
    };
    *sites.iter().find(is_leak).unwrap_or_else(|| panic!("none of {} sites", sites.len()))
}

/// From C++ through V8's builtins and JavaScript back to C++.
#[test]
fn node_is_walked_to_its_main_function() {
    let report = report_of_node(&[], &[]);
    let site = leak(&report);
    assert_eq!(site.value["truncated"], false, "{:?}", site.symbols());
    assert!(site.has_frame("__libc_start_main"), "{:?}", site.symbols());
    let marks: Vec<bool> =
        frames(&site).iter().map(|frame| frame["by_frame_pointer"] == true).collect();
    let first = marks.iter().position(|mark| *mark);
    let last = marks.iter().rposition(|mark| *mark);
    let (Some(first), Some(last)) = (first, last) else { panic!("{marks:?}") };
    // Nothing but C++ before and after it.
    assert!(first > 0 && last - first >= 5 && last + 5 < marks.len(), "{marks:?}");
    assert!(marks[first..=last].iter().all(|mark| *mark), "{marks:?}");
}

/// By call frame information alone the way ends at the first builtin, and says so.
#[test]
fn node_is_not_walked_by_call_frame_information_alone() {
    let report = report_of_node(&[], &["--unwind", "dwarf"]);
    let site = leak(&report);
    let reason = &site.value["truncated_reason"];
    assert_eq!(reason, "an address without call frame information", "{:?}", site.symbols());
    assert!(frames(&site).iter().all(|frame| frame["by_frame_pointer"].is_null()));
}

#[test]
fn functions_of_javascript_have_names() {
    let options = ["--perf-basic-prof", "--interpreted-frames-native-stack"];
    let report = report_of_node(&options, &[]);
    let site = leak(&report);
    assert_eq!(site.value["truncated"], false, "{:?}", site.symbols());
    let at = |name: &str| frames(&site).iter().position(|frame| symbol(frame).contains(name));
    let (leaker, caller) = (at("leakHere "), at("callLeak "));
    assert!(leaker.is_some() && leaker < caller, "{:?}", site.symbols());
}

/// The perf map of a process is written after its first report.
#[test]
fn a_perf_map_that_comes_later_names_what_had_no_name() {
    let mut leaker = Leaker::start("coroutines", &[]);
    let pid = leaker.pid_arg();
    let mut traced = Traced::start(&["user", "-p", &pid, "--interval", "200ms", "--show-allocs"]);
    leaker.advance("traced");
    let made = |report: &Report| {
        let site = report.sites().into_iter().find(|site| site.has_frame("in_code"))?;
        frames(&site).get(3).cloned()
    };
    let report = traced.wait_report("code was made", SOON, |report| made(report).is_some());
    let frame = made(&report).unwrap_or_default();
    assert_eq!(frame["unknown"], "code made at run time, no perf map");
    let address = frame["address"].as_str().unwrap_or_default().trim_start_matches("0x");
    let page = format!("{}000", &address[..address.len() - 3]);
    let map = format!("/tmp/perf-{pid}.map");
    let write = |text: &str| std::fs::write(&map, text).unwrap_or_else(|error| panic!("{error}"));
    write("1000 10 other\n");
    traced.wait_report("the map is there", SOON, |report| {
        made(report)
            .is_some_and(|frame| frame["unknown"] == "code made at run time, not in its perf map")
    });
    write(&format!("{page} 1000 code_made_at_run_time\n"));
    let report = traced.wait_report("the code has its name", SOON, |report| {
        made(report).is_some_and(|frame| symbol(&frame) == "code_made_at_run_time")
    });
    let _ = std::fs::remove_file(&map);
    assert_eq!(made(&report).unwrap_or_default()["object"], "[jit]");
    traced.interrupt();
    leaker.advance("checked");
    leaker.end();
}
