//! What a tracer tells the session's loop.

/// The result of one event.
#[derive(Debug, Default)]
pub struct Step {
    /// Lines for the person at the terminal.
    pub notes: Vec<String>,
    /// Why nothing is left to trace; `None` while something is and runs.
    pub end: Option<End>,
}

/// Why nothing is left to trace, or what comes before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every traced process has ended.
    Processes,
    /// The command that leaktrace started is at its exit, and waits until it is let go.
    Leaving,
    /// The command that leaktrace started has ended.
    Command {
        /// The command's exit code; 128 and the signal's number if a signal ended it.
        code: u8,
    },
}

impl From<End> for Step {
    fn from(end: End) -> Self {
        Self { end: Some(end), ..Self::default() }
    }
}
