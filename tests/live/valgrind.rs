//! Valgrind's count of the same programs: every allocation from their very start on, every free,
//! every byte asked for.

use std::{fs, path::Path, process::Command};

use leaktrace_tests::{
    binary::{leaktrace, require_root, run_with_input},
    report::{Amounts, Report},
};

/// What both programs see: nothing of the user's, and nothing that differs from run to run.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/usr/bin:/bin"),
    ("HOME", "/nonexistent"),
    ("PYTHONMALLOC", "malloc"),
    ("PYTHONHASHSEED", "0"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
];

/// Allocations, frees, and bytes asked for.
type Figures = [u64; 3];

/// What Valgrind counts. It is told not to free what the C and C++ libraries keep: that is no free
/// of the program.
fn by_valgrind(argv: &[&str], folder: &Path) -> Figures {
    let log = folder.join("valgrind");
    let mut command = Command::new("valgrind");
    command.env_clear().envs(ENVIRONMENT);
    command.args(["--run-libc-freeres=no", "--run-cxx-freeres=no"]);
    command.arg(format!("--log-file={}", log.display())).args(argv);
    run_with_input(&mut command, "");
    let text = fs::read(&log).unwrap_or_else(|error| panic!("no log of valgrind: {error}"));
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find_map(|line| line.split("total heap usage: ").nth(1));
    let line = line.unwrap_or_else(|| panic!("no figures of {argv:?} in\n{text}"));
    let figures: Vec<u64> =
        line.split(' ').filter_map(|word| word.replace(',', "").parse().ok()).collect();
    figures.try_into().unwrap_or_else(|_| panic!("three figures: {line}"))
}

/// What leaktrace counts, with the variables that Valgrind adds to the environment: a program may
/// keep a copy of them.
fn by_leaktrace(argv: &[&str], folder: &Path) -> (Figures, Report) {
    let path = folder.join("report");
    let mut added = Command::new("valgrind");
    added.env_clear().envs(ENVIRONMENT).args(["-q", "env"]);
    let added = run_with_input(&mut added, "").stdout;
    let mut command = leaktrace(&["run", "-q", "-f", "json", "-T", "100000", "-w"]);
    command.arg(&path).arg("--").args(argv);
    command.env_clear().envs(added.lines().filter_map(|line| line.split_once('=')));
    run_with_input(&mut command, "");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("no report: {error}"));
    let report = Report::parse(text.trim_end());
    let totals = Amounts::of(&report.value["totals"]);
    let mut figures = [totals.allocated_count, totals.freed_count, totals.allocated_bytes];
    for kept in ["c_library", "cplusplus_library"].map(|library| report.kept(library)) {
        let more = [kept.allocated_count, kept.freed_count, kept.allocated_bytes];
        figures.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    }
    (figures, report)
}

fn check(argv: &[&str]) {
    require_root();
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let expected = by_valgrind(argv, folder.path());
    let (figures, report) = by_leaktrace(argv, folder.path());
    report.assert_complete();
    assert!(expected[0] > 0, "{argv:?} allocates nothing");
    assert_eq!(figures, expected, "allocations, frees and bytes of {argv:?}");
}

#[test]
fn as_many_allocations_as_valgrind_counts() {
    check(&["ls", "-l", "/usr/share"]);
    check(&["sort", "/etc/services"]);
    check(&["sqlite3", ":memory:", "create table t(a); insert into t values(1); select * from t;"]);
    // C++, with a pool that a constructor allocates.
    check(&["g++", "--version"]);
    check(&["git", "--version"]);
}

/// The table in docs/allocators.md.
#[test]
#[ignore = "prints a table"]
fn table_beside_valgrind() {
    require_root();
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    eprintln!("| program | allocations | frees | bytes | Valgrind |");
    for line in PROGRAMS.lines().filter(|line| !line.is_empty()) {
        let argv: Vec<&str> = line.split(' ').collect();
        let [allocs, frees, bytes] = by_valgrind(&argv, folder.path());
        let (figures, report) = by_leaktrace(&argv, folder.path());
        let differences: Vec<String> = figures
            .iter()
            .zip([allocs, frees, bytes])
            .map(|(ours, theirs)| format!("{:+}", theirs as i64 - *ours as i64))
            .collect();
        let verdict = match figures == [allocs, frees, bytes] {
            true => "the same".to_owned(),
            false => differences.join(", "),
        };
        let complete = if report.value["loss"]["complete"] == true { "" } else { ", not complete" };
        let [allocs, frees, bytes] = figures;
        eprintln!("| `{line}` | {allocs} | {frees} | {bytes} | {verdict}{complete} |");
    }
}

const PROGRAMS: &str = "
ls -l /usr/share
cat /etc/passwd
sort /etc/services
grep -r root /etc/passwd
sed s/a/b/ /etc/passwd
mawk {n[$1]++} /etc/services
tar cf - /usr/share/doc/bash
gzip -c /etc/services
find /usr/share/doc/bash
diff /etc/passwd /etc/group
bc --version
make --version
bash -c :
perl -e 1
openssl version
sqlite3 :memory: .tables
git --version
python3 -I -c pass
python3 -c pass
redis-server --version
ld --version
ld.gold --version
objdump -f /usr/bin/true
g++ --version
gdb -nx --version
";
