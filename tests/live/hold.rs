//! A process that is stopped or copied for a look goes on as it was, whatever becomes of leaktrace.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    process::Command,
    time::{Duration, Instant},
};

use leaktrace::reach::{
    hold::{self, LONGEST_STOP},
    view::View,
};
use leaktrace_tests::{
    SOON,
    binary::{require_root, run},
    busy::with_busy_cpus,
    child::Child,
    groups::Groups,
    leaker::Leaker,
    report::number,
    wait_until,
};

fn held(arguments: &[&str]) -> Leaker {
    require_root();
    Leaker::start("held", arguments)
}

fn snapshot(pid: u32) -> View {
    hold::snapshot(pid).unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn stop(pid: u32) -> View {
    hold::stop(pid, LONGEST_STOP).unwrap_or_else(|refusal| panic!("{refusal}"))
}

/// The children of all threads of a process.
fn children(pid: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap_or_else(|error| panic!("{error}"));
    let paths = tasks.flatten().map(|task| task.path().join("children"));
    paths.filter_map(|path| fs::read_to_string(path).ok()).collect()
}

fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.map(|line| line.trim().to_owned()).unwrap_or_default()
}

/// The states of all threads of a process.
fn states(pid: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap_or_else(|error| panic!("{error}"));
    let stats =
        tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    stats.filter_map(|stat| stat.rsplit(')').next()?.trim_start().chars().next()).collect()
}

/// Nothing of a look is left: no child, no tracer, no stopped thread, no blocked signal.
fn check_free(pid: u32, blocked: &str) {
    assert_eq!(children(pid), "", "children");
    check_let_go(pid, blocked);
}

fn check_let_go(pid: u32, blocked: &str) {
    // A thread that was in the middle of a call goes its way back first.
    wait_until("all threads are let go", SOON, || {
        status(pid, "TracerPid") == "0"
            && status(pid, "SigBlk") == blocked
            && !states(pid).contains(['t', 'T'])
    });
}

/// The twelve calls, after `looks` at their process.
fn check_calls(looks: &str, lost: u64, look: impl Fn(u32)) {
    let mut program = held(&["calls"]);
    let pid = program.pid();
    let blocked = status(pid, "SigBlk");
    look(pid);
    check_free(pid, &blocked);
    let done = program.advance("done").line.clone();
    for (call, count) in done["broken_off"].as_object().into_iter().flatten() {
        // These three end with EINTR after any stop: the kernel does not make them again.
        let may = ["epoll_wait", "sigwaitinfo", "semop"].contains(&call.as_str());
        let most = if may { lost } else { 0 };
        assert!(count.as_u64() <= Some(most), "{call} broken off {count} times by {looks}: {done}");
    }
    let broken_off = done["broken_off"].as_object().map(|calls| calls.len());
    assert_eq!((broken_off, number(&done, "handled")), (Some(12), 1), "{done}");
    // To its full length, and not from the start again.
    let slept = number(&done, "slept_ms");
    assert!((1500..2500).contains(&slept), "nanosleep of 1500 ms took {slept}");
    program.end();
}

#[test]
fn blocking_calls_survive_a_stop() {
    check_calls("a stop", 1, |pid| drop(stop(pid)));
}

#[test]
fn blocking_calls_survive_a_snapshot() {
    // One stop for the copy, one of a single thread for its end.
    check_calls("a snapshot", 2, |pid| drop(snapshot(pid)));
}

#[test]
fn every_register_is_read() {
    let mut program = held(&["registers"]);
    let pid = program.pid();
    let ready = program.stage().line.clone();
    for view in [stop as fn(u32) -> View, snapshot] {
        let view = view(pid);
        assert_eq!((view.threads.len(), view.is_consistent), (3, true));
        for kind in ["general", "vector"] {
            let address = number(&ready, kind);
            // The first thread has them left over from printing them.
            let others = view.threads.iter().filter(|thread| thread.tid != pid);
            let holders = others.filter(|thread| thread.words.contains(&address));
            assert_eq!(holders.count(), 1, "threads with the {kind} register");
        }
        for thread in &view.threads {
            assert!(thread.sp > 0 && thread.ip > 0 && thread.fs_base > 0, "{thread:x?}");
        }
    }
    check_free(pid, "0000000000000000");
    assert_eq!(number(&program.advance("done").line, "wrong"), 0);
    program.end();
}

#[test]
fn threads_compute_on_under_many_looks() {
    let mut program = held(&["compute"]);
    let pid = program.pid();
    with_busy_cpus(|| {
        for _ in 0..50 {
            drop(stop(pid));
            drop(snapshot(pid));
        }
    });
    check_free(pid, "0000000000000000");
    let done = program.advance("done").line.clone();
    assert_eq!(number(&done, "wrong"), 0, "{done}");
    program.end();
}

