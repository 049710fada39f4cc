//! The outstanding blocks of a process, by address.

use leaktrace_common::Kind;

use crate::{bpf::blocks::BlockReader, error::Error};

/// The longest block that is looked up whole; nobody has a longer one that is in use.
const MAX_BYTES: u64 = 1 << 40;

/// One outstanding block, as the programs have recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// First address.
    pub start: u64,
    /// Bytes that were asked for.
    pub size: u64,
    /// `CLOCK_MONOTONIC` at the allocation, in nanoseconds: with the address, its identity.
    pub birth: u64,
    /// Index of its call site.
    pub site: u32,
}

/// Addresses that belong to a block: from the first one to before the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub start: u64,
    /// Address behind the last byte that belongs to the block; at least one byte does.
    pub end: u64,
}

/// The blocks of one process, sorted by address; none overlaps another.
#[derive(Debug, Default)]
pub struct Blocks {
    /// What belongs to each block.
    pub spans: Vec<Span>,
    /// Bytes that were asked for.
    pub sizes: Vec<u64>,
    /// See [`Block::birth`].
    pub births: Vec<u64>,
    /// See [`Block::site`].
    pub sites: Vec<u32>,
    /// Blocks that reach into the next one: one of the two is gone, and its free was not seen.
    pub doubtful: Vec<u32>,
}

/// How an allocator lays out its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// glibc's: a header of 8 bytes before each block, and the block's last 8 bytes are the first
    /// word of the next chunk (malloc/malloc.c, 2.26 to 2.41).
    Glibc,
    /// Any other's.
    Unknown,
}

impl Layout {
    /// Bytes of a block that its owner may use. glibc rounds up, and programs that ask
    /// `malloc_usable_size` store addresses there.
    pub fn usable(self, size: u64) -> u64 {
        match self {
            Self::Glibc => (size.saturating_add(23) & !15).saturating_sub(8).max(24),
            Self::Unknown => size.max(1),
        }
    }
}

impl Blocks {
    /// Sorts blocks by address.
    pub fn new(mut all: Vec<Block>, layout: Layout) -> Self {
        all.sort_unstable();
        // Of two at one address the younger one is there.
        all.dedup_by(|later, earlier| {
            // No allocator gives out two within 8 bytes.
            let is_same = later.start / 8 == earlier.start / 8;
            if is_same && later.birth > earlier.birth {
                *earlier = *later;
            }
            is_same
        });
        let mut blocks = Self {
            spans: Vec::with_capacity(all.len()),
            sizes: all.iter().map(|block| block.size).collect(),
            births: all.iter().map(|block| block.birth).collect(),
            sites: all.iter().map(|block| block.site).collect(),
            doubtful: Vec::new(),
        };
        for (index, block) in all.iter().enumerate() {
            let next = all.get(index + 1).map_or(u64::MAX, |next| next.start);
            let asked = block.start.saturating_add(block.size.clamp(1, MAX_BYTES));
            let usable = layout.usable(block.size.min(MAX_BYTES));
            let end = block.start.saturating_add(usable).max(asked);
            if asked > next {
                blocks.doubtful.push(index as u32);
            }
            blocks.spans.push(Span { start: block.start, end: end.min(next) });
        }
        blocks
    }

    /// Reads the blocks of a space.
    ///
    /// # Errors
    ///
    /// The kernel's error on reading the maps.
    pub fn read(reader: &BlockReader, space: u32, layout: Layout) -> Result<Self, Error> {
        let mut all = Vec::new();
        let mut sites = MallocSites::default();
        reader.read(space, |start, block| {
            if sites.has(reader, block.site) {
                let (size, birth, site) = (block.size_bytes, block.timestamp_ns, block.site);
                all.push(Block { start, size, birth, site });
            }
        })?;
        Ok(Self::new(all, layout))
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// One block; `None` if there is no such one.
    pub fn get(&self, index: u32) -> Option<Block> {
        let at = index as usize;
        let start = self.spans.get(at)?.start;
        let (size, birth) = (*self.sizes.get(at)?, *self.births.get(at)?);
        Some(Block { start, size, birth, site: *self.sites.get(at)? })
    }
}

/// Which call sites are of blocks of malloc and its relatives.
#[derive(Default)]
pub struct MallocSites {
    /// By index; `None` where it was never asked.
    known: Vec<Option<bool>>,
}

impl MallocSites {
    /// Whether the call site's blocks are of malloc.
    pub fn has(&mut self, reader: &BlockReader, site: u32) -> bool {
        let at = site as usize;
        if let Some(Some(known)) = self.known.get(at) {
            return *known;
        }
        let Some(key) = reader.site(site) else { return false };
        let is_malloc = key.kind == Kind::Malloc as u16;
        if self.known.len() <= at {
            self.known.resize(at + 1, None);
        }
        if let Some(known) = self.known.get_mut(at) {
            *known = Some(is_malloc);
        }
        is_malloc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(start: u64, size: u64, birth: u64) -> Block {
        Block { start, size, birth, site: 1 }
    }

    /// The sizes are those that glibc 2.36 gives by `malloc_usable_size`.
    #[test]
    fn glibc_gives_more_than_is_asked_for() {
        for (asked, usable) in
            [(0, 24), (1, 24), (24, 24), (25, 40), (40, 40), (41, 56), (1000, 1000), (1001, 1016)]
        {
            assert_eq!(Layout::Glibc.usable(asked), usable, "{asked}");
        }
        assert_eq!(Layout::Unknown.usable(0), 1);
    }

    #[test]
    fn blocks_are_sorted_and_never_overlap() {
        let list = vec![
            block(0x3000, 16, 5),
            block(0x1000, 0x1800, 1),
            block(0x2000, 8, 2),
            block(0x3000, 16, 4),
        ];
        let blocks = Blocks::new(list, Layout::Unknown);
        let spans: Vec<(u64, u64)> =
            blocks.spans.iter().map(|span| (span.start, span.end)).collect();
        assert_eq!(spans, [(0x1000, 0x2000), (0x2000, 0x2008), (0x3000, 0x3010)]);
        // The first one's free was missed.
        assert_eq!(blocks.doubtful, [0]);
        assert_eq!(blocks.births, [1, 2, 5]);
    }

    #[test]
    fn the_slack_ends_where_the_next_block_begins() {
        // Two blocks that are nearer than glibc would put them.
        let blocks = Blocks::new(vec![block(0x1000, 8, 1), block(0x1010, 8, 1)], Layout::Glibc);
        assert_eq!(blocks.spans[0].end, 0x1010);
        assert!(blocks.doubtful.is_empty());
    }
}
