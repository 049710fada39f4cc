//! The ranges that one process image has mapped: pure, and exact to the byte.
//!
//! A mapping is the memory that one call gave. The process can unmap, move or map over parts of it,
//! so that a mapping can lie in several pieces; a mapping is gone when its last byte is gone.

use std::collections::{BTreeMap, HashMap};

/// The memory of one call, as far as it is still mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// Index of the mapping's call site.
    pub(super) site: usize,
    /// Bytes of the mapping that are still mapped.
    pub(super) bytes: u64,
    /// `CLOCK_MONOTONIC` of the call, in nanoseconds.
    pub(super) timestamp_ns: u64,
}

/// Part of a mapping, cut out by [`Ranges::take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// First address.
    pub(super) start: u64,
    /// Address behind the last one.
    pub(super) end: u64,
    mapping: u64,
}

/// What went with a piece that is gone, see [`Ranges::settle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone {
    /// Index of the call site.
    pub(super) site: usize,
    /// Bytes of the piece.
    pub(super) bytes: u64,
    /// The time at which the piece's mapping was made, if this was the mapping's last piece.
    pub(super) ended: Option<u64>,
}

/// The pieces in the order of their addresses; pieces never overlap.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// For each piece, by its first address: the address behind its last byte, and its mapping.
    pieces: BTreeMap<u64, (u64, u64)>,
    mappings: HashMap<u64, Mapping>,
    next: u64,
}

impl Ranges {
    /// Number of pieces.
    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Adds a mapping; the caller must have taken out what was in its range.
    pub(super) fn insert(&mut self, start: u64, end: u64, site: usize, timestamp_ns: u64) {
        let id = self.next;
        self.next += 1;
        self.mappings.insert(id, Mapping { site, bytes: end - start, timestamp_ns });
        self.pieces.insert(start, (end, id));
    }

    /// Cuts out the pieces in a range, in the order of their addresses. They count as mapped until
    /// they are settled or put back.
    pub(super) fn take(&mut self, start: u64, end: u64) -> Vec<Piece> {
        let mut taken = Vec::new();
        if start >= end {
            return taken;
        }
        // One that begins before the range may reach into it.
        let first = self.pieces.range(..start).next_back().map(|(at, piece)| (*at, *piece));
        let first = first.filter(|(_, (behind, _))| *behind > start);
        let within = self.pieces.range(start..end).map(|(at, piece)| (*at, *piece));
        let found: Vec<(u64, (u64, u64))> = first.into_iter().chain(within).collect();
        for (at, (behind, mapping)) in found {
            self.pieces.remove(&at);
            if at < start {
                self.pieces.insert(at, (start, mapping));
            }
            if behind > end {
                self.pieces.insert(end, (behind, mapping));
            }
            taken.push(Piece { start: at.max(start), end: behind.min(end), mapping });
        }
        taken
    }

    /// Puts pieces back that were not unmapped after all.
    pub(super) fn put_back(&mut self, pieces: Vec<Piece>) {
        for Piece { start, end, mapping } in pieces {
            self.pieces.insert(start, (end, mapping));
        }
    }

    /// Removes pieces for good; says of each what went with it.
    pub(super) fn settle(&mut self, pieces: Vec<Piece>) -> Vec<Gone> {
        let mut all = Vec::new();
        for piece in pieces {
            let Some(mapping) = self.mappings.get_mut(&piece.mapping) else { continue };
            let bytes = piece.end - piece.start;
            mapping.bytes = mapping.bytes.saturating_sub(bytes);
            let (site, timestamp_ns) = (mapping.site, mapping.timestamp_ns);
            let is_last = mapping.bytes == 0;
            if is_last {
                self.mappings.remove(&piece.mapping);
            }
            all.push(Gone { site, bytes, ended: is_last.then_some(timestamp_ns) });
        }
        all
    }

    /// The mapping that a piece belongs to.
    pub(super) fn mapping(&self, piece: &Piece) -> Option<Mapping> {
        self.mappings.get(&piece.mapping).copied()
    }

    /// Every mapping that is not gone.
    pub(super) fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.values()
    }

    /// Every piece: its first address, its bytes, and its mapping.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, u64, &Mapping)> {
        self.pieces
            .iter()
            .filter_map(|(start, (end, id))| Some((*start, end - start, self.mappings.get(id)?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a process may do with pages 0 to 39, for the test.
    #[derive(Clone, Debug)]
    enum Step {
        Map(u64, u64),
        Unmap(u64, u64),
        Fail(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        (0..3, 0_u64..40, 1_u64..12).prop_map(|(what, start, pages)| match what {
            0 => Step::Map(start, start + pages),
            1 => Step::Unmap(start, start + pages),
            _ => Step::Fail(start, start + pages),
        })
    }

    /// Bytes that each call still has, counted page by page.
    fn by_page(pages: &[Option<usize>]) -> HashMap<usize, u64> {
        let mut sums = HashMap::new();
        for call in pages.iter().flatten() {
            *sums.entry(*call).or_default() += 1;
        }
        sums
    }

    proptest! {
        /// Compares with a table that says of each page which call mapped it.
        #[test]
        fn ranges_hold_what_each_page_holds(steps in prop::collection::vec(step(), 1..80)) {
            let mut ranges = Ranges::default();
            let mut pages: Vec<Option<usize>> = vec![None; 64];
            let mut ended = 0;
            for (call, step) in steps.iter().enumerate() {
                let (Step::Map(start, end) | Step::Unmap(start, end) | Step::Fail(start, end)) =
                    *step;
                let taken = ranges.take(start, end);
                let before = pages[start as usize..end as usize].iter().flatten().count() as u64;
                prop_assert_eq!(taken.iter().map(|one| one.end - one.start).sum::<u64>(), before);
                if matches!(step, Step::Fail(..)) {
                    ranges.put_back(taken);
                } else {
                    let gone = ranges.settle(taken);
                    prop_assert_eq!(gone.iter().map(|one| one.bytes).sum::<u64>(), before);
                    ended += gone.iter().filter(|one| one.ended.is_some()).count();
                    let is_map = matches!(step, Step::Map(..));
                    pages[start as usize..end as usize].fill(is_map.then_some(call));
                    if is_map {
                        ranges.insert(start, end, call, call as u64);
                    }
                }
                let sums = by_page(&pages);
                let held: HashMap<usize, u64> =
                    ranges.mappings().map(|mapping| (mapping.site, mapping.bytes)).collect();
                prop_assert_eq!(&held, &sums);
                for (at, bytes, mapping) in ranges.pieces() {
                    let part = &pages[at as usize..(at + bytes) as usize];
                    prop_assert!(part.iter().all(|page| *page == Some(mapping.site)));
                }
                let maps = steps[..=call].iter().filter(|one| matches!(one, Step::Map(..)));
                prop_assert_eq!(maps.count(), ended + sums.len());
            }
        }
    }

    #[test]
    fn an_empty_range_takes_nothing() {
        let mut ranges = Ranges::default();
        ranges.insert(10, 20, 0, 0);
        assert!(ranges.take(15, 15).is_empty() && ranges.take(18, 12).is_empty());
        assert_eq!(ranges.len(), 1);
    }
}
