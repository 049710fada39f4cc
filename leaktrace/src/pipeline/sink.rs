//! Where reports go: standard output, or a file that is never left half written.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::error::Error;

/// Takes whole reports.
pub struct Sink {
    to: Destination,
}

enum Destination {
    Stdout,
    /// A file that gets its name only when the first report is whole.
    New {
        temporary: Box<NamedTempFile>,
        path: PathBuf,
    },
    /// A file that holds at least one report, or that is no regular file.
    Open(File),
}

impl Sink {
    /// Opens the place for reports. A file that cannot be written is refused at once, not after an
    /// hour of tracing.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] with the path and the cause.
    pub fn open(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else { return Ok(Self { to: Destination::Stdout }) };
        let fail = |error: io::Error| {
            Error::Usage(format!("cannot write to `{}`: {error}", path.display()))
        };
        if path.is_dir() {
            return Err(fail(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        if path.exists() && !path.is_file() {
            let file = OpenOptions::new().write(true).open(path).map_err(fail)?;
            return Ok(Self { to: Destination::Open(file) });
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let temporary = tempfile::Builder::new()
            .prefix(".leaktrace-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(folder)
            .map_err(fail)?;
        let to = Destination::New { temporary: Box::new(temporary), path: path.to_path_buf() };
        Ok(Self { to })
    }

    /// Whether reports go to a terminal.
    pub fn is_terminal(&self) -> bool {
        matches!(self.to, Destination::Stdout) && io::IsTerminal::is_terminal(&io::stdout())
    }

    /// Writes one whole report.
    ///
    /// # Errors
    ///
    /// [`Error::Output`], for a closed pipe as well.
    pub fn write(self, report: &[u8]) -> Result<Self, Error> {
        let to = match self.to {
            Destination::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(report)?;
                stdout.flush()?;
                Destination::Stdout
            }
            Destination::Open(mut file) => {
                file.write_all(report)?;
                Destination::Open(file)
            }
            Destination::New { mut temporary, path } => {
                temporary.write_all(report)?;
                Destination::Open(temporary.persist(&path).map_err(|error| error.error)?)
            }
        };
        Ok(Self { to })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_with_its_first_report() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        let sink = Sink::open(Some(&path)).unwrap();
        assert!(!path.exists());
        let sink = sink.write(b"one\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\n");
        sink.write(b"two\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn nothing_is_left_of_a_run_without_report() {
        let folder = tempfile::tempdir().unwrap();
        drop(Sink::open(Some(&folder.path().join("report"))).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let error = Sink::open(Some(Path::new("/no/such/folder/report"))).err().unwrap();
        assert!(error.to_string().starts_with("cannot write to `/no/such/folder/report`"));
    }
}
