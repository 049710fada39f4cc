//! The BPF programs' own log, which `-vv` asks for.

use tokio::io::unix::AsyncFd;

use super::wait::wait_for_ring;
use crate::{
    bpf::{Loaded, Log},
    error::Error,
    session::spec::TraceOptions,
};

/// The log of a tracer's programs, if it is on.
pub(super) struct ProgramLog(Option<AsyncFd<Log>>);

/// Whether the programs log what the kernel refuses to them.
pub(super) fn is_on(trace: &TraceOptions) -> bool {
    trace.verbose > 1
}

impl ProgramLog {
    /// Opens the log, if it is on. The caller must be in the event loop.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when the log cannot be mapped or waited for.
    pub(super) fn open(trace: &TraceOptions, loaded: &mut Loaded) -> Result<Self, Error> {
        if !is_on(trace) {
            return Ok(Self(None));
        }
        // SAFETY: the log owns its descriptor, which stays open until it is dropped.
        unsafe { AsyncFd::register(loaded.log()?) }
            .map(|log| Self(Some(log)))
            .map_err(|error| Error::kernel("cannot watch the programs' log", error.into_parts().1))
    }

    /// Waits until the programs have logged something.
    pub(super) async fn wait(&self) {
        wait_for_ring(self.0.as_ref()).await;
    }

    /// Takes the lines that were logged since the last call.
    pub(super) fn lines(&mut self) -> Vec<String> {
        self.0.as_mut().map(|log| log.get_mut().lines().collect()).unwrap_or_default()
    }
}
