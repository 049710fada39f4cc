//! Typed handles of the maps; `leaktrace_common` says what each map holds.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{Ordering, compiler_fence},
    },
};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, Queue, RingBuf};
use leaktrace_common::{
    AgainKey, AllocKey, BlockWord, Bucket, CacheName, Call, EndedProcess, FileKey, KernelPairCall,
    LossReason, MODULE_NAME_BYTES, Outstanding, PairCookie, SiteKey, SiteRecord, StackRecord,
    TEXT_RANGES, Target, TextMap, TextMapping, TextObject, TextRange, VmallocCall,
};

use super::{mapped::MappedArray, object::Loaded, sys};
use crate::error::Error;

/// The maps of a loaded object.
pub struct Maps {
    pub(super) blocks: Arc<MappedArray<Bucket>>,
    pub(super) overflow: HashMap<MapData, u64, Outstanding>,
    /// The descriptor of the overflow map, to read it in batches.
    pub(super) overflow_fd: OwnedFd,
    pub(super) again: HashMap<MapData, AgainKey, Outstanding>,
    pub(super) again_levels: HashMap<MapData, u64, u32>,
    pair_functions: HashMap<MapData, u64, u32>,
    kernel_pair_calls: HashMap<MapData, u64, KernelPairCall>,
    /// Every space of a process image is below this number; 1 where the kernel is traced.
    pub(super) spaces: u32,
    pub(super) stacks: HashMap<MapData, u64, StackRecord>,
    caches: HashMap<MapData, u64, CacheName>,
    vmalloc_in_flight: HashMap<MapData, u64, VmallocCall>,
    loss: PerCpuArray<MapData, u64>,
    pub(super) cursors: MappedArray<u64>,
    pub(super) recent_stacks: MappedArray<u64>,
    sampling: Array<MapData, u64>,
    calls: PerCpuArray<MapData, u64>,
    pub(super) targets: HashMap<MapData, u32, Target>,
    pub(super) recent_targets: MappedArray<u64>,
    filter_tgids: HashMap<MapData, u32, u32>,
    filter_comms: HashMap<MapData, [u8; 16], u32>,
    filter_modules: HashMap<MapData, [u8; MODULE_NAME_BYTES], u32>,
    module_text: Array<MapData, [TextRange; TEXT_RANGES]>,
    ended: MappedArray<EndedProcess>,
    filter_caches: HashMap<MapData, [u8; 32], u32>,
    filter_kmalloc: HashMap<MapData, u64, u32>,
    pub(super) sites: Arc<MappedArray<SiteRecord>>,
    pub(super) site_index: HashMap<MapData, SiteKey, u32>,
    pub(super) free_sites: Queue<MapData, u32>,
    pub(super) free_spaces: Queue<MapData, u32>,
    events: Option<RingBuf<MapData>>,
    map_events: Option<RingBuf<MapData>>,
    module_events: Option<RingBuf<MapData>>,
}

