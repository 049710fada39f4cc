//! What a command allocates from its very start on: static programs, constructors of libraries.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use leaktrace_tests::{
    binary::{Finished, leaktrace, require_root, run_with_input},
    program::{build_library, build_program},
    report::{Amounts, Report},
};
use object::{Object as _, ObjectSymbol as _};

/// `leaktrace run OPTIONS -- ARGV` to its end, and its only report.
pub(super) fn trace(options: &[&str], argv: &[&str]) -> (Finished, Report) {
    trace_with(options, argv, &[])
}

/// The same with variables of the environment.
fn trace_with(options: &[&str], argv: &[&str], environment: &[(&str, &str)]) -> (Finished, Report) {
    require_root();
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let path = folder.path().join("report.json");
    let mut command = leaktrace(&["run", "-f", "json", "-T", "100000", "-w"]);
    command.arg(&path).args(options).arg("--").args(argv);
    command.envs(environment.iter().copied());
    let finished = run_with_input(&mut command, "");
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("no report: {error}; stderr:\n{}", finished.stderr));
    (finished, Report::parse(text.trim_end()))
}

/// The figures of so many blocks of one size, none of which is freed.
fn kept(count: u64, size_bytes: u64) -> Amounts {
    Amounts {
        outstanding_count: count,
        outstanding_bytes: count * size_bytes,
        allocated_count: count,
        allocated_bytes: count * size_bytes,
        ..Amounts::default()
    }
}

/// musl's malloc and free are files of their own: of these, only what is called is linked.
#[test]
fn a_static_program_that_never_frees_is_traced() {
    let program = build_program("neverfrees-musl-static");
    let image = fs::read(&program).unwrap_or_else(|error| panic!("{error}"));
    let elf = object::File::parse(image.as_slice()).unwrap_or_else(|error| panic!("{error}"));
    let has = |name| elf.symbols().any(|symbol| symbol.name() == Ok(name));
    assert!(has("malloc") && !has("free"), "this C library links free without a call of it");

    let (finished, report) = trace(&[], &[&program.display().to_string()]);
    assert_eq!(finished.code, 0, "exit code; stderr:\n{}", finished.stderr);
    report.assert_complete();
    let of_site = report.sum(|site| site.has_frame("site_kept"));
    assert_eq!(of_site, kept(7, 1579), "{}", report.outline());
}

/// What the constructor of `ctorlib.c` does, as its own count has it.
fn of_constructor() -> Amounts {
    Amounts {
        freed_count: 1,
        freed_bytes: 1613,
        outstanding_count: 2,
        outstanding_bytes: 2 * 1613,
        ..kept(3, 1613)
    }
}

/// Compiles a program that is linked with `ctorlib.so` and ends with its number, 6.
fn link(compiler: &str, folder: &Path, flags: &[&str]) -> String {
    let library = build_library("ctorlib.so");
    let (source, program) = (folder.join("linked.c"), folder.join("linked"));
    fs::write(&source, "int ctorlib_number(void); int main(void) { return ctorlib_number(); }")
        .unwrap_or_else(|error| panic!("{error}"));
    let output = Command::new(compiler)
        .args([&source, &library, &PathBuf::from("-o"), &program])
        .args(flags)
        .output()
        .unwrap_or_else(|error| panic!("cannot start {compiler}: {error}"));
    assert!(output.status.success(), "{compiler}: {output:?}");
    program.display().to_string()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"))
}

/// The loader of this test's own programs.
fn loader() -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_else(|error| panic!("{error}"));
    let mut paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    let found = paths.find(|path| path.contains("/ld-"));
    found.unwrap_or_else(|| panic!("no loader is mapped:\n{maps}")).to_owned()
}

fn check_constructor(report: &Report) {
    report.assert_complete();
    let sum = report.sum(|site| site.has_frame("site_constructor"));
    assert_eq!(sum, of_constructor(), "{}", report.outline());
}

/// Before the command's entry point, and its stack is whole.
#[test]
fn constructors_of_libraries_are_seen() {
    let folder = folder();
    let program = link("gcc", folder.path(), &[]);
    let (finished, report) = trace(&[], &[&program]);
    assert_eq!(finished.code, 6, "exit code; stderr:\n{}", finished.stderr);
    check_constructor(&report);
    assert_eq!(report.loss("stacks_truncated"), 0, "{}", report.outline());
    // Also where the loader is told to run it, or a shell becomes it.
    let (finished, report) = trace(&[], &[&loader(), &program]);
    assert_eq!(finished.code, 6, "exit code; stderr:\n{}", finished.stderr);
    check_constructor(&report);
    let (finished, report) = trace(&[], &["sh", "-c", &format!("exec {program}")]);
    assert_eq!(finished.code, 6, "exit code; stderr:\n{}", finished.stderr);
    check_constructor(&report);
}

