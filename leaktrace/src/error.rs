//! How a run can fail, and the exit code of each failure.

use std::{error::Error as StdError, io, process::ExitCode};

/// A failure that ends the program with one line: the cause, then the mend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bad usage or bad input: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The host does not allow it: exit code 3.
    #[error("{0}")]
    Host(String),
    /// The kernel does not load a program: exit code 3.
    #[error("{line}")]
    Refused {
        /// What the kernel lacks.
        line: String,
        /// The verifier's own words, of several lines; empty if it was not asked.
        verifier: String,
    },
    /// A defect of leaktrace or an unexpected answer of the kernel: exit code 3.
    #[error("{context}")]
    Kernel {
        /// What was tried, with its operand.
        context: String,
        /// What the kernel, or the library that asked it, said.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The report could not be written: exit code 2; a closed pipe is no error.
    #[error("cannot write the report")]
    Output(#[from] io::Error),
}

impl Error {
    /// A kernel error with what was tried.
    pub fn kernel(
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::Kernel { context: context.into(), source: source.into() }
    }

    /// What the verifier said of a program that it refuses.
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
/// Of a cause only the first line is taken, as the verifier's log follows it in some, and nothing
/// where an outer text has its words already.
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

    /// Says what its cause says, as some errors of libraries do.
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

    /// It is escaped later, not cut.
    #[test]
    fn a_name_of_two_lines_stays_whole() {
        let name = Error::Usage("no file `a\nb`: name another".into());
        assert_eq!(one_line(&name), "no file `a\nb`: name another");
    }
}
