//! Goes through memory word by word: which words hold addresses in blocks, and whose words they are.

use super::{
    blocks::{Blocks, Layout},
    graph::{Graph, Rank},
    index::{BATCH, Index, NONE},
};

/// Where a word stands that belongs to no block.
const OUTSIDE: u32 = u32::MAX;

/// Fills a graph from memory.
pub struct Sweep<'a, 'g> {
    blocks: &'a Blocks,
    index: &'a Index,
    graph: &'g mut Graph<'a>,
    layout: Layout,
    /// What words outside of all blocks are.
    rank: Rank,
    /// Lowest address that may lie in a block, and how many follow it.
    range: (u64, u64),
    words: [u64; BATCH],
    places: [u64; BATCH],
    sources: [u32; BATCH],
    filled: usize,
    /// Words that hold their own address and stand where thread control blocks do.
    pub own_addresses: Vec<u64>,
}

/// Most words that hold their own address and are remembered: a process has no more threads.
const MAX_OWN_ADDRESSES: usize = 1 << 16;

impl<'a, 'g> Sweep<'a, 'g> {
    /// Nothing was read yet.
    pub fn new(
        blocks: &'a Blocks,
        index: &'a Index,
        graph: &'g mut Graph<'a>,
        layout: Layout,
    ) -> Self {
        Self {
            blocks,
            index,
            graph,
            layout,
            rank: Rank::Mapping,
            range: index.range(),
            words: [0; BATCH],
            places: [0; BATCH],
            sources: [0; BATCH],
            filled: 0,
            own_addresses: Vec::new(),
        }
    }

    /// Says what words outside of all blocks are from now on.
    pub fn set_rank(&mut self, rank: Rank) {
        self.flush();
        self.rank = rank;
    }

    /// Takes in words that are no memory: registers, or what the kernel keeps. `place` says whose.
    pub fn take_words(&mut self, rank: Rank, place: u64, words: &[u64]) {
        self.set_rank(rank);
        for word in words {
            self.word(*word, place, OUTSIDE);
        }
        self.flush();
    }

    /// Takes in a piece of memory. `is_code` has addresses looked for at every byte outside of
    /// blocks.
    pub fn take(&mut self, address: u64, words: &[u64], is_code: bool) {
        let end = address + words.len() as u64 * 8;
        let mut at = address;
        let mut next = self.blocks.spans.partition_point(|span| span.end <= address);
        while at < end {
            let span = self.blocks.spans.get(next).copied();
            let (source, until) = match span {
                // A word that begins in a block is the block's.
                Some(span) if span.start <= at => {
                    next += 1;
                    (next as u32 - 1, span.end.next_multiple_of(8).min(end))
                }
                Some(span) => (OUTSIDE, (span.start & !7).clamp(at, end)),
                None => (OUTSIDE, end),
            };
            let range = ((at - address) / 8) as usize..((until - address) / 8) as usize;
            let own = words.get(range).unwrap_or(&[]);
            match source {
                OUTSIDE => self.outside(at, own, is_code),
                _ => {
                    for (place, word) in (at..).step_by(8).zip(own) {
                        self.word(*word, place, source);
                    }
                }
            }
            if until == at && source == OUTSIDE {
                // The block begins within this word.
                let word = words.get(((at - address) / 8) as usize).copied().unwrap_or(0);
                self.word(word, at, OUTSIDE);
                at += 8;
                continue;
            }
            at = until;
        }
    }

    fn outside(&mut self, address: u64, words: &[u64], is_code: bool) {
        for (place, word) in (address..).step_by(8).zip(words) {
            if *word == place && self.own_addresses.len() < MAX_OWN_ADDRESSES {
                self.own_addresses.push(place);
            }
            self.word(*word, place, OUTSIDE);
        }
        if is_code {
            for (place, pair) in (address..).step_by(8).zip(words.windows(2)) {
                let [low, high] = pair else { continue };
                let both = u128::from(*high) << 64 | u128::from(*low);
                for byte in 1..8 {
                    self.word((both >> (byte * 8)) as u64, place + byte, OUTSIDE);
                }
            }
        }
    }

    #[inline]
    fn word(&mut self, word: u64, place: u64, source: u32) {
        let (low, length) = self.range;
        if word.wrapping_sub(low) >= length {
            return;
        }
        let at = self.filled;
        if let (Some(to), Some(of), Some(by)) =
            (self.words.get_mut(at), self.places.get_mut(at), self.sources.get_mut(at))
        {
            (*to, *of, *by) = (word, place, source);
        }
        self.filled = at + 1;
        if self.filled == BATCH {
            self.flush();
        }
    }

