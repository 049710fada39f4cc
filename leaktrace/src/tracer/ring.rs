//! The rings of events, in a form that can be waited for.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;

use crate::error::Error;

/// A ring as a pollable descriptor.
pub(super) struct Ring(RingBuf<MapData>);

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes a descriptor of a ring that can be waited for.
pub(super) fn watch(ring: RingBuf<MapData>) -> Result<AsyncFd<Ring>, Error> {
    // SAFETY: the ring owns its descriptor, which stays open until it is dropped.
    unsafe { AsyncFd::register(Ring(ring)) }
        .map_err(|error| Error::kernel("cannot watch an event ring", error.into_parts().1))
}

/// Takes everything out of a ring.
///
/// # Safety
///
/// The ring holds values of `T` only, for which every bit pattern is valid.
pub(super) unsafe fn drain<T>(ring: &mut AsyncFd<Ring>, mut visit: impl FnMut(T)) {
    while let Some(item) = ring.get_mut().0.next() {
        if item.len() >= size_of::<T>() {
            // SAFETY: the caller's promise; the length is checked.
            visit(unsafe { item.as_ptr().cast::<T>().read_unaligned() });
        }
    }
}
