//! Stacks without frame pointers, compared with gdb's, address by address.
//!
//! A program makes the same calls twice: once traced by leaktrace, once in gdb. That it is one
//! process makes the addresses comparable.

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf, process::Command};

use leaktrace_tests::{
    SOON,
    binary::{require_root, workspace},
    kernel::verified_instructions,
    leaker::Leaker,
    oracle::Oracle,
    program::build_library,
    report::{Report, Site, number},
    traced::Traced,
};
use serde_json::Value;

/// Frames that leaktrace takes of a stack.
const MAX_DEPTH: usize = 127;

/// The block of `chain` that its plugin allocates before leaktrace can know the plugin.
const EARLY: u64 = 29_999;

/// Stacks by the size of the block.
type Stacks = BTreeMap<u64, Stack>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stack {
    addresses: Vec<u64>,
    truncated: Option<String>,
}

impl Stack {
    /// What leaktrace makes of a stack that is known whole.
    fn cut(mut self) -> Self {
        if self.addresses.len() > MAX_DEPTH {
            self.addresses.truncate(MAX_DEPTH);
            self.truncated = Some("deeper than the frame limit".into());
        }
        self
    }

    /// Whether it says that it is cut, and is right until there.
    fn is_beginning_of(&self, whole: &Self) -> bool {
        self.truncated.is_some() && whole.addresses.starts_with(&self.addresses)
    }
}

fn programs(name: &str) -> PathBuf {
    workspace().join("tests/programs").join(name)
}

fn hex(value: &Value) -> u64 {
    let text = value.as_str().unwrap_or_default();
    let digits = text.strip_prefix("0x").unwrap_or_default();
    u64::from_str_radix(digits, 16).unwrap_or_else(|error| panic!("{value}: {error}"))
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The stack of a site without its inlined frames, which are not on the stack.
fn stack_of(site: Site<'_>) -> Stack {
    let real = array(&site.value["stack"]).iter().filter(|frame| frame["inlined"] != true);
    Stack {
        addresses: real.map(|frame| hex(&frame["address"])).collect(),
        truncated: (site.value["truncated"] == true)
            .then(|| site.value["truncated_reason"].as_str().unwrap_or_default().to_owned()),
    }
}

/// The sites of a report that have blocks of the sizes that the programs leak, by size.
fn sites_by_size(report: &Report) -> BTreeMap<u64, Site<'_>> {
    let mut sites = BTreeMap::new();
    for site in report.sites() {
        for block in array(&site.value["blocks"]) {
            let size = block["size_bytes"].as_u64().unwrap_or_default();
            if (20_000..60_000).contains(&size) {
                let other = sites.insert(size, site);
                assert!(other.is_none(), "two blocks of {size} bytes:\n{}", report.outline());
            }
        }
    }
    sites
}

/// The executable mappings of a process.
fn executable_ranges(pid: u32) -> Vec<(u64, u64)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))
        .unwrap_or_else(|error| panic!("{error}"));
    let ranges = maps.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        rest.get(2..3).filter(|access| *access == "x").and(Some((number(start)?, number(end)?)))
    });
    ranges.collect()
}

fn attach_oracle(leaker: &Leaker) -> Oracle {
    Oracle::attach(leaker.pid(), hex(&leaker.stage().line["malloc"]), None)
}

/// The stacks of a process that has ended; of each size the last.
fn stacks_of(oracle: Oracle) -> Stacks {
    let mut stacks = Stacks::new();
    for event in oracle.into_lines() {
        if let Some(size) = event["size"].as_u64() {
            let addresses = array(&event["frames"]).iter().map(hex).collect();
            stacks.insert(size, Stack { addresses, truncated: None });
        }
    }
    stacks
}

/// Both sides' frames of a stack, in two columns; leaktrace's with its names.
fn show(size: u64, got: Option<Site<'_>>, expected: Option<&Stack>) -> String {
    let frames: Vec<&Value> = got.map_or_else(Vec::new, |site| {
        array(&site.value["stack"]).iter().filter(|frame| frame["inlined"] != true).collect()
    });
    let expected = expected.map_or(&[][..], |stack| &stack.addresses);
    let reason = got.map(|site| &site.value["truncated_reason"]);
    let mut text = format!("{size} bytes, truncated: {reason:?}; gdb, leaktrace:\n");
    for index in 0..frames.len().max(expected.len()) {
        let right = expected.get(index).map(|address| format!("{address:#x}")).unwrap_or_default();
        let frame = frames.get(index).map(|frame| (*frame).clone()).unwrap_or_default();
        let left = frame["address"].as_str().unwrap_or_default();
        let mark = if left == right { ' ' } else { '!' };
        let _ = writeln!(
            text,
            "{mark} {index:3} {right:>18} {left:>18} {} {}",
            frame["symbol"], frame["object"]
        );
    }
    text
}