/// Of a loader that is the C library as well.
#[test]
fn constructors_under_musl_are_seen() {
    let folder = folder();
    let program = link("musl-gcc", folder.path(), &[]);
    let (finished, report) = trace(&[], &[&program]);
    assert_eq!(finished.code, 6, "exit code; stderr:\n{}", finished.stderr);
    check_constructor(&report);
}

#[test]
fn constructors_of_preloaded_libraries_are_seen() {
    let library = build_library("ctorlib.so").display().to_string();
    let (finished, report) = trace_with(&[], &["/bin/true"], &[("LD_PRELOAD", &library)]);
    assert_eq!(finished.code, 0, "exit code; stderr:\n{}", finished.stderr);
    check_constructor(&report);
}

/// The pool for exceptions that a lack of memory must not hinder.
#[test]
fn the_pool_of_the_cplusplus_library_is_seen() {
    let program = build_program("cpp").display().to_string();
    let (_, report) = trace(&[], &[&program]);
    let kept = report.kept("cplusplus_library");
    assert_eq!(kept.allocated_count, 1, "{kept:?}");
    assert!(kept.allocated_bytes > 70_000, "{kept:?}");
}

/// Audit libraries run before the command's own are mapped.
#[test]
fn what_audit_libraries_do_is_not_seen_and_told() {
    let library = build_library("ctorlib.so").display().to_string();
    let (finished, report) = trace_with(&[], &["/bin/true"], &[("LD_AUDIT", &library)]);
    assert_eq!(finished.code, 0, "exit code; stderr:\n{}", finished.stderr);
    assert_unseen(&report, "LD_AUDIT");
}

/// A loader whose function for debuggers has another name.
#[test]
fn a_loader_that_does_not_tell_is_named() {
    let folder = folder();
    let own = folder.path().join("ld-own.so");
    let mut image = fs::read(loader()).unwrap_or_else(|error| panic!("{error}"));
    let name = b"\0_dl_debug_state\0";
    let at: Vec<usize> = image
        .windows(name.len())
        .enumerate()
        .filter_map(|(at, window)| (window == name).then_some(at))
        .collect();
    assert!(!at.is_empty(), "the loader has no such function");
    at.into_iter().for_each(|at| image[at + 1] = b'X');
    fs::write(&own, image).unwrap_or_else(|error| panic!("{error}"));
    fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap_or_else(|error| panic!("{error}"));
    let flag = format!("-Wl,--dynamic-linker={}", own.display());
    let program = link("gcc", folder.path(), &[&flag]);
    let (finished, report) = trace(&[], &[&program]);
    assert_eq!(finished.code, 6, "exit code; stderr:\n{}", finished.stderr);
    assert_unseen(&report, &own.display().to_string());
}

/// Until the session has heard of it and has found its allocator, it runs without probes.
#[test]
fn an_exec_into_another_allocator_is_told() {
    let folder = folder();
    let program = link("musl-gcc", folder.path(), &[]);
    let script = format!("exec {program}");
    let (finished, report) = trace(&[], &["sh", "-c", &script]);
    assert_eq!(finished.code, 6, "exit code; stderr:\n{}", finished.stderr);
    assert_unseen(&report, "some time after their start");
}

/// The same for a child.
#[test]
fn a_child_with_another_allocator_is_told() {
    let program = build_program("neverfrees-musl-static").display().to_string();
    let folder = folder();
    let copy = folder.path().join("copy");
    fs::copy(program, &copy).unwrap_or_else(|error| panic!("{error}"));
    let script = format!("{}; true", copy.display());
    let (finished, report) = trace(&["--children"], &["sh", "-c", &script]);
    assert_eq!(finished.code, 0, "exit code; stderr:\n{}", finished.stderr);
    assert_unseen(&report, "some time after their start");
}

fn assert_unseen(report: &Report, wanted: &str) {
    let unseen = report.value["loss"]["unseen"].as_array().map(Vec::as_slice).unwrap_or_default();
    let has = unseen.iter().any(|line| line.as_str().unwrap_or_default().contains(wanted));
    assert!(has && report.value["loss"]["complete"] == false, "{}", report.value["loss"]);
}
