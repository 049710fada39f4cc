//! Processes under a seccomp filter that knows no return probes, as those of containers: traced
//! where the kernel spares them, refused where it would kill them.

use std::{io, os::unix::process::CommandExt as _, process::Command};

use leaktrace_tests::{
    binary::{Finished, leaktrace, require_root, run},
    leaker::Leaker,
    program::build_program,
    traced::Traced,
};

/// The system calls of the kernel's own probes (arch/x86/entry/syscalls/syscall_64.tbl).
const URETPROBE: u32 = 335;
const UPROBE: u32 = 336;

/// Puts the calling process under a filter that kills it at these calls.
fn deny(calls: [u32; 2]) -> io::Result<()> {
    let code = |code: u32| code as u16;
    let equals = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    let answer = code(libc::BPF_RET | libc::BPF_K);
    // SAFETY: the first four make plain values; the kernel copies the filter.
    unsafe {
        let mut filter = [
            libc::BPF_STMT(code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), 0),
            libc::BPF_JUMP(equals, calls[0], 2, 0),
            libc::BPF_JUMP(equals, calls[1], 1, 0),
            libc::BPF_STMT(answer, libc::SECCOMP_RET_ALLOW),
            libc::BPF_STMT(answer, libc::SECCOMP_RET_KILL_PROCESS),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A command that runs under the filter.
fn filtered(mut command: Command, calls: [u32; 2]) -> Command {
    // SAFETY: the closure makes system calls and allocates nothing.
    unsafe { command.pre_exec(move || deny(calls)) };
    command
}

/// Whether the kernel kills such processes, as doctor says.
fn kills() -> bool {
    let Finished { code, stdout, stderr } = run(&mut leaktrace(&["doctor", "--format", "json"]));
    assert_eq!((code, stderr.as_str()), (0, ""), "exit code and stderr of doctor");
    let document: serde_json::Value =
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}"));
    let mut checks = document["checks"].as_array().into_iter().flatten();
    let check = checks.find(|check| check["name"] == "return probes under seccomp");
    let check = check.unwrap_or_else(|| panic!("no such check in {document}"));
    match (check["status"].as_str(), check["detail"].as_str()) {
        (Some("ok"), _) => false,
        (Some("degraded"), Some("the kernel kills such processes")) => true,
        _ => panic!("no answer: {check}"),
    }
}

#[test]
fn the_filter_of_these_tests_kills() {
    let getppid = libc::SYS_getppid as u32;
    // A shell asks for its parent when it starts.
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "exit 0"]);
    let end = run(&mut filtered(shell, [getppid, UPROBE]));
    assert_eq!(end.code, 128 + libc::SIGSYS, "{}", end.stderr);
}

#[test]
fn processes_under_seccomp_survive() {
    require_root();
    let calls = [URETPROBE, UPROBE];
    let mut leaker = Leaker::launch(&mut filtered(Command::new(build_program("semantics")), calls));
    let pid = leaker.pid_arg();
    if kills() {
        let refused = run(&mut leaktrace(&["user", "-p", &pid, "-d", "1s"]));
        assert_eq!((refused.code, refused.stdout.as_str()), (3, ""), "{}", refused.stderr);
        assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
        assert!(refused.stderr.contains(&format!("process {pid} (")), "{}", refused.stderr);
        leaker.advance("holding");
        leaker.end();
        return;
    }
    let traced = Traced::start(&["user", "-p", &pid, "--interval", "1h"]);
    leaker.advance("holding");
    let report = traced.interrupt().final_report().clone();
    report.assert_sites(leaker.pid(), &leaker.stage().sites());
    leaker.end();
}
