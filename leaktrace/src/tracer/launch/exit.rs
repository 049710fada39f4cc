//! Follows a command to its exit, in a thread of its own: the command's signals never wait for what
//! leaktrace is doing.

use std::{io, process::ExitStatus, sync::mpsc as blocking};

use tokio::sync::mpsc;

use super::{Ended, Happened};
use crate::{
    error::Error,
    reach::{hold::exit, view::ThreadState},
};

/// A command that is followed.
#[derive(Debug)]
pub(super) struct ExitWatch {
    happened: mpsc::UnboundedReceiver<Told>,
    /// Lets the command end; also when it is dropped.
    release: Option<blocking::Sender<()>>,
}

#[derive(Debug)]
enum Told {
    Leaving(Box<ThreadState>),
    Ended(io::Result<ExitStatus>),
}

impl ExitWatch {
    /// Begins with a child that is stopped; it goes on.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when no thread can be started.
    pub(super) fn start(pid: u32) -> Result<Self, Error> {
        let (tell, happened) = mpsc::unbounded_channel();
        let (release, released) = blocking::channel();
        let follow = move || {
            let ended = exit::follow(pid, &mut |state| {
                // Nobody listens any more once the session has ended.
                if tell.send(Told::Leaving(Box::new(state))).is_ok() {
                    let _ = released.recv();
                }
            });
            let _ = tell.send(Told::Ended(ended));
        };
        std::thread::Builder::new()
            .name("command".into())
            .spawn(follow)
            .map_err(|error| Error::kernel("cannot follow the command", error))?;
        Ok(Self { happened, release: Some(release) })
    }

    /// Waits for what the command does next; the caller may drop the future and call again.
    ///
    /// # Errors
    ///
    /// When the command cannot be followed.
    pub(super) async fn next(&mut self) -> io::Result<Happened> {
        match self.happened.recv().await {
            Some(Told::Leaving(state)) => Ok(Happened::Leaving(state)),
            Some(Told::Ended(ended)) => ended.map(|status| Happened::Ended(Ended(status))),
            None => Err(io::Error::other("the thread that follows it has ended")),
        }
    }

    /// Lets a command end that is about to.
    pub(super) fn let_go(&mut self) {
        self.release = None;
    }
}
