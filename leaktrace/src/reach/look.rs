//! One look at the memory of one process, and the judgement on its blocks that follows from it.
//!
//! The list of blocks is read before the memory and after it. A block that is not the same in both
//! lists has no verdict, and its words are roots: a stale entry would hide what lies there now.

use std::{
    collections::HashMap,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    blocks::{Block, Blocks, Layout, MallocSites},
    graph::{Graph, Rank},
    held,
    index::{BATCH, Index, NONE},
    kernel,
    lost::Lost,
    mappings::{Mapped, Mappings},
    memory::{Memory, PIECE},
    objects::{LoadedAt, Objects, hides_addresses},
    places::Places,
    sweep::Sweep,
    view::View,
};
use crate::{
    bpf::blocks::BlockReader,
    snapshot::{
        Amount,
        reach::{HeldBy, Reached},
    },
    units::format_bytes,
};

/// Swapped memory beyond which no verdict is tried: all of it would be read from the disk.
const MAX_SWAPPED_BYTES: u64 = 1 << 30;
/// Bytes below the stack pointer that are in use all the same (the red zone of the x86-64 ABI).
const RED_ZONE: u64 = 128;
/// Bytes of a block by which a change of its contents is seen.
const MAX_DIGESTED: u64 = 64 << 10;

/// A process whose blocks are judged.
#[derive(Clone, Debug)]
pub struct Target {
    /// Process ID.
    pub pid: u32,
    /// The space of its blocks.
    pub space: u32,
    /// How its allocator lays out blocks.
    pub layout: Layout,
    /// The executable mappings of its objects.
    pub loaded: Vec<LoadedAt>,
}

/// What counts in a look.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Blocks born later have no verdict (`CLOCK_MONOTONIC`, in nanoseconds).
    pub youngest_ns: u64,
    /// Whether memory of the heap (that of brk) outside of tracked blocks is a root: not if every
    /// allocation of the process was tracked.
    pub counts_older_heap: bool,
}

/// Why there is no verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// For this reason.
    Because(String),
    /// The process has ended, or executes another file.
    Gone,
    /// The user does not want to wait.
    Skipped,
}

/// What one look has found.
pub struct Look<'a> {
    /// The blocks, as listed before the memory was read.
    pub blocks: &'a Blocks,
    /// What leads to them.
    pub graph: Graph<'a>,
    /// The blocks that are lost.
    pub lost: Lost,
    /// Blocks that came while the memory was read, by call site.
    fresh: HashMap<u32, Amount>,
    memory: &'a Memory,
    mappings: &'a Mappings,
    objects: &'a Objects,
    view: &'a View,
    own_addresses: Vec<u64>,
}

