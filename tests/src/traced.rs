//! A running leaktrace and its reports.

use std::{path::Path, time::Duration, time::Instant};

use crate::{
    LATE, SOON,
    binary::{Finished, leaktrace, require_root},
    child::Child,
    report::Report,
};

/// A leaktrace that prints JSON reports on stdout; killed when dropped.
#[derive(Debug)]
pub struct Traced {
    child: Child,
    last: Option<Report>,
}

/// A leaktrace that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Every report, oldest first.
    pub reports: Vec<Report>,
    /// Exit code and both outputs.
    pub finished: Finished,
}

impl Ended {
    /// From a finished command that printed reports and nothing else.
    ///
    /// # Panics
    ///
    /// When a line is no report.
    pub fn from_finished(finished: Finished) -> Self {
        Self { reports: finished.stdout.lines().map(Report::parse).collect(), finished }
    }

    /// The final report.
    ///
    /// # Panics
    ///
    /// Unless leaktrace exited with 0 and its last report, and no other, is final.
    pub fn final_report(&self) -> &Report {
        assert_eq!(self.finished.code, 0, "exit code; stderr:\n{}", self.finished.stderr);
        let finals: Vec<bool> = self.reports.iter().map(Report::is_final).collect();
        let Some((last, earlier)) = finals.split_last() else {
            panic!("no report; stderr:\n{}", self.finished.stderr)
        };
        assert!(*last && !earlier.contains(&true), "which reports are final: {finals:?}");
        &self.reports[finals.len() - 1]
    }
}

impl Traced {
    /// Starts `leaktrace ARGS --format json --top 100000` and waits until its probes are on.
    ///
    /// # Panics
    ///
    /// When not root, or when it does not come to trace.
    pub fn start(args: &[&str]) -> Self {
        require_root();
        let mut command = leaktrace(args);
        command.args(["--format", "json", "--top", "100000"]);
        let traced = Self { child: Child::start(&mut command), last: None };
        // Eight processes with an allocator each take a slow machine long.
        traced.child.wait_stderr("tracing", LATE);
        traced
    }

    /// leaktrace's own process ID.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// The next report that was not yet taken.
    ///
    /// # Panics
    ///
    /// When none comes within `deadline`.
    pub fn next_report(&mut self, deadline: Duration) -> Report {
        Report::parse(&self.child.next_line(deadline))
    }

    /// A report that began after this was called; all earlier ones are passed over.
    ///
    /// # Panics
    ///
    /// When none comes within `deadline`.
    pub fn next_fresh_report(&mut self, deadline: Duration) -> Report {
        let now = jiff::Timestamp::now();
        // The time is that of its end: it may have begun before.
        self.wait_report("it is fresh", deadline, |report| {
            let time = report.value["time"].as_str().and_then(|time| time.parse().ok());
            time.is_some_and(|time: jiff::Timestamp| time > now)
        });
        self.next_report(deadline)
    }

    /// Waits for a report that `wanted` accepts; all earlier ones are passed over.
    ///
    /// # Panics
    ///
    /// When none comes within `deadline`; the message holds the last report.
    pub fn wait_report(
        &mut self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&Report) -> bool,
    ) -> Report {
        let end = Instant::now() + deadline;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let report = self.next_report(left + SOON);
            if wanted(&report) {
                return report;
            }
            self.last = Some(report);
        }
        let last = self.last.as_ref().map(Report::outline).unwrap_or_default();
        panic!("no report within {deadline:?} in which {what}; the last one:\n{last}")
    }

    /// Waits until it has said something on standard error, from its start on.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub fn wait_note(&self, text: &str) {
        self.child.wait_stderr(text, LATE);
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// When it has ended.
    pub fn signal(&mut self, signal: i32) {
        assert!(self.child.is_running(), "leaktrace ended; stderr:\n{}", self.child.stderr_text());
        self.child.signal(signal);
    }

    /// Ctrl-C, and the wait for its end.
    ///
    /// # Panics
    ///
    /// When it had ended before, or does not end.
    pub fn interrupt(mut self) -> Ended {
        self.signal(libc::SIGINT);
        self.wait()
    }

    /// SIGKILL, and the wait for its end.
    ///
    /// # Panics
    ///
    /// When it had ended before.
    pub fn kill(mut self) {
        self.signal(libc::SIGKILL);
        assert_eq!(self.child.wait(SOON), 128 + libc::SIGKILL, "how leaktrace ended");
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub fn wait(mut self) -> Ended {
        let code = self.child.wait(LATE);
        let (stdout, stderr) = self.child.into_output();
        Ended::from_finished(Finished { code, stdout, stderr })
    }
}

/// The reports in a file that `--write` left.
///
/// # Panics
///
/// When it cannot be read or holds something else.
pub fn read_reports(path: &Path) -> Vec<Report> {
    let text = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    text.lines().map(Report::parse).collect()
}
