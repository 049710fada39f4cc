//! The bytes of an ELF file that a traced process maps, for the `object` crate.
//!
//! The file belongs to the process, and may be hostile: a false claim in a header must not cost
//! more memory than a real object needs.

use std::{cell::Cell, fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use object::{ReadCache, ReadRef};

/// Largest piece that is read at once. The largest section of a real object that leaktrace reads, a
/// browser's symbol table, has some 100 MiB.
pub const MAX_READ_BYTES: u64 = 256 << 20;
/// Most bytes that are read of one file.
const MAX_TOTAL_BYTES: u64 = 1 << 30;
/// Bytes that a string is taken to cost besides its contents, for its entry in the cache.
const STRING_BYTES: u64 = 128;
/// How far a read looks for the end of a string.
const MAX_STRING_BYTES: u64 = 4096;

/// The bytes of a file, read when they are asked for.
#[derive(Debug)]
pub struct ElfBytes<'file> {
    cache: ReadCache<FileAt<'file>>,
    /// Bytes that may still be read.
    left_bytes: Cell<u64>,
}

impl<'file> ElfBytes<'file> {
    /// The bytes of `file`.
    pub fn new(file: &'file File) -> Self {
        let cache = ReadCache::new(FileAt { file, position: 0 });
        Self { cache, left_bytes: Cell::new(MAX_TOTAL_BYTES) }
    }

    fn spend(&self, bytes: u64) -> Result<(), ()> {
        let left = self.left_bytes.get().checked_sub(bytes).ok_or(())?;
        self.left_bytes.set(left);
        Ok(())
    }
}

impl<'data> ReadRef<'data> for &'data ElfBytes<'_> {
    fn len(self) -> Result<u64, ()> {
        (&self.cache).len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'data [u8], ()> {
        if size > MAX_READ_BYTES {
            return Err(());
        }
        self.spend(size)?;
        (&self.cache).read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'data [u8], ()> {
        self.spend(STRING_BYTES)?;
        let string = (&self.cache).read_bytes_at_until(range, delimiter);
        // Strings overlap where a file wants them to, and each is kept on its own.
        self.spend(string.map_or(MAX_STRING_BYTES, |string| string.len() as u64))?;
        string
    }
}

/// Reads a shared file at positions of its own, which other readers do not move.
#[derive(Debug)]
struct FileAt<'file> {
    file: &'file File,
    position: u64,
}

impl io::Read for FileAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl io::Seek for FileAt<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let position = match to {
            io::SeekFrom::Start(offset) => Some(offset),
            io::SeekFrom::Current(by) => self.position.checked_add_signed(by),
            io::SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
        };
        self.position = position
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sparse_file_claims_to_hold_is_not_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        let bytes = ElfBytes::new(&file);
        assert_eq!((&bytes).read_bytes_at(0, 1 << 39), Err(()));
        assert_eq!((&bytes).read_bytes_at(1 << 39, 4), Ok(&[0; 4][..]));
    }

    /// Symbols may name many places in one long string: the cache keeps every one of these strings.
    #[test]
    fn strings_cost_what_they_hold() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[b'a'; 8000], 0).unwrap();
        file.write_all_at(&[0], 4000).unwrap();
        let bytes = ElfBytes::new(&file);
        bytes.left_bytes.set(10_000);
        let string = |from: u64| (&bytes).read_bytes_at_until(from..8000, 0).map(<[u8]>::len);
        assert_eq!((string(0), string(1)), (Ok(4000), Ok(3999)));
        assert_eq!(string(2), Err(()), "the budget is used up");
        // Without an end, it was searched all the same.
        bytes.left_bytes.set(5000);
        assert_eq!((string(4001), string(3000)), (Err(()), Err(())));
    }

    #[test]
    fn a_file_that_is_read_over_and_over_runs_out() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let bytes = ElfBytes::new(&file);
        bytes.left_bytes.set(1000);
        assert!((&bytes).read_bytes_at(0, 600).is_ok());
        assert_eq!((&bytes).read_bytes_at(1, 600), Err(()));
    }
}
