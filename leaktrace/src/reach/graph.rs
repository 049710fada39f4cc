//! Which blocks addresses lead to, from where: what a scan has found, and what follows from it.
//!
//! Addresses outside of all blocks are roots. While the memory is read, a block to which a firm root
//! leads is known to be reachable at once, and addresses in it need not be kept; only those between
//! blocks that are not known to be reachable yet are. A healthy process thus costs little memory.

use std::collections::{HashMap, VecDeque};

use super::{
    blocks::{Block, Blocks},
    lost::{self, Lost},
};

/// Most addresses between blocks that are kept: 256 MiB.
pub const MAX_EDGES: usize = 64 << 20;
/// A usual offset needs so many blocks of a call site at least...
const LEARN_BLOCKS: u32 = 16;
/// ...and so large a share of them, in percent.
const LEARN_PERCENT: u32 = 90;
/// Most turns in which usual offsets are learnt.
const LEARN_TURNS: u32 = 8;

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No address leads to it, and a lost block is no way.
    Lost,
    /// Addresses lead to its beginning.
    Reachable,
    /// On each way, an address leads inside a block and not to its beginning.
    Interior,
    /// It has no verdict itself, or only blocks without one lead to it.
    Unknown,
}

/// Where an address of a block was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin(u64);

/// The kind of memory that a root lies in; a better one comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rank {
    /// A variable of an object.
    Global = 1,
    /// A register.
    Register = 2,
    /// The kernel.
    Kernel = 3,
    /// A stack, or thread-local memory.
    Thread = 4,
    /// Any other mapping in which the allocator has no block.
    Mapping = 5,
    /// Memory of the allocator outside of tracked blocks: older blocks, and freed ones, in which
    /// stale addresses may stand. It is no firm root.
    Heap = 6,
    /// Memory whose words count only where they belong to blocks.
    Ignored = 7,
}

impl Origin {
    const BLOCK: u64 = 0xff << 56;
    const ADDRESS: u64 = (1 << 56) - 1;

    /// A word outside of all blocks.
    pub fn root(rank: Rank, address: u64) -> Self {
        Self((rank as u64) << 56 | address & Self::ADDRESS)
    }

    /// A word in a block.
    pub fn block(index: u32) -> Self {
        Self(Self::BLOCK | u64::from(index))
    }

    /// Whether no address was found.
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The block that holds the word.
    pub fn as_block(self) -> Option<u32> {
        (self.0 & Self::BLOCK == Self::BLOCK).then_some(self.0 as u32)
    }

    /// The rank and the address of a word outside of all blocks. The address of a register's is the
    /// thread's ID, and that of the kernel's has no meaning.
    pub fn as_root(self) -> Option<(Rank, u64)> {
        let rank = match self.0 >> 56 {
            1 => Rank::Global,
            2 => Rank::Register,
            3 => Rank::Kernel,
            4 => Rank::Thread,
            5 => Rank::Mapping,
            6 => Rank::Heap,
            _ => return None,
        };
        Some((rank, self.0 & Self::ADDRESS))
    }
}

/// What is known of the blocks of one process.
pub struct Graph<'a> {
    blocks: &'a Blocks,
    states: Vec<State>,
    /// From where an address leads to the beginning of each block.
    by_start: Vec<Origin>,
    /// From where an address leads inside each block, and to which offset.
    by_inner: Vec<(Origin, u32)>,
    edges: Vec<u32>,
    /// Blocks that hold edges, each with the number of its first edge; the edges of one end where
    /// those of the next begin.
    runs: Vec<(u32, u32)>,
    is_full: bool,
    /// Addresses where glibc's free lists point to: see [`Graph::header`].
    headers: Vec<(u32, u64, Rank)>,
}

/// Marks an edge whose address leads inside the block.
const INNER: u32 = 1 << 31;
/// Most addresses of chunk headers that are kept to be looked at; others count as any address.
const MAX_HEADERS: usize = 1 << 20;