#[test]
fn no_signal_is_lost() {
    let mut program = held(&["signals"]);
    let pid = program.pid();
    let signal = number(&program.stage().line, "signal") as i32;
    let mut sent = 0;
    let mut looks = 0;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let mut sent = 0;
            while start.elapsed() < Duration::from_secs(3) {
                // SAFETY: kill takes two integers; the program is the test's own child.
                if unsafe { libc::kill(pid as i32, signal) } == 0 {
                    sent += 1;
                }
                std::thread::sleep(Duration::from_micros(50));
            }
            sent
        });
        while !sender.is_finished() {
            drop(stop(pid));
            drop(snapshot(pid));
            looks += 1;
        }
        sent = sender.join().unwrap_or_else(|_| panic!("the sender failed"));
    });
    assert!(sent > 1000 && looks > 10, "{sent} signals in {looks} looks");
    wait_until("the signals are taken", SOON, || status(pid, "ShdPnd") == "0000000000000000");
    let done = program.advance("done").line.clone();
    assert_eq!((number(&done, "handled"), number(&done, "wrong")), (sent, 0), "{done}");
    program.end();
}

#[test]
fn threads_that_come_and_go_are_all_held() {
    let mut program = held(&["churn"]);
    let pid = program.pid();
    for _ in 0..30 {
        let view = stop(pid);
        let listed = fs::read_dir(format!("/proc/{pid}/task")).map(Iterator::count);
        // None runs that was not seen; those that ended are in neither.
        assert_eq!(listed.ok(), Some(view.threads.len()));
        drop(view);
        drop(snapshot(pid));
    }
    check_free(pid, "0000000000000000");
    let done = program.advance("done").line.clone();
    assert_eq!(number(&done, "wrong"), 0, "{done}");
    program.end();
}

#[test]
fn ten_thousand_threads_are_held() {
    let program = held(&["many", "10000"]);
    let pid = program.pid();
    for view in [|pid| hold::stop(pid, Duration::from_secs(9)), hold::snapshot] {
        let begin = Instant::now();
        let view = view(pid).unwrap_or_else(|refusal| panic!("{refusal}"));
        assert_eq!(view.threads.len(), 10_001);
        drop(view);
        assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    }
    check_free(pid, "0000000000000000");
    program.end_after("done");
}

#[test]
fn a_process_without_its_first_thread_is_held() {
    let program = held(&["leaderless"]);
    let pid = program.pid();
    wait_until("the leader is a zombie", SOON, || status(pid, "State").starts_with('Z'));
    for view in [stop as fn(u32) -> View, snapshot] {
        let view = view(pid);
        assert_eq!(view.threads.len(), 1);
        assert_ne!(view.memory_pid, pid);
        let maps = fs::read_to_string(format!("/proc/{}/maps", view.memory_pid));
        assert!(maps.is_ok_and(|maps| maps.contains("libc")));
    }
    wait_until("its thread sleeps again", SOON, || states(pid).contains('S'));
    program.end_after("done");
}

#[test]
fn descriptors_close_in_time_while_a_snapshot_lives() {
    let mut program = held(&["closer"]);
    let pid = program.pid();
    let view = snapshot(pid);
    assert_ne!(view.memory_pid, pid);
    let done = program.advance("done").line.clone();
    assert!(number(&done, "waited_ms") < 1000, "{done}");
    drop(view);
    check_free(pid, "0000000000000000");
    program.end();
}

#[test]
fn a_snapshot_has_the_memory_of_its_moment() {
    let mut program = held(&["areas"]);
    let ready = program.stage().line.clone();
    let view = snapshot(program.pid());
    program.advance("done");
    let place = |name: &str| number(&ready, name);
    for name in ["missing", "wiped"] {
        let address = place(name);
        assert!(view.from_target.contains(&(address..address + 4096)), "{:x?}", view.from_target);
    }
    assert_eq!(view.from_target.len(), 2, "{:x?}", view.from_target);
    let read = |pid: u32, name: &str| {
        let mut byte = [0];
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap_or_else(|e| panic!("{e}"));
        memory.read_exact_at(&mut byte, place(name)).map(|()| char::from(byte[0])).ok()
    };
    // Written since.
    assert_eq!(read(view.memory_pid, "plain"), Some('a'));
    assert_eq!(read(program.pid(), "plain"), Some('b'));
    assert_eq!(read(view.memory_pid, "shared"), Some('s'));
    assert_eq!(read(view.memory_pid, "missing"), None);
    assert_eq!(read(view.memory_pid, "wiped"), Some('\0'));
    drop(view);
    check_free(program.pid(), "0000000000000000");
    program.end();
}

