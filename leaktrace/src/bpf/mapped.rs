//! An array map that leaktrace shares with the BPF programs by mmap: no access needs a system call.

use std::{
    num::NonZeroUsize,
    os::fd::{AsFd as _, OwnedFd},
    ptr::NonNull,
};

use aya::{Pod, maps::Map};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::object::map_data;
use crate::error::Error;

/// An array map of `T`; the size of `T` is a multiple of 8 (the stride of an array map).
pub struct MappedArray<T> {
    start: NonNull<T>,
    bytes: NonZeroUsize,
    slots: usize,
    /// Keeps the descriptor open, by which programs that are loaded later refer to the map.
    _map: Map,
}

// SAFETY: the mapping belongs to the process and not to a thread; slots are read and written by
// volatile accesses, as BPF programs on other CPUs change them at any time anyway.
unsafe impl<T: Pod> Send for MappedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Pod> Sync for MappedArray<T> {}

impl<T: Pod> MappedArray<T> {
    const STRIDE_FITS: () = assert!(size_of::<T>().is_multiple_of(8));

    /// Maps the array called `name`.
    pub(super) fn new(name: &str, map: Map) -> Result<Self, Error> {
        let () = Self::STRIDE_FITS;
        let fail = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::kernel(format!("cannot share map {name}"), error)
        };
        let data = map_data(&map).ok_or_else(|| fail("it is no array".into()))?;
        let slots = data.info().map_err(|error| fail(error.into()))?.max_entries() as usize;
        let bytes = (slots * size_of::<T>()).next_multiple_of(4096);
        let bytes = NonZeroUsize::new(bytes).ok_or_else(|| fail("it is empty".into()))?;
        let fd: OwnedFd =
            data.fd().as_fd().try_clone_to_owned().map_err(|error| fail(error.into()))?;
        // SAFETY: a fresh mapping at an address of the kernel's choice, of the map's size.
        let start = unsafe {
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            mmap(None, bytes, protection, MapFlags::MAP_SHARED, fd, 0)
        }
        .map_err(|error| fail(error.into()))?;
        Ok(Self { start: start.cast(), bytes, slots, _map: map })
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.slots
    }

    /// Whether the array has no slot.
    pub fn is_empty(&self) -> bool {
        self.slots == 0
    }

    /// A copy of one slot: each word is read whole, but not all words at one moment.
    ///
    /// # Panics
    ///
    /// When there is no such slot.
    pub fn read(&self, index: usize) -> T {
        assert!(index < self.slots, "slot {index} of {}", self.slots);
        // SAFETY: within the mapping; any bytes are a valid `T`; volatile, as BPF programs on
        // other CPUs write it.
        unsafe { self.start.add(index).read_volatile() }
    }

    /// Writes one slot; does nothing if there is no such slot.
    pub fn write(&mut self, index: usize, value: T) {
        self.with(index, |slot| {
            // SAFETY: `slot` lies in the mapping.
            unsafe { slot.write_volatile(value) };
        });
    }

    /// Passes the address of one slot, if it exists, to `write`, which writes part of it.
    pub fn with(&self, index: usize, write: impl FnOnce(*mut T)) {
        if index < self.slots {
            // SAFETY: within the mapping.
            write(unsafe { self.start.add(index) }.as_ptr());
        }
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, to which no reference is left.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}
