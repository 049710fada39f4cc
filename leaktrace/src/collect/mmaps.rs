//! Memory that processes map themselves: turns their reported system calls into ranges and call
//! sites.
//!
//! This module knows nothing of the frames of stacks, nor of names.

use std::collections::{BTreeMap, HashMap, HashSet};

use leaktrace_common::{
    LIFETIME_BUCKETS, MapCall, MapEvent, MapEventKind, StackId, lifetime_bucket,
};

use super::ranges::{Gone, Piece, Ranges};
use crate::snapshot::{Amount, Block, Role};

const PAGE_BYTES: u64 = 4096;
/// No address lies above this one (`TASK_SIZE_MAX`, arch/x86/include/asm/page_64.h, with 5 levels
/// of page tables).
const LAST_ADDRESS: u64 = 1 << 56;
/// Smallest result that is an error; all above it are errors too (include/linux/err.h).
const FIRST_ERROR: u64 = 4095_u64.wrapping_neg();

/// `MAP_HUGE_SHIFT` and the bits above it (include/uapi/asm-generic/hugetlb_encode.h).
const HUGE_SHIFT: u32 = 26;
const HUGE_MASK: u32 = 63;

/// A call site of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct MapSite {
    /// Space of the process image.
    pub(super) space: u32,
    /// The system call.
    pub(super) call: MapCall,
    /// Address of the instruction behind the system call.
    pub(super) call_site: u64,
    /// A [`StackId`].
    pub(super) stack: u64,
    /// Whose memory it is, as far as the system call shows.
    pub(super) role: Role,
    /// Whether the filters want its size. An unwanted mapping is followed all the same, as the
    /// process may move and grow it.
    pub(super) is_wanted: bool,
}

/// A call site's figures.
#[derive(Clone, Debug)]
pub(super) struct MapCounters {
    /// Mapped since the start of the session.
    pub(super) allocated: Amount,
    /// The unmapped part of `allocated`: bytes count at once, a mapping counts with its last byte.
    pub(super) freed: Amount,
    /// Largest single mapping.
    pub(super) largest_bytes: u64,
    /// `CLOCK_MONOTONIC` of the latest mapping, in nanoseconds.
    pub(super) last_ns: u64,
    /// Mappings that are gone, by the age that they reached.
    pub(super) lifetimes: [u64; LIFETIME_BUCKETS],
}

/// The memory of a call site that is mapped now.
#[derive(Clone, Debug, Default)]
pub(super) struct MapDetails {
    /// Mappings that are old enough, and their bytes.
    pub(super) outstanding: Amount,
    /// `CLOCK_MONOTONIC` of the oldest of these mappings, in nanoseconds.
    pub(super) oldest_ns: u64,
    /// The pieces of these mappings, if they are wanted.
    pub(super) blocks: Vec<Block>,
}

/// The mappings of one process image.
#[derive(Debug, Default)]
struct Image {
    ranges: Ranges,
    /// For each thread, the pieces that its unfinished `munmap` or `mremap` has taken out, and that
    /// may yet turn out not to be gone.
    under_way: HashMap<u32, Vec<Piece>>,
    /// The end of the image's heap, once known.
    heap_end: Option<u64>,
}

/// The mappings of all traced processes.
#[derive(Debug)]
pub(super) struct Mmaps {
    images: BTreeMap<u32, Image>,
    /// Spaces of images that are gone: late events of these images are ignored.
    gone: HashSet<u32>,
    sites: Vec<(MapSite, MapCounters)>,
    index: HashMap<MapSite, usize>,
    /// Indices in `sites` that no image uses.
    free: Vec<usize>,
    /// The sizes that the filters want, in bytes.
    sizes: (u64, u64),
    /// Most pieces that are kept.
    limit: usize,
    /// Number of mappings that found no room.
    lost: u64,
    /// Default size of a huge page in bytes.
    huge_bytes: u64,
}