impl<'a> Graph<'a> {
    /// Nothing is known yet.
    pub fn new(blocks: &'a Blocks) -> Self {
        Self {
            blocks,
            states: vec![State::Lost; blocks.len()],
            by_start: vec![Origin::default(); blocks.len()],
            by_inner: vec![(Origin::default(), 0); blocks.len()],
            edges: Vec::new(),
            runs: Vec::new(),
            is_full: false,
            headers: Vec::new(),
        }
    }

    /// The state of a block; before [`Graph::judge`], the blocks that firm roots lead to are
    /// reachable and all others lost.
    pub fn state(&self, block: u32) -> State {
        self.states.get(block as usize).copied().unwrap_or(State::Unknown)
    }

    /// Whether more addresses between blocks were found than there is room for.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// The way to a block that is reachable: the first origin is its own.
    pub fn origin(&self, block: u32) -> Origin {
        let by_start = self.by_start.get(block as usize).copied().unwrap_or_default();
        if !by_start.is_none() {
            return by_start;
        }
        self.by_inner.get(block as usize).map(|(origin, _)| *origin).unwrap_or_default()
    }

    /// A word outside of all blocks holds an address in a block.
    pub fn root(&mut self, target: u32, value: u64, rank: Rank, at: u64) {
        let index = target as usize;
        let Some(span) = self.blocks.spans.get(index) else { return };
        let offset = value.wrapping_sub(span.start);
        let origin = Origin::root(rank, at);
        let (Some(state), Some(known)) = (self.states.get_mut(index), self.by_start.get_mut(index))
        else {
            return;
        };
        if *state == State::Reachable || rank == Rank::Ignored {
            return;
        }
        if offset == 0 {
            if rank < Rank::Heap {
                *state = State::Reachable;
            }
            if known.is_none() || origin < *known {
                *known = origin;
            }
        } else {
            self.inner(target, offset, origin);
        }
    }

    /// As [`Graph::root`], where the word may be glibc's own: it points to the header of the chunk
    /// that follows the block, and the header's first word is the block's last one (the rule is
    /// applied by [`Graph::judge`]).
    pub fn header(&mut self, target: u32, value: u64, rank: Rank, at: u64) {
        if self.headers.len() < MAX_HEADERS && rank != Rank::Register {
            if self.state(target) != State::Reachable && rank != Rank::Ignored {
                self.headers.push((target, at, rank));
            }
        } else {
            self.root(target, value, rank, at);
        }
    }

    fn inner(&mut self, target: u32, offset: u64, origin: Origin) {
        if let Some(known) = self.by_inner.get_mut(target as usize)
            && (known.0.is_none() || origin < known.0)
        {
            *known = (origin, offset.min(u64::from(u32::MAX)) as u32);
        }
    }

    /// A word in the block `source` holds an address in a block. All words of one source come one
    /// after the other.
    pub fn edge(&mut self, source: u32, target: u32, value: u64) {
        if source == target || self.state(target) == State::Reachable {
            return;
        }
        let Some(span) = self.blocks.spans.get(target as usize) else { return };
        let offset = value.wrapping_sub(span.start);
        if self.state(source) == State::Reachable {
            self.reach(source, target, offset);
            return;
        }
        let edge = target | if offset == 0 { 0 } else { INNER };
        match self.runs.last() {
            Some((last, first)) if *last == source => {
                if self.edges.len() > *first as usize && self.edges.last() == Some(&edge) {
                    return;
                }
            }
            _ => self.runs.push((source, self.edges.len() as u32)),
        }
        if self.edges.len() >= MAX_EDGES {
            self.is_full = true;
            return;
        }
        if offset != 0 {
            self.offset_seen(target, offset);
        }
        self.edges.push(edge);
    }

    /// Remembers an offset for an edge that is kept: edges have no room for it.
    fn offset_seen(&mut self, target: u32, offset: u64) {
        if let Some(known) = self.by_inner.get_mut(target as usize)
            && known.0.is_none()
            && known.1 == 0
        {
            known.1 = offset.min(u64::from(u32::MAX)) as u32;
        }
    }

