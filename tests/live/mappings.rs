//! Memory that processes map themselves, in every way in which parts of it can go again.

use leaktrace_tests::{
    SOON,
    binary::{leaktrace, run_with_input},
    busy::with_busy_cpus,
    leaker::Leaker,
    program::build_program,
    report::{Amounts, Report, number},
    traced::Traced,
    wait_until,
};

/// Traces the program of mappings up to its stage `holding`.
fn trace_mappings(options: &[&str]) -> (Leaker, Report) {
    let mut leaker = Leaker::start("mappings", &[]);
    let pid = leaker.pid_arg();
    let arguments = ["user", "-p", &pid, "--interval", "1h"];
    let traced = Traced::start(&[&arguments, options].concat());
    leaker.advance("holding");
    let report = traced.interrupt().final_report().clone();
    (leaker, report)
}

/// What a report holds of mappings of one role.
fn held(report: &Report, role: &str) -> Amounts {
    let all = report.value["held"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = all.iter().find(|held| held["role"] == role);
    found.map(Amounts::of).unwrap_or_default()
}

fn sum_of_kind(report: &Report, kind: &str) -> Amounts {
    report.sum(|site| site.kind() == kind)
}

#[test]
fn mappings_are_exact_to_the_page() {
    let (leaker, report) = trace_mappings(&["--kind", "malloc,mmap"]);
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    report.assert_complete();
    assert_eq!(report.value["kinds"], serde_json::json!(["malloc", "mmap"]));
    leaker.end();
}

/// A child's mappings are its own: what it unmaps of its copy is not its parent's.
#[test]
fn a_childs_mappings_are_its_own() {
    let (leaker, report) = trace_mappings(&["--kind", "mmap", "--children"]);
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    let child = number(&leaker.stage().line, "child") as u32;
    let own = report.sum(|site| site.pid() == Some(child));
    assert_eq!((own.outstanding_count, own.outstanding_bytes), (1, 8192), "{}", report.outline());
    leaker.end();
}

/// What the dynamic loader maps for a new image is no leak of the program's.
#[test]
fn a_command_leaks_what_it_has_mapped_itself() {
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let path = folder.path().join("report.json");
    let run = |argv: &[&str], input: &str| {
        let options = [
            "run",
            "-f",
            "json",
            "--kind",
            "malloc,mmap",
            "--error-exitcode",
            "9",
            "--leak-kinds",
            "reachable",
            "-w",
        ];
        let mut command = leaktrace(&options);
        let finished = run_with_input(command.arg(&path).arg("--").args(argv), input);
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("no report: {error}; stderr:\n{}", finished.stderr));
        (finished.code, Report::parse(text.trim()))
    };
    // On busy CPUs, the new image often ends before its mappings are read.
    with_busy_cpus(|| {
        for _ in 0..10 {
            let (code, clean) = run(&["sh", "-c", "exec /bin/true"], "");
            assert_eq!(code, 0, "{}", clean.outline());
            assert!(held(&clean, "loader").outstanding_count > 0, "{}", clean.value["held"]);
            assert_eq!(held(&clean, "unknown"), Amounts::default(), "{}", clean.value["held"]);
            let totals = Amounts::of(&clean.value["totals"]);
            assert_eq!(totals.outstanding_count, 0, "{}", clean.outline());
        }
    });
    let program = build_program("mappings");
    let (code, leaking) = run(&[&program.to_string_lossy()], "xx");
    assert_eq!(code, 9, "{}", leaking.outline());
}

/// A block above malloc's threshold is a mapping, and so is a thread's stack: neither is a leak of
/// its own, and nothing is counted twice.
#[test]
fn what_others_map_is_no_leak_of_its_own() {
    let (leaker, report) = trace_mappings(&["--kind", "malloc,mmap"]);
    let block = number(&leaker.stage().line, "blocks");
    let accounts = leaker.stage().sites().into_iter().map(|(_, account)| account);
    let own = accounts.fold(Amounts::default(), |sum, account| sum + account);
    assert_eq!(sum_of_kind(&report, "mmap"), own, "{}", report.outline());
    let blocks = sum_of_kind(&report, "malloc");
    assert_eq!(Amounts::of(&report.value["totals"]), own + blocks);
    assert_eq!(report.sum_in(leaker.pid(), "for_others").outstanding_bytes, block);
    let allocators = held(&report, "allocator");
    assert!(allocators.outstanding_bytes >= block, "held: {}", report.value["held"]);
    assert!(allocators.freed_bytes >= 5_000_011, "held: {}", report.value["held"]);
    assert!(held(&report, "stack").outstanding_count >= 1, "held: {}", report.value["held"]);
    leaker.end();
}

