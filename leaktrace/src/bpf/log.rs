//! The lines that the BPF programs log under `-vv`, through aya-log: each error of the kernel.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::mpsc::{Receiver, Sender, channel},
};

use aya_log::EbpfLogger;

use super::object::Loaded;
use crate::error::Error;

/// The programs' log: its descriptor is readable once there are lines.
pub struct Log {
    reader: EbpfLogger<Lines>,
    lines: Receiver<String>,
}

/// Receives the lines that aya-log reads.
struct Lines(Sender<String>);

impl ::log::Log for Lines {
    fn enabled(&self, _: &::log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &::log::Record<'_>) {
        // The receiver lives as long as the reader.
        let _ = self.0.send(format!("BPF: {}", record.args()));
    }

    fn flush(&self) {}
}

impl Loaded {
    /// Opens the log; the caller must do so before [`Loaded::maps`].
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when the object has no log (a defect), or it cannot be mapped.
    pub fn log(&mut self) -> Result<Log, Error> {
        let (sender, lines) = channel();
        let reader = EbpfLogger::init_with_logger(&mut self.ebpf, Lines(sender))
            .map_err(|error| Error::kernel("cannot read the log of the BPF programs", error))?;
        Ok(Log { reader, lines })
    }
}

impl Log {
    /// Takes the lines that have come since the last call.
    pub fn lines(&mut self) -> impl Iterator<Item = String> {
        self.reader.flush();
        self.lines.try_iter()
    }
}

impl AsRawFd for Log {
    fn as_raw_fd(&self) -> RawFd {
        self.reader.as_raw_fd()
    }
}

impl AsFd for Log {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
