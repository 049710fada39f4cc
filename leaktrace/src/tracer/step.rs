//! What a tracer tells the loop that it is in.

/// What came of one thing that happened.
#[derive(Debug, Default)]
pub struct Step {
    /// Lines for the person at the terminal.
    pub notes: Vec<String>,
    /// Whether nothing is left to trace.
    pub end: Option<End>,
}

/// Why nothing is left to trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every traced process has ended.
    Processes,
    /// The command that was started has ended.
    Command {
        /// Its exit code; 128 and the signal's number if a signal ended it.
        code: u8,
    },
}

impl From<End> for Step {
    fn from(end: End) -> Self {
        Self { end: Some(end), ..Self::default() }
    }
}
