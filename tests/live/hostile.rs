//! Processes whose files are gone, replaced, copied, damaged or out of sight.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use leaktrace_tests::{
    binary::run,
    kernel::probe_links,
    leaker::Leaker,
    program::{build_program, private_copy},
    report::{Report, Site},
    traced::Traced,
};
use tempfile::TempDir;

/// A folder with a copy of the program, which is not shared with other tests.
fn copy_of(name: &str) -> (TempDir, PathBuf) {
    private_copy(name, name)
}

/// What a program in C needs besides itself, where it is on this machine.
const LIBRARIES: [&str; 2] = ["/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"];

/// A folder with copies of these, by name.
fn private_libraries() -> TempDir {
    let folder = TempDir::new().unwrap_or_else(|error| panic!("{error}"));
    for library in LIBRARIES.map(Path::new) {
        let copy = folder.path().join(library.file_name().unwrap_or_default());
        fs::copy(library, copy).unwrap_or_else(|error| panic!("{}: {error}", library.display()));
    }
    folder
}

/// Runs a program with a C library of its own.
fn with_libraries(folder: &TempDir, program: &Path) -> Leaker {
    let loader = folder.path().join("ld-linux-x86-64.so.2");
    Leaker::launch(Command::new(loader).arg("--library-path").arg(folder.path()).arg(program))
}

/// Traces a program through its stage `holding`; gives the final report, which has its account.
fn trace(mut leaker: Leaker) -> Report {
    let traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--interval", "1h"]);
    leaker.advance("holding");
    let ended = traced.interrupt();
    let report = ended.final_report().clone();
    let (expected, pid) = (leaker.stage().sites(), leaker.pid());
    report.assert_sites(pid, &expected);
    leaker.end();
    report
}

/// The site that holds the program's blocks.
fn biggest(report: &Report) -> Site<'_> {
    let Some(site) = report.sites().into_iter().next() else { panic!("no site") };
    site
}

fn assert_whole(report: &Report) {
    let site = biggest(report);
    assert!(site.has_frame("site_many") && site.has_frame("main"), "{}", report.outline());
    assert_eq!(site.value["truncated"], false, "{}", report.outline());
    report.assert_complete();
}

/// The stack says that it is cut, and why; what it has is right.
fn assert_cut(report: &Report) {
    let site = biggest(report);
    assert_eq!(site.value["truncated"], true, "{}", report.outline());
    assert!(site.value["truncated_reason"].is_string(), "{}", report.outline());
    assert_eq!(site.symbols().first(), Some(&"site_many"), "{}", report.outline());
    assert!(report.loss("stacks_truncated") > 0, "{}", report.outline());
}

/// Changes a section of a program with objcopy.
fn objcopy(program: &Path, arguments: &[&str]) {
    let finished = run(Command::new("objcopy").args(arguments).arg(program));
    assert_eq!(finished.code, 0, "objcopy {arguments:?}: {}", finished.stderr);
}

#[test]
fn a_deleted_program_is_traced_with_its_names() {
    let (_folder, copy) = copy_of("many");
    let leaker = Leaker::launch(&mut Command::new(&copy));
    fs::remove_file(&copy).unwrap_or_else(|error| panic!("{error}"));
    assert_whole(&trace(leaker));
}

/// Another program lies where the process' own was: nothing of it gets into the report.
#[test]
fn a_replaced_program_is_traced_as_it_runs() {
    let (folder, copy) = copy_of("many");
    let leaker = Leaker::launch(&mut Command::new(&copy));
    let other = folder.path().join("other");
    fs::copy(build_program("hotloop"), &other).unwrap_or_else(|error| panic!("{error}"));
    fs::rename(&other, &copy).unwrap_or_else(|error| panic!("{error}"));
    assert_whole(&trace(leaker));
}

#[test]
fn a_program_in_another_mount_namespace_is_traced() {
    let (folder, copy) = copy_of("many");
    let hidden = folder.path().join("hidden");
    fs::create_dir(&hidden).unwrap_or_else(|error| panic!("{error}"));
    let script = "mount -t tmpfs none \"$1\" && cp \"$0\" \"$1/many\" && exec \"$1/many\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(&copy).arg(&hidden);
    let leaker = Leaker::launch(&mut command);
    assert!(!hidden.join("many").exists(), "the program can be seen from here");
    assert_whole(&trace(leaker));
}

/// With frame pointers, a program needs no call frame information.
#[test]
fn a_program_without_call_frame_information_is_walked_by_frame_pointers() {
    assert_whole(&trace(Leaker::start("many-bare", &[])));
}

/// Nothing says where its frames are, and what stands in rbp must not be taken for an answer.
#[test]
fn a_program_without_both_is_cut_after_its_caller() {
    let (_folder, copy) = copy_of("crowd");
    objcopy(&copy, &["--remove-section", ".eh_frame", "--remove-section", ".eh_frame_hdr"]);
    let mut leaker = Leaker::launch(Command::new(&copy).args(["1", "3"]));
    let traced = Traced::start(&["user", "-p", &leaker.pid_arg(), "--interval", "1h"]);
    leaker.advance("holding");
    let ended = traced.interrupt();
    let report = ended.final_report();
    leaker.end();
    let mut sites = report.sites().into_iter();
    let Some(site) = sites.find(|site| site.has_frame("site_crowd")) else {
        panic!("{}", report.outline());
    };
    assert_eq!(site.symbols().first(), Some(&"site_crowd"), "{}", report.outline());
    assert_eq!(site.value["truncated"], true, "{}", report.outline());
    assert!(report.loss("stacks_truncated") > 0, "{}", report.outline());
}

