//! The result of trying something on this host.

use std::io;

/// Whether the host allows something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was tried and worked.
    Yes,
    /// It was tried and refused: why.
    No(String),
    /// It could not be tried: why.
    Unknown(String),
}

impl Answer {
    /// Whether leaktrace tried it and it worked.
    pub fn is_yes(&self) -> bool {
        *self == Self::Yes
    }
}

impl<T> From<io::Result<T>> for Answer {
    fn from(result: io::Result<T>) -> Self {
        match result {
            Ok(_) => Self::Yes,
            Err(error) => Self::No(error.to_string()),
        }
    }
}
