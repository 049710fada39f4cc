//! Each allocator, started in each way: what every form of allocation and of freeing gives and
//! takes back, exactly. `docs/allocators.md` has the table of [`ROWS`].

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use leaktrace_tests::{
    SOON,
    binary::{leaktrace, require_root, run, run_with_input, workspace},
    leaker::{Leaker, Stage},
    program::{build_package, build_program},
    report::{Report, number},
    traced::{Ended, Traced, read_reports},
};

/// How a program comes to its allocator.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cell {
    /// It is compiled and linked so.
    Linked(&'static str),
    /// A library is put before the C library of `allocators` (LD_PRELOAD).
    Preloaded(&'static str),
    /// There is none: why.
    None(&'static str),
}

use Cell::{Linked, Preloaded};

/// An allocator, and the programs of each column of the table.
struct Row {
    /// What the table calls it.
    allocator: &'static str,
    /// What a report calls it; empty if it is found by `-O` alone.
    name: &'static str,
    /// Frees of blocks that are not tracked, where they are known: of the three exceptions that
    /// operator new throws, and of jemalloc's sized aligned delete, which calls sdallocx. (glibc
    /// frees what is in the cache of a thread that ends.)
    untracked_frees: Option<u64>,
    /// Calls of its own operator new that the program makes fail.
    thrown: u64,
    attach: Cell,
    run: Cell,
    fixed: Cell,
    container: Cell,
}

const ROWS: [Row; 8] = [
    Row {
        allocator: "glibc",
        name: "glibc",
        untracked_frees: None,
        thrown: 0,
        attach: Linked("allocators"),
        run: Linked("allocators"),
        fixed: Linked("allocators-static"),
        container: Linked("allocators"),
    },
    Row {
        allocator: "musl",
        name: "musl",
        untracked_frees: Some(0),
        thrown: 0,
        attach: Linked("allocators-musl"),
        run: Linked("allocators-musl"),
        fixed: Linked("allocators-musl-static"),
        container: Linked("allocators-musl"),
    },
    Row {
        allocator: "jemalloc",
        name: "jemalloc",
        untracked_frees: Some(5),
        thrown: 3,
        attach: Preloaded("libjemalloc.so.2"),
        run: Linked("allocators-jemalloc"),
        fixed: Linked("allocators-jemalloc-static"),
        container: Preloaded("libjemalloc.so.2"),
    },
    Row {
        allocator: "tcmalloc (gperftools)",
        name: "tcmalloc",
        untracked_frees: Some(3),
        thrown: 3,
        attach: Preloaded("libtcmalloc.so.4"),
        run: Linked("allocators-tcmalloc"),
        fixed: Linked("allocators-tcmalloc-static"),
        container: Preloaded("libtcmalloc_minimal.so.4"),
    },
    Row {
        allocator: "mimalloc",
        name: "mimalloc",
        untracked_frees: Some(0),
        thrown: 0,
        attach: Preloaded("libmimalloc.so.2"),
        run: Linked("allocators-mimalloc"),
        fixed: Cell::None("Debian ships no archive"),
        container: Preloaded("libmimalloc.so.2"),
    },
    Row {
        allocator: "Rust's default",
        name: "glibc",
        untracked_frees: None,
        thrown: 0,
        attach: Linked("allocators-rust"),
        run: Linked("allocators-rust"),
        fixed: Cell::None("as the C library's"),
        container: Linked("allocators-rust"),
    },
    Row {
        allocator: "tikv-jemallocator",
        name: "jemalloc",
        untracked_frees: None,
        thrown: 0,
        attach: Linked(TIKV),
        run: Linked(TIKV),
        fixed: Cell::None("always in the executable"),
        container: Linked(TIKV),
    },
    Row {
        allocator: "another, by `-O`",
        name: "",
        untracked_frees: Some(0),
        thrown: 0,
        attach: Linked("pool"),
        run: Linked("pool"),
        fixed: Linked("pool-static"),
        container: Linked("pool"),
    },
];

/// The one that cargo builds.
const TIKV: &str = "allocators-tikv";

/// Where Debian has libraries.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

impl Cell {
    fn program(self) -> PathBuf {
        match self {
            Linked(TIKV) => build_package("tikv", TIKV),
            Linked(name) => build_program(name),
            Preloaded(_) => build_program("allocators"),
            Cell::None(why) => panic!("no program: {why}"),
        }
    }

    fn preloaded(self) -> Option<PathBuf> {
        match self {
            Preloaded(library) => Some(Path::new(LIBRARIES).join(library)),
            _ => None,
        }
    }

    /// mimalloc ends a process whose operator new fails.
    fn arguments(self) -> &'static [&'static str] {
        let is_mimalloc =
            matches!(self, Linked(name) | Preloaded(name) if name.contains("mimalloc"));
        if is_mimalloc { &["new-never-fails"] } else { &[] }
    }

    fn shown(self) -> String {
        match self {
            Linked(_) => "linked".to_owned(),
            Preloaded(library) => format!("preloaded `{library}`"),
            Cell::None(why) => format!("- ({why})"),
        }
    }

    /// Starts it as it is.
    fn launch(self) -> Leaker {
        let mut command = Command::new(self.program());
        command.args(self.arguments());
        if let Some(library) = self.preloaded() {
            command.env("LD_PRELOAD", library);
        }
        Leaker::launch(&mut command)
    }

    /// Starts it in a mount namespace of its own, where it and its library are files that nobody
    /// else sees, in the folder `hidden`.
    fn launch_hidden(self, hidden: &Path) -> Leaker {
        const SCRIPT: &str = "mount -t tmpfs none \"$0\" && cp -L \"$1\" \"$0/program\" || exit; \
            if [ -n \"$2\" ]; then cp -L \"$2\" \"$0/library.so\" || exit; \
            export LD_PRELOAD=\"$0/library.so\"; fi; shift 2; exec \"$0/program\" \"$@\"";
        fs::create_dir(hidden).unwrap_or_else(|error| panic!("{}: {error}", hidden.display()));
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", SCRIPT]).arg(hidden).arg(self.program());
        command.arg(self.preloaded().unwrap_or_default()).args(self.arguments());
        Leaker::launch(&mut command)
    }
}

/// What a report calls the allocators of a process.
fn allocators(report: &Report, pid: u32) -> String {
    let processes = report.value["processes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let its = processes.iter().find(|process| process["pid"] == pid);
    its.and_then(|process| process["allocator"].as_str()).unwrap_or_default().to_owned()
}

/// Traces all of them in one session, each with the object that `-O` names for it, if any, through
/// their stage `holding`.
fn trace(mut started: Vec<(&Row, Leaker, Option<PathBuf>)>) {
    let mut arguments = vec!["user".to_owned(), "--interval".to_owned(), "1h".to_owned()];
    for (_, leaker, object) in &started {
        arguments.extend(["-p".to_owned(), leaker.pid_arg()]);
        arguments.extend(object.iter().flat_map(|path| ["-O".into(), path.display().to_string()]));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let traced = Traced::start(&arguments);
    for (_, leaker, _) in &mut started {
        leaker.advance("holding");
    }
    let ended = traced.interrupt();
    let report = ended.final_report();
    for (row, leaker, _) in started {
        eprintln!("{}", row.allocator);
        report.assert_sites(leaker.pid(), &leaker.stage().sites());
        let found = allocators(report, leaker.pid());
        assert!(found.contains(row.name), "{}: allocator {found:?}", row.allocator);
        leaker.end();
    }
    report.assert_complete();
}

/// The programs of a column that there are.
fn column(cell: fn(&Row) -> Cell) -> impl Iterator<Item = (&'static Row, Cell)> {
    let cells = ROWS.iter().map(move |row| (row, cell(row)));
    cells.filter(|(_, cell)| !matches!(cell, Cell::None(_)))
}

/// The object of `-O`, where it takes that.
fn object_of(row: &Row, program: PathBuf) -> Option<PathBuf> {
    row.name.is_empty().then_some(program)
}

#[test]
fn attached_to_while_they_run() {
    trace(
        column(|row| row.attach)
            .map(|(row, cell)| (row, cell.launch(), object_of(row, cell.program())))
            .collect(),
    );
}

#[test]
fn in_static_executables() {
    let mut started: Vec<_> = column(|row| row.fixed)
        .map(|(row, cell)| (row, cell.launch(), object_of(row, cell.program())))
        .collect();
    started.push((&ROWS[0], Linked("allocators-static-pie").launch(), None));
    trace(started);
}

#[test]
fn in_containers() {
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    trace(
        column(|row| row.container)
            .enumerate()
            .map(|(index, (row, cell))| {
                let hidden = folder.path().join(index.to_string());
                let leaker = cell.launch_hidden(&hidden);
                let program = hidden.join("program");
                assert!(!program.exists(), "the program can be seen from here");
                (row, leaker, object_of(row, program))
            })
            .collect(),
    );
}

#[test]
fn started_by_leaktrace() {
    require_root();
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let file = folder.path().join("report.json");
    for (row, cell) in column(|row| row.run) {
        eprintln!("{}", row.allocator);
        let program = cell.program();
        let mut command = leaktrace(&["run", "-f", "json", "-T", "100000", "-w"]);
        command.arg(&file);
        if let Some(object) = object_of(row, program.clone()) {
            command.arg("-O").arg(object);
        }
        command.arg("--").arg(program).args(cell.arguments());
        let finished = run_with_input(&mut command, "xx");
        let stages = finished.stdout.lines().map(Stage::parse);
        let Some(holding) = stages.into_iter().find(|stage| stage.name() == "holding") else {
            panic!("no stage `holding`; stderr:\n{}", finished.stderr)
        };
        let pid = u32::try_from(number(&holding.line, "pid")).unwrap_or_default();
        let ended = Ended { reports: read_reports(&file), finished };
        let report = ended.final_report();
        report.assert_sites(pid, &holding.sites());
        report.assert_complete();
        let reasons = &report.value["loss"]["reasons"];
        assert_eq!(reasons["thrown"].as_u64().unwrap_or(0), row.thrown, "{}", row.allocator);
        if let Some(expected) = row.untracked_frees {
            assert_eq!(report.loss("untracked_frees"), expected, "{}", row.allocator);
        }
        let found = allocators(report, pid);
        assert!(found.contains(row.name), "{}: allocator {found:?}", row.allocator);
    }
}

/// The table that people read is what is tested.
#[test]
fn the_documented_table_is_tested() {
    let path = workspace().join("docs/allocators.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{error}"));
    // Other tables follow.
    let own = text.lines().take_while(|line| *line != "## What is not seen");
    let documented: BTreeSet<&str> =
        own.filter(|line| line.matches('|').count() == 6).skip(2).collect();
    let tested: BTreeSet<String> = ROWS
        .iter()
        .map(|row| {
            let cells = [row.attach, row.run, row.fixed, row.container].map(Cell::shown);
            format!("| {} | {} |", row.allocator, cells.join(" | "))
        })
        .collect();
    assert_eq!(documented, tested.iter().map(String::as_str).collect(), "{}", path.display());
}

/// It allocates, but by no function that is known: the report says so, and how to mend it.
#[test]
fn a_process_that_grows_unseen_is_told_of() {
    let mut leaker = Leaker::start("pool", &["grow"]);
    let mut traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--interval", "500ms"]);
    // Its stage comes when it has stopped growing.
    leaker.go_on();
    let report = traced.wait_report("growth without calls is told of", SOON, |report| {
        let unseen = report.value["loss"]["unseen"].as_array().map(Vec::as_slice);
        unseen.unwrap_or_default().iter().any(|line| {
            let line = line.as_str().unwrap_or_default();
            line.contains(&leaker.pid_arg()) && line.contains("-O")
        })
    });
    assert_eq!(report.value["loss"]["complete"], false, "loss: {}", report.value["loss"]);
    let ended = traced.interrupt();
    assert!(ended.finished.stderr.contains("its memory grew by"), "{}", ended.finished.stderr);
    leaker.advance("holding");
    leaker.end();
}

/// One line each, with the cause and the mend.
#[test]
fn objects_that_cannot_be_probed_are_refused() {
    require_root();
    let leaker = Leaker::start("pool", &[]);
    // The first is no allocator, the second is not mapped.
    for object in ["/lib64/ld-linux-x86-64.so.2", "/usr/bin/env"] {
        let args = ["user", "-p", &leaker.pid_arg(), "-d", "1s", "-O", object];
        let finished = run(&mut leaktrace(&args));
        assert_eq!(finished.code, 2, "exit code of -O {object}; stderr:\n{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "lines on stderr:\n{}", finished.stderr);
        assert!(finished.stderr.contains("-O /"), "no -O in {:?}", finished.stderr);
    }
}