/// Looks at the memory of a process once, and passes what was found to `then`.
///
/// `is_candidate` says which blocks may be lost at all, besides the rules.
///
/// # Errors
///
/// Why there is no verdict.
#[allow(clippy::too_many_arguments, reason = "each is one thing that a look needs")]
pub fn look<R>(
    reader: &BlockReader,
    target: &Target,
    view: &View,
    memory: &mut Memory,
    objects: &mut Option<Objects>,
    rules: Rules,
    is_candidate: &dyn Fn(&Block) -> bool,
    cancel: &AtomicBool,
    then: impl FnOnce(&mut Look<'_>) -> R,
) -> Result<R, Refusal> {
    let because = |error: String| Refusal::Because(error);
    memory.begin();
    let blocks = Blocks::read(reader, target.space, target.layout)
        .map_err(|error| because(error.to_string()))?;
    let mut mappings = Mappings::read(view.memory_pid).map_err(|_| Refusal::Gone)?;
    if !view.from_target.is_empty() {
        mappings.take_from(Mappings::read(view.pid).map_err(|_| Refusal::Gone)?, &view.from_target);
    }
    check(&mappings)?;
    let objects = objects.get_or_insert_with(|| Objects::read(target.pid, &target.loaded));
    if objects.program().is_some_and(|program| program.data.is_foreign) {
        return Err(because("its code is not 64-bit, and its addresses are half a word".into()));
    }
    let index = Index::new(&blocks);
    let mut graph = Graph::new(&blocks);
    let mut sweep = Sweep::new(&blocks, &index, &mut graph, target.layout);
    let mut of_target = match view.from_target.is_empty() {
        true => None,
        false => Some(Memory::open(view.pid).map_err(|_| Refusal::Gone)?),
    };
    let mut buffer = vec![0_u64; PIECE / 8];
    for thread in &view.threads {
        sweep.take_words(Rank::Register, u64::from(thread.tid), &thread.words);
        let bases = [thread.sp, thread.ip, thread.bp, thread.fs_base, thread.gs_base];
        sweep.take_words(Rank::Register, u64::from(thread.tid), &bases);
    }
    sweep.take_words(Rank::Kernel, 0, &kernel::words(view.pid));
    for part in parts(&mappings, objects, &blocks, view) {
        let is_rest = part.rank == Rank::Heap && part.mapped.name == "[heap]";
        if is_rest && !rules.counts_older_heap && !has_thread(part.mapped, view) {
            // Its words still belong to blocks.
            sweep.set_rank(Rank::Ignored);
        } else {
            sweep.set_rank(part.rank);
        }
        let is_of_target = view.from_target.iter().any(|range| range.contains(&part.range.start));
        let from = match &mut of_target {
            Some(of_target) if is_of_target => of_target,
            _ => &mut *memory,
        };
        let clipped =
            Mapped { start: part.range.start, end: part.range.end, ..part.mapped.clone() };
        let ranges: Vec<Range<u64>> = from
            .ranges(part.mapped)
            .map_err(because)?
            .into_iter()
            .filter_map(|range| {
                let (start, end) = (range.start.max(clipped.start), range.end.min(clipped.end));
                (start < end).then_some(start & !7..end & !7)
            })
            .collect();
        let is_whole = from.read(&ranges, clipped.is_readable, &mut buffer, &mut |at, words| {
            sweep.take(at, words, clipped.is_code);
            !cancel.load(Ordering::Relaxed)
        });
        if !is_whole {
            return Err(Refusal::Skipped);
        }
    }
    sweep.flush();
    let own_addresses = std::mem::take(&mut sweep.own_addresses);
    let unread = memory.unread_bytes + of_target.map_or(0, |memory| memory.unread_bytes);
    if !memory.is_there() {
        return Err(Refusal::Gone);
    }
    if unread > 0 {
        return Err(because(format!("{} of its memory could not be read", format_bytes(unread))));
    }
    if graph.is_full() {
        return Err(because(
            "its blocks hold more addresses of each other than there is room for".into(),
        ));
    }
    // After the memory.
    let (mut is_same, fresh) = compare(reader, target, &blocks, &index)?;
    for block in &blocks.doubtful {
        if let Some(same) = is_same.get_mut(*block as usize) {
            *same = false;
        }
    }
    let unknown: Vec<u32> = (0..blocks.len() as u32)
        .filter(|at| {
            let block = blocks.get(*at);
            let may_be_lost = |block: Block| {
                is_same.get(*at as usize) == Some(&true)
                    && block.birth <= rules.youngest_ns
                    && is_candidate(&block)
                    && mappings.find(block.start).is_some()
            };
            !block.is_some_and(may_be_lost)
        })
        .collect();
    let lost = graph.judge(&unknown, &mut |header| is_free_chunk(memory, &mappings, header));
    let mut look = Look {
        blocks: &blocks,
        graph,
        lost,
        fresh,
        memory,
        mappings: &mappings,
        objects,
        view,
        own_addresses,
    };
    Ok(then(&mut look))
}

/// Refuses memory that cannot be judged.
fn check(mappings: &Mappings) -> Result<(), Refusal> {
    if let Some(reason) = hides_addresses(&mappings.files) {
        return Err(Refusal::Because(reason.into()));
    }
    if mappings.swapped_bytes > MAX_SWAPPED_BYTES {
        let bytes = format_bytes(mappings.swapped_bytes);
        return Err(Refusal::Because(format!(
            "{bytes} of its memory are swapped out, and all of it would have to be read"
        )));
    }
    Ok(())
}

/// A part of a mapping whose words are of one kind.
struct Part<'a> {
    rank: Rank,
    range: Range<u64>,
    mapped: &'a Mapped,
}

