//! The outstanding blocks for a reader in another thread.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use leaktrace_common::{
    AllocKey, BUCKET_SLOTS, BlockWord, Bucket, Outstanding, SiteKey, SiteRecord,
};

use super::{Maps, mapped::MappedArray, sys};
use crate::error::Error;

/// Reads the outstanding blocks of processes, on any thread, while the maps live or after.
pub struct BlockReader {
    blocks: Arc<MappedArray<Bucket>>,
    sites: Arc<MappedArray<SiteRecord>>,
    overflow: OwnedFd,
}

impl Maps {
    /// A reader of the outstanding blocks that may go to another thread.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when no descriptor is left.
    pub fn block_reader(&self) -> Result<BlockReader, Error> {
        let overflow = self
            .overflow_fd
            .try_clone()
            .map_err(|error| Error::kernel("cannot read the outstanding blocks", error))?;
        Ok(BlockReader {
            blocks: Arc::clone(&self.blocks),
            sites: Arc::clone(&self.sites),
            overflow,
        })
    }
}

impl BlockReader {
    /// Visits every outstanding block of a space of processes. A block that comes or goes meanwhile
    /// may be visited or not, and what is told of it may be partly of the block before it.
    /// What functions of pairs give is visited as well: the site tells.
    ///
    /// # Errors
    ///
    /// The kernel's error on reading the map of blocks that found no room in the table.
    pub fn read(&self, space: u32, mut visit: impl FnMut(u64, &Outstanding)) -> Result<(), Error> {
        let mut take = |word: u64, block: &Outstanding| {
            // A block of a pair of functions has the highest bit set in a session of processes.
            if word >> 63 == 0 && BlockWord::key(word) == AllocKey::new(space, address(word)) {
                visit(address(word), block);
            }
        };
        for index in 0..self.blocks.len() {
            // Most buckets hold nothing: their keys, one cache line, tell.
            let keys = self.keys(index);
            if keys.iter().all(|word| *word <= BlockWord::CLAIMED) {
                continue;
            }
            let bucket = self.blocks.read(index);
            // A block was there all the time if its key is there before and after.
            let after = self.keys(index);
            for ((word, block), after) in bucket.keys.iter().zip(&bucket.blocks).zip(after) {
                if *word > BlockWord::CLAIMED && *word == after {
                    take(*word, block);
                }
            }
        }
        sys::read_all(self.overflow.as_fd(), |word: &u64, block| take(*word, block))
            .map_err(|error| Error::kernel("cannot read the outstanding blocks", error))
    }

    fn keys(&self, index: usize) -> [u64; BUCKET_SLOTS as usize] {
        let mut keys = [BlockWord::FREE; BUCKET_SLOTS as usize];
        self.blocks.with(index, |bucket| {
            // SAFETY: `bucket` lies in the mapping; volatile, as BPF programs on other CPUs write it.
            keys = unsafe { (&raw const (*bucket).keys).read_volatile() };
        });
        keys
    }

    /// The identity of a call site, by its index.
    pub fn site(&self, index: u32) -> Option<SiteKey> {
        let index = index as usize;
        (index < self.sites.len()).then(|| self.sites.read(index).key)
    }
}

fn address(word: u64) -> u64 {
    BlockWord::key(word).address
}
