//! Process images in the maps: gives them spaces, and forgets images whose memory is gone.

use std::{
    collections::HashSet,
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::MapError;
use leaktrace_common::{
    AgainKey, BUCKET_SLOTS, BlockWord, MAX_PROCESSES, Outstanding, SiteKey, SiteRecord, StackId,
    Target,
};

use super::{Maps, sys};
use crate::error::Error;

/// Index of the cursor that holds the last space given to a process image for the first time.
const SPACE_CURSOR: usize = 1;
/// `BPF_NOEXIST`
const NO_EXIST: u64 = 1;

/// The result of [`Maps::add_target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The process is traced from now on, in this space.
    Space(u32),
    /// The process was traced already.
    Known,
    /// There is no room for another process.
    Full,
}

impl Maps {
    /// Starts tracing a process image. With `stays`, the process is traced whatever it executes;
    /// else only while the filters want its command name or its control group.
    ///
    /// # Errors
    ///
    /// The kernel's error on the map updates; a full map is no error.
    pub fn add_target(&mut self, tgid: u32, stays: bool) -> Result<Added, Error> {
        let Some(space) = self.next_space() else { return Ok(Added::Full) };
        match self.targets.insert(tgid, Target { space, stays: u32::from(stays), mm: 0 }, NO_EXIST)
        {
            Ok(()) => Ok(Added::Space(space)),
            Err(error) => {
                self.give_back(space);
                match os_error(&error) {
                    Some(libc::EEXIST) => Ok(Added::Known),
                    Some(libc::E2BIG) => Ok(Added::Full),
                    _ => Err(Error::kernel(format!("cannot register process {tgid}"), error)),
                }
            }
        }
    }

    /// Stops tracing a process image; another process may have its process ID by now.
    pub fn remove_target(&mut self, tgid: u32, space: u32) {
        if self.targets.get(&tgid, 0).is_ok_and(|target| target.space == space) {
            // One that is not there needs no removal.
            let _ = self.targets.remove(&tgid);
            for slot in 0..self.recent_targets.len() {
                if self.recent_targets.read(slot) >> 32 == u64::from(tgid) {
                    self.recent_targets.write(slot, 0);
                }
            }
        }
    }

    /// As [`Maps::remove_target`], for an image of which the programs cannot have reported
    /// anything.
    pub fn undo_target(&mut self, tgid: u32, space: u32) {
        self.remove_target(tgid, space);
        self.give_back(space);
    }

    /// A space that no process image has. The programs take spaces as well.
    fn next_space(&mut self) -> Option<u32> {
        if let Ok(space) = self.free_spaces.pop(0) {
            return Some(space);
        }
        let mut last = u64::from(BlockWord::SPACES);
        self.cursors.with(SPACE_CURSOR, |cursor| {
            // SAFETY: `cursor` lies in the mapping and is aligned; the programs add atomically.
            last = unsafe { AtomicU64::from_ptr(cursor) }.fetch_add(1, Ordering::SeqCst);
        });
        u32::try_from(last + 1).ok().filter(|space| *space < self.spaces)
    }

    fn give_back(&mut self, space: u32) {
        // The queue has room for every space.
        let _ = self.free_spaces.push(space, 0);
    }

    /// Forgets process images whose memory is gone: their blocks, their call sites, and their
    /// stacks, except stacks in `still_used` and those of other images' call sites. Other images
    /// get their spaces then.
    ///
    /// # Errors
    ///
    /// The kernel's error on reading the map of blocks that found no room in the table.
    pub fn forget_spaces(
        &mut self,
        spaces: &HashSet<u32>,
        mut stacks: HashSet<u64>,
        still_used: &HashSet<u64>,
    ) -> Result<(), Error> {
        self.forget_blocks(spaces)?;
        let mut sites = HashSet::new();
        for index in 0..self.sites_used() {
            let key = self.sites.read(index).key;
            if key.kind != 0 && spaces.contains(&key.space) {
                stacks.insert(key.stack);
                sites.insert(index as u32);
                self.forget_site(index, &key);
            }
        }
        self.forget_free_places(&sites)?;
        for index in sites {
            // Not before: the next call site in this slot must not inherit the places. The queue
            // has room for every slot.
            let _ = self.free_sites.push(index, 0);
        }
        stacks.retain(|id| *id != StackId::NOT_TAKEN && *id != StackId::LOST);
        self.forget_stacks(&stacks, still_used);
        for space in spaces {
            self.give_back(*space);
        }
        Ok(())
    }

