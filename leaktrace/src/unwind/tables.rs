//! The unwind tables in the BPF maps: rows and text pages by object, mappings by process.

use std::collections::{HashMap, HashSet};

use leaktrace_common::{
    AreaLayout, FileKey, MAX_MAPPINGS, MAX_ROWS_IN_PAGE, TEXT_PAGE_BYTES, TEXT_SEGMENTS, TextMap,
    TextMapping, TextObject, TextSegment, UnwindRow, Unwinding,
};

use super::object::{BuildId, CompiledObject, Segment};
use crate::{bpf::maps::UnwindMaps, host::objects::ObjectId, session::spec::Unwind};

/// Where an object's table lies in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    first_page: u32,
    page_base: u32,
    page_count: u32,
    unwinding: Unwinding,
}

/// An executable mapping of a process, with its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessMapping {
    /// First address.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// Offset in the object's file of the mapping's first address.
    pub file_offset: u64,
    /// The object; `None` for code made at run time.
    pub object: Option<ObjectId>,
}

/// The room that the unwind tables take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableUse {
    /// Number of objects with a table.
    pub objects: u32,
    /// Number of rows in use.
    pub rows: u64,
    /// Number of rows that there is room for.
    pub rows_max: u64,
    /// Number of objects that found no room.
    pub refused: u32,
}

/// The unwind tables of all objects.
pub struct Tables {
    maps: UnwindMaps,
    objects: HashMap<ObjectId, (Placed, Vec<Segment>)>,
    /// The first object with each build ID.
    by_build_id: HashMap<BuildId, ObjectId>,
    next_row: usize,
    next_page: usize,
    next_mapping: usize,
    generation: u32,
    refused: u32,
    unwind: Unwind,
    /// The files whose tables the programs can find.
    files: HashSet<FileKey>,
}

/// How to unwind code that is in no object.
fn without_table(unwind: Unwind) -> Unwinding {
    if unwind == Unwind::Tables { Unwinding::Nothing } else { Unwinding::FramePointer }
}

/// Tells the programs how to unwind a mapping that only the kernel has reported.
pub fn in_areas(unwind: Unwind, layout: AreaLayout) -> AreaLayout {
    let unknown = match unwind {
        Unwind::FramePointers => Unwinding::FramePointer,
        Unwind::Auto | Unwind::Tables => Unwinding::Pending,
    };
    AreaLayout {
        without_file: without_table(unwind) as u32,
        unknown_file: unknown as u32,
        ..layout
    }
}

/// An object in the form that the programs use; `None` if it has too many text segments.
fn text_object(placed: &Placed, segments: &[Segment]) -> Option<TextObject> {
    let mut sorted: Vec<TextSegment> = segments.iter().map(Segment::pages).collect();
    sorted.sort_by_key(|segment| segment.start);
    sorted.resize(sorted.len().max(TEXT_SEGMENTS), TextSegment::default());
    Some(TextObject {
        segments: sorted.try_into().ok()?,
        first_page: placed.first_page,
        page_base: placed.page_base,
        page_count: placed.page_count,
        unwinding: placed.unwinding as u32,
    })
}

impl Tables {
    /// Empty tables in `maps`.
    pub fn new(maps: UnwindMaps, unwind: Unwind) -> Self {
        Self {
            maps,
            objects: HashMap::new(),
            by_build_id: HashMap::new(),
            next_row: 0,
            next_page: 0,
            next_mapping: 0,
            generation: 0,
            refused: 0,
            unwind,
            files: HashSet::new(),
        }
    }

    /// Whether the object's table was placed.
    pub fn has(&self, object: ObjectId) -> bool {
        self.unwind == Unwind::FramePointers || self.objects.contains_key(&object)
    }

    /// Gives an object the table of an object with the same build ID, if there is one; returns
    /// whether.
    pub fn share(&mut self, id: ObjectId, build_id: &BuildId) -> bool {
        let first = *self.by_build_id.entry(build_id.clone()).or_insert(id);
        let Some(known) = self.objects.get(&first).cloned() else { return false };
        self.objects.insert(id, known);
        true
    }

    /// Writes an object's rows to the maps; to be called once for each object.
    pub fn place(&mut self, id: ObjectId, compiled: &CompiledObject) {
        let pages = text_pages(&compiled.rows);
        let fits = self.next_row + compiled.rows.len() <= self.maps.rows.len()
            && self.next_page + pages.entries.len() <= self.maps.pages.len();
        let mut placed = Placed {
            first_page: self.next_page as u32,
            page_base: pages.base,
            page_count: pages.entries.len() as u32,
            unwinding: Unwinding::Table,
        };
        if compiled.rows.is_empty() {
            placed.unwinding = self.without_table();
        } else if fits {
            if self.unwind == Unwind::Auto {
                placed.unwinding = Unwinding::Mixed;
            }
            for (slot, row) in (self.next_row..).zip(&compiled.rows) {
                self.maps.rows.write(slot, row.packed());
            }
            for (slot, (first, last)) in (self.next_page..).zip(&pages.entries) {
                let base = self.next_row as u64;
                self.maps.pages.write(slot, (base + first) | ((base + last) << 32));
            }
            self.next_row += compiled.rows.len();
            self.next_page += pages.entries.len();
        } else {
            self.refused += 1;
            placed.unwinding = Unwinding::Nothing;
        }
        self.objects.insert(id, (placed, compiled.segments.clone()));
    }