impl Mmaps {
    /// No mappings yet. Mappings whose bytes are within `sizes` are wanted; at most `limit` pieces
    /// are kept.
    pub(super) fn new(sizes: (u64, u64), limit: usize, huge_bytes: u64) -> Self {
        Self {
            images: BTreeMap::new(),
            gone: HashSet::new(),
            sites: Vec::new(),
            index: HashMap::new(),
            free: Vec::new(),
            sizes,
            limit,
            lost: 0,
            huge_bytes,
        }
    }

    /// Stores where the heap of an image ends before the image's first call of `brk`.
    pub(super) fn set_heap_end(&mut self, space: u32, end: u64) {
        self.images.entry(space).or_default().heap_end = Some(end);
    }

    /// Takes in a child, which has a copy of its parent's memory. Only the heap's end matters: the
    /// parent's mappings are no leak of the child.
    pub(super) fn forked(&mut self, parent: u32, child: u32) {
        if parent == child {
            return;
        }
        if let Some(heap_end) = self.images.get(&parent).and_then(|image| image.heap_end) {
            self.set_heap_end(child, heap_end);
        }
    }

    /// Forgets a process image: its memory is gone and no leak.
    pub(super) fn forget(&mut self, space: u32) {
        self.images.remove(&space);
        self.gone.insert(space);
    }

    /// Frees the call sites of images that are gone; returns the stacks of those call sites, and
    /// the stacks of the others. From then on other images may have their spaces.
    pub(super) fn forget_sites(&mut self, gone: &HashSet<u32>) -> (HashSet<u64>, HashSet<u64>) {
        let (mut of_gone, mut of_others) = (HashSet::new(), HashSet::new());
        for (at, (site, _)) in self.sites.iter().enumerate() {
            // One that is free is in no index.
            if self.index.get(site) != Some(&at) {
                continue;
            }
            if gone.contains(&site.space) {
                of_gone.insert(site.stack);
                self.free.push(at);
            } else {
                of_others.insert(site.stack);
            }
        }
        self.index.retain(|site, _| !gone.contains(&site.space));
        self.gone.retain(|space| !gone.contains(space));
        (of_gone, of_others)
    }

    /// Number of mappings that found no room.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Takes in a system call.
    pub(super) fn apply(&mut self, event: &MapEvent) {
        if self.gone.contains(&event.space) {
            return;
        }
        let Some(kind) = MapEventKind::from_u32(event.kind) else { return };
        let image = self.images.entry(event.space).or_default();
        match kind {
            MapEventKind::Mapped => self.mapped(event),
            MapEventKind::Unmapping => {
                let taken = match unmapped(event) {
                    Some((start, end)) => image.ranges.take(start, end),
                    None => Vec::new(),
                };
                let before = image.under_way.insert(event.tid, taken);
                self.settle(event, before);
            }
            MapEventKind::Unmapped => {
                let taken = image.under_way.remove(&event.tid).unwrap_or_default();
                if event.result == 0 {
                    self.settle(event, Some(taken));
                } else {
                    image.ranges.put_back(taken);
                }
            }
            MapEventKind::Moving => {
                let end = event.address.saturating_add(pages(event.length)).min(LAST_ADDRESS);
                let taken = image.ranges.take(event.address, end);
                let before = image.under_way.insert(event.tid, taken);
                self.settle(event, before);
            }
            MapEventKind::Moved => self.moved(event),
            MapEventKind::Brk => self.brk(event),
        }
    }

    fn mapped(&mut self, event: &MapEvent) {
        let page = huge_page(event, self.huge_bytes).unwrap_or(PAGE_BYTES);
        let end = event.result.saturating_add(round_up(event.length, page));
        self.replace(event, event.result, end);
        if event.flags & libc::MAP_ANONYMOUS as u32 == 0 {
            return;
        }
        let role = if event.in_allocator != 0 {
            Role::Allocator
        } else if event.flags & libc::MAP_STACK as u32 != 0 {
            Role::Stack
        } else if event.protection == libc::PROT_NONE as u32 {
            Role::Reserved
        } else {
            Role::Program
        };
        self.add(event, MapCall::Mmap, role, (event.result, end));
    }