/// The memory to be read, the firmest roots first.
fn parts<'a>(
    mappings: &'a Mappings,
    objects: &Objects,
    blocks: &Blocks,
    view: &View,
) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    for mapped in &mappings.read {
        let from = blocks.spans.partition_point(|span| span.end <= mapped.start);
        let has_blocks = blocks.spans.get(from).is_some_and(|span| span.start < mapped.end);
        let rank = match mapped.name.as_str() {
            "[heap]" => Rank::Heap,
            "[stack]" => Rank::Thread,
            _ if has_blocks => Rank::Heap,
            _ => Rank::Mapping,
        };
        let mut at = live_from(mapped, view);
        let mut add = |rank, range: Range<u64>| {
            if range.start < range.end {
                parts.push(Part { rank, range, mapped });
            }
        };
        for data in objects.writable() {
            let (from, to) = (data.start.clamp(at, mapped.end), data.end.clamp(at, mapped.end));
            if from < to {
                add(rank, at..from);
                add(Rank::Global, from..to);
                at = to;
            }
        }
        add(rank, at..mapped.end);
    }
    parts.sort_by_key(|part| part.rank);
    parts
}

/// Whether a mapping has the control block of a thread: a static executable takes that of its first
/// thread from the heap.
fn has_thread(mapped: &Mapped, view: &View) -> bool {
    let mut threads = view.threads.iter();
    threads.any(|thread| (mapped.start..mapped.end).contains(&thread.fs_base))
}

/// The first address of a mapping that may be in use: a stack's is dead below its pointer.
fn live_from(mapped: &Mapped, view: &View) -> u64 {
    let lies_here = |address: u64| (mapped.start..mapped.end).contains(&address);
    let pointers = view.threads.iter().filter(|thread| {
        let is_own = mapped.name == "[stack]" && thread.tid == view.pid;
        let is_threads = lies_here(thread.fs_base) && thread.sp <= thread.fs_base;
        view.is_consistent && lies_here(thread.sp) && (is_own || is_threads)
    });
    let lowest = pointers.map(|thread| thread.sp).min();
    lowest.map_or(mapped.start, |sp| sp.saturating_sub(RED_ZONE).max(mapped.start) & !7)
}

/// Which blocks are listed just the same now, and what has come since.
fn compare(
    reader: &BlockReader,
    target: &Target,
    blocks: &Blocks,
    index: &Index,
) -> Result<(Vec<bool>, HashMap<u32, Amount>), Refusal> {
    let mut is_same = vec![false; blocks.len()];
    let mut fresh: HashMap<u32, Amount> = HashMap::new();
    let mut sites = MallocSites::default();
    let mut gathered: Vec<Block> = Vec::with_capacity(BATCH);
    let mut look_up = |gathered: &mut Vec<Block>| {
        let (mut starts, mut found) = ([0; BATCH], [NONE; BATCH]);
        starts.iter_mut().zip(&*gathered).for_each(|(to, block)| *to = block.start);
        let starts = starts.get(..gathered.len()).unwrap_or(&[]);
        index.find_all(blocks, starts, &mut found);
        for (block, at) in gathered.drain(..).zip(found) {
            let known = (blocks.get(at) == Some(block)).then_some(at);
            match known.and_then(|at| is_same.get_mut(at as usize)) {
                Some(same) => *same = true,
                None => {
                    let sum = fresh.entry(block.site).or_default();
                    *sum = sum.plus(Amount { count: 1, bytes: block.size });
                }
            }
        }
    };
    reader
        .read(target.space, |start, now| {
            if sites.has(reader, now.site) {
                let (size, birth, site) = (now.size_bytes, now.timestamp_ns, now.site);
                gathered.push(Block { start, size, birth, site });
                if gathered.len() == BATCH {
                    look_up(&mut gathered);
                }
            }
        })
        .map_err(|error| Refusal::Because(error.to_string()))?;
    look_up(&mut gathered);
    Ok((is_same, fresh))
}

