//! What arguments mean, and what leaktrace says to bad ones.

use std::{path::PathBuf, time::Duration};

use super::*;
use crate::session::spec::{
    By, Format, KernelFilters, KernelKind, LeakKinds, ProbeAt, Sort, StackMode, Target, Unwind,
    UserKinds, Wanted,
};

/// What counts as a leak by default.
const LOST: LeakKinds =
    LeakKinds { definite: true, indirect: true, possible: false, reachable: false };

fn parse_line(line: &str) -> Result<Parsed, Error> {
    parse(line.split_whitespace().map(OsString::from))
}

fn spec(line: &str) -> Spec {
    match parse_line(line) {
        Ok(Parsed::Command(Command::Trace(spec))) => *spec,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(line: &str, expected: &str) {
    match parse_line(line) {
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(expected), "{line}\nexpected: {expected}\n     got: {text}");
            assert_eq!(text.lines().count(), 1, "{text}");
            assert_eq!(error.exit_code(), std::process::ExitCode::from(2));
        }
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn defaults_of_each_verb() {
    let kernel = spec("leaktrace kernel");
    let all = vec![KernelKind::Slab, KernelKind::Vmalloc, KernelKind::Percpu];
    let target = |kinds: &[KernelKind], all_pages| Target::Kernel {
        kinds: kinds.to_vec(),
        all_pages,
        filters: KernelFilters::default(),
    };
    assert_eq!(kernel.target, target(&all, false));
    let with_pages = [all.as_slice(), &[KernelKind::Pages]].concat();
    assert_eq!(spec("leaktrace kernel --pages").target, target(&with_pages, false));
    assert_eq!(spec("leaktrace kernel --pages=all").target, target(&with_pages, true));
    let pages = target(&[KernelKind::Pages], false);
    assert_eq!(spec("leaktrace kernel --kind pages").target, pages);
    assert_eq!(kernel.view.by, By::Site);
    assert_eq!(spec("leaktrace kernel --by module").view.by, By::Module);
    assert_eq!(kernel.trace.stacks, StackMode::Adaptive);
    assert_eq!(kernel.schedule.interval, Some(Duration::from_secs(5)));
    let user = spec("leaktrace user -p 7 -p 5 -p 7");
    let wanted = |pids: &[u32], comms: &[&str]| Wanted {
        pids: pids.to_vec(),
        comms: comms.iter().copied().map(str::to_owned).collect(),
        ..Wanted::default()
    };
    assert_eq!(user.target, Target::Processes(wanted(&[5, 7], &[])));
    let several = spec("leaktrace user --comm nginx -p 7 --comm php");
    assert_eq!(several.target, Target::Processes(wanted(&[7], &["nginx", "php"])));
    let group = spec("leaktrace user --cgroup /a");
    let groups = Wanted { cgroups: vec!["/a".into()], ..Wanted::default() };
    assert_eq!(group.target, Target::Processes(groups));
    let all = spec("leaktrace user --all");
    assert_eq!(all.target, Target::Processes(Wanted { all: true, ..Wanted::default() }));
    assert_eq!(user.trace.stacks, StackMode::All);
    assert_eq!(user.trace.max_outstanding, 1_000_000);
    assert_eq!((user.view.top, user.view.sort), (10, Sort::Leak));
    assert_eq!(user.trace.objects, [""; 0].map(PathBuf::from));
    let named = spec("leaktrace user -p 5 -O /lib/pool.so --obj prog").trace.objects;
    assert_eq!(named, ["/lib/pool.so", "prog"].map(PathBuf::from));
    let run = spec("leaktrace run -- ls -l --color");
    let argv = ["ls", "-l", "--color"].map(OsString::from).to_vec();
    assert_eq!(run.target, Target::Command { argv, error_exitcode: None, leak_kinds: LOST });
    assert_eq!(run.schedule.interval, None);
}

#[test]
fn every_flag_has_its_meaning() {
    let spec = spec(
        "leaktrace user -p 1 -i 2s -c 3 -d 1m -T 4 -o 500ms -z 16 -Z 1KiB -s age -a \
         --max-outstanding 9 -f json -w out -q --stacks site --max-depth 20 -vv \
         --probe-at entry --unwind fp",
    );
    assert_eq!(spec.schedule.interval, Some(Duration::from_secs(2)));
    assert_eq!(spec.schedule.count, Some(3));
    assert_eq!(spec.schedule.duration, Some(Duration::from_secs(60)));
    assert_eq!((spec.view.top, spec.view.sort), (4, Sort::Age));
    assert_eq!(spec.view.older, Duration::from_millis(500));
    assert!(spec.view.show_allocs && spec.output.quiet);
    assert_eq!((spec.trace.min_size_bytes, spec.trace.max_size_bytes), (16, 1024));
    assert_eq!((spec.trace.max_outstanding, spec.trace.max_depth), (9, 20));
    assert_eq!(spec.trace.stacks, StackMode::Site);
    assert_eq!((spec.trace.probe_at, spec.trace.unwind), (ProbeAt::Entry, Unwind::FramePointers));
    assert_eq!((spec.output.format, spec.trace.verbose), (Format::Json, 2));
    assert_eq!(spec.output.write.as_deref(), Some(std::path::Path::new("out")));
}

/// With pairs of functions, nothing else is traced unless it is asked for.
#[test]
fn pairs_stand_for_themselves() {
    let user = spec("leaktrace user -p 1 --pair fopen:fclose --pair a(size=2):b");
    let names: Vec<&str> = user.trace.pairs.iter().map(|pair| pair.name.as_str()).collect();
    assert_eq!(names, ["fopen:fclose", "a:b"]);
    assert_eq!(user.trace.user_kinds, UserKinds { malloc: false, mmap: false });
    let both = spec("leaktrace run --kind malloc --pair fopen:fclose -- true");
    assert_eq!(both.trace.user_kinds, UserKinds { malloc: true, mmap: false });
    let kinds = |line| match spec(line).target {
        Target::Kernel { kinds, .. } => kinds,
        other => panic!("{other:?}"),
    };
    assert_eq!(kinds("leaktrace kernel --pair clk_get:clk_put"), []);
    let slab = kinds("leaktrace kernel --pair clk_get:clk_put --kind slab");
    assert_eq!(slab, [KernelKind::Slab]);
    refused("leaktrace user -p 1 --pair a:b --max-overhead 2%", "cannot be combined with");
    refused("leaktrace kernel --pair a:b --gfp GFP_ATOMIC", "--gfp says nothing of --pair");
    refused("leaktrace kernel --pair a:b --pair a:c", "a acquires twice: name it once");
}

#[test]
fn bad_usage_is_one_line() {
    refused("leaktrace user", "no process to trace: name some with -p, --comm or --cgroup");
    refused(
        "leaktrace user --all -p 1",
        "--all cannot be combined with --pid: leave one of them out",
    );
    refused("leaktrace user --comm a --all", "--all cannot be combined with --comm: leave one");
    refused("leaktrace user --comm a_name_of_16_byt", "names no command");
    refused(&format!("leaktrace user{}", " --cgroup /a".repeat(5)), "at most 4 groups");
    refused("leaktrace user -p 0", "--pid 0 is no process");
    refused("leaktrace user -p x", "`x`");
    refused("leaktrace kernel --interval 0s", "--interval 0 is no time: write at least 1ms");
    refused("leaktrace kernel --interval 5", "`5` is not a time: write 500ms, 5s, 5m or 1h");
    refused("leaktrace kernel -d 0s", "--duration 0 is no time");
    refused("leaktrace kernel -c 0", "--count 0 asks for no report");
    refused("leaktrace kernel -T 0", "--top 0 shows nothing");
    refused("leaktrace kernel -o 5", "`5` is not a time");
    refused("leaktrace kernel -z many", "`many` is not a size: write 4096, 64KiB or 10MB");
    refused("leaktrace kernel -z 2 -Z 1", "--min-size 2 is above --max-size 1");
    refused(
        "leaktrace kernel --debug-dir /no/such",
        "--debug-dir /no/such: there is no such folder",
    );
    refused("leaktrace kernel --max-depth 128", "128 is not in 1..=127");
    refused("leaktrace kernel --max-outstanding 0", "0 is not in 1..=50000000");
    refused("leaktrace kernel --comm a_name_of_16_byt", "names no command");
    refused("leaktrace", "no command given");
    refused("leaktrace kernal", "unknown command `kernal`, did you mean `kernel`?");
    refused("leaktrace kernel --nonsense", "`--nonsense`");
    refused("leaktrace nonsense", "`nonsense`");
    refused("leaktrace run", "COMMAND");
    refused(
        "leaktrace kernel --gfp GFP_ATOMC",
        "--gfp `GFP_ATOMC` is no flag of the kernel: write GFP_ATOMIC, ",
    );
    refused(&format!("leaktrace kernel{}", " --gfp __GFP_ZERO".repeat(9)), "at most 8");
    refused(
        "leaktrace run --by cache -- a",
        "--by does not take `cache`: write one of site, process",
    );
    refused("leaktrace run --error-exitcode 0 -- true", "0 is not in 1..=255");
}

#[test]
fn help_and_version_are_texts() {
    for line in
        ["leaktrace --help", "leaktrace user --help", "leaktrace run -h", "leaktrace --version"]
    {
        assert!(matches!(parse_line(line), Ok(Parsed::Help(_))), "{line}");
    }
}

/// Every refusal in full: the cause, how to mend it, and the help of the verb that was typed.
#[test]
fn refusals_read_well() {
    let refusals = [
        ("", "no command given. Usage: leaktrace kernel|user|run|doctor [OPTIONS]", "leaktrace"),
        ("--foo", "unknown option `--foo`", "leaktrace"),
        ("frob", "unknown command `frob`: write kernel, user, run or doctor", "leaktrace"),
        ("user --foo", "unknown option `--foo`", "leaktrace user"),
        (
            "kernel --interv 5s",
            "unknown option `--interv`, did you mean `--interval`?",
            "leaktrace kernel",
        ),
        ("kernel --unwind fp", "unknown option `--unwind`", "leaktrace kernel"),
        (
            "user",
            "no process to trace: name some with -p, --comm or --cgroup, or write --all",
            "leaktrace user",
        ),
        ("user -p", "--pid needs a value", "leaktrace user"),
        ("user -p 1 2", "unexpected argument `2`", "leaktrace user"),
        (
            "user -p 5000000000",
            "--pid: 5000000000 is not in 0..=4294967295: write a number of that range",
            "leaktrace user",
        ),
        ("run", "no command to run: write `-- COMMAND [ARG...]`", "leaktrace run"),
        ("run --", "no command to run: write `-- COMMAND [ARG...]`", "leaktrace run"),
        ("run ls", "unexpected argument `ls`: write `--` before the command", "leaktrace run"),
        (
            "run --error-exitcode 256 -- a",
            "--error-exitcode: 256 is not in 1..=255: write a number of that range",
            "leaktrace run",
        ),
        (
            "kernel -T x",
            "--top: `x` is not a whole number: write one such as 10",
            "leaktrace kernel",
        ),
        (
            "kernel -T 99999999999999999999",
            "--top: `99999999999999999999` is too large a number: write a smaller one",
            "leaktrace kernel",
        ),
        ("kernel -q -q", "--quiet is given twice: write it once", "leaktrace kernel"),
        (
            "kernel -i 5",
            "--interval: `5` is not a time: write 500ms, 5s, 5m or 1h",
            "leaktrace kernel",
        ),
        (
            "kernel -o 1000years",
            "--older: `1000years` is too long a time: write at most 100years",
            "leaktrace kernel",
        ),
        (
            "kernel -z 64K",
            "--min-size: `64K` is not a size: write 4096, 64KiB or 10MB",
            "leaktrace kernel",
        ),
        ("doctor -f x", "--format does not take `x`: write one of text, json", "leaktrace doctor"),
        (
            "kernel -s \u{1b}[31m",
            "--sort does not take `\u{1b}[31m`: write one of leak, bytes, count, age, growth",
            "leaktrace kernel",
        ),
    ];
    for (line, expected, help) in refusals {
        let expected = format!("{expected}; see `{help} --help`");
        match parse_line(&format!("leaktrace {line}")) {
            Err(error) => assert_eq!(error.to_string(), expected, "{line}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn a_schedule_has_an_interval_where_one_is_needed() {
    let five = Some(Duration::from_secs(5));
    assert_eq!(spec("leaktrace kernel -d 60s").schedule.interval, five);
    assert_eq!(spec("leaktrace run -d 60s -- a").schedule.interval, None);
    assert_eq!(spec("leaktrace run -c 2 -- a").schedule.interval, five);
    let run = spec("leaktrace run -i 1s --error-exitcode 9 -- a -i 2s");
    assert_eq!(run.schedule.interval, Some(Duration::from_secs(1)));
    let argv = ["a", "-i", "2s"].map(OsString::from).to_vec();
    assert_eq!(run.target, Target::Command { argv, error_exitcode: Some(9), leak_kinds: LOST });
}

#[test]
fn doctor_answers_in_both_formats() {
    for (line, expected) in [("leaktrace doctor", false), ("leaktrace doctor -f json", true)] {
        match parse_line(line) {
            Ok(Parsed::Command(Command::Doctor { json })) => assert_eq!(json, expected, "{line}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn every_verb_has_examples() {
    Cli::command().debug_assert();
    for verb in ["kernel", "user", "run", "doctor"] {
        match parse_line(&format!("leaktrace {verb} --help")) {
            Ok(Parsed::Help(text)) => assert!(text.contains("Examples:"), "{text}"),
            other => panic!("{verb}: {other:?}"),
        }
    }
}

#[test]
fn kinds_of_a_process() {
    let kinds = |options: &str| spec(&format!("leaktrace user -p 7 {options}")).trace.user_kinds;
    assert_eq!(kinds(""), UserKinds { malloc: true, mmap: false });
    assert_eq!(kinds("--kind malloc,mmap"), UserKinds { malloc: true, mmap: true });
    assert_eq!(kinds("--kind mmap"), UserKinds { malloc: false, mmap: true });
    refused("leaktrace user -p 7 --kind slab", "--kind");
}
