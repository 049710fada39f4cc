//! Turns mappings into sites of a Snapshot, and decides whose memory each mapping is.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    ops::Range,
};

use leaktrace_common::{Kind, MapEvent, StackId};

use super::{Collector, Wants, details::BLOCKS_SHOWN, mmaps::Mmaps};
use crate::{
    host::objects::ObjectId,
    snapshot::{Frame, Mapping, Place, Role, Site, SiteCounts, Stack, StackRef},
};

/// The beginning of the file name of glibc's dynamic loader (`ld-linux-x86-64.so.2`).
const LOADER: &str = "ld-linux";
/// Bytes of a huge page where the kernel does not tell its size.
const HUGE_BYTES: u64 = 2 << 20;

/// Offsets in an object's file that hold an allocator's code.
type Code = Vec<Range<u64>>;

/// The mappings, and what decides whose they are.
#[derive(Debug)]
pub(super) struct Mapped {
    mmaps: Mmaps,
    /// The allocator's code in each object.
    allocators: HashMap<ObjectId, Code>,
    /// Spaces of images that began as copies of others: no dynamic loader ran in them.
    copies: HashSet<u32>,
}

impl Collector {
    /// Starts to follow what processes map; mappings outside `sizes`, in bytes, are not wanted.
    pub fn follow_mappings(&mut self, sizes: (u64, u64)) {
        let limit = self.max_outstanding as usize;
        let mmaps = Mmaps::new(sizes, limit, huge_bytes().unwrap_or(HUGE_BYTES));
        self.mapped = Some(Mapped { mmaps, allocators: HashMap::new(), copies: HashSet::new() });
    }

    /// Takes in a system call that maps or unmaps memory.
    pub fn apply_mapping(&mut self, event: &MapEvent) {
        if let Some(mapped) = &mut self.mapped {
            mapped.mmaps.apply(event);
        }
    }

    /// Stores where the heap of a process image ends.
    pub fn set_heap_end(&mut self, space: u32, end: u64) {
        if let Some(mapped) = &mut self.mapped {
            mapped.mmaps.set_heap_end(space, end);
        }
    }

    /// Takes in that a process image has a child, which is a copy of it.
    pub fn forked_mappings(&mut self, parent: u32, child: u32) {
        if let Some(mapped) = &mut self.mapped {
            mapped.mmaps.forked(parent, child);
            if parent != child {
                mapped.copies.insert(child);
            }
        }
    }

    /// Stores where an object has allocator functions: memory that those functions map is the
    /// allocator's.
    pub fn add_allocator_code(&mut self, object: ObjectId, code: &[Range<u64>]) {
        if let Some(mapped) = &mut self.mapped {
            mapped.allocators.insert(object, code.to_vec());
        }
    }

    pub(super) fn forget_mappings(&mut self, space: u32) {
        if let Some(mapped) = &mut self.mapped {
            mapped.mmaps.forget(space);
            mapped.copies.remove(&space);
        }
    }

    /// Frees the call sites of images that are gone; returns the stacks of those call sites, and
    /// the stacks of the others.
    pub(super) fn forget_map_sites(&mut self, gone: &HashSet<u32>) -> (HashSet<u64>, HashSet<u64>) {
        self.mapped.as_mut().map(|mapped| mapped.mmaps.forget_sites(gone)).unwrap_or_default()
    }

    /// Number of mappings that found no room.
    pub(super) fn lost_mappings(&self) -> u64 {
        self.mapped.as_ref().map_or(0, |mapped| mapped.mmaps.lost())
    }

    /// The counters of the call sites of mappings.
    pub(super) fn map_counts(&self) -> impl Iterator<Item = SiteCounts> {
        let sites = self.mapped.iter().flat_map(|mapped| mapped.mmaps.sites());
        sites.filter(|(_, site, _)| self.images.has(site.space)).map(|(_, site, counters)| {
            let (allocated, freed) = (counters.allocated, counters.freed);
            SiteCounts { id: site.id(), allocated, freed }
        })
    }

