//! Commands that end, fail, stop and cannot be run.

use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;

fn argv(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn exit_code(words: &[&str]) -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let suspended = Suspended::start(&argv(words)).unwrap();
        let mut child = suspended.resume(false).unwrap();
        let alone = ended(&mut child).await;
        let suspended = Suspended::start(&argv(words)).unwrap();
        let mut child = suspended.resume(true).unwrap();
        assert_eq!(ended(&mut child).await, alone, "followed to its exit");
        alone
    })
}

/// The exit code of a command.
async fn ended(child: &mut Child) -> u8 {
    loop {
        match child.next().await.unwrap() {
            Happened::Leaving(state) => {
                assert!(state.sp > 0 && state.fs_base > 0, "{state:?}");
                child.let_go();
            }
            Happened::Ended(ended) => return ended.exit_code(),
        }
    }
}

/// Follows a command to its exit; returns how often it was about to end, and its exit code.
fn followed(words: &[&str], act: impl FnOnce(u32)) -> (u32, u8) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut child = Suspended::start(&argv(words)).unwrap().resume(true).unwrap();
        act(child.pid());
        let mut leaving = 0;
        loop {
            match child.next().await.unwrap() {
                Happened::Leaving(_) => {
                    leaving += 1;
                    // It is still there.
                    assert!(crate::host::proc::mappings(child.pid()).is_ok());
                    child.let_go();
                }
                Happened::Ended(ended) => return (leaving, ended.exit_code()),
            }
        }
    })
}

#[test]
fn a_followed_command_gets_its_signals() {
    assert_eq!(followed(&["sh", "-c", "exec sh -c 'exit 4'"], |_| {}), (1, 4));
    let trap = "trap 'exit 5' USR1; kill -USR1 $$; while :; do :; done";
    assert_eq!(followed(&["sh", "-c", trap], |_| {}), (1, 5));
    assert_eq!(followed(&["sh", "-c", "kill -SEGV $$"], |_| {}), (1, 139));
    assert_eq!(followed(&["sh", "-c", "kill -KILL $$"], |_| {}).1, 137);
    let children = "sh -c 'exit 1' || (sleep 0.05 & wait); exit 6";
    assert_eq!(followed(&["sh", "-c", children], |_| {}), (1, 6));
}

/// As by Ctrl-Z in a shell, and `fg`.
#[test]
fn a_followed_command_stops_and_goes_on() {
    let state = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().chars().next()
    };
    let act = |pid: u32| {
        let pid_t = Pid::from_raw(pid as i32);
        // It has gone on from where it was held.
        let begin = std::time::Instant::now();
        while state(pid) != Some('S') {
            assert!(begin.elapsed().as_secs() < 10, "{:?}", state(pid));
        }
        for _ in 0..3 {
            nix::sys::signal::kill(pid_t, Signal::SIGSTOP).unwrap();
            // Stopped, and traced: the kernel shows it as traced.
            let start = std::time::Instant::now();
            while !matches!(state(pid), Some('T' | 't')) {
                assert!(start.elapsed().as_secs() < 10, "{:?}", state(pid));
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(matches!(state(pid), Some('T' | 't')), "it stays so");
            nix::sys::signal::kill(pid_t, Signal::SIGCONT).unwrap();
            while matches!(state(pid), Some('T' | 't')) {
                assert!(start.elapsed().as_secs() < 10, "{:?}", state(pid));
            }
        }
        nix::sys::signal::kill(pid_t, Signal::SIGTERM).unwrap();
    };
    assert_eq!(followed(&["sleep", "60"], act), (1, 143));
}

#[test]
fn exit_codes_are_the_commands_own() {
    assert_eq!(exit_code(&["/bin/true"]), 0);
    assert_eq!(exit_code(&["sh", "-c", "exit 3"]), 3);
    assert_eq!(exit_code(&["sh", "-c", "kill -TERM $$"]), 143);
}

#[test]
fn scripts_run() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    fs::write(&script, "#!/bin/sh\nexit 7\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(exit_code(&[script.to_str().unwrap()]), 7);
}

/// There is no dynamic loader: the command's entry point is its first instruction.
#[test]
fn static_programs_run() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("static");
    let mut gcc = Command::new("gcc")
        .args(["-static", "-x", "c", "-", "-o"])
        .arg(&program)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let source = b"int main(int argc, char **argv) { return argc + 40; }";
    io::Write::write_all(&mut gcc.stdin.take().unwrap(), source).unwrap();
    assert!(gcc.wait().unwrap().success());
    assert_eq!(exit_code(&[program.to_str().unwrap(), "more"]), 42);
}

