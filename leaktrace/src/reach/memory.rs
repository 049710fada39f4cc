//! Reads the memory of a process through a buffer of fixed size, page by page that there is.
//!
//! Pages that the process does not have are never asked for: reading them would make them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
};

use super::mappings::{Mapped, Pages};

/// Bytes of a page on x86_64.
pub const PAGE: u64 = 4096;
/// Bytes that are read at once.
pub const PIECE: usize = 256 << 10;
/// Mapped bytes that are looked through where the kernel tells pages one by one (before 6.7): 2 s.
const MAX_LOOKED_AT: u64 = 1 << 40;
/// Bytes of files on disks that are read where they are mapped shared; beyond that, only what the
/// process has in memory.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Bytes of shared memory that are read: what several processes share may be most of a host's.
const MAX_SHARED_BYTES: u64 = 1 << 30;

/// The memory of one process image.
#[derive(Debug)]
pub struct Memory {
    pid: u32,
    /// Opened while the image lives: once that is gone, nothing more can be read here, whatever
    /// the process executes then.
    mem: File,
    pagemap: File,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes in memory that could not be read.
    pub unread_bytes: u64,
    file_bytes: u64,
    shared_bytes: u64,
    looked_at: u64,
    has_pagemap_scan: bool,
    /// Addresses that were read: pages that there are.
    known: Vec<u64>,
}

/// `struct pm_scan_arg` (include/uapi/linux/fs.h, 6.7).
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const PM_PRESENT: u64 = 1 << 63;
const PM_SWAPPED: u64 = 1 << 62;
const PM_FILE: u64 = 1 << 61;