impl Loaded {
    /// Takes the maps out of the object.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when the object lacks a map (a defect) or a map cannot be mapped.
    pub fn maps(&mut self) -> Result<Maps, Error> {
        let sites = Arc::new(MappedArray::new("SITES", self.take("SITES")?)?);
        let overflow = self.take("OVERFLOW")?;
        let fail =
            |error: Box<dyn std::error::Error + Send + Sync>| Error::kernel("map OVERFLOW", error);
        let overflow_fd = super::object::map_data(&overflow)
            .ok_or_else(|| fail("is no hash map".into()))?
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| fail(error.into()))?;
        Ok(Maps {
            blocks: Arc::new(MappedArray::new("BLOCKS", self.take("BLOCKS")?)?),
            overflow: HashMap::try_from(overflow).map_err(|error| fail(error.into()))?,
            overflow_fd,
            again: self.typed("PAIR_AGAIN")?,
            again_levels: self.typed("PAIR_LEVELS")?,
            pair_functions: self.typed("PAIR_FUNCTIONS")?,
            kernel_pair_calls: self.typed("KERNEL_PAIR_CALLS")?,
            spaces: self.spaces,
            stacks: self.typed("STACKS")?,
            caches: self.typed("CACHES")?,
            vmalloc_in_flight: self.typed("VMALLOC_IN_FLIGHT")?,
            loss: self.typed("LOSS")?,
            cursors: MappedArray::new("CURSORS", self.take("CURSORS")?)?,
            recent_stacks: MappedArray::new("RECENT_STACKS", self.take("RECENT_STACKS")?)?,
            sampling: self.typed("SAMPLING")?,
            calls: self.typed("CALLS")?,
            targets: self.typed("TARGETS")?,
            recent_targets: MappedArray::new("RECENT_TARGETS", self.take("RECENT_TARGETS")?)?,
            filter_tgids: self.typed("FILTER_TGIDS")?,
            filter_comms: self.typed("FILTER_COMMS")?,
            filter_modules: self.typed("FILTER_MODULES")?,
            module_text: self.typed("MODULE_TEXT")?,
            ended: MappedArray::new("ENDED", self.take("ENDED")?)?,
            filter_caches: self.typed("FILTER_CACHES")?,
            filter_kmalloc: self.typed("FILTER_KMALLOC")?,
            sites,
            site_index: self.typed("SITE_INDEX")?,
            free_sites: self.typed("FREE_SITES")?,
            free_spaces: self.typed("FREE_SPACES")?,
            events: Some(self.typed("EVENTS")?),
            map_events: Some(self.typed("MAP_EVENTS")?),
            module_events: Some(self.typed("MODULE_EVENTS")?),
        })
    }

    /// Takes the maps of the unwind tables out of the object.
    ///
    /// # Errors
    ///
    /// As for [`Loaded::maps`].
    pub fn unwind_maps(&mut self) -> Result<UnwindMaps, Error> {
        Ok(UnwindMaps {
            rows: MappedArray::new("ROWS", self.take("ROWS")?)?,
            pages: MappedArray::new("PAGES", self.take("PAGES")?)?,
            mappings: MappedArray::new("MAPPINGS", self.take("MAPPINGS")?)?,
            objects: self.typed("OBJECTS")?,
            text_maps: MappedArray::new("TEXT_MAPS", self.take("TEXT_MAPS")?)?,
        })
    }

    fn take(&mut self, name: &str) -> Result<Map, Error> {
        self.ebpf
            .take_map(name)
            .ok_or_else(|| Error::kernel(format!("map {name}"), "is not in the BPF object"))
    }

    fn typed<T: TryFrom<Map, Error = aya::maps::MapError>>(
        &mut self,
        name: &str,
    ) -> Result<T, Error> {
        T::try_from(self.take(name)?).map_err(|error| Error::kernel(format!("map {name}"), error))
    }
}

impl Maps {
    /// Visits every outstanding block. A block that comes or goes meanwhile may be visited or not.
    ///
    /// # Errors
    ///
    /// The kernel's error on reading the map of blocks that found no room in the table.
    pub fn read_outstanding(
        &self,
        mut visit: impl FnMut(&AllocKey, &Outstanding),
    ) -> Result<(), Error> {
        for index in 0..self.blocks.len() {
            let bucket = self.blocks.read(index);
            if bucket.keys.iter().all(|word| *word <= BlockWord::CLAIMED) {
                continue;
            }
            // A block was there all the time if its key is there before and after.
            let after = self.blocks.read(index).keys;
            for ((word, block), after) in bucket.keys.iter().zip(&bucket.blocks).zip(after) {
                if *word > BlockWord::CLAIMED && *word == after {
                    visit(&self.key(*word), block);
                }
            }
        }
        sys::read_all(self.overflow_fd.as_fd(), |word: &u64, block| {
            visit(&self.key(*word), block);
        })
        .map_err(|error| Error::kernel("cannot read the outstanding blocks", error))?;
        for (key, block) in self.again.iter().filter_map(Result::ok) {
            visit(&self.key(key.word), &block);
        }
        Ok(())
    }

    fn key(&self, word: u64) -> AllocKey {
        BlockWord::key_in(word, self.spaces == 1)
    }

    /// Tells the programs which kernel functions belong to pairs, by their addresses.
    ///
    /// # Errors
    ///
    /// The kernel's error on the map updates.
    pub fn set_pair_functions(&mut self, functions: &[(u64, PairCookie)]) -> Result<(), Error> {
        for (address, cookie) in functions {
            self.pair_functions
                .insert(address, cookie.0, 0)
                .map_err(|error| Error::kernel("cannot set the functions of --pair", error))?;
        }
        Ok(())
    }

