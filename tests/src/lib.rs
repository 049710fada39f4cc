//! The harness of the tests that run the real leaktrace binary.
//!
//! | module | gives |
//! |---|---|
//! | [`binary`] | where leaktrace is, commands of it, `require_root` |
//! | [`program`] | compiles `tests/programs/NAME.c` once |
//! | [`leaker`] | runs one of them through its stages: [`leaker::Leaker`] |
//! | [`traced`] | runs leaktrace until interrupted or done: [`traced::Traced`] |
//! | [`report`] | questions to a report: [`report::Report`] |
//! | [`busy`] | CPUs under load |
//! | [`driver`] | a kernel module of `tests/drivers`, loaded and led: [`driver::Driver`] |
//! | [`groups`] | control groups of a test's own: [`groups::Groups`] |
//! | [`kernel`] | the BPF programs that the kernel has loaded |
//! | [`maps`] | what leaktrace's BPF maps hold of a call |
//! | [`oracle`] | gdb: backtraces of sampled malloc calls |
//! | [`schema`] | docs/schema.json, which every report has to keep |
//! | [`samples`] | compares these with leaktrace's stacks of the same calls |
//! | [`child`] | a child process whose output is read line by line, with deadlines |
//!
//! Nothing here sleeps in the hope that something has happened by then: each wait has a condition
//! and a deadline. What fails panics, so that a test stays short; the message holds both sides.

pub mod binary;
pub mod busy;
pub mod child;
pub mod driver;
pub mod groups;
pub mod jited;
pub mod kernel;
pub mod leaker;
pub mod maps;
pub mod oracle;
pub mod program;
pub mod report;
pub mod samples;
pub mod schema;
pub mod storm;
pub mod traced;

use std::time::{Duration, Instant};

/// For what takes milliseconds unless something is broken; the machine may be slow and busy.
pub const SOON: Duration = Duration::from_secs(120);

/// For a million traced calls, or a report with all symbols of a big set.
pub const LATE: Duration = Duration::from_secs(300);

/// Asks `condition` again and again until it holds.
///
/// # Panics
///
/// When it does not within `deadline`; `what` says what was waited for.
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < deadline, "waited {deadline:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