    /// The call sites of mappings.
    pub(super) fn map_sites(
        &mut self,
        now_ns: u64,
        wants: Wants,
        stacks: &mut BTreeMap<u64, Stack>,
    ) -> Vec<Site> {
        // Taken out for the time in which stacks are looked up.
        let Some(mapped) = self.mapped.take() else { return Vec::new() };
        let blocks = if wants.blocks { BLOCKS_SHOWN } else { 0 };
        let mut details = mapped.mmaps.details(now_ns, wants.older_ns, blocks);
        let mut sites = Vec::new();
        for (at, site, counters) in mapped.mmaps.sites() {
            if !self.images.has(site.space) {
                continue;
            }
            let details = details.remove(&at).unwrap_or_default();
            let stack = match site.stack {
                StackId::NOT_TAKEN => StackRef::NotTaken,
                StackId::LOST => StackRef::Lost,
                id => self.stack(site.space, site.call_site, id, stacks),
            };
            let call_site = self.call_site(site.space, site.call_site);
            let frames = match stack {
                StackRef::Known(_) => self.stacks.get((site.space, site.stack)),
                StackRef::NotTaken | StackRef::Lost => None,
            };
            let frames = frames.map_or(std::slice::from_ref(&call_site), |stack| &stack.frames);
            let role = match self.role(site.role, frames, &mapped.allocators) {
                // The loader's start of an image that lived for milliseconds, mostly: no leak
                // that anybody could stand behind.
                Role::Program
                    if frames.first().is_some_and(|frame| frame.place == Place::Unmapped)
                        && !mapped.copies.contains(&site.space) =>
                {
                    Role::Unknown
                }
                role => role,
            };
            let outstanding = match wants.older_ns {
                0 => counters.allocated.minus(counters.freed),
                _ => details.outstanding,
            };
            let is_held = details.outstanding.count > 0;
            let ms_since = |ns: u64| now_ns.saturating_sub(ns) / 1_000_000;
            sites.push(Site {
                id: site.id(),
                kind: Kind::Mmap,
                space: site.space,
                is_page_array: false,
                cache: None,
                cache_made: None,
                function: None,
                pair: None,
                mapping: Some(Mapping { call: site.call, role }),
                call_site,
                stack,
                allocated: counters.allocated,
                freed: counters.freed,
                outstanding,
                sampled: None,
                oldest_ms: is_held.then(|| ms_since(details.oldest_ns)),
                largest_bytes: counters.largest_bytes,
                freed_at: Vec::new(),
                frees: 0,
                last_ms: ms_since(counters.last_ns),
                lifetimes: counters.lifetimes,
                born: None,
                reached: None,
                holders: Vec::new(),
                blocks: details.blocks,
            });
        }
        self.mapped = Some(mapped);
        sites
    }

    /// Decides whose memory a mapping is, by its stack as well: an allocator also maps memory for
    /// itself outside of any call, or inside calls whose sizes a filter leaves out.
    fn role(&self, told: Role, frames: &[Frame], allocators: &HashMap<ObjectId, Code>) -> Role {
        let place = |frame: &Frame| match frame.place {
            Place::Object { object, file_offset } => Some((ObjectId(object), file_offset)),
            Place::Kernel | Place::Module { .. } | Place::Anonymous { .. } | Place::Unmapped => {
                None
            }
        };
        let is_allocator = |frame: &Frame| {
            place(frame).is_some_and(|(object, offset)| {
                let call = offset.saturating_sub(1);
                allocators
                    .get(&object)
                    .is_some_and(|code| code.iter().any(|part| part.contains(&call)))
            })
        };
        let is_loader = |frame: &Frame| {
            let object = place(frame).and_then(|(object, _)| self.objects.get(object));
            object.is_some_and(|object| {
                object.path.rsplit('/').next().is_some_and(|name| name.starts_with(LOADER))
            })
        };
        if told == Role::Allocator || frames.iter().any(is_allocator) {
            Role::Allocator
        } else if frames.first().is_some_and(is_loader) {
            Role::Loader
        } else {
            told
        }
    }
}

/// The default size of a huge page, in bytes.
fn huge_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Hugepagesize:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).filter(|bytes| bytes.is_power_of_two())
}
