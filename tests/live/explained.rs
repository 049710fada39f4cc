//! By how much the memory that people watch grew, and how much of it the report explains.

use std::{fs, os::unix::net::UnixStream, process::Command};

use leaktrace_tests::{
    LATE, SOON,
    binary::leaktrace,
    leaker::Leaker,
    program::build_program,
    report::{Report, number},
    traced::Traced,
    wait_until,
};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// RssAnon and VmSwap of a process, as the kernel shows them.
fn own_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("no {name} in {status}")) * 1024
    };
    of("RssAnon:") + of("VmSwap:")
}

/// What a report says of the growth of `what`; `None` if it says nothing.
fn grown<'a>(report: &'a Report, what: &str) -> Option<&'a Value> {
    let all = report.value["explained"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|one| one["what"] == what)
}

fn hint(one: &Value) -> &str {
    one["hint"].as_str().unwrap_or_default()
}

fn share(one: &Value) -> f64 {
    one["share"].as_f64().unwrap_or_else(|| panic!("no share in {one}"))
}

/// Whether `got` is within a twentieth of `expected`.
fn is_near(got: u64, expected: u64) -> bool {
    got.abs_diff(expected) * 20 <= expected
}

/// The final report of a program that grows while it is traced, and the growth by the kernel.
fn trace_growth(mut program: Leaker, args: &[&str]) -> (Report, u64) {
    let pid = program.pid_arg();
    let traced = Traced::start(&[&["user", "-p", &pid, "-i", "1h"], args].concat());
    let before = own_memory(program.pid());
    program.advance("holding");
    let after = own_memory(program.pid());
    let report = traced.interrupt().final_report().clone();
    program.end();
    (report, after - before)
}

/// 100 MiB of blocks, written to: what the report says of growth is what the kernel says, and the
/// blocks, with glibc's headers, explain it within a twentieth.
#[test]
fn growth_by_malloc_is_explained() {
    for (block, mib) in [(1000, 100), (24, 12), (200_000, 100)] {
        let (block_arg, mib_arg) = (block.to_string(), mib.to_string());
        let program = Leaker::start("grower", &[&block_arg, &mib_arg, "0", "0", "0"]);
        let pid = program.pid();
        let (report, growth) = trace_growth(program, &[]);
        let one = grown(&report, "process_own").unwrap_or_else(|| panic!("{}", report.value));
        assert_eq!(one["process"]["pid"], pid, "{one}");
        assert!(is_near(number(one, "grew_bytes"), growth), "{one}: {growth}");
        let asked = report.sum_in(pid, "grow_blocks").outstanding_bytes;
        assert_eq!((number(one, "explained_bytes"), asked), (asked, mib * MIB / block * block));
        assert!(is_near(asked + number(one, "overhead_bytes"), growth), "{one}: {growth}");
        assert!((0.95..=1.05).contains(&share(one)) && one["hint"].is_null(), "{one}");
    }
}

/// Memory that the process maps itself is missing, and the report says what would tell; with that, it
/// is there.
#[test]
fn growth_by_mappings_is_explained_once_they_are_traced() {
    let start = || Leaker::start("grower", &["1000", "16", "64", "0", "0"]);
    let (report, growth) = trace_growth(start(), &[]);
    let one = grown(&report, "process_own").unwrap_or_else(|| panic!("{}", report.value));
    assert!(is_near(number(one, "grew_bytes"), growth) && growth >= 80 * MIB, "{one}: {growth}");
    assert!((0.15..0.25).contains(&share(one)), "{one}");
    assert!(hint(one).contains("maps itself") && hint(one).contains("--kind malloc,mmap"), "{one}");
    let (report, _) = trace_growth(start(), &["--kind", "malloc,mmap"]);
    let one = grown(&report, "process_own").unwrap_or_else(|| panic!("{}", report.value));
    assert!((0.95..=1.05).contains(&share(one)) && one["hint"].is_null(), "{one}");
}

/// Memory that it had before, and writes to only now, is in no block.
#[test]
fn growth_of_older_memory_is_not_blamed_on_blocks() {
    let program = Leaker::start("grower", &["1000", "16", "0", "0", "64"]);
    let (report, growth) = trace_growth(program, &["--kind", "malloc,mmap"]);
    let one = grown(&report, "process_own").unwrap_or_else(|| panic!("{}", report.value));
    assert!(is_near(number(one, "grew_bytes"), growth) && share(one) < 0.25, "{one}: {growth}");
    assert!(hint(one).contains("got before and has written to since"), "{one}");
}

#[test]
fn shared_memory_stands_apart() {
    let program = Leaker::start("grower", &["1000", "0", "0", "32", "0"]);
    let (report, _) = trace_growth(program, &[]);
    let one = grown(&report, "process_shared").unwrap_or_else(|| panic!("{}", report.value));
    assert!(is_near(number(one, "grew_bytes"), 32 * MIB), "{one}");
    // What grew by less means nothing.
    assert!(grown(&report, "process_own").is_none(), "{}", report.value["explained"]);
}