impl Memory {
    /// Opens the memory of a process.
    ///
    /// # Errors
    ///
    /// As opening /proc/PID/mem and /proc/PID/pagemap.
    pub fn open(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            mem: File::open(format!("/proc/{pid}/mem"))?,
            pagemap: File::open(format!("/proc/{pid}/pagemap"))?,
            read_bytes: 0,
            unread_bytes: 0,
            file_bytes: 0,
            shared_bytes: 0,
            looked_at: 0,
            has_pagemap_scan: true,
            known: Vec::new(),
        })
    }

    /// Whether the image that was read is still there: a process that has ended or executed another
    /// file has another one.
    pub fn is_there(&self) -> bool {
        let is_read = |address: &u64| {
            let mut byte = [0];
            self.mem.read_at(&mut byte, *address).is_ok_and(|count| count == 1)
        };
        // Some memory goes while the process lives.
        self.known.iter().any(is_read)
    }

    /// Begins a look: what it may read is counted anew.
    pub fn begin(&mut self) {
        (self.file_bytes, self.shared_bytes, self.looked_at) = (0, 0, 0);
    }

    /// One word.
    pub fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.mem.read_exact_at(&mut bytes, address).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    /// Reads bytes where they are, as far as they can be read.
    pub fn bytes(&self, address: u64, buffer: &mut [u8]) -> usize {
        let mut got = 0;
        while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match self.mem.read_at(rest, address + got as u64) {
                Ok(count) if count > 0 => got += count,
                _ => break,
            }
        }
        got
    }

    /// The ranges of a mapping that are to be read, in order.
    ///
    /// # Errors
    ///
    /// A reason, where the mapping is too large to be looked through on this kernel.
    pub fn ranges(&mut self, mapped: &Mapped) -> Result<Vec<Range<u64>>, String> {
        match mapped.pages {
            Pages::Shared => {
                let ranges = match self.held(mapped) {
                    Some(ranges) => ranges,
                    None => self.pages(mapped, PAGE_IS_PRESENT, 0)?,
                };
                self.shared_bytes +=
                    ranges.iter().map(|range| range.end - range.start).sum::<u64>();
                match self.shared_bytes > MAX_SHARED_BYTES {
                    true => Err("it has more than 1 GiB of shared memory".into()),
                    false => Ok(ranges),
                }
            }
            Pages::Own => self.pages(mapped, PAGE_IS_PRESENT | PAGE_IS_SWAPPED, PAGE_IS_PFNZERO),
            Pages::Changed => self.pages(
                mapped,
                PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                PAGE_IS_PFNZERO | PAGE_IS_FILE,
            ),
            Pages::Present => self.pages(mapped, PAGE_IS_PRESENT, PAGE_IS_PFNZERO),
        }
    }

    /// What the object behind a shared mapping holds; `None` if that is not to be read.
    fn held(&mut self, mapped: &Mapped) -> Option<Vec<Range<u64>>> {
        let path = format!("/proc/{}/map_files/{:x}-{:x}", self.pid, mapped.start, mapped.end);
        // Not opened before it is known to be a file of this host: a device may do something then,
        // or make one wait, and so may a server that other file systems ask.
        if !mapped.is_of_this_host || !fs::metadata(&path).ok()?.is_file() {
            return None;
        }
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOATIME)
            .open(path)
            .ok()?;
        if !is_in_memory(&file) {
            self.file_bytes += mapped.end - mapped.start;
            if self.file_bytes > MAX_FILE_BYTES {
                return None;
            }
        }
        let last = mapped.file_offset + (mapped.end - mapped.start);
        let mut ranges = Vec::new();
        let mut at = mapped.file_offset;
        while at < last {
            let Some(data) = seek(&file, at, libc::SEEK_DATA).filter(|data| *data < last) else {
                break;
            };
            let hole = seek(&file, data, libc::SEEK_HOLE).unwrap_or(last).min(last);
            let (from, to) = (data & !(PAGE - 1), hole.next_multiple_of(PAGE).min(last));
            ranges.push(
                mapped.start + (from - mapped.file_offset)
                    ..mapped.start + (to - mapped.file_offset),
            );
            at = hole.max(data + 1);
        }
        Some(ranges)
    }

    /// The pages of a mapping that are of one of the kinds `any`, and of none of the kinds `none`.
    fn pages(&mut self, mapped: &Mapped, any: u64, none: u64) -> Result<Vec<Range<u64>>, String> {
        let mut ranges = Vec::new();
        if self.has_pagemap_scan {
            match self.scan_pages(mapped, any, none, &mut ranges) {
                Ok(()) => return Ok(ranges),
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                    self.has_pagemap_scan = false;
                    ranges.clear();
                }
                // The image is gone: nothing is there to be read.
                Err(_) => return Ok(Vec::new()),
            }
        }
        self.looked_at += mapped.end - mapped.start;
        if self.looked_at > MAX_LOOKED_AT {
            return Err(
                "it maps more than a terabyte, and this kernel (before 6.7) cannot tell fast which of \
                 its pages there are"
                    .into(),
            );
        }
        self.read_pagemap(mapped, any, none, &mut ranges);
        Ok(ranges)
    }

    fn scan_pages(
        &self,
        mapped: &Mapped,
        any: u64,
        none: u64,
        ranges: &mut Vec<Range<u64>>,
    ) -> io::Result<()> {
        let mut found = vec![PageRegion::default(); 1024];
        let mut at = mapped.start;
        while at < mapped.end {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                start: at,
                end: mapped.end,
                vec: found.as_mut_ptr() as u64,
                vec_len: found.len() as u64,
                category_inverted: none,
                category_mask: none,
                category_anyof_mask: any,
                return_mask: any,
                ..ScanArgument::default()
            };
            // SAFETY: `argument` is the structure that the command takes, and names room for as many
            // regions as it says; both live during the call.
            let count =
                unsafe { libc::ioctl(self.pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            if count < 0 {
                return Err(io::Error::last_os_error());
            }
            for region in found.iter().take(count as usize) {
                push(ranges, region.start..region.end);
            }
            if argument.walk_end <= at {
                break;
            }
            at = argument.walk_end;
        }
        Ok(())
    }

    fn read_pagemap(&self, mapped: &Mapped, any: u64, none: u64, ranges: &mut Vec<Range<u64>>) {
        let mut buffer = vec![0; 64 << 10];
        let mut at = mapped.start;
        while at < mapped.end {
            let pages = ((mapped.end - at) / PAGE).min(buffer.len() as u64 / 8);
            let Some(wanted) = buffer.get_mut(..pages as usize * 8) else { break };
            if self.pagemap.read_exact_at(wanted, at / PAGE * 8).is_err() {
                break;
            }
            for (page, entry) in wanted.as_chunks::<8>().0.iter().enumerate() {
                let entry = u64::from_le_bytes(*entry);
                let is_there = (entry & PM_PRESENT != 0 && any & PAGE_IS_PRESENT != 0)
                    || (entry & PM_SWAPPED != 0 && any & PAGE_IS_SWAPPED != 0);
                if is_there && (entry & PM_FILE == 0 || none & PAGE_IS_FILE == 0) {
                    let start = at + page as u64 * PAGE;
                    push(ranges, start..start + PAGE);
                }
            }
            at += pages * PAGE;
        }
    }

    /// Reads ranges of a mapping in order, and passes each piece with its address to `take`; a piece
    /// is a whole number of words. `take` returns false to end.
    ///
    /// Pages that are gone meanwhile are passed over.
    pub fn read(
        &mut self,
        ranges: &[Range<u64>],
        is_readable: bool,
        buffer: &mut [u64],
        take: &mut dyn FnMut(u64, &[u64]) -> bool,
    ) -> bool {
        let first = ranges.first().filter(|_| self.known.len() < MAX_KNOWN);
        self.known.extend(first.map(|range| range.start));
        let mut batch: Vec<libc::iovec> = Vec::new();
        let mut filled = 0;
        let room = buffer.len() * 8;
        for range in ranges {
            let mut at = range.start;
            while at < range.end {
                let bytes = (range.end - at).min((room - filled) as u64) as usize;
                batch.push(libc::iovec { iov_base: at as *mut libc::c_void, iov_len: bytes });
                (filled, at) = (filled + bytes, at + bytes as u64);
                if filled == room || batch.len() == MAX_VECTORS {
                    if !self.read_batch(&batch, is_readable, buffer, take) {
                        return false;
                    }
                    (filled, batch) = (0, Vec::new());
                }
            }
        }
        batch.is_empty() || self.read_batch(&batch, is_readable, buffer, take)
    }

    fn read_batch(
        &mut self,
        batch: &[libc::iovec],
        is_readable: bool,
        buffer: &mut [u64],
        take: &mut dyn FnMut(u64, &[u64]) -> bool,
    ) -> bool {
        let wanted: usize = batch.iter().map(|vector| vector.iov_len).sum();
        let got = if is_readable { self.read_vectors(batch, buffer) } else { 0 };
        if got == wanted {
            let mut from = 0;
            for vector in batch {
                let words = buffer.get(from / 8..(from + vector.iov_len) / 8).unwrap_or(&[]);
                self.read_bytes += vector.iov_len as u64;
                if !take(vector.iov_base as u64, words) {
                    return false;
                }
                from += vector.iov_len;
            }
            return true;
        }
        // Something is gone, or the process itself may not read it: piece by piece, and then page by
        // page.
        for vector in batch {
            let mut at = vector.iov_base as u64;
            let end = at + vector.iov_len as u64;
            while at < end {
                let words = ((end - at) as usize / 8).min(buffer.len());
                let Some(words) = buffer.get_mut(..words) else { break };
                let got = self.bytes(at, as_bytes(words)) as u64 & !7;
                self.read_bytes += got;
                if got > 0 && !take(at, words.get(..got as usize / 8).unwrap_or(&[])) {
                    return false;
                }
                at += got;
                if at < end && (got as usize) < words.len() * 8 {
                    let next = (at & !(PAGE - 1)) + PAGE;
                    if self.is_present(at) {
                        self.unread_bytes += next.min(end) - at;
                    }
                    at = next;
                }
            }
        }
        true
    }

    fn read_vectors(&self, batch: &[libc::iovec], buffer: &mut [u64]) -> usize {
        let local =
            libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: size_of_val(buffer) };
        // SAFETY: the local vector is the buffer, of its length; the remote ones are addresses of
        // another process, which the kernel checks. Any bytes are valid words.
        let got = unsafe {
            libc::process_vm_readv(
                self.pid as libc::pid_t,
                &raw const local,
                1,
                batch.as_ptr(),
                batch.len() as libc::c_ulong,
                0,
            )
        };
        usize::try_from(got).unwrap_or(0)
    }

    /// Whether a page is in memory now.
    fn is_present(&self, address: u64) -> bool {
        let mut entry = [0; 8];
        let read = self.pagemap.read_exact_at(&mut entry, address / PAGE * 8);
        read.is_ok() && u64::from_le_bytes(entry) & PM_PRESENT != 0
    }
}

/// Most addresses that are remembered to ask whether the image is still there.
const MAX_KNOWN: usize = 64;
/// Most pieces of one read (`UIO_MAXIOV`).
const MAX_VECTORS: usize = 1024;

/// The bytes of words.
fn as_bytes(words: &mut [u64]) -> &mut [u8] {
    let bytes = size_of_val(words);
    // SAFETY: the same memory, for as long; bytes have no alignment, and any are valid words.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), bytes) }
}

/// Adds a range behind the others, joined to the last one where they touch.
fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// Whether a file has no disk behind it.
fn is_in_memory(file: &File) -> bool {
    // SAFETY: all zeroes is a valid value of this structure of integers.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a valid descriptor and room for one structure.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut about) };
    result == 0 && [libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC].contains(&about.f_type)
}

fn seek(file: &File, from: u64, whence: libc::c_int) -> Option<u64> {
    // SAFETY: no pointers; the descriptor is open.
    let to = unsafe { libc::lseek(file.as_raw_fd(), from as libc::off_t, whence) };
    u64::try_from(to).ok()
}

#[cfg(test)]
mod tests;