    /// The stack with this id.
    pub fn stack(&self, id: u64) -> Option<StackRecord> {
        self.stacks.get(&id, 0).ok()
    }

    /// The name of the slab cache at this address.
    pub fn cache_name(&self, address: u64) -> Option<String> {
        let name = self.caches.get(&address, 0).ok()?;
        let bytes = name.bytes.split(|byte| *byte == 0).next()?;
        if bytes.is_empty() { None } else { Some(String::from_utf8_lossy(bytes).into_owned()) }
    }

    /// The sum of one loss counter over all CPUs.
    pub fn loss(&self, reason: LossReason) -> u64 {
        self.loss.get(&(reason as u32), 0).map_or(0, |values| values.iter().sum())
    }

    /// Number of vmalloc calls that began before `before_ns` and whose return no probe has seen.
    pub fn unreturned_vmallocs(&self, before_ns: u64) -> u64 {
        let calls = self.vmalloc_in_flight.iter().filter_map(Result::ok);
        let is_lost = |call: &VmallocCall| {
            call.block.site != VmallocCall::NOT_WANTED && call.block.timestamp_ns < before_ns
        };
        calls.filter(|(_, call)| is_lost(call)).count() as u64
    }

    /// As [`Maps::unreturned_vmallocs`], for the kernel's functions of pairs.
    pub fn unreturned_pairs(&self, before_ns: u64) -> u64 {
        let calls = self.kernel_pair_calls.iter().filter_map(Result::ok);
        calls.filter(|(_, call)| call.block.timestamp_ns < before_ns).count() as u64
    }

    /// The sampling interval of processes in bytes; 0 if every allocation is recorded.
    pub fn sample_bytes(&self) -> u64 {
        self.sampling.get(&0, 0).unwrap_or(0)
    }

    /// Sets the sampling interval for allocations from now on.
    ///
    /// # Errors
    ///
    /// The kernel's error on the map update.
    pub fn set_sample_bytes(&mut self, bytes: u32) -> Result<(), Error> {
        self.sampling
            .set(0, u64::from(bytes), 0)
            .map_err(|error| Error::kernel("cannot set the sampling interval", error))
    }

    /// Number of hits of probes in processes; the programs count them if the constants say so.
    pub fn calls(&self, call: Call) -> u64 {
        self.calls.get(&(call as u32), 0).map_or(0, |counts| counts.iter().sum())
    }

    /// Every site in use, with its index.
    pub fn sites(&self) -> Vec<(u32, SiteRecord)> {
        (0..self.sites_used())
            .map(|index| (index as u32, self.sites.read(index)))
            .filter(|(_, record)| record.key.kind != 0)
            .collect()
    }

    /// Number of slots of `SITES` that were ever given out.
    pub(super) fn sites_used(&self) -> usize {
        (self.cursors.read(0) as usize).min(self.sites.len())
    }

    /// Marks a call site as suspect: each further allocation of it gets a stack.
    pub fn suspect(&self, index: u32) {
        self.sites.with(index as usize, |record| {
            // SAFETY: `record` lies in the mapping; this field is written by the loader alone.
            unsafe { (&raw mut (*record).suspect).write_volatile(1) };
        });
    }

    /// Restricts kernel allocations to processes and commands; an empty list restricts nothing
    /// (the loader's constants say which list is used).
    ///
    /// # Errors
    ///
    /// The kernel's error on the map updates.
    pub fn set_filters(&mut self, tgids: &[u32], comms: &[String]) -> Result<(), Error> {
        let fail = |error| Error::kernel("cannot set the filters", error);
        for tgid in tgids {
            self.filter_tgids.insert(tgid, 1, 0).map_err(fail)?;
        }
        for comm in comms {
            // The kernel keeps the first 15 bytes of a command name (TASK_COMM_LEN).
            let mut key = [0u8; 16];
            for (to, from) in key.iter_mut().zip(comm.bytes().take(15)) {
                *to = from;
            }
            self.filter_comms.insert(key, 1, 0).map_err(fail)?;
        }
        Ok(())
    }

