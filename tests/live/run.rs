//! `leaktrace run`: a command behaves as it does alone, and its leaks are found.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
    process::Command,
};

use leaktrace_tests::{
    SOON,
    binary::{Finished, leaktrace, require_root, run_with_input, workspace},
    busy::with_busy_cpus,
    child::Child,
    leaker::{Stage, children_of},
    program::build_program,
    report::{Amounts, Report, number},
    traced::{Ended, read_reports},
};

/// A folder for the report, deleted with it.
struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        require_root();
        Self { folder: tempfile::tempdir().unwrap_or_else(|error| panic!("{error}")) }
    }

    fn report(&self) -> PathBuf {
        self.folder.path().join("report.json")
    }

    /// `leaktrace run OPTIONS -w REPORT -f json -- ARGV`
    fn command(&self, options: &[&str], argv: &[&str]) -> Command {
        let mut command = leaktrace(&["run", "-f", "json", "-T", "100000", "-w"]);
        command.arg(self.report()).args(options).arg("--").args(argv);
        command
    }
}

/// Runs a command alone and under leaktrace; both must be alike. Returns its final report.
fn check_alike(argv: &[&str], input: &str) -> Report {
    let scratch = Scratch::new();
    let alone = run_with_input(Command::new(argv[0]).args(&argv[1..]), input);
    // `-q`: the command's stderr alone is left.
    let traced = run_with_input(&mut scratch.command(&["-q"], argv), input);
    assert_eq!(traced.code, alone.code, "exit code of {argv:?}; stderr:\n{}", traced.stderr);
    assert_eq!(traced.stdout, alone.stdout, "stdout of {argv:?}");
    assert_eq!(traced.stderr, alone.stderr, "stderr of {argv:?}");
    let mut reports = read_reports(&scratch.report());
    match (reports.pop(), reports.len()) {
        (Some(report), 0) if report.is_final() => report,
        (last, more) => panic!("one final report of {argv:?}: {more} before {last:?}"),
    }
}

fn allocated(report: &Report) -> u64 {
    number(&report.value["totals"], "allocated_count")
}

#[test]
fn python_runs_as_alone() {
    let report = check_alike(&["/usr/bin/python3", "-c", "pass"], "");
    assert!(allocated(&report) > 500, "allocations of python3: {}", report.value["totals"]);
}

#[test]
fn ls_prints_as_alone() {
    let report = check_alike(&["ls", "-lR", "/usr/share/doc"], "");
    assert!(allocated(&report) > 500, "allocations of ls: {}", report.value["totals"]);
}

#[test]
fn the_exit_code_is_the_commands() {
    check_alike(&["sh", "-c", "exit 3"], "");
}

#[test]
fn a_command_killed_by_a_signal_exits_with_128_and_it() {
    let scratch = Scratch::new();
    let traced = run_with_input(&mut scratch.command(&["-q"], &["sh", "-c", "kill -TERM $$"]), "");
    assert_eq!(traced.code, 128 + libc::SIGTERM, "exit code; stderr:\n{}", traced.stderr);
}

#[test]
fn stdin_and_stderr_are_the_commands() {
    check_alike(&["sh", "-c", "cat; echo to stderr >&2"], "one\ntwo\n");
}

/// SIGTERM to leaktrace goes on to the command, whose own answer is its end.
#[test]
fn signals_go_on_to_the_command() {
    let scratch = Scratch::new();
    let script = "trap 'exit 7' TERM; echo ready; while :; do read line; done";
    let mut child = Child::start(&mut scratch.command(&[], &["sh", "-c", script]));
    assert_eq!(child.next_line(SOON), "ready\n");
    child.signal(libc::SIGTERM);
    assert_eq!(child.wait(SOON), 7, "exit code; stderr:\n{}", child.stderr_text());
}

/// Runs a test program through all its stages; returns the stage `holding` and what leaktrace left.
fn run_leaker(options: &[&str], name: &str) -> (Stage, Ended) {
    let scratch = Scratch::new();
    let program = build_program(name);
    let mut command = scratch.command(options, &[&program.to_string_lossy()]);
    let finished = run_with_input(&mut command, "xxxx");
    let stages: Vec<Stage> = finished.stdout.lines().map(Stage::parse).collect();
    let Some(holding) = stages.into_iter().find(|stage| stage.name() == "holding") else {
        panic!("no stage `holding`; stdout:\n{}\nstderr:\n{}", finished.stdout, finished.stderr)
    };
    (holding, Ended { reports: read_reports(&scratch.report()), finished })
}