#[test]
fn mappings_alone_need_no_allocator() {
    let (leaker, report) = trace_mappings(&["--kind", "mmap"]);
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    assert_eq!(sum_of_kind(&report, "malloc"), Amounts::default());
    // By its stack alone, as no call of malloc is watched.
    let block = number(&leaker.stage().line, "blocks");
    assert!(held(&report, "allocator").outstanding_bytes >= block, "{}", report.value["held"]);
    leaker.end();
}

/// An allocator also maps memory for blocks that a filter leaves out.
#[test]
fn a_filter_of_sizes_makes_no_leaks_of_an_allocators_memory() {
    let options = ["--kind", "malloc,mmap", "--min-size", "70000"];
    let (leaker, report) = trace_mappings(&options);
    let own = leaker.stage().sites();
    let names: Vec<&str> = own.iter().map(|(name, _)| name.as_str()).collect();
    for site in report.sites().into_iter().filter(|site| site.kind() == "mmap") {
        let is_own = site.symbols().iter().any(|symbol| names.contains(symbol));
        assert!(is_own, "{:?}\n{}", site.symbols(), report.outline());
    }
    assert_eq!(report.sum_in(leaker.pid(), "site_random"), Amounts::default());
    assert_eq!(report.sum_in(leaker.pid(), "site_moved"), leaker.stage().site("site_moved"));
    leaker.end();
}

/// The stack of a mapping is whole, from the system call on.
#[test]
fn a_mapping_has_its_whole_stack() {
    let (leaker, report) = trace_mappings(&["--kind", "mmap"]);
    for (function, call) in [("site_over", "mmap"), ("site_kept", "mremap"), ("site_break", "brk")]
    {
        let sites = report.sites();
        let site = sites.iter().find(|site| site.has_frame(function));
        let site = site.unwrap_or_else(|| panic!("no {function}:\n{}", report.outline()));
        assert_eq!(site.value["function"], call);
        assert_eq!(site.value["truncated"], false, "{}", site.value);
        assert!(site.has_frame("main"), "{:?}", site.symbols());
    }
    leaker.end();
}

#[test]
fn blocks_only_leaves_mappings_out() {
    let (leaker, report) = trace_mappings(&["--kind", "malloc"]);
    assert_eq!(sum_of_kind(&report, "mmap"), Amounts::default());
    assert_eq!(report.value["kinds"], serde_json::json!(["malloc"]));
    assert!(report.value["held"].is_null(), "{}", report.value["held"]);
    leaker.end();
}

/// While leaktrace is stopped, nobody empties its ring: what finds no room is counted.
#[test]
fn calls_that_find_no_room_are_counted() {
    let mut leakers = [Leaker::start("mappings", &[]), Leaker::start("mappings", &[])];
    let [first, second] = [leakers[0].pid_arg(), leakers[1].pid_arg()];
    let arguments = ["user", "-p", &first, "-p", &second, "--interval", "1h", "--kind", "mmap"];
    let mut traced = Traced::start(&arguments);
    traced.signal(libc::SIGSTOP);
    let stat = format!("/proc/{}/stat", traced.pid());
    wait_until("leaktrace is stopped", SOON, || {
        std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
    });
    for leaker in &mut leakers {
        leaker.advance("holding");
    }
    traced.signal(libc::SIGCONT);
    let report = traced.interrupt().final_report().clone();
    let missed = number(&report.value["loss"]["reasons"], "mappings_full");
    assert!(missed > 0 && report.loss("missed_allocs") == missed, "{}", report.value["loss"]);
    assert_eq!(report.value["loss"]["complete"], false, "{}", report.value["loss"]);
    leakers.into_iter().for_each(Leaker::end);
}