    fn moved(&mut self, event: &MapEvent) {
        let Some(image) = self.images.get_mut(&event.space) else { return };
        let old = image.under_way.remove(&event.tid).unwrap_or_default();
        if event.result >= FIRST_ERROR {
            image.ranges.put_back(old);
            return;
        }
        let end = event.result.saturating_add(pages(event.new_length));
        let role = old.first().and_then(|piece| image.ranges.mapping(piece));
        let role = role.and_then(|mapping| self.sites.get(mapping.site)).map(|(site, _)| site.role);
        if event.flags & libc::MREMAP_DONTUNMAP as u32 != 0 {
            // The old addresses stay mapped, without their pages.
            image.ranges.put_back(old);
        } else {
            self.settle(event, Some(old));
        }
        self.replace(event, event.result, end);
        // What was not tracked is not the program's memory since the start, or a file.
        let Some(role) = role else { return };
        let role = if event.in_allocator != 0 { Role::Allocator } else { role };
        self.add(event, MapCall::Mremap, role, (event.result, end));
    }

    fn brk(&mut self, event: &MapEvent) {
        let image = self.images.entry(event.space).or_default();
        let new = pages(event.result);
        let Some(old) = image.heap_end.replace(new) else { return };
        // A break that was not set as asked is where it was.
        if event.address != event.result || new == old {
            return;
        }
        if new < old {
            self.replace(event, new, old);
        } else {
            let role = if event.in_allocator != 0 { Role::Allocator } else { Role::Program };
            self.add(event, MapCall::Brk, role, (old, new));
        }
    }

    /// Takes in that the memory that was in a range is gone.
    fn replace(&mut self, event: &MapEvent, start: u64, end: u64) {
        let Some(image) = self.images.get_mut(&event.space) else { return };
        let taken = image.ranges.take(start, end);
        self.settle(event, Some(taken));
    }

    fn settle(&mut self, event: &MapEvent, pieces: Option<Vec<Piece>>) {
        let Some(image) = self.images.get_mut(&event.space) else { return };
        for Gone { site, bytes, ended } in image.ranges.settle(pieces.unwrap_or_default()) {
            let Some((_, counters)) = self.sites.get_mut(site) else { continue };
            counters.freed.bytes += bytes;
            if let Some(timestamp_ns) = ended {
                counters.freed.count += 1;
                let age_ns = event.timestamp_ns.saturating_sub(timestamp_ns);
                if let Some(bucket) = counters.lifetimes.get_mut(lifetime_bucket(age_ns)) {
                    *bucket += 1;
                }
            }
        }
    }

    fn add(&mut self, event: &MapEvent, call: MapCall, role: Role, (start, end): (u64, u64)) {
        let bytes = end.saturating_sub(start);
        if bytes == 0 {
            return;
        }
        let is_wanted = bytes >= self.sizes.0 && bytes <= self.sizes.1;
        let pieces: usize = self.images.values().map(|image| image.ranges.len()).sum();
        if pieces >= self.limit {
            self.lost += 1;
            return;
        }
        let (space, call_site, stack) = (event.space, event.call_site, event.stack);
        let site = MapSite { space, call, call_site, stack, role, is_wanted };
        let at = *self.index.entry(site).or_insert_with(|| {
            let at = self.free.pop().unwrap_or(self.sites.len());
            match self.sites.get_mut(at) {
                Some(slot) => *slot = (site, MapCounters::default()),
                None => self.sites.push((site, MapCounters::default())),
            }
            at
        });
        let Some((_, counters)) = self.sites.get_mut(at) else { return };
        let one = Amount { count: 1, bytes };
        counters.allocated = counters.allocated.plus(one);
        counters.largest_bytes = counters.largest_bytes.max(bytes);
        counters.last_ns = event.timestamp_ns;
        if let Some(image) = self.images.get_mut(&space) {
            image.ranges.insert(start, end, at, event.timestamp_ns);
        }
    }