fn pid_of(stage: &Stage) -> u32 {
    u32::try_from(number(&stage.line, "pid")).unwrap_or_else(|error| panic!("{error}"))
}

/// From the first allocation in `main` to the last, and with names although it has ended.
#[test]
fn every_call_of_a_command_means_what_libc_does() {
    let (stage, ended) = run_leaker(&[], "semantics");
    let report = ended.final_report();
    assert_eq!(report.value["mode"], "run", "mode");
    report.assert_sites(pid_of(&stage), &stage.sites());
    report.assert_complete();
}

#[test]
fn a_leak_has_file_and_line_after_the_command_has_gone() {
    let (_, ended) = run_leaker(&[], "many");
    let report = ended.final_report();
    let source = std::fs::read_to_string(workspace().join("tests/programs/many.c"))
        .unwrap_or_else(|error| panic!("{error}"));
    let line = source.lines().position(|line| line.contains("return malloc(BYTES)"));
    let line = line.unwrap_or_else(|| panic!("many.c has no such call")) + 1;

    let sites = report.sites();
    let Some(first) = sites.first() else { panic!("no site:\n{}", report.outline()) };
    let frames = first.value["stack"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(frame) = frames.iter().find(|frame| frame["symbol"] == "site_many") else {
        panic!("the first site is not below site_many: {}", first.value)
    };
    assert!(frame["file"].as_str().unwrap_or_default().ends_with("many.c"), "file in {frame}");
    assert_eq!(frame["line"], line, "line in {frame}");
}

#[test]
fn a_command_that_forks_keeps_its_own_account() {
    let (stage, ended) = run_leaker(&[], "forker");
    ended.final_report().assert_sites(pid_of(&stage), &stage.sites());
}

/// What its children leaked is in the report of a command, although they have ended.
#[test]
fn children_of_a_command_are_in_its_report() {
    let scratch = Scratch::new();
    let program = build_program("family").display().to_string();
    let options = ["--children", "--error-exitcode", "9", "--leak-kinds", "reachable"];
    let finished = run_with_input(&mut scratch.command(&options, &[&program, "1"]), "xxxx");
    assert_eq!(finished.code, 9, "exit code; stderr:\n{}", finished.stderr);
    let stages: Vec<Stage> = finished.stdout.lines().map(Stage::parse).collect();
    let [_, round, holding] = stages.as_slice() else { panic!("stages: {stages:?}") };
    let reports = read_reports(&scratch.report());
    let report = &reports[reports.len() - 1];
    report.assert_sites(pid_of(holding), &holding.sites());
    for (child, expected) in children_of(&round.line) {
        report.assert_sites(child, &expected);
    }
    // The leaf may have ended before its mappings were read: then its functions have no names.
    let (leaf, expected) = &children_of(&holding.line)[0];
    let expected = expected[0].1;
    let size = expected.allocated_bytes / expected.allocated_count;
    let of_leaf = report.sum(|site| {
        let Amounts { allocated_bytes, allocated_count, .. } = Amounts::of(site.value);
        site.pid() == Some(*leaf) && allocated_bytes == allocated_count * size
    });
    assert_eq!(of_leaf, expected, "{}", report.outline());
}

#[test]
fn error_exitcode_tells_of_a_leak() {
    // They are in a table of the program.
    let options = ["--error-exitcode", "9", "--leak-kinds", "reachable"];
    let (_, ended) = run_leaker(&options, "many");
    assert_eq!(ended.finished.code, 9, "exit code; stderr:\n{}", ended.finished.stderr);
    assert_eq!(ended.reports.len(), 1, "reports");
    let many = ended.reports[0].sum(|site| site.has_frame("site_many"));
    assert_eq!(many.outstanding_count, 10_000, "outstanding");
}

#[test]
fn error_exitcode_is_not_used_without_a_leak() {
    let scratch = Scratch::new();
    let program = build_program("hotloop");
    let argv = [&program.to_string_lossy(), "0.1"];
    let finished = run_with_input(&mut scratch.command(&["--error-exitcode", "9"], &argv), "xx");
    assert_eq!(finished.code, 0, "exit code; stderr:\n{}", finished.stderr);
    let reports = read_reports(&scratch.report());
    let all = reports.iter().map(|report| report.sum(|_| true)).next_back().unwrap_or_default();
    assert!(all.allocated_count > 0, "nothing was traced: {all:?}");
    assert_eq!(all.outstanding_count, 0, "outstanding: {all:?}");
    assert_eq!(Amounts { outstanding_bytes: 0, ..all }, all, "outstanding: {all:?}");
}

/// Without `-w`, the report follows the command's own output.
#[test]
fn the_report_follows_the_commands_output() {
    require_root();
    let Finished { code, stdout, stderr } =
        run_with_input(&mut leaktrace(&["run", "--", "echo", "hello"]), "");
    assert_eq!(code, 0, "exit code; stderr:\n{stderr}");
    let Some(report) = stdout.strip_prefix("hello\n") else { panic!("stdout:\n{stdout}") };
    assert!(report.contains("complete"), "no trust line in the report:\n{report}");
}

/// A second exec brings the same C library again.
#[test]
fn the_allocator_is_named_after_another_exec() {
    require_root();
    let program = build_program("execer").display().to_string();
    let finished = run_with_input(&mut leaktrace(&["run", "--", &program]), "xxxx");
    assert_eq!(finished.code, 0, "exit code; stderr:\n{}", finished.stderr);
    let header = finished.stdout.lines().find(|line| line.starts_with("leaktrace run:"));
    let header = header.unwrap_or_else(|| panic!("stdout:\n{}", finished.stdout));
    assert!(header.contains("allocator glibc (/") && header.contains("libc.so.6"), "{header}");
}

/// Runs a command that ends as /bin/true; its last image must be known.
fn check_last_image(argv: &[&str]) {
    let scratch = Scratch::new();
    let finished = run_with_input(&mut scratch.command(&[], argv), "");
    assert_eq!(finished.code, 0, "exit code; stderr:\n{}", finished.stderr);
    let reports = read_reports(&scratch.report());
    let report = reports.last().unwrap_or_else(|| panic!("no report"));
    report.assert_complete();
    let process = &report.value["processes"][0];
    assert_eq!(process["comm"], "true", "{process}");
    let allocator = process["allocator"].as_str().unwrap_or_default();
    assert!(allocator.starts_with("glibc (/"), "{process}");
}

/// The kernel ends its records of a process that gets other rights with what it executes; reports
/// go on.
#[test]
fn reports_go_on_after_a_set_group_id_program() {
    let scratch = Scratch::new();
    let program = scratch.folder.path().join("sleep");
    let group = 65_534; // nogroup
    fs::copy("/usr/bin/sleep", &program)
        .and_then(|_| chown(&program, None, Some(group)))
        .and_then(|()| fs::set_permissions(&program, fs::Permissions::from_mode(0o2755)))
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let script = format!("exec {} 3", program.display());
    let finished =
        run_with_input(&mut scratch.command(&["-i", "200ms"], &["sh", "-c", &script]), "");
    assert_eq!(finished.code, 0, "exit code; stderr:\n{}", finished.stderr);
    let reports = read_reports(&scratch.report());
    let is_of_it = |report: &&Report| report.value["processes"][0]["comm"] == "sleep";
    let running = reports.iter().filter(is_of_it).filter(|report| !report.is_final()).count();
    assert!(running > 0, "{} reports, none while it ran", reports.len());
}

/// What a process maps that ends within a millisecond of its exec can be read from /proc only by
/// luck; the kernel's records tell of it.
#[test]
fn an_image_that_ends_at_once_is_known() {
    with_busy_cpus(|| (0..5).for_each(|_| check_last_image(&["sh", "-c", "exec /bin/true"])));
}

/// On one CPU, whose buffer of records they fill: it must be read meanwhile.
#[test]
fn an_image_after_many_others_is_known() {
    let script = "i=0; while [ $i -lt 600 ]; do /bin/true; i=$((i+1)); done; exec /bin/true";
    check_last_image(&["taskset", "-c", "0", "sh", "-c", script]);
}

#[test]
fn a_command_that_cannot_be_run_is_bad_input() {
    for command in ["/nonexistent/command", "/etc/passwd", "/"] {
        let scratch = Scratch::new();
        let finished = run_with_input(&mut scratch.command(&[], &[command]), "");
        assert_eq!(finished.code, 2, "exit code of {command}; stderr:\n{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "lines on stderr:\n{}", finished.stderr);
        assert!(finished.stderr.contains(command), "no {command} in {:?}", finished.stderr);
        assert!(!scratch.report().exists(), "a report of nothing was left");
    }
}
