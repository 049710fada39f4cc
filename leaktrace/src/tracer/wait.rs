//! The events that a tracer waits for.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd},
    task::Poll,
};

use tokio::{
    io::unix::AsyncFd,
    time::{Instant, Interval},
};

use crate::{collect::Collector, error::Error, host::records::Records};

/// A descriptor that becomes readable when a process ends.
pub(super) fn pidfd(pid: u32) -> Result<AsyncFd<OwnedFd>, Error> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::ESRCH) => Error::Usage(format!("no process {pid}")),
            _ => Error::kernel(format!("cannot watch process {pid}"), error),
        });
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    watch(fd).map_err(|error| Error::kernel(format!("cannot watch process {pid}"), error))
}

fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open and the same until it is dropped.
    unsafe { AsyncFd::register(fd) }.map_err(|error| error.into_parts().1)
}

/// A descriptor that is readable once a kernel module comes or goes.
pub(super) fn modules(collector: &Collector) -> Result<Option<AsyncFd<OwnedFd>>, Error> {
    let fd = collector.module_events();
    fd.and_then(|fd| fd.map(watch).transpose())
        .map_err(|error| Error::kernel("cannot watch modules", error))
}

/// The descriptors of the kernel's records.
pub(super) fn descriptors(records: &Records) -> io::Result<Vec<AsyncFd<OwnedFd>>> {
    records.descriptors()?.into_iter().map(watch).collect()
}

/// Waits until the buffer of any CPU is half full. A descriptor that gets no more records, as its
/// process has ended or has other rights, is ready for ever: it is left out from then on.
pub(super) async fn wait_for_records(records: &mut Vec<AsyncFd<OwnedFd>>) {
    std::future::poll_fn(|context| {
        let mut is_ready = false;
        records.retain(|fd| match fd.poll_read_ready(context) {
            Poll::Pending => true,
            Poll::Ready(Ok(mut guard)) => {
                is_ready = true;
                let is_closed = guard.ready().is_read_closed();
                // All are read right after.
                guard.clear_ready();
                !is_closed
            }
            Poll::Ready(Err(_)) => false,
        });
        if is_ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Waits for the end of any of these processes; returns its process ID.
pub(super) async fn wait_for_exit(pidfds: &[(u32, AsyncFd<OwnedFd>)]) -> u32 {
    if pidfds.is_empty() {
        return std::future::pending().await;
    }
    std::future::poll_fn(|context| {
        for (pid, fd) in pidfds {
            if fd.poll_read_ready(context).is_ready() {
                return Poll::Ready(*pid);
            }
        }
        Poll::Pending
    })
    .await
}

pub(super) async fn wait_for_ring<T: AsRawFd>(ring: Option<&AsyncFd<T>>) {
    match ring {
        Some(ring) => match ring.readable().await {
            // What is there is read right after; the next poll finds it empty.
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Waits for the next tick; for ever if there are no ticks.
pub(crate) async fn wait_for_tick(ticks: Option<&mut Interval>) {
    match ticks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Waits until the deadline; for ever if there is none.
pub(crate) async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
