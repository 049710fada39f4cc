//! A child process: its output is read line by line by threads, so that each wait has a deadline
//! and a full pipe never stops the child.

use std::{
    fmt::Debug,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::wait_until;

/// Exit code of a process, or 128 + the signal that ended it, as a shell says it.
pub fn shell_code(status: ExitStatus) -> i32 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => panic!("neither exited nor killed: {status:?}"),
    }
}

/// The lines that came from one pipe until now.
#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    at_end: bool,
}

/// One pipe, read by a thread of its own.
#[derive(Clone, Debug, Default)]
struct Pipe {
    state: Arc<(Mutex<Lines>, Condvar)>,
}

impl Pipe {
    fn read_from(source: impl Read + Send + 'static) -> Self {
        let pipe = Self::default();
        let writer = pipe.clone();
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            // An unreadable pipe ends like a closed one; the wait for its lines then fails.
            while source.read_until(b'\n', &mut line).unwrap_or(0) > 0 {
                let text = String::from_utf8_lossy(&line).into_owned();
                writer.lock().lines.push(text);
                writer.state.1.notify_all();
                line.clear();
            }
            writer.lock().at_end = true;
            writer.state.1.notify_all();
        });
        pipe
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first line at or after `from` that `wanted` accepts, with the index after it; none when
    /// the pipe ended without one or the deadline passed.
    fn wait_line(
        &self,
        from: usize,
        deadline: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Option<(usize, String)> {
        let end = Instant::now() + deadline;
        let mut next = from;
        let mut state = self.lock();
        loop {
            while let Some(line) = state.lines.get(next) {
                next += 1;
                if wanted(line) {
                    return Some((next, line.clone()));
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.at_end || left.is_zero() {
                return None;
            }
            state =
                self.state.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A running child; killed when dropped.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: std::process::Child,
    stdin: Option<ChildStdin>,
    stdout: Pipe,
    stderr: Pipe,
    lines_taken: usize,
}

impl Child {
    /// Starts `command` with three pipes.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = format!("{command:?}");
        let mut process =
            command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let stdin = process.stdin.take();
        let stdout = process.stdout.take().map(Pipe::read_from).unwrap_or_default();
        let stderr = process.stderr.take().map(Pipe::read_from).unwrap_or_default();
        Self { name, process, stdin, stdout, stderr, lines_taken: 0 }
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Writes to its standard input; a child that has ended takes nothing, which its exit tells.
    ///
    /// # Panics
    ///
    /// When the pipe fails in another way, or was closed before.
    pub fn send(&mut self, input: &str) {
        let Some(stdin) = &mut self.stdin else { panic!("stdin of {} is closed", self.name) };
        match stdin.write_all(input.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                panic!("cannot write to {}: {error}", self.name)
            }
            _ => {}
        }
    }

    /// Ends its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The next line of standard output that was not yet taken.
    ///
    /// # Panics
    ///
    /// When none comes within `deadline`.
    pub fn next_line(&mut self, deadline: Duration) -> String {
        match self.stdout.wait_line(self.lines_taken, deadline, |_| true) {
            Some((next, line)) => {
                self.lines_taken = next;
                line
            }
            None => self.fail(&format!("no line on stdout within {deadline:?}")),
        }
    }

    /// Waits until a line of standard error contains `text`.
    ///
    /// # Panics
    ///
    /// When there is none within `deadline`.
    pub fn wait_stderr(&self, text: &str, deadline: Duration) {
        if self.stderr.wait_line(0, deadline, |line| line.contains(text)).is_none() {
            self.fail::<()>(&format!("no line with {text:?} on stderr within {deadline:?}"));
        }
    }

    /// Sends a signal to it, and to nothing else.
    ///
    /// # Panics
    ///
    /// When it cannot be sent.
    pub fn signal(&self, signal: i32) {
        let pid = libc::pid_t::try_from(self.pid()).unwrap_or_else(|error| panic!("{error}"));
        // SAFETY: kill takes two integers; the child is not reaped yet, so its PID is its own.
        let result = unsafe { libc::kill(pid, signal) };
        assert!(result == 0, "kill({pid}, {signal}): {}", std::io::Error::last_os_error());
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Waits for its end: exit code, or 128 + signal.
    ///
    /// # Panics
    ///
    /// When it runs on after `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> i32 {
        let end = Instant::now() + deadline;
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) => return shell_code(status),
                Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) => self.fail(&format!("still running after {deadline:?}")),
                Err(error) => self.fail(&format!("cannot wait: {error}")),
            }
        }
    }

    /// What came on standard error until now.
    pub fn stderr_text(&self) -> String {
        self.stderr.lock().lines.concat()
    }

    /// All output of a child that has ended.
    ///
    /// # Panics
    ///
    /// When another process still holds the pipes open.
    pub fn into_output(self) -> (String, String) {
        for pipe in [&self.stdout, &self.stderr] {
            wait_until("both pipes have ended", crate::SOON, || pipe.lock().at_end);
        }
        (self.stdout.lock().lines.concat(), self.stderr_text())
    }

    /// Panics with everything known of the child.
    fn fail<T>(&self, what: &str) -> T {
        panic!(
            "{what}\ncommand: {}\nstdout:\n{}\nstderr:\n{}",
            self.name,
            self.stdout.lock().lines.concat(),
            self.stderr_text()
        )
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            // Both fail only when it has ended meanwhile.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}