    /// Looks up what was gathered.
    pub fn flush(&mut self) {
        let mut found = [NONE; BATCH];
        let count = std::mem::take(&mut self.filled);
        self.index.find_all(self.blocks, self.words.get(..count).unwrap_or(&[]), &mut found);
        let words = self.words.iter().zip(&self.places).zip(&self.sources).zip(found).take(count);
        for (((word, place), source), target) in words {
            if target == NONE {
                continue;
            }
            if *source != OUTSIDE {
                self.graph.edge(*source, target, *word);
                continue;
            }
            let end = self.blocks.spans.get(target as usize).map_or(0, |span| span.end);
            if self.layout == Layout::Glibc && word.wrapping_add(8) == end {
                self.graph.header(target, *word, self.rank, *place);
            } else {
                self.graph.root(target, *word, self.rank, *place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{
        super::{blocks::Block, graph::State, lost::Lost},
        *,
    };

    /// Blocks of 32 bytes at 0x10000, 0x10040 and so on, called 0, 1 and so on, all old; and memory
    /// around them.
    struct Scene {
        blocks: Blocks,
        memory: BTreeMap<u64, u64>,
    }

    fn address(block: u64) -> u64 {
        0x10000 + block * 64
    }

    impl Scene {
        fn new(count: u64, site: impl Fn(u64) -> u32, layout: Layout) -> Self {
            let block = |at| Block { start: address(at), size: 40, birth: at, site: site(at) };
            Self {
                blocks: Blocks::new((0..count).map(block).collect(), layout),
                memory: BTreeMap::new(),
            }
        }

        fn write(&mut self, at: u64, value: u64) -> &mut Self {
            self.memory.insert(at, value);
            self
        }

        /// Judges, with the page at `root_page` of this rank and the blocks' own memory.
        fn judge(
            &self,
            root_page: u64,
            rank: Rank,
            unknown: &[u32],
            frees: &[u64],
        ) -> (Vec<State>, Lost) {
            let index = Index::new(&self.blocks);
            let mut graph = Graph::new(&self.blocks);
            let mut sweep = Sweep::new(&self.blocks, &index, &mut graph, self.layout());
            let heap_end = address(self.blocks.len() as u64) + 64;
            for (from, to, rank) in
                [(root_page, root_page + 4096, rank), (0x10000, heap_end, Rank::Heap)]
            {
                sweep.set_rank(rank);
                let words: Vec<u64> = (from..to)
                    .step_by(8)
                    .map(|at| self.memory.get(&at).copied().unwrap_or(0))
                    .collect();
                // In pieces, as they are read.
                for (piece, words) in words.chunks(37).enumerate() {
                    sweep.take(from + piece as u64 * 37 * 8, words, false);
                }
            }
            sweep.flush();
            let lost = graph.judge(unknown, &mut |address| frees.contains(&address));
            ((0..self.blocks.len() as u32).map(|block| graph.state(block)).collect(), lost)
        }

        fn layout(&self) -> Layout {
            Layout::Glibc
        }
    }

    const ROOT: u64 = 0x1000;
    use State::{Interior as I, Lost as L, Reachable as R, Unknown as U};

    fn check(writes: &[(u64, u64)], rank: Rank, unknown: &[u32], expected: &[State]) {
        let mut scene = Scene::new(expected.len() as u64, |_| 1, Layout::Glibc);
        for (at, value) in writes {
            scene.write(*at, *value);
        }
        let (states, lost) = scene.judge(ROOT, rank, unknown, &[]);
        assert_eq!(states, expected, "{writes:x?} {rank:?}");
        let count = states.iter().filter(|state| **state == L).count();
        assert_eq!(lost.leaders.len() + lost.led.len(), count);
    }

    /// The same whether the scan knows at once that the root holds, or at its end.
    #[test]
    fn a_chain_hangs_from_its_root() {
        let up = [(ROOT, address(0)), (address(0) + 8, address(1)), (address(1), address(2))];
        let down = [(ROOT, address(2)), (address(2) + 8, address(1)), (address(1), address(0))];
        for rank in [Rank::Global, Rank::Mapping, Rank::Heap] {
            check(&up, rank, &[], &[R, R, R, L]);
            check(&down, rank, &[], &[R, R, R, L]);
        }
    }

    #[test]
    fn what_nothing_leads_to_is_lost_with_all_that_it_leads_to() {
        check(
            &[(address(0), address(1)), (address(1), address(0)), (address(2), address(2))],
            Rank::Global,
            &[],
            &[L, L, L],
        );
    }

    #[test]
    fn an_address_inside_leads_less_far() {
        // 0 by its beginning, 1 inside, 2 by the beginning from 1.
        let writes = [(ROOT, address(0)), (ROOT + 8, address(1) + 16), (address(1), address(2))];
        check(&writes, Rank::Global, &[], &[R, I, I, L]);
        // A better way later in the scan.
        let better = [writes.as_slice(), &[(ROOT + 800, address(1))]].concat();
        check(&better, Rank::Global, &[], &[R, R, R, L]);
        // From a block that is reachable, and from one that is lost.
        check(
            &[(ROOT, address(1)), (address(1), address(0) + 8), (address(2), address(3) + 8)],
            Rank::Global,
            &[],
            &[I, R, L, L],
        );
    }

    /// The word behind the block's last asked byte is its slack.
    #[test]
    fn words_in_the_slack_of_a_block_are_no_roots() {
        check(&[(address(0) + 32, address(1))], Rank::Global, &[], &[L, L]);
        // Behind it, memory of nobody: an older block perhaps.
        check(&[(address(0) + 48, address(1))], Rank::Global, &[], &[L, R]);
    }

    #[test]
    fn blocks_without_verdict_are_roots() {
        let writes =
            [(address(0), address(1)), (address(1), address(2) + 8), (address(3), address(4))];
        check(&writes, Rank::Global, &[0], &[U, U, U, L, L]);
        // What a root holds is reachable whatever else is unknown.
        let writes = [writes.as_slice(), &[(ROOT, address(1))]].concat();
        check(&writes, Rank::Global, &[0, 3], &[U, R, I, U, U]);
    }

    #[test]
    fn the_usual_offset_of_a_call_site_counts_as_the_beginning() {
        let count = 40;
        let mut scene = Scene::new(count, |at| u32::from(at >= 20), Layout::Glibc);
        for at in 0..20 {
            scene.write(ROOT + at * 8, address(at) + 16);
            // Each leads to one of the other site, in no usual way.
            scene.write(address(at), address(at + 20) + 8 * (at % 4 + 1));
        }
        let (states, _) = scene.judge(ROOT, Rank::Global, &[], &[]);
        assert!(states[..20].iter().all(|state| *state == R), "{states:?}");
        assert!(states[20..].iter().all(|state| *state == I), "{states:?}");
        // Too few for a habit.
        let mut scene = Scene::new(15, |_| 0, Layout::Glibc);
        for at in 0..15 {
            scene.write(ROOT + at * 8, address(at) + 16);
        }
        assert!(scene.judge(ROOT, Rank::Global, &[], &[]).0.iter().all(|state| *state == I));
    }

    /// The block of 40 bytes ends with the first word of the next chunk's header.
    #[test]
    fn an_address_of_a_free_chunk_does_not_hold_the_block_before_it() {
        let mut scene = Scene::new(2, |_| 0, Layout::Glibc);
        scene.write(ROOT, address(0) + 32).write(ROOT + 8, address(1) + 32);
        let (states, _) = scene.judge(ROOT, Rank::Global, &[], &[address(0) + 32]);
        assert_eq!(states, [L, I]);
    }

    #[test]
    fn addresses_between_mappings_of_several_kinds_are_sorted() {
        let blocks = Scene::new(4, |_| 0, Layout::Glibc).blocks;
        let index = Index::new(&blocks);
        let mut graph = Graph::new(&blocks);
        let mut sweep = Sweep::new(&blocks, &index, &mut graph, Layout::Glibc);
        // Higher addresses first.
        sweep.take(address(3), &[address(1)], false);
        sweep.take(address(1), &[address(0)], false);
        sweep.take(address(2), &[address(3)], false);
        sweep.set_rank(Rank::Heap);
        sweep.take(ROOT, &[address(2)], false);
        sweep.flush();
        graph.judge(&[], &mut |_| false);
        assert!((0..4).all(|block| graph.state(block) == R));
        let way: Vec<Option<u32>> = (0..4).map(|block| graph.origin(block).as_block()).collect();
        assert_eq!(way, [Some(1), Some(3), None, Some(2)]);
        assert_eq!(graph.origin(2).as_root(), Some((Rank::Heap, ROOT)));
    }

    #[test]
    fn addresses_in_code_stand_anywhere() {
        let blocks = Scene::new(2, |_| 0, Layout::Glibc).blocks;
        let index = Index::new(&blocks);
        let mut graph = Graph::new(&blocks);
        let mut sweep = Sweep::new(&blocks, &index, &mut graph, Layout::Glibc);
        let movabs = u128::from(address(1)) << 24 | 0xb848;
        sweep.take(ROOT, &[movabs as u64, (movabs >> 64) as u64], true);
        sweep.take(ROOT + 16, &[0x1122_3344, ROOT + 24], false);
        assert_eq!(sweep.own_addresses, [ROOT + 24]);
        sweep.flush();
        assert_eq!((graph.state(0), graph.state(1)), (L, R));
    }
}