    /// An address in a reachable block leads to `target`; returns whether it is reachable by this.
    fn reach(&mut self, source: u32, target: u32, offset: u64) -> bool {
        let index = target as usize;
        let (Some(state), Some(by_start)) =
            (self.states.get_mut(index), self.by_start.get_mut(index))
        else {
            return false;
        };
        if offset != 0 {
            self.inner(target, offset, Origin::block(source));
            return false;
        }
        *state = State::Reachable;
        *by_start = Origin::block(source);
        true
    }

    /// Follows all ways, and says what is lost.
    ///
    /// `unknown` are the blocks without a verdict: they are taken for roots. `is_free` says whether
    /// a free chunk of glibc begins at an address, as far as can be told.
    pub fn judge(&mut self, unknown: &[u32], is_free: &mut dyn FnMut(u64) -> bool) -> Lost {
        if self.runs.windows(2).any(|pair| matches!(pair, [a, b] if a.0 > b.0)) {
            self.sort_runs();
        }
        self.resolve_headers(is_free);
        let firm = |graph: &Self| graph.with(|graph, block| graph.state(block) == State::Reachable);
        let seeds = firm(self);
        self.flood(seeds);
        let weak = self.with(|graph, block| {
            graph.state(block) != State::Reachable
                && graph.by_start.get(block as usize).is_some_and(|origin| !origin.is_none())
        });
        self.set(&weak, State::Reachable);
        self.flood(weak);
        // What is learnt of one call site may lead to blocks of others.
        for _ in 0..LEARN_TURNS {
            let learnt = self.learn();
            if learnt.is_empty() {
                break;
            }
            self.set(&learnt, State::Reachable);
            self.flood(learnt);
        }
        let inside = self.with(|graph, block| {
            graph.state(block) == State::Lost
                && graph.by_inner.get(block as usize).is_some_and(|(origin, _)| !origin.is_none())
        });
        self.set(&inside, State::Interior);
        self.spread(inside, State::Interior);
        self.doubt(unknown)
    }

    /// Takes further blocks for roots, as they have no verdict after all, and says again what is lost.
    pub fn doubt(&mut self, unknown: &[u32]) -> Lost {
        let unknown: Vec<u32> =
            unknown.iter().copied().filter(|block| self.state(*block) == State::Lost).collect();
        self.set(&unknown, State::Unknown);
        self.spread(unknown, State::Unknown);
        let lost = self.with(|graph, block| graph.state(block) == State::Lost);
        let birth = |block: u32| self.blocks.births.get(block as usize).copied().unwrap_or(0);
        lost::judge(&lost, |block| self.edges_of(block), birth)
    }

    fn with(&self, is_wanted: impl Fn(&Self, u32) -> bool) -> Vec<u32> {
        (0..self.blocks.len() as u32).filter(|block| is_wanted(self, *block)).collect()
    }

    fn set(&mut self, blocks: &[u32], to: State) {
        for block in blocks {
            if let Some(state) = self.states.get_mut(*block as usize) {
                *state = to;
            }
        }
    }

    /// Blocks that are scanned in several turns, as mappings of several kinds hold them.
    fn sort_runs(&mut self) {
        let ends =
            self.runs.iter().skip(1).map(|(_, first)| *first).chain([self.edges.len() as u32]);
        let mut all: Vec<(u32, u32, u32)> = self
            .runs
            .iter()
            .zip(ends)
            .map(|((source, first), end)| (*source, *first, end))
            .collect();
        all.sort_by_key(|(source, ..)| *source);
        let mut edges = Vec::with_capacity(self.edges.len());
        let mut runs: Vec<(u32, u32)> = Vec::with_capacity(all.len());
        for (source, first, end) in all {
            if runs.last().is_none_or(|(last, _)| *last != source) {
                runs.push((source, edges.len() as u32));
            }
            edges.extend_from_slice(self.edges.get(first as usize..end as usize).unwrap_or(&[]));
        }
        (self.edges, self.runs) = (edges, runs);
    }