    /// The wanted call sites of images that are not forgotten, each with its index.
    pub(super) fn sites(&self) -> impl Iterator<Item = (usize, &MapSite, &MapCounters)> {
        let all = self.sites.iter().enumerate();
        all.map(|(at, (site, counters))| (at, site, counters)).filter(|(at, site, _)| {
            let is_used = self.index.get(site) == Some(at);
            is_used && site.is_wanted && !self.gone.contains(&site.space)
        })
    }

    /// The memory that is mapped now and at least `older_ns` old, by the index of the call site;
    /// with up to `blocks` pieces for each.
    pub(super) fn details(
        &self,
        now_ns: u64,
        older_ns: u64,
        blocks: usize,
    ) -> HashMap<usize, MapDetails> {
        let mut all: HashMap<usize, MapDetails> = HashMap::new();
        let age = |timestamp_ns: u64| now_ns.saturating_sub(timestamp_ns);
        for image in self.images.values() {
            for mapping in image.ranges.mappings() {
                if age(mapping.timestamp_ns) < older_ns {
                    continue;
                }
                let details = all.entry(mapping.site).or_default();
                if details.outstanding.count == 0 || mapping.timestamp_ns < details.oldest_ns {
                    details.oldest_ns = mapping.timestamp_ns;
                }
                let one = Amount { count: 1, bytes: mapping.bytes };
                details.outstanding = details.outstanding.plus(one);
            }
            for (address, size_bytes, mapping) in image.ranges.pieces() {
                let age_ns = age(mapping.timestamp_ns);
                if let Some(details) = all.get_mut(&mapping.site)
                    && age_ns >= older_ns
                    && details.blocks.len() < blocks
                {
                    let age_ms = age_ns / 1_000_000;
                    details.blocks.push(Block { address, size_bytes, age_ms });
                }
            }
        }
        for details in all.values_mut() {
            details.blocks.sort_by_key(|block| std::cmp::Reverse(block.age_ms));
        }
        all
    }
}

impl Default for MapCounters {
    fn default() -> Self {
        Self {
            allocated: Amount::default(),
            freed: Amount::default(),
            largest_bytes: 0,
            last_ns: 0,
            lifetimes: [0; LIFETIME_BUCKETS],
        }
    }
}

impl MapSite {
    /// The call site's identity as one number.
    pub(super) fn id(&self) -> u64 {
        let numbers = [
            u64::from(self.space),
            self.call as u64,
            self.call_site,
            self.stack,
            self.role as u64,
            leaktrace_common::Kind::Mmap as u64,
        ];
        numbers.into_iter().fold(StackId::SEED, StackId::mix)
    }
}

/// Rounds bytes up to whole pages.
fn pages(bytes: u64) -> u64 {
    round_up(bytes, PAGE_BYTES)
}

fn round_up(bytes: u64, page_bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(page_bytes).unwrap_or(u64::MAX)
}

/// The page size of `MAP_HUGETLB` memory; `None` for other memory.
fn huge_page(event: &MapEvent, default_bytes: u64) -> Option<u64> {
    if event.flags & libc::MAP_HUGETLB as u32 == 0 {
        return None;
    }
    match event.flags >> HUGE_SHIFT & HUGE_MASK {
        0 => Some(default_bytes),
        shift => 1_u64.checked_shl(shift),
    }
}

/// The range that `munmap` unmaps; `None` if it refuses (`do_vmi_munmap`, mm/vma.c, 6.18).
fn unmapped(event: &MapEvent) -> Option<(u64, u64)> {
    let end = event.address.checked_add(pages(event.length))?;
    let is_range = event.address.is_multiple_of(PAGE_BYTES) && end <= LAST_ADDRESS;
    is_range.then_some((event.address, end))
}

#[cfg(test)]
mod tests;
