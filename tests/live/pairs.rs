//! Pairs of functions that are named: what they acquire and do not release, exactly.

use std::{fs, path::Path, process::Command};

use leaktrace_tests::{
    binary::{leaktrace, require_root, run},
    leaker::Leaker,
    program::build_library,
    report::Report,
    traced::Traced,
};

/// The pairs of the program `pairs`.
const PAIRS: [&str; 12] = [
    "--pair",
    "arena_alloc(size=2),arena_calloc(size=2*3):arena_free(key=2)",
    "--pair",
    "thing_get(key=1,if=true):thing_put,thing_drop",
    "--pair",
    "door_open(out=2):door_close",
    "--pair",
    "ticket_take(if=nonnegative):ticket_return",
    "--pair",
    "node_new:node_free",
    "--pair",
    "maybe_get:maybe_put",
];

/// Traces a program in its stage `holding`.
fn trace_holding(program: &str, args: &[&str], options: &[&str]) -> (Leaker, Report) {
    let mut leaker = Leaker::start(program, args);
    let pid = leaker.pid_arg();
    let begin = ["user", "-p", &pid, "--interval", "1h"];
    let traced = Traced::start(&[&begin, &PAIRS[..], options].concat());
    leaker.advance("holding");
    let report = traced.interrupt().final_report().clone();
    (leaker, report)
}

fn check(program: &str, options: &[&str]) {
    let (leaker, report) = trace_holding(program, &[], options);
    let mut expected = leaker.stage().sites();
    if options.contains(&"adaptive") {
        // Nodes are acquired within nodes: without a stack nothing leads to their site.
        expected.retain(|(site, _)| site != "site_tree");
        let nodes = report.sum(|site| site.value["function"] == "node_new");
        assert_eq!(nodes, leaker.stage().site("site_tree"), "{}", report.outline());
    }
    report.assert_sites(leaker.pid(), &expected);
    report.assert_complete();
    // What was acquired before tracing began is released after it.
    let reasons = &report.value["loss"]["reasons"];
    assert_eq!(reasons["untracked_release"], 2, "{}", report.outline());
    assert!(report.sites().iter().all(|site| site.kind() == "pair"), "{}", report.outline());
    let of = |function: &str| {
        let sites = report.sites().into_iter();
        sites
            .filter(|site| site.value["function"] == function)
            .map(|site| site.value["pair"].as_str().unwrap_or_default().to_owned())
            .next()
    };
    assert_eq!(of("thing_get").as_deref(), Some("thing_get:thing_put,thing_drop"));
    assert_eq!(of("door_open").as_deref(), Some("door_open:door_close"));
    leaker.end();
}

#[test]
fn pairs_are_counted_exactly() {
    check("pairs", &[]);
}

#[test]
fn pairs_are_counted_exactly_with_probes_at_the_entry() {
    check("pairs", &["--probe-at", "entry"]);
}

/// Their returns have return probes.
#[test]
fn pairs_are_counted_exactly_where_their_code_does_not_tell_where_they_return() {
    check("pairs-hidden", &[]);
}

#[test]
fn pairs_are_counted_exactly_where_calls_are_jumps() {
    check("pairs-jumping", &[]);
}

#[test]
fn pairs_are_counted_exactly_in_a_static_program_with_adaptive_stacks() {
    check("pairs-static", &["--stacks", "adaptive"]);
}

/// Calls that are left by longjmp are noticed, and change nothing else.
#[test]
fn pairs_are_counted_exactly_after_longjmp() {
    for program in ["pairs", "pairs-hidden"] {
        let (leaker, report) = trace_holding(program, &["jump"], &[]);
        report.assert_sites(leaker.pid(), &leaker.stage().sites());
        let reasons = &report.value["loss"]["reasons"];
        assert_eq!(reasons["skipped_return"], 4, "{program}: {}", report.outline());
        leaker.end();
    }
}

/// A call that one thread begins and another one ends: the program goes on, and that it was missed is
/// told.
#[test]
fn a_call_that_changes_its_thread_does_no_harm() {
    let (leaker, report) = trace_holding("pairs-switching", &[], &[]);
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    let reasons = &report.value["loss"]["reasons"];
    assert_eq!(reasons["skipped_return"], 1, "{}", report.outline());
    leaker.end();
}

/// Traces the functions of `pairs-cpp` that one pair names.
fn trace_throwing(args: &[&str], pair: &str) -> (Leaker, Report) {
    let mut leaker = Leaker::start("pairs-cpp", args);
    let pid = leaker.pid_arg();
    let traced = Traced::start(&["user", "-p", &pid, "--interval", "1h", "--pair", pair]);
    leaker.advance("holding");
    let report = traced.interrupt().final_report().clone();
    (leaker, report)
}