/// Panics unless the report has exactly gdb's stacks.
fn compare(report: &Report, oracle: &Stacks, stacks: usize) {
    let sites = sites_by_size(report);
    let mut differences = String::new();
    let (mut addresses, mut wrong) = (0, 0);
    for size in sites.keys().chain(oracle.keys().filter(|size| !sites.contains_key(*size))) {
        let expected = oracle.get(size).cloned().map(Stack::cut);
        let got = sites.get(size).copied();
        let stack = got.map(stack_of);
        addresses += expected.as_ref().map_or(0, |stack| stack.addresses.len());
        let early = *size == EARLY
            && matches!((&stack, &expected), (Some(got), Some(whole)) if got.is_beginning_of(whole));
        if stack.is_none() || (stack != expected && !early) {
            wrong += 1;
            differences += &show(*size, got, expected.as_ref());
        }
    }
    assert!(
        differences.is_empty(),
        "{wrong} of {} stacks with {addresses} return addresses differ:\n{differences}",
        oracle.len()
    );
    assert_eq!(oracle.len(), stacks, "stacks that gdb saw: {:?}", oracle.keys());
    report.assert_complete();
}

/// Waits until leaktrace has looked at the mappings that the program has made: at each report it
/// looks at what it was told of before.
fn wait_until_mappings_are_known(traced: &mut Traced) {
    traced.wait_report("the plugin has allocated", SOON, |report| {
        sites_by_size(report).contains_key(&EARLY)
    });
    traced.next_report(SOON);
}

/// One round under leaktrace, the other under gdb; then both are compared.
fn check(mut leaker: Leaker, stages: &[&str], options: &[&str], stacks: usize) {
    let pid = leaker.pid_arg();
    let args = ["user", "-p", &pid, "--interval", "100ms", "--show-allocs"];
    let mut traced = Traced::start(&[&args, options].concat());
    for stage in stages {
        leaker.advance(stage);
        wait_until_mappings_are_known(&mut traced);
    }
    leaker.advance("traced");
    let report = traced.interrupt().final_report().clone();

    let oracle = attach_oracle(&leaker);
    for stage in stages {
        leaker.advance(stage);
    }
    leaker.advance("checked");
    leaker.end();
    compare(&report, &stacks_of(oracle), stacks);
}

fn start_chain() -> Leaker {
    let path = |name| build_library(name).display().to_string();
    Leaker::start("chain", &[&path("chainlib.so"), &path("chainplug.so")])
}

fn check_chain(options: &[&str]) {
    check(start_chain(), &["opened"], options, 17);
}

fn check_cpp(options: &[&str]) {
    check(Leaker::start("cpp", &[]), &[], options, 21);
}

#[test]
fn stacks_of_c_are_those_of_gdb() {
    check_chain(&[]);
}

#[test]
fn stacks_of_c_are_those_of_gdb_with_probes_at_the_entry() {
    check_chain(&["--probe-at", "entry"]);
}

#[test]
fn stacks_of_c_are_those_of_gdb_by_call_frame_information_alone() {
    check_chain(&["--unwind", "dwarf"]);
}

#[test]
fn stacks_of_cpp_are_those_of_gdb() {
    check_cpp(&[]);
}

#[test]
fn stacks_of_cpp_are_those_of_gdb_with_probes_at_the_entry() {
    check_cpp(&["--probe-at", "entry"]);
}