    fn forget_blocks(&mut self, spaces: &HashSet<u32>) -> Result<(), Error> {
        // Only processes come and go.
        let is_of = |word: u64| {
            word > BlockWord::CLAIMED && spaces.contains(&BlockWord::key_in(word, false).space)
        };
        for index in 0..self.blocks.len() {
            self.blocks.with(index, |bucket| {
                for slot in 0..BUCKET_SLOTS as usize {
                    // SAFETY: `bucket` lies in the mapping, and an array of integers is valid
                    // as atomic ones; the programs that write it do so atomically.
                    let word =
                        unsafe { AtomicU64::from_ptr((&raw mut (*bucket).keys[slot]).cast()) };
                    let found = word.load(Ordering::Relaxed);
                    if is_of(found) {
                        // One that is gone already was freed meanwhile.
                        let _ = word.compare_exchange(
                            found,
                            BlockWord::FREE,
                            Ordering::SeqCst,
                            Ordering::Relaxed,
                        );
                    }
                }
            });
        }
        let mut gone = Vec::new();
        sys::read_all(self.overflow_fd.as_fd(), |word: &u64, _: &Outstanding| {
            if is_of(*word) {
                gone.push(*word);
            }
        })
        .map_err(|error| Error::kernel("cannot read the outstanding blocks", error))?;
        for word in gone {
            // As above. The programs' count of them is then too high, which costs them looks.
            let _ = self.overflow.remove(&word);
        }
        let gone: Vec<AgainKey> =
            self.again.keys().filter_map(Result::ok).filter(|key| is_of(key.word)).collect();
        for key in gone {
            // As above.
            let _ = self.again.remove(&key);
            let _ = self.again_levels.remove(&key.word);
        }
        Ok(())
    }

    /// Wipes a call site that no program can reach any more.
    fn forget_site(&mut self, index: usize, key: &SiteKey) {
        // One that is not there needs no removal.
        let _ = self.site_index.remove(key);
        self.sites.with(index, |record| {
            // SAFETY: `record` lies in the mapping, and nobody else writes it; a record of
            // integers may be all zeroes, of which kind 0 says that it is not in use.
            unsafe { record.write_volatile(std::mem::zeroed::<SiteRecord>()) };
        });
    }

    /// Forgets where blocks of these call sites were freed.
    fn forget_free_places(&mut self, sites: &HashSet<u32>) -> Result<(), Error> {
        let mut gone = Vec::new();
        self.read_free_places(|place, _| {
            if sites.contains(&place.site) {
                gone.push(*place);
            }
        })?;
        for place in gone {
            // One that is not there needs no removal.
            let _ = self.free_places.remove(&place);
        }
        Ok(())
    }

    /// Forgets those of the `stacks` that no call site has and that are not `still_used`.
    fn forget_stacks(&mut self, stacks: &HashSet<u64>, still_used: &HashSet<u64>) {
        let used = self.stacks_of_sites();
        let mut gone = Vec::new();
        for id in stacks.difference(&used).filter(|id| !still_used.contains(id)) {
            if let Some(stack) = self.stack(*id)
                && self.stacks.remove(id).is_ok()
            {
                gone.push((*id, stack));
            }
        }
        if gone.is_empty() {
            return;
        }
        for index in 0..self.recent_stacks.len() {
            self.recent_stacks.with(index, |recent| {
                // SAFETY: `recent` lies in the mapping; a program that writes a word of it at the
                // same time has found its stack.
                unsafe { recent.write_volatile(0) };
            });
        }
        // A child has its parent's addresses, and may have met one of them meanwhile.
        let used = self.stacks_of_sites();
        for (id, stack) in gone.iter().filter(|(id, _)| used.contains(id)) {
            // One that is there again needs no help.
            let _ = self.stacks.insert(id, stack, NO_EXIST);
        }
    }

    fn stacks_of_sites(&self) -> HashSet<u64> {
        let keys = (0..self.sites_used()).map(|index| self.sites.read(index).key);
        keys.filter(|key| key.kind != 0).map(|key| key.stack).collect()
    }
}

/// The error number of a system call.
fn os_error(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

/// The sentence for a table of processes without room.
pub fn too_many() -> String {
    format!("at most {} are", crate::units::format_count(u64::from(MAX_PROCESSES)))
}
