//! Turns the maps into a Snapshot, once an interval.
//!
//! Totals come from the sites' counters. Single blocks are read only where ages, holders or the
//! blocks themselves are wanted. This module knows no function names, no verdicts and no formats.

mod counts;
mod details;
mod estimates;
mod free_places;
mod images;
pub mod kmalloc;
mod loss;
mod map_sites;
pub mod mappings;
mod mmaps;
mod modules;
mod names;
mod ranges;
mod stacks;
pub mod suspects;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Instant, SystemTime},
};

use leaktrace_common::{
    AllocFunction, KERNEL_SPACE, Kind, PERCPU_SPACE, PairCookie, SiteKey, SiteRecord, StackEnd,
    StackId, StackMode, TextRange, VmallocCall,
};

use self::{
    details::SiteDetails, images::Images, kmalloc::KmallocNames, map_sites::Mapped,
    modules::Modules, names::ProcessNames, stacks::Stacks, suspects::Suspects,
};
use crate::{
    bpf::Maps,
    error::Error,
    host::{
        objects::ObjectTable,
        slabinfo::{self, Usage},
        slabs,
    },
    snapshot::{
        Blind, CacheGrowth, Frame, GENERATIONS, Mode, Object, Pair, Place, Reclaimable, Site,
        Snapshot, Stack, StackRef, Watched,
    },
};

/// Number of blocks up to which they are read at every interval (some 10 ms).
const CHEAP_BLOCKS: u64 = 50_000;

/// What the caller wants in a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Wants {
    /// Whether it is the last snapshot of the session.
    pub is_final: bool,
    /// Count only blocks at least this old as outstanding.
    pub older_ns: u64,
    /// Whether to list the blocks.
    pub blocks: bool,
    /// Whether to name every process that holds kernel memory.
    pub holders: bool,
}

/// Reads the maps, and remembers what is needed to understand their contents later.
pub struct Collector {
    /// The maps of the loaded object.
    pub maps: Maps,
    /// The files behind all frames.
    pub objects: ObjectTable,
    mode: Mode,
    stack_mode: StackMode,
    max_outstanding: u64,
    /// Whether every allocation in the traced space is wanted: if not, the free of an unknown block
    /// means nothing.
    unfiltered: bool,
    started: Instant,
    host: String,
    images: Images,
    stacks: Stacks,
    call_sites: HashMap<(u32, u64), Frame>,
    suspects: Suspects,
    kmalloc_names: KmallocNames,
    /// Every kernel module that was seen loaded.
    modules: Modules,
    /// For each slab cache, by its address, the call site and stack that made the cache; as of the
    /// last time that blocks were read.
    caches_made: HashMap<u64, SiteKey>,
    /// The slab cache that holds the kernel's records of slab caches (`struct kmem_cache`).
    cache_of_caches: Option<u64>,
    /// The memory that processes map themselves, if it is followed.
    mapped: Option<Mapped>,
    /// The kinds of user allocations that are traced.
    user_kinds: Vec<Kind>,
    /// The pairs of functions that the user named.
    pairs: Vec<PairNames>,
    /// Whether slab caches are compared with the kernel's own counts.
    counts_slabs: bool,
    /// Whether allocations of processes may be sampled.
    is_sampled: bool,
    /// Names of processes that hold kernel memory.
    process_names: ProcessNames,
    /// Objects in use in each slab cache when the probes were attached.
    slabs: Option<BTreeMap<String, Usage>>,
    /// What the probes do not see; the tracer sets it.
    pub blind: Blind,
}

/// Options that do not change during a session.
#[derive(Clone, Debug)]
pub struct CollectorOptions {
    /// What is being traced.
    pub mode: Mode,
    /// When stacks are taken.
    pub stack_mode: StackMode,
    /// Room for outstanding blocks.
    pub max_outstanding: u64,
    /// Whether the filters leave out no allocation.
    pub unfiltered: bool,
    /// Names of kmalloc's caches.
    pub kmalloc_names: KmallocNames,
    /// The kinds of user allocations that are traced; empty in kernel mode.
    pub user_kinds: Vec<Kind>,
    /// The pairs of functions that the user named, by number.
    pub pairs: Vec<PairNames>,
    /// Whether all slab caches are traced.
    pub counts_slabs: bool,
    /// Whether allocations of processes may be sampled.
    pub is_sampled: bool,
}