/// The command starts as from a shell: no signal is blocked, and only the signals are ignored that
/// leaktrace was itself started to ignore (`nohup`), not the SIGPIPE that Rust programs ignore.
/// Signals 32 and 33 are left out: they are glibc's own, and ignored in what its posix_spawn
/// starts, as this test may be.
#[test]
fn no_further_signal_is_blocked_or_ignored() {
    const SIGPIPE: u64 = 1 << (libc::SIGPIPE - 1);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap() & 0x7fff_ffff & !SIGPIPE;
    let check = |field, expected: u64| {
        let read = "while read -r name value; do case $name in FIELD:) break;; esac; done";
        let script =
            format!("{read} < /proc/$$/status; test $((0x$value & 0x7fffffff)) = {expected}");
        assert_eq!(exit_code(&["sh", "-c", &script.replace("FIELD", field)]), 0, "{field}");
    };
    check("SigBlk", 0);
    check("SigIgn", ignored);
}

/// The kernel kills the command, so this holds for SIGKILL as well.
#[test]
fn it_dies_with_the_thread_that_holds_it() {
    let hold = || {
        let suspended = Suspended::start(&argv(&["sleep", "60"])).unwrap();
        let pid = suspended.pid;
        // No destructor runs in a thread that is killed.
        std::mem::forget(suspended);
        pid
    };
    let pid = std::thread::spawn(hold).join().unwrap();
    let ended = WaitStatus::Signaled(pid, Signal::SIGKILL, false);
    assert_eq!(waitpid(pid, None).unwrap(), ended);
}

#[test]
fn a_signal_is_forwarded() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let code = runtime.block_on(async {
        let mut child = Suspended::start(&argv(&["sleep", "60"])).unwrap().resume(false).unwrap();
        let pause = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(pause, child.next()).await.is_err());
        // Not SIGINT, which shells have what they start in the background ignore.
        child.forward(libc::SIGTERM);
        ended(&mut child).await
    });
    assert_eq!(code, 143);
}

/// The command's libraries are mapped, and no breakpoint is left in it.
#[test]
fn it_is_held_before_constructors_and_killed_when_dropped() {
    let suspended = Suspended::start(&argv(&["/bin/true"])).unwrap();
    assert_eq!(suspended.unseen(), None);
    let pid = suspended.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("(tracing stop)"), "{status}");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    assert!(maps.contains("libc"), "{maps}");
    let auxiliary = Auxiliary::of(pid).unwrap();
    let Interpreter::Known(loader) = Interpreter::of(pid, &auxiliary) else { panic!("{maps}") };
    assert_eq!(suspended.registers().unwrap().rip, loader.break_address);
    for address in [auxiliary.entry, loader.break_address] {
        let word = ptrace::read(suspended.pid, address as ptrace::AddressType).unwrap();
        assert_ne!(word & 0xff, INT3);
    }
    drop(suspended);
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
}

/// The loader may be the executed program: then it maps the command as well.
#[test]
fn a_loader_that_is_told_what_to_run_has_mapped_it() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let path = |line: &str| line.split_whitespace().nth(5).map(str::to_owned);
    let loader = maps.lines().filter_map(path).find(|path| path.contains("/ld-")).unwrap();
    let suspended = Suspended::start(&argv(&[&loader, "/bin/true"])).unwrap();
    assert_eq!(suspended.unseen(), None);
    let maps = fs::read_to_string(format!("/proc/{}/maps", suspended.pid())).unwrap();
    assert!(maps.contains("/true") && maps.contains("libc"), "{maps}");
    drop(suspended);
    assert_eq!(exit_code(&[&loader, "/bin/sh", "-c", "exit 5"]), 5);
}

/// The command's constructors have not run either, but its entry point is its first instruction.
#[test]
fn musl_is_held_with_its_libraries_mapped() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("musl");
    let source = directory.path().join("musl.c");
    fs::write(&source, "int main(void) { return 6; }").unwrap();
    let built = Command::new("musl-gcc").arg(&source).arg("-o").arg(&program).status().unwrap();
    assert!(built.success());
    let suspended = Suspended::start(&argv(&[program.to_str().unwrap()])).unwrap();
    assert_eq!(suspended.unseen(), None);
    drop(suspended);
    assert_eq!(exit_code(&[program.to_str().unwrap()]), 6);
}

#[test]
fn what_cannot_be_run_is_a_usage_error() {
    let error = Suspended::start(&argv(&["/no/such/file"])).unwrap_err();
    assert!(matches!(error, Error::Usage(_)));
    assert_eq!(error.to_string(), "cannot run `/no/such/file`: No such file or directory");
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Suspended::start(&[file.path().into()]).unwrap_err();
    assert!(error.to_string().ends_with(": Permission denied"), "{error}");
    assert!(matches!(Suspended::start(&[]), Err(Error::Usage(_))));
}