    fn without_table(&self) -> Unwinding {
        without_table(self.unwind)
    }

    /// Lets the programs find an object's table by its file, in processes whose mappings leaktrace
    /// has not read.
    pub fn know_file(&mut self, file: FileKey, id: ObjectId) {
        if !self.files.insert(file) {
            return;
        }
        let Some((placed, segments)) = self.objects.get(&id) else { return };
        if let Some(object) = text_object(placed, segments) {
            // A full map leaves the file to be found by the mappings, as a kernel without
            // bpf_find_vma does.
            let _ = self.maps.objects.insert(file, object, 0);
        }
    }

    /// Whether [`Tables::know_file`] was called for this file.
    pub fn knows_file(&self, file: &FileKey) -> bool {
        self.files.contains(file)
    }

    /// Publishes the executable mappings of a process image, sorted by address. Where the table of
    /// an object is not placed yet, walks stop with that reason.
    ///
    /// The old list stays in place for walks under way, until the room is used up; then lists are
    /// written from the start again.
    pub fn publish(&mut self, space: u32, mappings: &[ProcessMapping]) {
        let mappings = mappings.get(..mappings.len().min(MAX_MAPPINGS as usize)).unwrap_or(&[]);
        if self.next_mapping + mappings.len() > self.maps.mappings.len() {
            self.next_mapping = 0;
        }
        let first = self.next_mapping;
        for (slot, mapping) in (first..).zip(mappings) {
            self.maps.mappings.write(slot, self.text_mapping(mapping));
        }
        self.next_mapping += mappings.len();
        // 0 is that of spaces without mappings.
        self.generation = self.generation.wrapping_add(1).max(1);
        self.maps.set_text_map(
            space,
            TextMap {
                first: first as u32,
                count: mappings.len() as u32,
                generation: self.generation,
                notified: 0,
            },
        );
    }

    /// Forgets a process image.
    pub fn forget(&mut self, space: u32) {
        self.maps.set_text_map(space, TextMap::default());
    }

    fn text_mapping(&self, mapping: &ProcessMapping) -> TextMapping {
        let mut text = TextMapping { start: mapping.start, end: mapping.end, ..Default::default() };
        let placed = mapping.object.and_then(|object| self.objects.get(&object));
        let unwinding = match (self.unwind == Unwind::FramePointers, mapping.object, placed) {
            (true, _, _) => Unwinding::FramePointer,
            (false, None, _) => self.without_table(),
            (false, Some(_), None) => Unwinding::Pending,
            (false, Some(_), Some((placed, segments))) => {
                let object = CompiledObject { segments: segments.clone(), ..Default::default() };
                match object.address_of(mapping.file_offset) {
                    Some(address) => {
                        text.bias = mapping.start.wrapping_sub(address);
                        text.first_page = placed.first_page;
                        text.page_base = placed.page_base;
                        text.page_count = placed.page_count;
                        placed.unwinding
                    }
                    None => self.without_table(),
                }
            }
        };
        text.unwinding = unwinding as u32;
        text
    }

    /// The room that the unwind tables take.
    pub fn used(&self) -> TableUse {
        TableUse {
            objects: self.objects.len() as u32,
            rows: self.next_row as u64,
            rows_max: self.maps.rows.len() as u64,
            refused: self.refused,
        }
    }
}

/// The rows of an object, indexed by text page.
#[derive(Debug, Default, PartialEq, Eq)]
struct TextPages {
    /// Number of the object's first text page.
    base: u32,
    /// For each page, its first row (the one that covers its first byte) and its last row.
    entries: Vec<(u64, u64)>,
}

fn text_pages(rows: &[UnwindRow]) -> TextPages {
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return TextPages::default();
    };
    let page_of = |row: &UnwindRow| u64::from(row.pc) / TEXT_PAGE_BYTES;
    let base = page_of(first);
    let mut entries = Vec::with_capacity((page_of(last) - base + 1) as usize);
    let mut next = 0;
    for page in base..=page_of(last) {
        let start = page * TEXT_PAGE_BYTES;
        // The row in force at the first byte may belong to an earlier page.
        let starts_here = rows.get(next).is_some_and(|row| u64::from(row.pc) == start);
        let in_force = if starts_here { next } else { next.saturating_sub(1) };
        while rows.get(next).is_some_and(|row| u64::from(row.pc) < start + TEXT_PAGE_BYTES) {
            next += 1;
        }
        let last = next.saturating_sub(1).max(in_force);
        let last = last.min(in_force + MAX_ROWS_IN_PAGE as usize - 1);
        entries.push((in_force as u64, last as u64));
    }
    TextPages { base: base as u32, entries }
}

#[cfg(test)]
mod tests {
    use leaktrace_common::CfaRule;

    use super::*;

    fn row(pc: u32) -> UnwindRow {
        UnwindRow { pc, rule: CfaRule::Rsp, offset: 8, rbp_offset: 0 }
    }

    #[test]
    fn a_page_starts_with_the_row_in_force() {
        let rows = [row(0x1010), row(0x1800), row(0x3000), row(0x3004)];
        let pages = text_pages(&rows);
        assert_eq!(pages.base, 1);
        assert_eq!(pages.entries, [(0, 1), (1, 1), (2, 3)]);
    }

    #[test]
    fn no_rows_make_no_pages() {
        assert_eq!(text_pages(&[]), TextPages::default());
    }
}