/// The names of a pair of functions and of its acquiring functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairNames {
    /// The pair's name.
    pub pair: String,
    /// The names of its acquiring functions.
    pub functions: Vec<String>,
}

impl Collector {
    /// A collector of `maps`.
    pub fn new(maps: Maps, objects: ObjectTable, options: CollectorOptions) -> Self {
        let host = nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        Self {
            maps,
            objects,
            mode: options.mode,
            stack_mode: options.stack_mode,
            max_outstanding: options.max_outstanding,
            unfiltered: options.unfiltered,
            started: Instant::now(),
            host,
            images: Images::default(),
            stacks: Stacks::default(),
            call_sites: HashMap::new(),
            suspects: Suspects::default(),
            kmalloc_names: options.kmalloc_names,
            modules: Modules::default(),
            caches_made: HashMap::new(),
            cache_of_caches: None,
            mapped: None,
            user_kinds: options.user_kinds,
            pairs: options.pairs,
            counts_slabs: options.counts_slabs,
            is_sampled: options.is_sampled,
            process_names: ProcessNames::default(),
            slabs: None,
            blind: Blind::default(),
        }
    }

    /// Reads the ends of processes before the kernel side overwrites them.
    pub fn read_ends(&mut self) {
        self.process_names.read(&self.maps);
    }

    /// Notes that the probes are attached: time counts from here.
    pub fn start(&mut self) {
        self.started = Instant::now();
        if self.counts_slabs {
            self.slabs = slabinfo::usage();
        }
    }

    /// Follows kernel modules from now on; the module programs are attached already.
    pub fn follow_modules(&mut self, kernel_text: TextRange) {
        let events = self.maps.take_module_events();
        self.modules.start(events, kernel_text);
    }

