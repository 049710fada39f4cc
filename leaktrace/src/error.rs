//! How a run can fail, and the exit code of each failure.

use std::{error::Error as StdError, io, process::ExitCode};

/// A failure that ends the program with one line: the cause, then how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The usage or the input is bad: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The host does not allow something: exit code 3.
    #[error("{0}")]
    Host(String),
    /// The kernel does not load a program: exit code 3.
    #[error("{line}")]
    Refused {
        /// Says what the kernel lacks.
        line: String,
        /// The verifier's log, of several lines; empty if there is none.
        verifier: String,
    },
    /// A defect of leaktrace or an unexpected answer of the kernel: exit code 3.
    #[error("{context}")]
    Kernel {
        /// What leaktrace tried, with its operand.
        context: String,
        /// The error of the kernel, or of the library that called it.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The report could not be written: exit code 2; a closed pipe is no error.
    #[error("cannot write the report")]
    Output(#[from] io::Error),
}

impl Error {
    /// A kernel error with what leaktrace tried.
    pub fn kernel(
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::Kernel { context: context.into(), source: source.into() }
    }

    /// The verifier's log on a refused program.
    pub fn verifier(&self) -> Option<&str> {
        match self {
            Self::Refused { verifier, .. } if !verifier.is_empty() => Some(verifier),
            _ => None,
        }
    }

    /// 2: bad usage, input or output; 3: the host does not allow it.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) | Self::Output(_) => 2,
            Self::Host(_) | Self::Refused { .. } | Self::Kernel { .. } => 3,
        })
    }
}

/// An error and its causes in one line, the outermost first.
///
/// Only the first line of a cause is taken, as the verifier's log follows that line in some causes.
/// A cause is left out where an outer text has its words already.
pub fn one_line(error: &(dyn StdError + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        next = cause.source();
        let text = cause.to_string();
        let text = text.lines().next().unwrap_or_default();
        if !line.contains(text) {
            line.push_str(": ");
            line.push_str(text);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error whose text is its cause's, as libraries have some.
    #[derive(Debug, thiserror::Error)]
    #[error("bpf() returned {source}. Log:\n0: exit")]
    struct Refusal {
        source: io::Error,
    }

    #[test]
    fn the_causes_are_told_once_and_in_one_line() {
        let source = io::Error::from_raw_os_error(1);
        assert_eq!(
            one_line(&Error::kernel("cannot load x", Refusal { source })),
            "cannot load x: bpf() returned Operation not permitted (os error 1). Log:"
        );
        let full = Error::from(io::Error::from_raw_os_error(28));
        assert_eq!(
            one_line(&full),
            "cannot write the report: No space left on device (os error 28)"
        );
    }

    /// The name is escaped later, not cut.
    #[test]
    fn a_name_of_two_lines_stays_whole() {
        let name = Error::Usage("no file `a\nb`: name another".into());
        assert_eq!(one_line(&name), "no file `a\nb`: name another");
    }
}