/// The pairs of the program `pairs-cpp`, and the call site of each.
const BOX: (&str, &str) = ("_Z7box_geti:_Z7box_putP3Box", "site_box");
const CRATE: (&str, &str) = ("crate_get:crate_put", "site_crate");

/// What was thrown is not acquired, though the same call site succeeds later.
#[test]
fn calls_that_throw_acquire_nothing() {
    // That a C function did not return may have other reasons.
    for ((pair, site), reason, is_complete) in
        [(BOX, "thrown", true), (CRATE, "skipped_return", false)]
    {
        let (leaker, report) = trace_throwing(&[], pair);
        report.assert_sites(leaker.pid(), &[(site.to_owned(), leaker.stage().site(site))]);
        let loss = &report.value["loss"];
        assert_eq!(loss["complete"], is_complete, "{}", report.outline());
        assert_eq!(loss["reasons"][reason], 20, "{}", report.outline());
        leaker.end();
    }
}

/// Threads that end inside an acquiring call: it is told at once.
#[test]
fn calls_in_which_a_thread_ends_are_told() {
    for ((pair, site), other) in [(BOX, 0), (CRATE, 20)] {
        let (leaker, report) = trace_throwing(&["leave"], pair);
        report.assert_sites(leaker.pid(), &[(site.to_owned(), leaker.stage().site(site))]);
        let reasons = &report.value["loss"]["reasons"];
        assert_eq!(reasons["skipped_return"], 3 + other, "{}", report.outline());
        leaker.end();
    }
}

/// Streams, connections of OpenSSL, and databases, those that could not be opened as well.
#[test]
fn objects_of_a_library_are_counted_exactly() {
    let mut leaker = Leaker::start("handles", &[]);
    let pid = leaker.pid_arg();
    let begin = ["user", "-p", &pid, "--interval", "1h"];
    let pairs = [
        "--pair",
        "fopen,fdopen:fclose",
        "--pair",
        "SSL_new:SSL_free",
        "--pair",
        "sqlite3_open(out=2,if=any):sqlite3_close,sqlite3_close_v2",
    ];
    let traced = Traced::start(&[&begin, &pairs[..]].concat());
    leaker.advance("holding");
    let report = traced.interrupt().final_report().clone();
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    report.assert_complete();
    leaker.end();
}

/// What a process allocates beside is not traced, unless it is asked for.
#[test]
fn blocks_of_malloc_are_traced_beside_pairs_if_asked_for() {
    for (kinds, has_blocks) in [(&[] as &[&str], false), (&["--kind", "malloc"], true)] {
        let mut leaker = Leaker::start("handles", &[]);
        let pid = leaker.pid_arg();
        let begin = ["user", "-p", &pid, "--interval", "1h", "--pair", "fopen,fdopen:fclose"];
        let traced = Traced::start(&[&begin[..], kinds].concat());
        leaker.advance("holding");
        let report = traced.interrupt().final_report().clone();
        report.assert_complete();
        let of = |kind: &str, site: &str| {
            report.sum(|one| one.kind() == kind && one.has_frame(site)).outstanding_count
        };
        assert_eq!(of("pair", "site_stream"), 3, "{}", report.outline());
        // Each open stream is a block of the C library, and is called from its fopen.
        assert_eq!(of("malloc", "site_stream") >= 3, has_blocks, "{}", report.outline());
        leaker.end();
    }
}

/// A small program: its text, and flags of the compiler.
fn compile(folder: &Path, text: &str, flags: &[&str]) -> String {
    let (source, program) = (folder.join("command.c"), folder.join("command"));
    fs::write(&source, text).unwrap_or_else(|error| panic!("{error}"));
    let mut gcc = Command::new("gcc");
    let status = gcc.args(["-O1", "-g", "-o"]).args([&program, &source]).args(flags).status();
    assert!(status.is_ok_and(|status| status.success()), "{gcc:?}");
    program.display().to_string()
}

/// Its child leaves a folder open: what it is asked for decides whether that is a failure.
#[test]
fn a_command_that_does_not_close_has_the_exit_code_asked_for() {
    require_root();
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let text = r#"
        #include <dirent.h>
        #include <stdio.h>
        #include <sys/wait.h>
        #include <unistd.h>
        int main(void)
        {
            fclose(fopen("/dev/null", "r"));
            if (fork() == 0)
                _exit(opendir("/") == NULL);
            wait(NULL);
            return 0;
        }
    "#;
    // Static: probes that reach children reach every process that maps the same file.
    let program = compile(folder.path(), text, &["-static"]);
    for (pair, code) in [("fopen:fclose", 0), ("opendir:closedir", 9)] {
        let args = ["run", "--children", "--error-exitcode", "9", "--pair", pair, "--", &program];
        let finished = run(&mut leaktrace(&args));
        assert_eq!(finished.code, code, "{pair}: {}{}", finished.stdout, finished.stderr);
    }
}