/// Whether a free chunk of glibc, or the top of a heap, begins at an address: the chunk behind it
/// says that the one before is not in use (`PREV_INUSE`), or there is none.
fn is_free_chunk(memory: &Memory, mappings: &Mappings, header: u64) -> bool {
    let Some(size) = memory.word(header.wrapping_add(8)).map(|word| word & !7) else {
        return false;
    };
    let Some(mapped) = mappings.find(header) else { return false };
    let next = header.wrapping_add(size);
    if size < 32 || next <= header || next > mapped.end {
        return false;
    }
    next == mapped.end || memory.word(next + 8).is_some_and(|word| word & 1 == 0)
}

impl Look<'_> {
    /// All lost blocks.
    pub fn all_lost(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self
            .lost
            .leaders
            .iter()
            .copied()
            .chain(self.lost.led.iter().map(|(block, _)| *block))
            .collect();
        all.sort_unstable();
        all
    }

    /// Numbers that change with the contents of blocks, for some of them in order. What cannot be
    /// read has none.
    pub fn digests(&self, blocks: &[u32]) -> Vec<Option<u64>> {
        let mut words = vec![0; MAX_DIGESTED as usize];
        let digest = |block: &u32| {
            let span = self.blocks.spans.get(*block as usize)?;
            let bytes = (span.end - span.start).min(MAX_DIGESTED) as usize;
            let room = words.get_mut(..bytes)?;
            let got = self.memory.bytes(span.start, room);
            (got == bytes).then(|| {
                room.chunks(8).fold(span.start, |digest, word| {
                    let mut bytes = [0; 8];
                    bytes.iter_mut().zip(word).for_each(|(to, from)| *to = *from);
                    (digest.rotate_left(5) ^ u64::from_le_bytes(bytes))
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                })
            })
        };
        blocks.iter().map(digest).collect()
    }

    /// What is to be said of each call site, by its index.
    pub fn by_site(&self) -> HashMap<u32, Reached> {
        use super::graph::State;

        let mut sites: HashMap<u32, Reached> = HashMap::new();
        let add = |sum: &mut Amount, block: Block| {
            *sum = sum.plus(Amount { count: 1, bytes: block.size });
        };
        for at in 0..self.blocks.len() as u32 {
            let Some(block) = self.blocks.get(at) else { continue };
            let site = sites.entry(block.site).or_default();
            match self.graph.state(at) {
                State::Reachable => add(&mut site.still_reachable, block),
                State::Interior => add(&mut site.possibly_lost, block),
                State::Unknown => add(&mut site.not_judged, block),
                State::Lost => {}
            }
        }
        for block in self.lost.leaders.iter().filter_map(|at| self.blocks.get(*at)) {
            add(&mut sites.entry(block.site).or_default().definitely_lost, block);
        }
        for (block, leader) in &self.lost.led {
            let (Some(block), Some(leader)) = (self.blocks.get(*block), self.blocks.get(*leader))
            else {
                continue;
            };
            add(&mut sites.entry(block.site).or_default().indirectly_lost, block);
            add(&mut sites.entry(leader.site).or_default().leads, block);
        }
        for (site, amount) in &self.fresh {
            let site = sites.entry(*site).or_default();
            site.not_judged = site.not_judged.plus(*amount);
        }
        for (site, held) in self.holders() {
            sites.entry(site).or_default().held_by = held;
        }
        sites
    }

    fn holders(&self) -> HashMap<u32, Vec<HeldBy>> {
        let mut places =
            Places::new(self.memory, self.mappings, self.objects, self.view, &self.own_addresses);
        held::by_site(&self.graph, self.blocks.len() as u32, &mut places)
    }

    /// What the look could not see, in lines.
    pub fn limits(&self) -> Vec<String> {
        let mut limits = Vec::new();
        if self.mappings.device_bytes > 0 {
            let bytes = format_bytes(self.mappings.device_bytes);
            limits.push(format!("{bytes} of devices' memory were not read"));
        }
        if self.mappings.swapped_bytes > 0 {
            let bytes = format_bytes(self.mappings.swapped_bytes);
            limits.push(format!("{bytes} of its memory were swapped out, and were read"));
        }
        limits
    }
}
