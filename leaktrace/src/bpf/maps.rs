//! Typed handles of the maps; see `leaktrace_common` for what each holds.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf};
use leaktrace_common::{
    AllocKey, CacheName, LossReason, Outstanding, SiteRecord, StackRecord, Target, TextMap,
    TextMapping,
};

use super::{mapped::MappedArray, object::Loaded, sys};
use crate::error::Error;

/// The maps of a loaded object.
pub struct Maps {
    outstanding: HashMap<MapData, AllocKey, Outstanding>,
    /// The same map, for batches.
    outstanding_fd: OwnedFd,
    stacks: HashMap<MapData, u64, StackRecord>,
    caches: HashMap<MapData, u64, CacheName>,
    loss: PerCpuArray<MapData, u64>,
    cursors: Array<MapData, u64>,
    targets: HashMap<MapData, u32, Target>,
    filter_tgids: HashMap<MapData, u32, u32>,
    filter_comms: HashMap<MapData, [u8; 16], u32>,
    sites: MappedArray<SiteRecord>,
    events: Option<RingBuf<MapData>>,
}

impl Loaded {
    /// Takes the maps out of the object.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when the object lacks a map (a defect) or a map cannot be mapped.
    pub fn maps(&mut self) -> Result<Maps, Error> {
        let sites = MappedArray::new("SITES", self.take("SITES")?)?;
        let outstanding = self.take("OUTSTANDING")?;
        let fail = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::kernel("map OUTSTANDING", error)
        };
        let outstanding_fd = super::object::map_data(&outstanding)
            .ok_or_else(|| fail("is no hash map".into()))?
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| fail(error.into()))?;
        Ok(Maps {
            outstanding: HashMap::try_from(outstanding).map_err(|error| fail(error.into()))?,
            outstanding_fd,
            stacks: self.typed("STACKS")?,
            caches: self.typed("CACHES")?,
            loss: self.typed("LOSS")?,
            cursors: self.typed("CURSORS")?,
            targets: self.typed("TARGETS")?,
            filter_tgids: self.typed("FILTER_TGIDS")?,
            filter_comms: self.typed("FILTER_COMMS")?,
            sites,
            events: Some(self.typed("EVENTS")?),
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
            text_maps: self.typed("TEXT_MAPS")?,
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
    /// Visits every outstanding block.
    ///
    /// # Errors
    ///
    /// What the kernel says to `BPF_MAP_LOOKUP_BATCH`.
    pub fn read_outstanding(
        &self,
        visit: impl FnMut(&AllocKey, &Outstanding),
    ) -> Result<(), Error> {
        sys::read_all(self.outstanding_fd.as_fd(), visit)
            .map_err(|error| Error::kernel("cannot read the outstanding blocks", error))
    }

    /// Forgets a block.
    pub fn forget(&mut self, key: &AllocKey) {
        // A block that is gone already was freed meanwhile.
        let _ = self.outstanding.remove(key);
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

    /// Every site in use, with its index.
    pub fn sites(&self) -> Vec<(u32, SiteRecord)> {
        let used = self.cursors.get(&0, 0).unwrap_or(0) as usize;
        (0..used.min(self.sites.len()))
            .map(|index| (index as u32, self.sites.read(index)))
            .filter(|(_, record)| record.key.kind != 0)
            .collect()
    }

    /// Has a stack taken for every further allocation of a call site.
    pub fn suspect(&self, index: u32) {
        self.sites.with(index as usize, |record| {
            // SAFETY: `record` lies in the mapping; this field is written by the loader alone.
            unsafe { (&raw mut (*record).suspect).write_volatile(1) };
        });
    }

    /// Starts tracking a process image; gives its space.
    ///
    /// # Errors
    ///
    /// What the kernel says to the map updates.
    pub fn add_target(&mut self, tgid: u32) -> Result<u32, Error> {
        let fail = |error| Error::kernel(format!("cannot register process {tgid}"), error);
        let space = self.cursors.get(&1, 0).map_err(fail)? + 1;
        self.cursors.set(1, space, 0).map_err(fail)?;
        let space = space as u32;
        self.targets.insert(tgid, Target { space, zero: 0 }, 0).map_err(fail)?;
        Ok(space)
    }

    /// Stops tracking a process.
    pub fn remove_target(&mut self, tgid: u32) {
        // A process that is not there needs no removal.
        let _ = self.targets.remove(&tgid);
    }

    /// Restricts kernel allocations to processes and commands; an empty list restricts nothing
    /// (the loader's constants say which list is used).
    ///
    /// # Errors
    ///
    /// What the kernel says to the map updates.
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

    /// The ring of rare events, once.
    pub fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.events.take()
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
    text_maps: HashMap<MapData, u32, TextMap>,
}

impl UnwindMaps {
    /// Publishes a process image's mappings.
    ///
    /// # Errors
    ///
    /// What the kernel says: the map is full.
    pub fn set_text_map(&mut self, space: u32, map: TextMap) -> Result<(), Error> {
        self.text_maps
            .insert(space, map, 0)
            .map_err(|error| Error::kernel("cannot publish the mappings of a process", error))
    }

    /// Forgets a process image.
    pub fn remove_text_map(&mut self, space: u32) {
        // One that is not there needs no removal.
        let _ = self.text_maps.remove(&space);
    }
}
