//! What a command allocates from its very start on: static programs, constructors of libraries.

use std::fs;

use leaktrace_tests::{
    binary::{Finished, leaktrace, require_root, run_with_input},
    program::build_program,
    report::{Amounts, Report},
};
use object::{Object as _, ObjectSymbol as _};

/// `leaktrace run OPTIONS -- ARGV` to its end, and its only report.
fn trace(options: &[&str], argv: &[&str]) -> (Finished, Report) {
    require_root();
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let path = folder.path().join("report.json");
    let mut command = leaktrace(&["run", "-f", "json", "-T", "100000", "-w"]);
    command.arg(&path).args(options).arg("--").args(argv);
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