    /// Restricts kernel allocations to slab caches: by name, and for kmalloc's caches by
    /// [`leaktrace_common::SiteKey::detail`]. Lists are as for [`Maps::set_filters`].
    ///
    /// # Errors
    ///
    /// The kernel's error on the map updates.
    pub fn set_cache_filters(&mut self, names: &[String], kmalloc: &[u64]) -> Result<(), Error> {
        let fail = |error| Error::kernel("cannot set the filters", error);
        for name in names {
            let mut key = [0u8; 32];
            for (to, from) in key.iter_mut().zip(name.bytes().take(31)) {
                *to = from;
            }
            self.filter_caches.insert(key, 1, 0).map_err(fail)?;
        }
        for detail in kmalloc {
            self.filter_kmalloc.insert(detail, 1, 0).map_err(fail)?;
        }
        Ok(())
    }

    /// Restricts kernel allocations to modules of these names, which may be loaded later;
    /// [`Maps::set_module_text`] covers those that are loaded now. Lists are as for
    /// [`Maps::set_filters`].
    ///
    /// # Errors
    ///
    /// The kernel's error on the map updates.
    pub fn set_module_names(&mut self, names: &[String]) -> Result<(), Error> {
        for name in names {
            let mut key = [0u8; MODULE_NAME_BYTES];
            for (to, from) in key.iter_mut().zip(name.bytes().take(MODULE_NAME_BYTES - 1)) {
                *to = from;
            }
            self.filter_modules
                .insert(key, 1, 0)
                .map_err(|error| Error::kernel("cannot set the filters", error))?;
        }
        Ok(())
    }

    /// Tells the programs where the wanted modules have their text now.
    ///
    /// # Errors
    ///
    /// The kernel's error on the map update.
    pub fn set_module_text(&mut self, ranges: [TextRange; TEXT_RANGES]) -> Result<(), Error> {
        self.module_text
            .set(0, ranges, 0)
            .map_err(|error| Error::kernel("cannot set the filters", error))
    }

    /// Visits the processes that have ended, from number `from` on; returns the number to go on
    /// from. Processes whose slot another one has overwritten meanwhile are left out.
    pub fn read_ended(&self, from: u64, mut visit: impl FnMut(&EndedProcess)) -> u64 {
        let to = self.cursors.read(4);
        let oldest = to.saturating_sub(self.ended.len() as u64);
        for number in from.max(oldest)..to {
            let slot = (number % self.ended.len() as u64) as usize;
            let process = self.ended.read(slot);
            compiler_fence(Ordering::SeqCst);
            if process.sequence == number + 1 && self.ended.read(slot) == process {
                visit(&process);
            } else if process.sequence <= number {
                // It is being written: from here on the next time.
                return number;
            }
        }
        to
    }

    /// The ring of rare events; the first call takes it.
    pub fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.events.take()
    }

    /// The ring of mappings; the first call takes it.
    pub fn take_map_events(&mut self) -> Option<RingBuf<MapData>> {
        self.map_events.take()
    }

    /// The ring of modules that come and go; the first call takes it.
    pub fn take_module_events(&mut self) -> Option<RingBuf<MapData>> {
        self.module_events.take()
    }
}

/// The maps of the unwind tables.
pub struct UnwindMaps {
    /// Rows of all objects, packed.
    pub rows: MappedArray<u64>,
    /// First and last row of each text page.
    pub pages: MappedArray<u64>,
    /// Executable mappings of all processes.
    pub mappings: MappedArray<TextMapping>,
    /// Unwind tables of objects, by file.
    pub objects: HashMap<MapData, FileKey, TextObject>,
    text_maps: MappedArray<TextMap>,
}

impl UnwindMaps {
    /// Publishes the mappings of a process image; the empty map forgets the image.
    pub fn set_text_map(&mut self, space: u32, map: TextMap) {
        let TextMap { first, count, generation, notified } = map;
        self.text_maps.with(space as usize, |slot| {
            // SAFETY: `slot` lies in the mapping and is aligned. In this order, and the mappings as
            // one word: a walk on another CPU never takes old mappings for those of the new
            // generation, by which it remembers what it finds in them.
            unsafe {
                slot.cast::<u64>().write_volatile(u64::from(first) | u64::from(count) << 32);
                compiler_fence(Ordering::SeqCst);
                (&raw mut (*slot).generation).write_volatile(generation);
                (&raw mut (*slot).notified).write_volatile(notified);
            }
        });
    }
}
