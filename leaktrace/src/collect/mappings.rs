//! Finds the object and the file offset behind an address of a process.
//!
//! leaktrace learns the mappings while the process lives, so that it can name stacks afterwards.

use crate::{
    host::objects::ObjectId,
    snapshot::{Frame, Place},
    unwind::tables::ProcessMapping,
};

/// The executable mappings that one process image has had.
#[derive(Debug)]
pub struct Mappings {
    pid: u32,
    ranges: Vec<Range>,
}

#[derive(Clone, Debug)]
struct Range {
    start: u64,
    end: u64,
    file_offset: u64,
    object: Option<ObjectId>,
}

impl Mappings {
    /// No mappings yet.
    pub fn new(pid: u32) -> Self {
        Self { pid, ranges: Vec::new() }
    }

    /// The mappings of a child, which begins as a copy.
    pub fn of_child(&self, pid: u32) -> Self {
        Self { pid, ranges: self.ranges.clone() }
    }

    /// Takes in the present mappings. Ranges that are gone stay, as older stacks may need them.
    pub fn update(&mut self, present: &[ProcessMapping]) {
        for mapping in present {
            self.ranges.retain(|range| range.end <= mapping.start || range.start >= mapping.end);
            self.ranges.push(Range {
                start: mapping.start,
                end: mapping.end,
                file_offset: mapping.file_offset,
                object: mapping.object,
            });
        }
        self.ranges.sort_unstable_by_key(|range| range.start);
    }

    /// Normalizes a return address.
    pub fn frame(&self, address: u64) -> Frame {
        Frame::new(address, self.find(address).unwrap_or(Place::Unmapped))
    }

    fn find(&self, address: u64) -> Option<Place> {
        // The call lies before its return address, which may be the first byte of a mapping.
        let call = address.wrapping_sub(1);
        let at = self.ranges.partition_point(|range| range.end <= call);
        let range = self.ranges.get(at).filter(|range| range.start <= call)?;
        Some(match range.object {
            Some(object) => Place::Object {
                object: object.0,
                file_offset: address - range.start + range.file_offset,
            },
            None => Place::Anonymous { pid: self.pid },
        })
    }
}