/// rbp leads to two words on the stack, the second of which is an address of code; and to frames of
/// code that pushes return addresses and jumps.
#[test]
fn a_frame_pointer_makes_a_frame_where_it_leads_to_a_caller() {
    let mut leaker = Leaker::start("coroutines", &[]);
    let pid = leaker.pid_arg();
    let traced = Traced::start(&["user", "-p", &pid, "--interval", "1h", "--show-allocs"]);
    leaker.advance("traced");
    let report = traced.interrupt().final_report().clone();
    leaker.advance("checked");
    leaker.end();
    let sites = sites_by_size(&report);
    let Some(site) = sites.get(&20_005) else { panic!("{}", report.outline()) };
    // The last one is the code made at run time.
    assert_eq!(site.symbols(), ["leak", "leaf", "in_code", ""], "{}", report.outline());
    assert_eq!(stack_of(*site).truncated.as_deref(), Some("code without frame pointers"));
    // One frame was called, the other was jumped to: both have frame pointers.
    let Some(site) = sites.get(&20_006) else { panic!("{}", report.outline()) };
    let symbols = site.symbols();
    let first = ["leak", "leaf", "in_interpreter", "", "", "through_interpreter"];
    assert!(symbols.starts_with(&first) && symbols.contains(&"main"), "{symbols:?}");
    assert_eq!(stack_of(*site).truncated, None, "{symbols:?}");
}

/// A stack by gdb as far as it is code: behind the outermost function of a stack that was made by
/// hand, gdb takes for a caller whatever is there.
fn as_far_as_code(stack: &Stack, code: &[(u64, u64)]) -> Vec<u64> {
    let is_code = |address: &u64| code.iter().any(|(start, end)| (start..end).contains(&address));
    stack.addresses.iter().copied().take_while(is_code).collect()
}

/// The outermost function of a coroutine was not called: its address was put into a new stack.
#[test]
fn stacks_of_coroutines_are_those_of_gdb() {
    let mut leaker = Leaker::start("coroutines", &[]);
    let pid = leaker.pid_arg();
    let args = ["user", "-p", &pid, "--interval", "1h", "--show-allocs"];
    let traced = Traced::start(&args);
    leaker.advance("traced");
    let report = traced.interrupt().final_report().clone();
    let code = executable_ranges(leaker.pid());
    let oracle = attach_oracle(&leaker);
    leaker.advance("checked");
    leaker.end();

    let expected = stacks_of(oracle);
    let sites = sites_by_size(&report);
    let mut ends = Vec::new();
    for size in [20_001, 20_002, 20_003, 20_004] {
        let site = sites.get(&size).copied();
        let whole = expected.get(&size).unwrap_or_else(|| panic!("gdb saw {expected:?}"));
        let got = site.map(stack_of).unwrap_or_default();
        assert_eq!(
            got.addresses,
            as_far_as_code(whole, &code),
            "{}",
            show(size, site, Some(whole))
        );
        ends.push(got.truncated);
    }
    // boost.context's outermost function has no call frame information.
    let without = Some("an address without call frame information".to_owned());
    assert_eq!(ends, [None, None, without, None], "{}", report.outline());
    let outermost = sites.get(&20_004).map(|site| site.symbols()).unwrap_or_default();
    assert_eq!(outermost, ["leak", "leaf", "by_hand", "hand_made"]);
    report.assert_complete();
}

#[test]
fn stacks_of_python_are_those_of_gdb() {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-I", "-S"]).arg(programs("unwind.py")).env("PYTHONMALLOC", "malloc");
    check(Leaker::launch(&mut command), &[], &[], 4);
}

/// Sixty-four threads take stacks at once: each block has the stack and the size of its thread.
///
/// Walks meet on one CPU only where the kernel is fully preemptible and the probes are multi or
/// session links: in the machine with Debian's 6.12, where this fails if walks share a scratch
/// slot. A walk that finds no free slot is counted, and its block is still there.
#[test]
fn threads_that_allocate_at_once_have_their_own_stacks() {
    check_crowd(64, 1000, &[]);
}

/// The same on one CPU, where each thread preempts the others in the middle of their programs: what
/// the programs remember of earlier calls is written by one while another is at it.
#[test]
fn threads_that_allocate_at_once_on_one_cpu_have_their_own_stacks() {
    check_crowd(16, 1000, &["one-cpu"]);
}