    /// A descriptor that is readable when a module comes or goes.
    ///
    /// # Errors
    ///
    /// Fails when no descriptor is left.
    pub fn module_events(&self) -> io::Result<Option<OwnedFd>> {
        let ring = self.modules.events();
        // SAFETY: the ring keeps its descriptor open.
        let fd = ring.map(|ring| unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) });
        fd.map(|fd| fd.try_clone_to_owned()).transpose()
    }

    /// Reads the events of modules, and reads the modules' names while they are loaded.
    pub fn read_modules(&mut self) {
        self.modules.take_in();
    }

    /// Whether a module of this name has gone and come again since modules are followed.
    pub fn has_come_again(&self, module: &str) -> bool {
        self.modules.has_come_again(module)
    }

    /// The growth of each slab cache since the start, by the kernel's own count.
    fn cache_growth(&self) -> BTreeMap<String, CacheGrowth> {
        let (Some(then), Some(now)) = (&self.slabs, slabinfo::usage()) else {
            return BTreeMap::new();
        };
        now.into_iter()
            .map(|(cache, usage)| {
                let before = then.get(&cache).map_or(0, |usage| usage.in_use);
                let growth = CacheGrowth {
                    objects: usage.in_use - before,
                    at_hand: usage.at_hand(),
                    object_bytes: usage.object_bytes(),
                };
                (cache, growth)
            })
            .collect()
    }

    /// Takes a snapshot. `misses`, `watches_returns` (whether every call that was entered is known to
    /// be watched to its return) and `unseen` come from the probes.
    ///
    /// # Errors
    ///
    /// The kernel's error on reading the maps.
    pub fn snapshot(
        &mut self,
        wants: Wants,
        misses: BTreeMap<String, u64>,
        watches_returns: bool,
        unseen: &[String],
    ) -> Result<Snapshot, Error> {
        // Before the call sites: what returns until then is in their figures.
        let unreturned = if watches_returns { 0 } else { self.unreturned(wants.is_final) };
        let now_ns = monotonic_ns();
        self.stacks.begin_snapshot();
        let mut records = self.maps.sites();
        // After the call sites: the modules of all of them have been told.
        self.modules.take_in();
        // As near as can be, as the two are compared.
        let cache_growth = self.cache_growth();
        records.retain(|(_, record)| {
            record.key.space == KERNEL_SPACE || self.images.has(record.key.space)
        });
        let outstanding_count: u64 = records
            .iter()
            .map(|(_, record)| record.allocated_count.saturating_sub(record.freed_count()))
            .sum();
        let read_blocks = wants.is_final
            || wants.older_ns > 0
            || wants.blocks
            || (wants.holders && self.mode == Mode::Kernel)
            || outstanding_count <= CHEAP_BLOCKS;
        let details =
            if read_blocks { Some(self.read_blocks(now_ns, wants, &records)?) } else { None };
        let free_places = self.free_places()?;
        if self.stack_mode == StackMode::Adaptive {
            self.find_suspects(&records);
        }
        let mut stacks = BTreeMap::new();
        let mut sites: Vec<Site> = records
            .iter()
            .filter(|(_, record)| record.allocated_count > 0)
            .filter_map(|(index, record)| {
                let details = details.as_ref().map(|all| all.get(index));
                let places = free_places.get(index).map(Vec::as_slice).unwrap_or_default();
                let mut site = self.site(record, details, now_ns, wants, &mut stacks)?;
                site.freed_at = self.freed_at(&record.key, places);
                // Its counter wraps around.
                let noted: u64 = places.iter().map(|(_, count)| *count).sum();
                site.frees = noted.max(u64::from(record.frees));
                Some(site)
            })
            .collect();
        sites.extend(self.map_sites(now_ns, wants, &mut stacks));
        let stacks_truncated =
            stacks.values().filter(|stack: &&Stack| stack.end != StackEnd::Complete).count();
        Ok(Snapshot {
            unix_ms: unix_ms(),
            host: self.host.clone(),
            mode: self.mode,
            is_final: wants.is_final,
            elapsed_ms: self.started.elapsed().as_millis() as u64,
            stack_mode: self.stack_mode,
            user_kinds: self.user_kinds.clone(),
            sites,
            stacks,
            objects: self
                .objects
                .all()
                .iter()
                .map(|held| Object { path: held.path.clone(), readable_at: held.readable_at() })
                .collect(),
            processes: self.images.processes(),
            processes_ended: self.images.ended(),
            loss: self.loss(misses, unreturned, unseen, stacks_truncated as u64),
            max_outstanding: self.max_outstanding,
            sample_bytes: self.maps.sample_bytes(),
            budget: None,
            blocks_read: read_blocks,
            modules: self.modules.all(),
            gone_modules: self.modules.gone(),
            scans: Vec::new(),
            cache_growth,
            cache_aliases: match self.mode {
                Mode::Kernel => slabs::aliases(),
                Mode::User | Mode::Run => BTreeMap::new(),
            },
            // The tracer asks the kernel.
            reclaimable: Reclaimable::default(),
            watched: Watched::default(),
            older_ms: wants.older_ns / 1_000_000,
        })
    }

    /// One site of the snapshot; `None` for a kind that this version does not know.
    fn site(
        &mut self,
        record: &SiteRecord,
        details: Option<Option<&SiteDetails>>,
        now_ns: u64,
        wants: Wants,
        stacks: &mut BTreeMap<u64, Stack>,
    ) -> Option<Site> {
        let key = &record.key;
        let kind = Kind::from_u32(u32::from(key.kind))?;
        let mut figures = estimates::figures(record, self.is_sampled);
        if let Some(details) = details
            && wants.older_ns > 0
        {
            let (outstanding, sum) =
                details.map(|found| (found.outstanding, found.sum)).unwrap_or_default();
            figures.outstanding = outstanding;
            if figures.sampled.is_some() {
                figures.sampled = Some(sum.sampled());
                figures.outstanding = sum.amount();
            }
        }
        let stack = match key.stack {
            StackId::NOT_TAKEN => StackRef::NotTaken,
            StackId::LOST => StackRef::Lost,
            id => self.stack(key.space, key.call_site, id, stacks),
        };
        let first = match stack {
            StackRef::Known(id) if key.space != KERNEL_SPACE => {
                stacks.get(&id).and_then(|stack| stack.frames.first())
            }
            _ => None,
        };
        let call_site = match (key.call_site, first) {
            (0, Some(frame)) => *frame,
            (address, _) if key.space == KERNEL_SPACE => {
                self.modules.frame(address, u64::from(key.generation))
            }
            (address, _) => self.call_site(key.space, address),
        };
        let cache_made = match kind {
            Kind::KmemCache => self.cache_made(key.detail, stacks),
            _ => None,
        };
        let is_read = details.is_some();
        let details = details.flatten();
        Some(Site {
            id: site_id(key),
            kind,
            space: key.space,
            cache: match kind {
                Kind::Kmalloc => Some(self.kmalloc_names.name(key.detail)),
                Kind::KmemCache => self.maps.cache_name(key.detail),
                Kind::Malloc
                | Kind::Vmalloc
                | Kind::Percpu
                | Kind::Pages
                | Kind::Mmap
                | Kind::Pair => None,
            },
            cache_made,
            is_page_array: kind == Kind::Vmalloc && key.detail == VmallocCall::PAGE_ARRAY,
            function: match kind {
                Kind::Malloc => AllocFunction::of_cookie(key.detail),
                _ => None,
            },
            pair: match kind {
                Kind::Pair => self.pair(PairCookie(key.detail as u32)),
                _ => None,
            },
            mapping: None,
            call_site,
            stack,
            allocated: figures.allocated,
            freed: figures.freed,
            outstanding: figures.outstanding,
            sampled: figures.sampled,
            oldest_ms: details
                .filter(|found| found.outstanding.count > 0)
                .map(|found| now_ns.saturating_sub(found.oldest_ns) / 1_000_000),
            largest_bytes: record.largest_bytes,
            freed_at: Vec::new(),
            frees: 0,
            last_ms: now_ns.saturating_sub(record.last_ns) / 1_000_000,
            lifetimes: record.lifetimes,
            born: is_read.then(|| details.map_or([0; GENERATIONS], |found| found.born)),
            reached: None,
            holders: match details {
                Some(found) => found.holders(now_ns, wants.holders, &self.process_names),
                None => Vec::new(),
            },
            blocks: details.map(|found| found.blocks.clone()).unwrap_or_default(),
        })
    }

    /// The stack of the call that made a slab cache, if known.
    fn cache_made(&mut self, cache: u64, stacks: &mut BTreeMap<u64, Stack>) -> Option<StackRef> {
        let made = *self.caches_made.get(&cache)?;
        match made.stack {
            StackId::NOT_TAKEN | StackId::LOST => None,
            id => Some(self.stack(KERNEL_SPACE, made.call_site, id, stacks)),
        }
    }

    /// The pair and the function of a cookie.
    fn pair(&self, cookie: PairCookie) -> Option<Pair> {
        let names = self.pairs.get(cookie.pair() as usize)?;
        // Functions are numbered through all pairs.
        let before = self.pairs.iter().take(cookie.pair() as usize);
        let before: usize = before.map(|names| names.functions.len()).sum();
        let function = (cookie.index() as usize).checked_sub(before)?;
        let function = names.functions.get(function)?.clone();
        Some(Pair { name: names.pair.clone(), function })
    }

    fn call_site(&mut self, space: u32, address: u64) -> Frame {
        if let Some(frame) = self.call_sites.get(&(space, address)) {
            return *frame;
        }
        let frame = self.images.frame(space, address);
        if frame.place != Place::Unmapped {
            self.call_sites.insert((space, address), frame);
        }
        frame
    }

    /// The stack of a site.
    fn stack(
        &mut self,
        space: u32,
        call_site: u64,
        id: u64,
        stacks: &mut BTreeMap<u64, Stack>,
    ) -> StackRef {
        let local_id = local_id(space, id);
        let (maps, images, modules) = (&self.maps, &self.images, &self.modules);
        let known = self.stacks.get_or((space, id), || {
            let record = maps.stack(id)?;
            let count = (record.count as usize).min(record.frames.len());
            let mut frames = record.frames.get(..count).unwrap_or(&[]);
            if space == KERNEL_SPACE {
                // Below the call site stand the tracepoint's own frames.
                let at = frames.iter().position(|address| *address == call_site);
                frames = at.and_then(|at| frames.get(at..)).unwrap_or(frames);
            }
            let frame = |address: &u64| match space {
                KERNEL_SPACE => modules.frame(*address, record.generation),
                _ => images.frame(space, *address),
            };
            let frames = frames.iter().map(frame).collect();
            Some(Stack { frames, end: StackEnd::from_u32(record.end) })
        });
        let Some(known) = known else { return StackRef::Lost };
        stacks.insert(local_id, known.clone());
        StackRef::Known(local_id)
    }

    fn read_blocks(
        &mut self,
        now_ns: u64,
        wants: Wants,
        records: &[(u32, SiteRecord)],
    ) -> Result<HashMap<u32, SiteDetails>, Error> {
        let makers = self.cache_makers(records);
        let mut made = HashMap::new();
        let mut all: HashMap<u32, SiteDetails> = HashMap::new();
        let elapsed_ns = self.started.elapsed().as_nanos() as u64;
        let started_ns = now_ns.saturating_sub(elapsed_ns);
        let generation_ns = (elapsed_ns / GENERATIONS as u64).max(1);
        let names = &mut self.process_names;
        names.begin(&self.maps);
        self.maps.read_outstanding(|key, block| {
            if let Some(maker) = makers.get(&block.site) {
                made.insert(key.address, *maker);
            }
            // Percpu memory has a space of its own, and belongs to the kernel as well.
            let is_kernel = matches!(key.space, KERNEL_SPACE | PERCPU_SPACE);
            let who = is_kernel.then(|| names.who(block.detail, block.timestamp_ns));
            let details = all.entry(block.site).or_default();
            let at_ns = block.timestamp_ns.saturating_sub(started_ns);
            let generation = (at_ns / generation_ns) as usize;
            if let Some(born) = details.born.get_mut(generation.min(GENERATIONS - 1)) {
                *born += 1;
            }
            if now_ns.saturating_sub(block.timestamp_ns) >= wants.older_ns {
                details.add(key, block, who, now_ns, wants.blocks);
            }
        })?;
        self.caches_made = made;
        // Those that have ended meanwhile.
        names.read(&self.maps);
        for details in all.values_mut() {
            details.blocks.sort_unstable_by_key(|block| std::cmp::Reverse(block.age_ms));
        }
        Ok(all)
    }

    /// The call sites that make slab caches: a `struct kmem_cache` is an object of a slab cache
    /// itself, and its stack shows who called `kmem_cache_create`.
    fn cache_makers(&mut self, records: &[(u32, SiteRecord)]) -> HashMap<u32, SiteKey> {
        let of_caches = |key: &SiteKey| key.kind == Kind::KmemCache as u16;
        if self.cache_of_caches.is_none() {
            let caches: BTreeSet<u64> = records
                .iter()
                .filter(|(_, record)| of_caches(&record.key))
                .map(|(_, record)| record.key.detail)
                .collect();
            // `create_boot_cache` gives it its name (mm/slub.c, 5.15 to 7.2).
            let is_it = |cache: &u64| self.maps.cache_name(*cache).as_deref() == Some("kmem_cache");
            self.cache_of_caches = caches.into_iter().find(is_it);
        }
        let wanted = self.cache_of_caches.filter(|_| self.mode == Mode::Kernel);
        records
            .iter()
            .filter(|(_, record)| of_caches(&record.key) && Some(record.key.detail) == wanted)
            .map(|(index, record)| (*index, record.key))
            .collect()
    }

    fn find_suspects(&mut self, records: &[(u32, SiteRecord)]) {
        let mut bytes: HashMap<SiteKey, u64> = HashMap::new();
        let mut index_of: HashMap<SiteKey, u32> = HashMap::new();
        for (index, record) in records {
            let base = SiteKey { stack: StackId::NOT_TAKEN, ..record.key };
            *bytes.entry(base).or_default() +=
                record.allocated_bytes.saturating_sub(record.freed_bytes);
            if record.key.stack == StackId::NOT_TAKEN {
                index_of.insert(base, *index);
            }
        }
        for key in self.suspects.observe(&bytes) {
            if let Some(index) = index_of.get(&key) {
                self.maps.suspect(*index);
            }
        }
    }
}

/// A stack's key in a snapshot.
fn local_id(space: u32, id: u64) -> u64 {
    StackId::mix(id, u64::from(space))
}

/// A site's identity as one number.
pub fn site_id(key: &SiteKey) -> u64 {
    let kind = u64::from(key.kind) | u64::from(key.generation) << 16;
    [kind, u64::from(key.space), key.detail, key.call_site, key.stack]
        .into_iter()
        .fold(StackId::SEED, StackId::mix)
}

/// The present time of `bpf_ktime_get_ns`' clock, in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn unix_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}
