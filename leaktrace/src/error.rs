//! How a run can fail; the only place of exit codes.

use std::process::ExitCode;

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
    #[error("{context}: {source}")]
    Kernel {
        /// What was tried, with its operand.
        context: String,
        /// What the kernel, or the library that asked it, said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The report could not be written: exit code 2; a closed pipe is no error.
    #[error("cannot write the report: {0}")]
    Output(#[from] std::io::Error),
}

impl Error {
    /// A kernel error with what was tried.
    pub fn kernel(
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Kernel { context: context.into(), source: source.into() }
    }

    /// Whether the reader of the report went away, which is no failure.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
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
