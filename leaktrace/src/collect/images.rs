//! The traced process images: what leaktrace knows of each, and what it forgets with it.

use std::collections::{BTreeMap, HashSet};

use leaktrace_common::FrameMark;

use super::{Collector, mappings::Mappings};
use crate::{
    error::Error,
    snapshot::{Found, Frame, Place, Process},
    unwind::tables::ProcessMapping,
};

/// Number of gone images that are forgotten together: forgetting reads all outstanding blocks,
/// which takes some 10 ms for a large table.
const FORGOTTEN_TOGETHER: usize = 256;

/// Traced process images.
#[derive(Debug, Default)]
pub(super) struct Images {
    known: BTreeMap<u32, (Process, Mappings)>,
    /// Spaces of images that are gone but still in the maps.
    gone: HashSet<u32>,
    /// Number of processes that have ended and left the report.
    ended: u64,
}

impl Images {
    pub(super) fn has(&self, space: u32) -> bool {
        self.known.contains_key(&space)
    }

    /// Normalizes an address of a process image's stack.
    pub(super) fn frame(&self, space: u32, address: u64) -> Frame {
        let found = match address & FrameMark::ALL {
            0 => Found::Return,
            FrameMark::INTERRUPTED => Found::Interrupted,
            _ => Found::FramePointer,
        };
        let address = address & !FrameMark::ALL;
        let frame = match self.known.get(&space) {
            Some((_, mappings)) => mappings.frame(address),
            None => Frame::new(address, Place::Unmapped),
        };
        Frame { found, ..frame }
    }

    pub(super) fn processes(&self) -> BTreeMap<u32, Process> {
        self.known.iter().map(|(space, (process, _))| (*space, process.clone())).collect()
    }

    pub(super) fn ended(&self) -> u64 {
        self.ended
    }
}

impl Collector {
    /// Adds a traced process image.
    pub fn add_process(&mut self, space: u32, process: Process) {
        let mappings = Mappings::new(process.pid);
        self.images.known.insert(space, (process, mappings));
    }

    /// Adds the image of a process that another one has forked. The child maps the same as its
    /// parent. What is unknown of the child, as it may have ended, is taken from the parent.
    pub fn add_child(&mut self, parent: u32, child: u32, mut process: Process) {
        let Some((of_parent, mappings)) = self.images.known.get(&parent) else {
            return self.add_process(child, process);
        };
        process.allocator.clone_from(&of_parent.allocator);
        if process.exe.is_empty() {
            process = Process { pid: process.pid, exited: false, ..of_parent.clone() };
        }
        let mappings = mappings.of_child(process.pid);
        self.images.known.insert(child, (process, mappings));
        self.forked_mappings(parent, child);
    }

    /// Takes in the present mappings of a process image.
    pub fn update_mappings(&mut self, space: u32, present: &[ProcessMapping]) {
        if let Some((_, mappings)) = self.images.known.get_mut(&space) {
            mappings.update(present);
        }
    }

    /// Stores the names of a process image, unless they are known.
    pub fn name_process(&mut self, space: u32, comm: Option<&str>, exe: Option<&str>) {
        let Some((process, _)) = self.images.known.get_mut(&space) else { return };
        for (name, found) in [(&mut process.comm, comm), (&mut process.exe, exe)] {
            if let (true, Some(found)) = (name.is_empty(), found) {
                found.clone_into(name);
            }
        }
    }

    /// Adds a further allocator to a process image.
    pub fn add_allocator(&mut self, space: u32, path: &str) {
        if let Some((process, _)) = self.images.known.get_mut(&space) {
            if !process.allocator.is_empty() {
                process.allocator.push_str(", ");
            }
            process.allocator.push_str(path);
        }
    }

    /// The traced process images.
    pub fn processes(&self) -> impl Iterator<Item = &Process> + Clone {
        self.images.known.values().map(|(process, _)| process)
    }

    /// The traced process images, each with its space.
    pub fn images(&self) -> impl Iterator<Item = (u32, &Process)> {
        self.images.known.iter().map(|(space, (process, _))| (*space, process))
    }

    /// Marks a process as ended; what it held stays in the report.
    pub fn exited(&mut self, pid: u32) {
        for (process, _) in self.images.known.values_mut() {
            process.exited |= process.pid == pid;
        }
    }

    /// Removes a process that has ended from the report.
    pub fn left(&mut self, space: u32) {
        self.images.ended += 1;
        self.forget_image(space);
    }

    /// Forgets a process image: its memory is gone and no leak. The next [`Collector::clean_up`]
    /// removes its entries from the maps.
    pub fn forget_image(&mut self, space: u32) {
        self.images.known.remove(&space);
        self.images.gone.insert(space);
        self.forget_mappings(space);
    }

    /// Removes the entries of gone images from the maps, if they are many or if it is `due`. The
    /// rings may hold nothing of these images any more, as other images get their spaces.
    ///
    /// # Errors
    ///
    /// The kernel's error on reading the blocks.
    pub fn clean_up(&mut self, due: bool) -> Result<(), Error> {
        let gone = &self.images.gone;
        if gone.is_empty() || (!due && gone.len() < FORGOTTEN_TOGETHER) {
            return Ok(());
        }
        let gone = std::mem::take(&mut self.images.gone);
        self.stacks.forget(&gone);
        self.call_sites.retain(|(space, _), _| !gone.contains(space));
        let (unused, used) = self.forget_map_sites(&gone);
        self.maps.forget_spaces(&gone, unused, &used)
    }
}