#[test]
fn without_call_frame_information_and_frame_pointers_allowed_a_stack_is_cut() {
    let mut leaker = Leaker::start("many-bare", &[]);
    let pid = leaker.pid_arg();
    let traced = Traced::start(&["user", "-p", &pid, "--unwind", "dwarf", "--interval", "1h"]);
    leaker.advance("holding");
    assert_cut(traced.interrupt().final_report());
    leaker.end();
}

/// Rules that leaktrace has no row for.
#[test]
fn damaged_call_frame_information_cuts_stacks_with_a_reason() {
    let (folder, copy) = copy_of("many");
    let section = folder.path().join("eh_frame");
    let path = section.display().to_string();
    objcopy(&copy, &["--dump-section", &format!(".eh_frame={path}")]);
    let mut bytes = fs::read(&section).unwrap_or_else(|error| panic!("{error}"));
    // DW_CFA_def_cfa_register: frames are found by rbx, which nobody knows.
    for at in 1..bytes.len() {
        if bytes[at - 1..=at] == [0x0d, 6] {
            bytes[at] = 3;
        }
    }
    fs::write(&section, bytes).unwrap_or_else(|error| panic!("{error}"));
    objcopy(&copy, &["--update-section", &format!(".eh_frame={path}")]);
    assert_cut(&trace(Leaker::launch(&mut Command::new(&copy))));
}

/// Images of containers hold the same library in many files: one table does for all of them.
#[test]
fn copies_of_a_program_share_their_table() {
    let copies = [copy_of("many"), copy_of("many")];
    let mut leakers = copies.each_ref().map(|(_, copy)| Leaker::launch(&mut Command::new(copy)));
    let [first, second] = leakers.each_ref().map(Leaker::pid_arg);
    let args = ["user", "-p", &first, "-p", &second, "--interval", "1h", "--verbose"];
    let traced = Traced::start(&args);
    for leaker in &mut leakers {
        leaker.advance("holding");
    }
    let ended = traced.interrupt();
    let report = ended.final_report();
    let has_table = |copy: &Path| {
        ended.finished.stderr.contains(&format!("unwind table of {}", copy.display()))
    };
    let tables = copies.iter().filter(|(_, copy)| has_table(copy)).count();
    assert_eq!(tables, 1, "tables of the two copies:\n{}", ended.finished.stderr);
    for leaker in &leakers {
        report.assert_sites(leaker.pid(), &leaker.stage().sites());
    }
    assert_eq!(report.loss("stacks_truncated"), 0, "{}", report.outline());
    for leaker in leakers {
        leaker.end();
    }
}

/// A container has its own C library, in a place that cannot be seen from here.
#[test]
fn a_program_in_a_container_is_traced() {
    let (folder, copy) = copy_of("many");
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap_or_else(|error| panic!("{error}"));
    let [loader, libc] = LIBRARIES;
    let script = format!(
        "mount -t tmpfs none \"$1\" && cd \"$1\" && mkdir -p lib64 lib/x86_64-linux-gnu && \
         cp {loader} .{loader} && cp {libc} .{libc} && cp \"$0\" many && exec chroot . /many"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).arg(&copy).arg(&root);
    let leaker = Leaker::launch(&mut command);
    assert!(!root.join("many").exists(), "the program can be seen from here");
    assert_whole(&trace(leaker));
}

/// An upgrade takes the C library away under a running program.
#[test]
fn a_program_whose_c_library_was_replaced_is_traced() {
    let libraries = private_libraries();
    let leaker = with_libraries(&libraries, &build_program("many"));
    let libc = libraries.path().join("libc.so.6");
    let other = libraries.path().join("other");
    fs::copy(build_program("hotloop"), &other).unwrap_or_else(|error| panic!("{error}"));
    fs::rename(&other, &libc).unwrap_or_else(|error| panic!("{error}"));
    assert_whole(&trace(leaker));
}

#[test]
fn a_program_whose_c_library_was_deleted_is_traced() {
    let libraries = private_libraries();
    let leaker = with_libraries(&libraries, &build_program("many"));
    fs::remove_file(libraries.path().join("libc.so.6")).unwrap_or_else(|error| panic!("{error}"));
    assert_whole(&trace(leaker));
}

/// Probes are put once into each file, however many processes map it: here three processes and two
/// C libraries.
#[test]
fn each_file_gets_its_probes_once() {
    let folders = [private_libraries(), private_libraries()];
    let (_folder, copy) = copy_of("many");
    let start = |folder| with_libraries(folder, &copy);
    let mut leakers = [start(&folders[0]), start(&folders[0]), start(&folders[1])];
    let links = |leakers: &[Leaker]| {
        let pids: Vec<String> = leakers.iter().map(Leaker::pid_arg).collect();
        let mut args = vec!["user", "--children", "--interval", "1h"];
        args.extend(pids.iter().flat_map(|pid| ["-p", pid]));
        let traced = Traced::start(&args);
        (probe_links(traced.pid()), traced)
    };
    let (of_one, traced) = links(&leakers[..1]);
    assert!(of_one > 0, "no probes");
    traced.interrupt();
    let (of_two_processes, traced) = links(&leakers[..2]);
    assert_eq!(of_two_processes, of_one, "links for two processes with one C library");
    traced.interrupt();
    let (of_two_libraries, traced) = links(&leakers);
    assert_eq!(of_two_libraries, 2 * of_one, "links for two C libraries");
    for leaker in &mut leakers {
        leaker.advance("holding");
    }
    let report = traced.interrupt().final_report().clone();
    for leaker in &leakers {
        report.assert_sites(leaker.pid(), &leaker.stage().sites());
    }
    report.assert_complete();
    for leaker in leakers {
        leaker.end();
    }
}