/// Functions whose return instructions cannot be told, and functions of Go: they have no return probe
/// where it might end the process, and that is told.
#[test]
fn functions_that_cannot_bear_a_return_probe_are_told() {
    require_root();
    let text = r#"
        #include <stdlib.h>
        __attribute__((noinline, noclone)) void *odd_get(int way)
        {
            static void *const ways[] = {&&one, &&two, &&three};
            goto *ways[way];
        one:
            return malloc(1);
        two:
            return calloc(2, 2);
        three:
            return NULL;
        }
        __attribute__((noinline, noclone)) void odd_put(void *it) { free(it); }
        #ifdef THROWS
        void __cxa_throw(void) {}
        #endif
        #ifdef GO
        __attribute__((section(".go.buildinfo"), used)) static int go = 1;
        #endif
        int main(int argc, char **argv)
        {
            (void)argv;
            void *it = odd_get(argc - 1);
            __asm__ volatile("" : "+r"(it));
            odd_put(odd_get(argc));
            return it == NULL;
        }
    "#;
    for (flags, told) in [
        (&[] as &[&str], None),
        (&["-DTHROWS"], Some("odd_get: exceptions may pass through it")),
        (&["-DGO"], Some("odd_put: the object is a Go program's")),
    ] {
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let program = compile(folder.path(), text, &[&["-static"], flags].concat());
        let args = ["run", "-f", "json", "--pair", "odd_get:odd_put", "--", &program];
        let finished = run(&mut leaktrace(&args));
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        let report = Report::parse(finished.stdout.lines().last().unwrap_or_default());
        let unseen = report.value["loss"]["unseen"].to_string();
        let held = report.sum(|site| site.value["function"] == "odd_get");
        match told {
            None => {
                assert!(!unseen.contains("odd_"), "{unseen}");
                assert_eq!((held.allocated_count, held.outstanding_count), (2, 1), "{unseen}");
            }
            Some(told) => {
                assert!(unseen.contains(told), "{flags:?}: {unseen}");
                assert_eq!(held.allocated_count, 0, "{flags:?}: {unseen}");
            }
        }
    }
}

/// A library that is loaded later: its functions are found then, and that some calls may have been
/// missed is told.
#[test]
fn functions_of_a_library_that_comes_later_are_found() {
    require_root();
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let text = r#"
        #include <dlfcn.h>
        #include <poll.h>
        #include <stddef.h>
        int main(int argc, char **argv)
        {
            void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
            void *(*leak)(size_t) = library ? dlsym(library, "leak_in_library") : NULL;
            for (int i = 0; leak && i < 300; i++) {
                leak(1571);
                poll(NULL, 0, 10);
            }
            return leak == NULL;
        }
    "#;
    let program = compile(folder.path(), text, &[]);
    let library = build_library("leaklib.so").display().to_string();
    let pair = ["--pair", "leak_in_library(size=1):free"];
    let args = [&["run", "-f", "json"], &pair[..], &["--", &program, &library]].concat();
    let finished = run(&mut leaktrace(&args));
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let report = Report::parse(finished.stdout.lines().last().unwrap_or_default());
    let leaked = report.sum(|site| site.value["function"] == "leak_in_library");
    assert!(leaked.outstanding_count > 100, "{}", report.outline());
    assert_eq!(leaked.outstanding_bytes, 1571 * leaked.outstanding_count, "{}", report.outline());
    assert_eq!(report.value["loss"]["complete"], false, "{}", report.outline());
    let unseen = report.value["loss"]["unseen"].to_string();
    assert!(unseen.contains("some time after their start"), "{unseen}");
}

/// A function that none has is told at the end of a command, which may have loaded it.
#[test]
fn a_function_that_never_came_is_told() {
    require_root();
    let args = ["run", "-f", "json", "--pair", "no_such_get:free", "--", "true"];
    let finished = run(&mut leaktrace(&args));
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let report = Report::parse(finished.stdout.lines().last().unwrap_or_default());
    let unseen = report.value["loss"]["unseen"].to_string();
    assert!(unseen.contains("defines no_such_get"), "{unseen}");
}

/// Names that no function has: one line, and names that are near.
#[test]
fn a_name_that_no_function_has_is_bad_usage() {
    let mut leaker = Leaker::start("pairs", &[]);
    let pid = leaker.pid_arg();
    for (args, near) in [
        (&["user", "-p", &pid, "--pair", "arena_aloc:arena_free"] as &[&str], "arena_alloc"),
        (&["kernel", "--pair", "kobject_gt:kobject_put"], "kobject_get"),
    ] {
        let finished = run(&mut leaktrace(args));
        assert_eq!((finished.code, finished.stdout.as_str()), (2, ""), "{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
        assert!(finished.stderr.contains(near), "{}", finished.stderr);
    }
    leaker.advance("holding");
    leaker.end();
}