/// A command grows from nothing. At its end its memory is gone: what was last read counts, and the
/// report says when that was.
#[test]
fn growth_of_a_command_is_kept_beyond_its_end() {
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let file = folder.path().join("reports");
    let mut command = leaktrace(&["run", "-i", "200ms", "-f", "json", "-w"]);
    command.arg(&file).arg("--").arg(build_program("grower")).args(["1000", "50", "0", "0", "0"]);
    let mut program = Leaker::launch(&mut command);
    program.advance("holding");
    let last = || {
        let reports = fs::read_to_string(&file).unwrap_or_default();
        reports.lines().last().map(Report::parse)
    };
    let grew = |report: &Report| grown(report, "process_own").map(|one| number(one, "grew_bytes"));
    wait_until("a report has its growth", LATE, || {
        last().as_ref().and_then(grew).is_some_and(|bytes| bytes >= 50 * MIB)
    });
    program.end();
    let report = last().unwrap_or_else(|| panic!("no report"));
    assert!(report.is_final(), "{}", report.value);
    let one = grown(&report, "process_own").unwrap_or_else(|| panic!("{}", report.value));
    assert!((0.95..=1.05).contains(&share(one)), "{one}");
    assert!(number(one, "last_seen_ms") < SOON.as_millis() as u64, "{one}");
}

/// The text says it in one line.
#[test]
fn the_text_says_what_the_blocks_explain() {
    let mut program = Leaker::start("grower", &["1000", "20", "60", "0", "0"]);
    let pid = program.pid_arg();
    let mut child = leaktrace_tests::child::Child::start(&mut leaktrace(&["user", "-p", &pid]));
    child.wait_stderr("tracing", LATE);
    program.advance("holding");
    child.signal(libc::SIGINT);
    assert_eq!(child.wait(LATE), 0);
    let (text, _) = child.into_output();
    let line = text.lines().rev().find(|line| line.contains("RssAnon and swap grew by 80."));
    let line = line.unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains(", explained: 20.0 MiB and ") && line.contains(" (25 %); "), "{line}");
    program.end();
}

/// A JavaScript heap is no block of malloc, its buffers are.
#[test]
fn what_a_runtime_maps_itself_is_said_to_be_missing() {
    let script = "const held = []; \
        const say = (stage) => process.stdout.write(JSON.stringify({stage, pid: process.pid}) + '\\n'); \
        let step = 0; say('ready'); process.stdin.on('data', () => { \
        if (step++) process.exit(0); \
        for (let i = 0; i < 1000000; i++) held.push({i, text: 'number ' + i}); \
        for (let i = 0; i < 16; i++) held.push(Buffer.alloc(1 << 20, i + 1)); \
        say('holding'); });";
    let program = Leaker::launch(Command::new("node").args(["-e", script]));
    let (report, growth) = trace_growth(program, &[]);
    let one = grown(&report, "process_own").unwrap_or_else(|| panic!("{}", report.value));
    assert!(is_near(number(one, "grew_bytes"), growth) && growth > 60 * MIB, "{one}: {growth}");
    assert!((0.05..0.6).contains(&share(one)), "{one}");
    assert!(hint(one).contains("--kind malloc,mmap"), "{one}");
}

fn allow_many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write one rlimit.
    let result = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Sockets that are held fill slabs: the report says so of their cache and of SUnreclaim, and that the
/// blocks explain it.
#[test]
fn growth_of_slabs_is_explained() {
    const PAIRS: usize = 4000;
    allow_many_files();
    let traced = Traced::start(&["kernel", "-i", "1h"]);
    let pairs: Vec<_> = (0..PAIRS).map(|_| UnixStream::pair().unwrap()).collect();
    let ended = traced.interrupt();
    let report = ended.final_report();
    drop(pairs);
    let all = report.value["explained"].as_array().map(Vec::as_slice).unwrap_or_default();
    // A socket of AF_UNIX comes from the cache that its own is one with, if it is one with another.
    let cache = report.sites().into_iter().find_map(|site| {
        let names = site.value["cache_aliases"].as_array().into_iter().flatten();
        let is_its = site.cache() == "UNIX" || names.into_iter().any(|name| name == "UNIX");
        is_its.then(|| site.cache())
    });
    let cache = cache.unwrap_or_else(|| panic!("{}", report.outline()));
    let one = all.iter().find(|one| one["cache"] == cache).unwrap_or_else(|| panic!("{all:?}"));
    assert!((0.9..=1.1).contains(&share(one)), "{one}");
    assert!(number(one, "grew_bytes") >= 2 * PAIRS as u64 * 1000, "{one}");
    // The rest of the host may give memory back meanwhile, and take some.
    let slabs = grown(report, "SUnreclaim").unwrap_or_else(|| panic!("{all:?}"));
    assert!(number(slabs, "explained_bytes") >= 2 * PAIRS as u64 * 1000, "{slabs}");
    assert!(share(slabs) > 0.5, "{slabs}");
}
