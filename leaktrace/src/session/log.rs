//! The BPF programs' own log, which `-vv` asks for.

use tokio::io::unix::AsyncFd;

use super::spec::Spec;
use crate::{
    bpf::{Loaded, Log},
    error::Error,
};

/// Whether the programs log what the kernel refuses to them.
pub(super) fn is_on(spec: &Spec) -> bool {
    spec.output.verbose > 1
}

/// The log, if it is on, as something that can be waited for.
pub(super) fn open(spec: &Spec, loaded: &mut Loaded) -> Result<Option<AsyncFd<Log>>, Error> {
    if !is_on(spec) {
        return Ok(None);
    }
    // SAFETY: the log owns its descriptor, which stays open until it is dropped.
    unsafe { AsyncFd::register(loaded.log()?) }
        .map(Some)
        .map_err(|error| Error::kernel("cannot watch the programs' log", error.into_parts().1))
}

/// Prints what has been logged since it was last asked.
pub(super) fn tell(log: &mut Option<AsyncFd<Log>>, note: &mut dyn FnMut(&str)) {
    if let Some(log) = log {
        log.get_mut().lines().for_each(|line| note(&line));
    }
}