#[test]
fn what_could_be_hurt_is_refused() {
    let refused = |view: Result<View, hold::Refusal>, words: &str| match view {
        Ok(_) => panic!("not refused: {words}"),
        Err(refusal) => {
            let line = refusal.to_string();
            assert!(line.contains(words) && !line.contains('\n'), "{words:?} in {line:?}");
        }
    };
    let filtered = held(&["filter"]);
    refused(hold::snapshot(filtered.pid()), "is under seccomp");
    drop(stop(filtered.pid()));
    filtered.end_after("done");

    let program = held(&["closer"]);
    refused(hold::stop(program.pid(), Duration::ZERO), "would be stopped for about 0.");
    // One that another traces runs on under it.
    let tracer = Child::start(Command::new("strace").args(["-f", "-p", &program.pid_arg()]));
    wait_until("strace traces it", SOON, || status(program.pid(), "TracerPid") != "0");
    for view in [hold::snapshot as fn(u32) -> _, |pid| hold::stop(pid, LONGEST_STOP)] {
        refused(view(program.pid()), "(strace) already");
    }
    assert_eq!(status(program.pid(), "TracerPid"), tracer.pid().to_string());
    drop(tracer);
    program.end_after("done");

    refused(hold::snapshot(u32::MAX), "has ended");
    refused(hold::stop(u32::MAX, LONGEST_STOP), "has ended");
}

#[test]
fn a_control_group_without_room_refuses_the_copy() {
    let program = held(&["many", "50"]);
    let groups = Groups::new();
    let pids = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // The controller is in the older hierarchy on some hosts, in the unified one on others.
    let folder = match pids.lines().find(|line| line.contains(":pids:")) {
        Some(_) => std::path::PathBuf::from(format!("/sys/fs/cgroup/pids/lt-{}", program.pid())),
        None => {
            let above = groups.outer().parent().map(|above| above.join("cgroup.subtree_control"));
            let above = above.unwrap_or_default();
            fs::write(above, "+pids").unwrap_or_else(|error| panic!("{error}"));
            groups.outer().to_owned()
        }
    };
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{error}"));
    let write = |file: &str, text: &str| {
        fs::write(folder.join(file), text).unwrap_or_else(|error| panic!("{file}: {error}"));
    };
    write("cgroup.procs", &program.pid_arg());
    write("pids.max", "51");
    let refusal = hold::snapshot(program.pid()).err().map(|refusal| refusal.to_string());
    write("pids.max", "52");
    drop(snapshot(program.pid()));
    check_free(program.pid(), "0000000000000000");
    program.end_after("done");
    fs::remove_dir(&folder).unwrap_or_else(|error| panic!("{error}"));
    assert!(refusal.as_ref().is_some_and(|line| line.contains("(pids.max)")), "{refusal:?}");
}

/// Kills a holder in each phase: the process computes on, and what a fork leaves behind is at most
/// a zombie.
#[test]
fn a_process_outlives_a_holder_that_is_killed() {
    let phases = [
        "stop",
        "Stopped",
        "Prepared",
        "Entered",
        "Forked",
        "Owned",
        "Returned",
        "Restored",
        "Ready",
        "Killed",
        "Prepared2",
        "Entered2",
        "Returned2",
        "Restored2",
    ];
    for phase in phases {
        let mut program = held(&["compute"]);
        let pid = program.pid();
        let mut holder = Command::new(env!("CARGO_BIN_EXE_holder"));
        let ended = run(holder.args([&pid.to_string(), phase]));
        assert_eq!(ended.code, 128 + libc::SIGKILL, "{phase}: {}", ended.stderr);
        wait_until("the kernel has let go of the process", SOON, || {
            status(pid, "TracerPid") == "0" && !states(pid).contains(['t', 'T'])
        });
        for fork in children(pid).split_whitespace() {
            let fork: u32 = fork.parse().unwrap_or_else(|error| panic!("{error}"));
            wait_until("the fork is dead", SOON, || status(fork, "State").starts_with('Z'));
        }
        check_let_go(pid, "0000000000000000");
        let done = program.advance("done").line.clone();
        assert_eq!(number(&done, "wrong"), 0, "{phase}: {done}");
        program.end();
    }
}

#[test]
fn a_process_outlives_holders_that_are_killed_at_any_moment() {
    let mut program = held(&["compute"]);
    let pid = program.pid();
    for round in 0..60_u64 {
        let mut holder = Command::new(env!("CARGO_BIN_EXE_holder"));
        let holder = Child::start(holder.args([&pid.to_string(), "None"]));
        std::thread::sleep(Duration::from_micros(round * 331 % 12_000));
        holder.signal(libc::SIGKILL);
        drop(holder);
    }
    wait_until("the kernel has let go of the process", SOON, || {
        status(pid, "TracerPid") == "0" && !states(pid).contains(['t', 'T'])
    });
    check_let_go(pid, "0000000000000000");
    let done = program.advance("done").line.clone();
    assert_eq!(number(&done, "wrong"), 0, "{done}");
    program.end();
}

#[test]
fn a_process_that_ends_under_a_snapshot_leaves_nothing() {
    let program = held(&["compute"]);
    let view = snapshot(program.pid());
    let fork = view.memory_pid;
    assert!(fs::exists(format!("/proc/{fork}")).is_ok_and(|is_there| is_there));
    // Killed.
    drop(program);
    drop(view);
    wait_until("init has waited for the fork", SOON, || !status(fork, "State").contains('R'));
    assert!(["", "Z (zombie)"].contains(&status(fork, "State").as_str()));
}