    fn edge_range(&self, source: u32) -> std::ops::Range<usize> {
        let Ok(at) = self.runs.binary_search_by_key(&source, |(block, _)| *block) else {
            return 0..0;
        };
        let first = self.runs.get(at).map_or(0, |(_, first)| *first as usize);
        let end = self.runs.get(at + 1).map_or(self.edges.len(), |(_, first)| *first as usize);
        first..end
    }

    /// The blocks that addresses in a block lead to; an edge of a lost block is never left out.
    fn edges_of(&self, source: u32) -> impl Iterator<Item = u32> + '_ {
        let range = self.edge_range(source);
        self.edges.get(range).unwrap_or(&[]).iter().map(|edge| edge & !INNER)
    }

    /// Spreads reachability from blocks that are reachable.
    fn flood(&mut self, seeds: Vec<u32>) {
        let mut queue = VecDeque::from(seeds);
        while let Some(source) = queue.pop_front() {
            for at in self.edge_range(source) {
                let edge = self.edges.get(at).copied().unwrap_or(0);
                let target = edge & !INNER;
                if self.state(target) == State::Reachable {
                    continue;
                }
                let offset = match edge & INNER {
                    0 => 0,
                    _ => u64::from(
                        self.by_inner
                            .get(target as usize)
                            .map_or(1, |(_, offset)| (*offset).max(1)),
                    ),
                };
                if self.reach(source, target, offset) {
                    queue.push_back(target);
                }
            }
        }
    }

    /// Spreads a weaker state along all edges, over lost blocks.
    fn spread(&mut self, seeds: Vec<u32>, state: State) {
        let mut left = seeds;
        while let Some(source) = left.pop() {
            for at in self.edge_range(source) {
                let target = self.edges.get(at).copied().unwrap_or(0) & !INNER;
                if self.state(target) == State::Lost {
                    self.set(&[target], state);
                    left.push(target);
                }
            }
        }
    }

    /// Blocks that addresses lead into at the usual offset of their call site: as the program keeps
    /// them so (behind a header of its own), that offset is as good as the beginning.
    fn learn(&self) -> Vec<u32> {
        let mut sites: HashMap<u32, (u32, HashMap<u32, u32>)> = HashMap::new();
        let inside = |block: u32| {
            let (origin, offset) = *self.by_inner.get(block as usize)?;
            let site = *self.blocks.sites.get(block as usize)?;
            (self.state(block) == State::Lost && !origin.is_none()).then_some((site, offset))
        };
        let all =
            || (0..self.blocks.len() as u32).filter_map(|block| Some((block, inside(block)?)));
        for (_, (site, offset)) in all() {
            let (count, offsets) = sites.entry(site).or_default();
            *count += 1;
            *offsets.entry(offset).or_default() += 1;
        }
        let usual: HashMap<u32, u32> = sites
            .into_iter()
            .filter_map(|(site, (count, offsets))| {
                let (offset, most) =
                    offsets.into_iter().max_by_key(|(offset, most)| (*most, *offset))?;
                let is_usual = most >= LEARN_BLOCKS
                    && u64::from(most) * 100 >= u64::from(count) * u64::from(LEARN_PERCENT);
                is_usual.then_some((site, offset))
            })
            .collect();
        all()
            .filter(|(_, (site, offset))| usual.get(site) == Some(offset))
            .map(|(block, _)| block)
            .collect()
    }

    /// glibc's free lists and its top pointer hold the addresses of chunk headers. A header begins in
    /// the last 8 bytes of the block before it: such an address does not hold that block, if a free
    /// chunk is there.
    fn resolve_headers(&mut self, is_free: &mut dyn FnMut(u64) -> bool) {
        for (target, at, rank) in std::mem::take(&mut self.headers) {
            let Some(span) = self.blocks.spans.get(target as usize).copied() else { continue };
            let is_known =
                self.by_inner.get(target as usize).is_some_and(|(origin, _)| !origin.is_none());
            if self.state(target) == State::Reachable || is_known || is_free(span.end - 8) {
                continue;
            }
            self.root(target, span.end - 8, rank, at);
        }
    }

    /// A block, as it was listed.
    pub fn block(&self, index: u32) -> Option<Block> {
        self.blocks.get(index)
    }
}
