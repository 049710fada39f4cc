//! What a process does not close, beside a kernel that is busy with others' files, connections and
//! processes.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use leaktrace_tests::{
    binary::workspace,
    leaker::Leaker,
    program::build_corpus,
    report::{Report, Site, number},
    traced::Traced,
};

/// Noise until it is dropped.
struct Noise {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Noise {
    /// `round` again and again, with pauses.
    fn new(pause: Duration, mut round: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let is_over = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                round();
                std::thread::sleep(pause);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let is_panicking = std::thread::panicking();
        let result = self.thread.take().map(JoinHandle::join);
        assert!(is_panicking || !matches!(result, Some(Err(_))), "the noise failed");
    }
}

fn run(command: &mut Command) {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

/// The compiler, one file after the other.
fn compilation(folder: &Path) -> Noise {
    let programs = workspace().join("tests/programs");
    let sources = ["semantics.c", "cpp.cpp", "exact.c", "mappings.c"];
    let object = folder.join("object.o");
    let mut number = 0;
    Noise::new(Duration::ZERO, move || {
        let source = programs.join(sources[number % sources.len()]);
        number += 1;
        run(Command::new("g++")
            .args(["-O1", "-w", "-fpermissive", "-x", "c++", "-c"])
            .arg(source)
            .arg("-o")
            .arg(&object));
    })
}

/// Files are made and found: what the kernel remembers of them grows as long as there is memory.
fn files(folder: &Path) -> Noise {
    let folder = folder.to_owned();
    let mut number = 0;
    Noise::new(Duration::from_millis(300), move || {
        let part = folder.join(format!("part{number}"));
        number += 1;
        fs::create_dir(&part).unwrap_or_else(|error| panic!("{}: {error}", part.display()));
        for file in 0..100 {
            let file = part.join(file.to_string());
            fs::write(&file, "x").unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
        run(Command::new("find").arg(&folder).args(["/usr/share/doc", "-size", "+100k"]));
    })
}

/// Data to and fro on a connection within this host. It stays: sockets in TIME_WAIT grow in number
/// for a minute, which is as long as the kernel is traced.
fn traffic() -> Noise {
    let connection = || -> std::io::Result<_> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        Ok((near, listener.accept()?.0))
    };
    let (mut near, mut far) = connection().unwrap_or_else(|error| panic!("{error}"));
    Noise::new(Duration::from_millis(5), move || {
        let mut there_and_back = || -> std::io::Result<()> {
            near.write_all(&[1; 3000])?;
            far.read_exact(&mut [0; 3000])?;
            far.write_all(&[2; 9000])?;
            near.read_exact(&mut [0; 9000])
        };
        there_and_back().unwrap_or_else(|error| panic!("{error}"));
    })
}

/// Traces the kernel for a minute with the default options, while a case of the corpus leaks
/// beside noise; gives the final report and the process.
fn trace(case: &str, noise: impl FnOnce(&Path) -> Vec<Noise>) -> (Report, u32) {
    let mut leaker = Leaker::launch(Command::new(build_corpus("corpus-kernel")).arg(case));
    let folder = tempfile::tempdir_in(leaktrace_tests::binary::target_dir())
        .unwrap_or_else(|error| panic!("{error}"));
    let traced = Traced::start(&["kernel", "-d", "60s"]);
    let noise = noise(folder.path());
    leaker.go_on();
    let ended = traced.wait();
    drop(noise);
    let report = ended.final_report().clone();
    println!("{case}:\n{}", first_rows(&report, leaker.pid()));
    (report, leaker.pid())
}

/// Whether the process allocated what stands in a row.
fn is_of(site: &Site<'_>, pid: u32) -> bool {
    let outstanding = number(site.value, "outstanding_count");
    outstanding > 0 && site.held_by(pid) * 10 >= outstanding * 9
}

/// Rows that say what stands first, and where the leak's rows are.
fn first_rows(report: &Report, pid: u32) -> String {
    let rows = report.sites().into_iter().enumerate();
    let shown = rows.filter(|(index, site)| *index < 12 || is_of(site, pid));
    let lines = shown.map(|(index, site)| {
        let verdict = &site.value["verdict"];
        format!(
            "  #{} {} {} {} of {}, {} B, {} {}/{} {}\n",
            index + 1,
            site.symbols().into_iter().take(5).collect::<Vec<_>>().join(" < "),
            site.cache(),
            site.value["outstanding_count"],
            site.value["allocated_count"],
            site.value["outstanding_bytes"],
            if is_of(&site, pid) { "the leak" } else { "other" },
            verdict["confidence"],
            verdict["class"],
            verdict["evidence"],
        )
    });
    lines.collect()
}

/// The place of the leak's first call site, from 1 on. The rows of its slab cache have `blocks` of
/// the process: there is one for the calls whose stacks are known, and one for those before.
///
/// The rows of a call site follow one another, and begin with the same call.
fn place(report: &Report, pid: u32, blocks: u64) -> usize {
    let sites = report.sites();
    let Some(place) = sites.iter().position(|site| is_of(site, pid)) else {
        panic!("no row is the leak's")
    };
    let same = sites.iter().filter(|site| site.cache() == sites[place].cache());
    let held: u64 = same.map(|site| site.held_by(pid)).sum();
    assert!(held >= blocks, "{held} blocks of the process:\n{}", first_rows(report, pid));
    let call = |site: &Site<'_>| {
        let first = &site.value["stack"][0];
        (site.cache().to_owned(), first["symbol"].clone(), first["offset"].clone())
    };
    let mut before: Vec<_> = sites.iter().take(place + 1).map(call).collect();
    before.dedup();
    before.len()
}

#[test]
fn sockets_leaked_during_a_compilation_stand_first() {
    let (report, pid) = trace("sockets", |folder| vec![compilation(folder)]);
    assert_eq!(place(&report, pid, 400), 1, "{}", first_rows(&report, pid));
}

#[test]
fn an_eventfd_a_second_stands_among_the_first_three() {
    let (report, pid) = trace("eventfd", |folder| vec![files(folder), traffic()]);
    assert!(place(&report, pid, 50) <= 3, "{}", first_rows(&report, pid));
}

#[test]
fn pipes_leaked_beside_everything_stand_among_the_first_three() {
    let (report, pid) = trace("pipes", |folder| {
        let parts = folder.join("files");
        fs::create_dir(&parts).unwrap_or_else(|error| panic!("{error}"));
        vec![compilation(folder), files(&parts), traffic()]
    });
    assert!(place(&report, pid, 100) <= 3, "{}", first_rows(&report, pid));
}