fn check_crowd(threads_count: usize, blocks: u64, more: &[&str]) {
    let (count, each) = (threads_count.to_string(), blocks.to_string());
    let mut leaker = Leaker::start("crowd", &[&[count.as_str(), &each], more].concat());
    let threads = leaker.stage().line["threads"].clone();
    let pid = leaker.pid_arg();
    let traced = Traced::start(&["user", "-p", &pid, "--interval", "1h"]);
    leaker.advance("holding");
    let ended = traced.interrupt();
    let report = ended.final_report();
    let mut sizes = BTreeMap::<Vec<&str>, u64>::new();
    for thread in array(&threads) {
        let way = array(&thread["way"]).iter().rev().filter_map(Value::as_str).collect();
        sizes.insert(way, thread["bytes"].as_u64().unwrap_or_default());
    }
    assert_eq!(sizes.len(), threads_count);
    let mut counts = BTreeMap::<u64, u64>::new();
    let (mut without, mut bytes_without) = (0, 0);
    for site in report.sites().into_iter().filter(|site| site.has_frame("site_crowd")) {
        let number = |key: &str| site.value[key].as_u64().unwrap_or_default();
        let (count, bytes) = (number("outstanding_count"), number("outstanding_bytes"));
        let symbols = site.symbols();
        let Some(run) = symbols.iter().position(|symbol| *symbol == "run") else {
            (without, bytes_without) = (without + count, bytes_without + bytes);
            continue;
        };
        let Some(size) = sizes.get(&symbols[..=run]) else {
            panic!("no thread went {symbols:?}\n{}", report.outline());
        };
        assert_eq!(bytes, count * size, "{symbols:?}\n{}", report.outline());
        assert_eq!(site.value["truncated"], false, "{symbols:?}\n{}", report.outline());
        *counts.entry(*size).or_default() += count;
    }
    assert_eq!(without, report.loss("stacks_lost"), "{}", report.outline());
    let missing: Vec<(u64, u64)> = sizes
        .values()
        .map(|size| (*size, blocks.checked_sub(counts.get(size).copied().unwrap_or(0))))
        .map(|(size, missing)| (size, missing.unwrap_or_else(|| panic!("{counts:?}"))))
        .collect();
    assert_eq!(missing.iter().map(|(_, count)| count).sum::<u64>(), without, "{counts:?}");
    assert_eq!(missing.iter().map(|(size, count)| size * count).sum::<u64>(), bytes_without);
    let brief = report.sites().into_iter().filter(|site| site.has_frame("site_brief"));
    let kept: u64 = brief.map(|site| number(site.value, "outstanding_count")).sum();
    assert_eq!(kept, 0, "{}", report.outline());
    assert_eq!(report.loss("missed_allocs"), 0, "{}", report.outline());
    assert_eq!(report.loss("missed_frees"), 0, "{}", report.outline());
    leaker.end();
}

/// The verifier looks at each path; a harmless edit can multiply them, up to its limit of a million.
#[test]
fn the_verifier_has_little_work() {
    require_root();
    let leaker = Leaker::start("cpp", &[]);
    let arguments = ["user", "-p", &leaker.pid_arg(), "--interval", "1h", "--kind", "malloc,mmap"];
    let traced = Traced::start(&arguments);
    let programs = verified_instructions(traced.pid());
    let big: Vec<_> = programs.iter().filter(|(_, count)| *count >= 10_000).collect();
    assert!(big.is_empty(), "verified instructions: {big:?} of {programs:?}");
    let walks = programs.iter().any(|(name, _)| name == "lt_session" || name == "lt_entry");
    assert!(walks, "neither lt_session nor lt_entry: {programs:?}");
    assert!(programs.iter().any(|(name, _)| name == "lt_sys_exit"), "{programs:?}");
    traced.interrupt();
}

/// More stacks than there is room for: no block is lost, each loss is counted, and `-vv` tells what
/// the kernel said.
#[test]
fn stacks_beyond_the_table_are_counted_and_logged() {
    let mut leaker = Leaker::start("paths", &[]);
    let traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "-i", "1h", "-vv"]);
    leaker.advance("holding");
    let ended = traced.interrupt();
    let report = ended.final_report();
    let known = report.sites().iter().filter(|site| site.has_frame("site_end")).count() as u64;
    let lost = report.loss("stacks_lost");
    assert_eq!(report.value["loss"]["complete"], false);
    // Stacks are merged by their names: lines of the two branches differ, so each is its own.
    assert_eq!(
        report.value["totals"]["outstanding_count"],
        leaker.stage().site("site_end").outstanding_count
    );
    assert!(lost > 0 && known + lost >= 32_768, "{known} known, {lost} lost");
    // -E2BIG (hash tables, kernel/bpf/hashtab.c).
    let line = "leaktrace: BPF: STACKS refused a stack: -7";
    let told = ended.finished.stderr.lines().filter(|told| *told == line).count() as u64;
    assert!(told > 0 && told <= lost, "{told} lines of {lost} losses");
    leaker.end();
}
