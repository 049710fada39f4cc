//! Kernel mode: whose the memory is, by process and by command, also once the process has ended.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use leaktrace_tests::{
    SOON,
    leaker::Leaker,
    report::{Report, number},
    traced::Traced,
    wait_until,
};
use serde_json::Value;

/// Files in it are kernel memory for as long as they are there (tmpfs).
const FOLDER: &str = "/dev/shm";
/// One object of it for each file.
const CACHE: &str = "shmem_inode_cache";

/// What an operation gives, which cannot fail here.
fn done<T>(result: io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a short command of this name that makes a file and ends; gives its process ID.
fn make_file(folder: &Path, called: &str, file: &str) -> u32 {
    // A process is called as its file.
    let program = folder.join(called);
    if !program.exists() {
        done(fs::copy("/usr/bin/touch", &program));
    }
    let mut child = done(Command::new(&program).arg(folder.join(file)).spawn());
    let pid = child.id();
    assert!(done(child.wait()).success());
    pid
}

/// The holders of all sites, as (command, whether ended, blocks).
fn holders(report: &Report) -> Vec<(String, bool, u64)> {
    let all = report
        .sites()
        .into_iter()
        .flat_map(|site| site.value["holders"].as_array().cloned().unwrap_or_default().into_iter());
    all.map(|holder| {
        let comm = holder["comm"].as_str().unwrap_or_default().to_owned();
        (comm, holder["exited"] == true, number(&holder, "outstanding_count"))
    })
    .collect()
}

fn sum_of(report: &Report, comm: &str, exited: bool) -> u64 {
    let its = holders(report).into_iter().filter(|(name, has, _)| name == comm && *has == exited);
    its.map(|(_, _, count)| count).sum()
}

/// 60 runs of a command are one holder, also where more have ended than a site has holders.
#[test]
fn commands_that_have_ended_have_their_name() {
    let folder = tempfile::tempdir_in(FOLDER).unwrap();
    fs::copy("/usr/bin/touch", folder.path().join("lt-short")).unwrap();
    let traced =
        Traced::start(&["kernel", "--cache", CACHE, "--by", "process", "--interval", "1h"]);
    for number in 0..60 {
        make_file(folder.path(), "lt-short", &number.to_string());
    }
    let ended = traced.interrupt();
    let report = ended.final_report();
    assert_eq!(sum_of(report, "lt-short", true), 60, "{}", report.outline());
    let Some(groups) = report.value["groups"].as_array() else { panic!("{}", report.value) };
    let its: Vec<&Value> = groups.iter().filter(|group| group["name"] == "lt-short").collect();
    assert_eq!(its.len(), 1, "{}", report.value["groups"]);
    assert_eq!(its[0]["outstanding_count"], 60);
    assert_eq!(its[0]["exited"], true);
}

/// A process that has an ended one's number now does not give it its name.
#[test]
fn a_number_that_is_given_again_does_not_give_its_name() {
    let folder = tempfile::tempdir_in(FOLDER).unwrap();
    fs::copy("/usr/bin/touch", folder.path().join("lt-short")).unwrap();
    let traced = Traced::start(&["kernel", "--cache", CACHE, "--interval", "1h"]);
    let pid = make_file(folder.path(), "lt-short", "file");
    let mut next = with_number(pid);
    wait_until("it has its own name", SOON, || comm(pid) == "cat");
    let ended = traced.interrupt();
    let report = ended.final_report();
    drop(next.stdin.take());
    next.wait().unwrap();
    assert_eq!(sum_of(report, "lt-short", true), 1, "{}", report.outline());
    assert_eq!(sum_of(report, "cat", false), 0, "{}", report.outline());
}

/// The command name of a process that runs.
fn comm(pid: u32) -> String {
    done(fs::read_to_string(format!("/proc/{pid}/comm"))).trim_end().to_owned()
}

/// A `cat` with this process ID, which ends when its input does.
fn with_number(pid: u32) -> Child {
    let end = Instant::now() + SOON;
    loop {
        // The next one that begins has the next number; another may come first.
        done(fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()));
        let mut cat = Command::new("/usr/bin/cat");
        cat.arg0("cat").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = done(cat.spawn());
        if child.id() == pid {
            return child;
        }
        drop(child.stdin.take());
        done(child.wait());
        assert!(Instant::now() < end, "no process got the number {pid}");
    }
}

/// Percpu memory belongs to a process as any other does: all that is outstanding has a holder.
#[test]
fn percpu_memory_has_its_process() {
    // Its loopback device has percpu counters.
    let mut child = Command::new("/bin/sh")
        .args(["-c", "read line && exec unshare --net cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    let args = ["kernel", "--kind", "percpu", "--by", "process", "-p", &pid.to_string()];
    let mut traced = Traced::start(&[&args[..], &["-i", "200ms"]].concat());
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"go\n").unwrap();
    traced.wait_report("it is in a namespace of its own", SOON, |report| {
        report.sum(|site| site.kind() == "percpu").outstanding_count > 0 && comm(pid) == "cat"
    });
    let report = traced.interrupt().final_report().clone();
    drop(input);
    child.wait().unwrap();
    let all = report.sum(|_| true);
    let groups = &report.value["groups"];
    assert_eq!(groups[0]["pid"], pid, "{groups}");
    assert_eq!(groups[0]["outstanding_bytes"], all.outstanding_bytes, "{groups}");
    assert_eq!(groups[0]["outstanding_count"], all.outstanding_count, "{groups}");
}

/// A thread's own name and its process' both name it.
#[test]
fn a_command_name_is_that_of_the_process_or_of_the_thread() {
    for (comm, pipes) in [("renamed", 150), ("worker", 100)] {
        let mut program = Leaker::start("renamed", &[]);
        let args = ["kernel", "--comm", comm, "--kind", "slab", "--stacks", "all", "-i", "1h"];
        let traced = Traced::start(&args);
        program.advance("holding");
        let ended = traced.interrupt();
        let report = ended.final_report();
        let calls: u64 = report
            .sites()
            .into_iter()
            .filter(|site| {
                site.value["owner"] == "alloc_pipe_info"
                    && site.symbols().first() == Some(&"alloc_pipe_info")
            })
            .map(|site| site.held_by(program.pid()))
            .sum();
        // A pipe is two kmallocs of this function: itself and its ring.
        assert_eq!(calls, 2 * pipes, "--comm {comm}:\n{}", report.outline());
        program.end();
    }
}
