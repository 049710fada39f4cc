//! `holder PID PHASE`: makes a snapshot of a process and drops it, but kills itself by SIGKILL when
//! it comes to a phase (`Forked`; `Prepared2` for the second time). `holder PID stop` stops the
//! process and kills itself then. What is left of the process is for the test to see.

use std::{env, process::ExitCode};

use leaktrace::reach::hold;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let [_, pid, phase] = &arguments[..] else { return ExitCode::from(2) };
    let Ok(pid) = pid.parse() else { return ExitCode::from(2) };
    if phase == "stop" {
        let held = hold::stop(pid, hold::LONGEST_STOP);
        assert!(held.is_ok(), "{:?}", held.err());
        die();
    }
    let (name, wanted) = match phase.strip_suffix('2') {
        Some(name) => (name.to_owned(), 2),
        None => (phase.clone(), 1),
    };
    let mut seen = 0;
    let watch = move |phase| {
        seen += u32::from(format!("{phase:?}") == name);
        if seen == wanted {
            die();
        }
    };
    match hold::snapshot_watched(pid, Box::new(watch)) {
        Ok(view) => drop(view),
        Err(refusal) => panic!("{refusal}"),
    }
    ExitCode::SUCCESS
}

/// As if the kernel had run out of memory: nothing of leaktrace runs any more.
fn die() {
    // SAFETY: kill takes two integers, and this process is its own.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}
