//! The signals that a session reacts to.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Error;

/// The signals that end a session.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Error> {
        let watch =
            |kind| signal(kind).map_err(|error| Error::kernel("cannot watch for signals", error));
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hangup: watch(SignalKind::hangup())?,
            quit: watch(SignalKind::quit())?,
        })
    }

    pub(super) async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.hangup.recv() => libc::SIGHUP,
            _ = self.quit.recv() => libc::SIGQUIT,
        }
    }
}
