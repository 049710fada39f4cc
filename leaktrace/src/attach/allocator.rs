//! Finds the allocator functions of a mapped object.

mod families;

use std::{
    cell::OnceCell,
    collections::{HashMap, HashSet},
    fs::File,
    ops::Range,
};

use leaktrace_common::{AllocFunction, Takes};
use object::{
    Object as _, ObjectSection as _, ObjectSegment as _, ObjectSymbol as _, ObjectSymbolTable as _,
    ReadRef as _, RelocationTarget, SymbolKind,
};

use self::families::{Candidate, Symbols};
use super::{
    exits::{self, Code},
    placement::{self, Forward},
};
use crate::{host::elf::ElfBytes, session::spec::ProbeAt};

/// The allocator functions of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocator {
    /// The allocator's name, as `jemalloc`; empty if unknown.
    pub name: String,
    /// Functions that give memory, on whose returns the kernel puts return probes.
    pub allocating: Vec<Probe>,
    /// Functions that give memory and throw an exception where they cannot.
    pub throwing: Vec<Probe>,
    /// The return instructions of the throwing functions.
    pub exits: Vec<Probe>,
    /// Functions that only take memory back.
    pub freeing: Vec<Probe>,
    /// Offsets in the file that hold the allocator's code: that of its functions, or all code where
    /// the object is nothing but an allocator.
    pub code: Vec<Range<u64>>,
    /// Functions that throw and whose return instructions could not be found.
    pub unseen: Vec<AllocFunction>,
}

/// A probe on an allocator function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The probe's offset in the file.
    pub offset: u64,
    /// The probe's attach cookie, see [`AllocFunction::cookie`].
    pub cookie: u32,
    /// Whether the kernel single-steps the instruction at that offset, which costs a second trap.
    pub single_steps: bool,
}

impl Allocator {
    /// All probes.
    pub fn probes(&self) -> impl Iterator<Item = &Probe> {
        let lists = [&self.allocating, &self.throwing, &self.exits, &self.freeing];
        lists.into_iter().flatten()
    }
}

/// Finds the object's allocator. The object has one if it defines at least `malloc` and `free` (a
/// static program that never frees: `malloc`), or some functions of a prefixed build. With
/// `is_named` (`-O`) any prefix will do, and operators without a malloc.
///
/// Symbols come from `.dynsym`, and from `.symtab` where there is one (static executables).
///
/// # Errors
///
/// Says why the file cannot be read as an ELF object.
pub fn find(
    file: &File,
    probe_at: ProbeAt,
    is_named: bool,
) -> Result<Option<Allocator>, object::Error> {
    let bytes = ElfBytes::new(file);
    let elf = object::File::parse(&bytes)?;
    let mut symbols = Symbols::default();
    for symbol in elf.dynamic_symbols().chain(elf.symbols()) {
        if symbol.kind() != SymbolKind::Text || symbol.is_undefined() {
            continue;
        }
        let Ok(name) = symbol.name() else { continue };
        // Versioned names of .symtab: `free@@GLIBC_2.2.5`.
        let name = name.split('@').next().unwrap_or(name);
        symbols.add(name, symbol.address(), symbol.size(), is_named);
    }
    let is_c_library = symbols.is_c_library();
    let is_static = elf.section_by_name(".dynamic").is_none();
    let found = symbols.choose(is_named, is_static);
    if found.candidates.is_empty() {
        return Ok(None);
    }
    let object = ElfCode::new(&elf, &bytes);
    let kinds: HashMap<u64, bool> =
        found.candidates.iter().map(|one| (one.address, frees(one.function))).collect();
    let mut allocator = Allocator { name: found.name, ..Allocator::default() };
    for candidate in found.candidates {
        let Candidate { function, address, size } = candidate;
        let Some(start) = object.file_offset(address) else { continue };
        allocator.code.push(start..start.saturating_add(size.max(1)));
        // What jumps to another function of the same kind is seen there.
        let code = object.whole(address, size);
        let target = placement::forward(code, address).and_then(|jump| object.target(jump));
        let is_seen = |target| target != address && kinds.get(&target) == Some(&frees(function));
        if !target.is_some_and(is_seen) {
            add(&mut allocator, &object, &candidate, (start, probe_at));
        }
    }
    // Functions may share their ends.
    allocator.exits.sort_unstable_by_key(|exit| exit.offset);
    allocator.exits.dedup();
    // A library without a loader of its own: no program, and not the C library.
    let is_library = elf.kind() == object::ObjectKind::Dynamic
        && elf.section_by_name(".interp").is_none()
        && !is_c_library;
    if is_library {
        allocator.code.clear();
        allocator.code.push(0..u64::MAX);
    }
    Ok(Some(allocator))
}

/// Adds the probes of a function that begins at an offset of the file.
fn add(
    allocator: &mut Allocator,
    object: &ElfCode<'_, '_>,
    candidate: &Candidate,
    (start, probe_at): (u64, ProbeAt),
) {
    let function = candidate.function;
    let code = object.whole(candidate.address, candidate.size);
    let place = match probe_at {
        ProbeAt::Entry => placement::entry(code, function.shape()),
        ProbeAt::Cheapest => placement::cheapest(code, function.shape()),
    };
    let probe = Probe {
        offset: start.saturating_add(place.offset),
        cookie: function.cookie(place.shape),
        single_steps: place.single_steps,
    };
    if frees(function) {
        allocator.freeing.push(probe);
    } else if !function.throws() {
        allocator.allocating.push(probe);
    } else if let Some(exits) = exits::exits(object, candidate.address) {
        allocator.throwing.push(probe);
        let offsets = exits.into_iter().filter_map(|exit| object.file_offset(exit));
        allocator.exits.extend(offsets.map(|offset| Probe {
            offset,
            cookie: 0,
            single_steps: true,
        }));
    } else {
        allocator.unseen.push(function);
    }
}

fn frees(function: AllocFunction) -> bool {
    function.shape().takes == Takes::Free
}

/// The code of an object.
pub(super) struct ElfCode<'elf, 'file> {
    elf: &'elf object::File<'elf, &'elf ElfBytes<'file>>,
    bytes: &'elf ElfBytes<'file>,
    imports: OnceCell<HashMap<u64, u64>>,
    starts: OnceCell<HashSet<u64>>,
}

/// Most bytes of one function that are read.
const MOST_BYTES: u64 = 4096;

impl<'elf, 'file> ElfCode<'elf, 'file> {
    pub(super) fn new(
        elf: &'elf object::File<'elf, &'elf ElfBytes<'file>>,
        bytes: &'elf ElfBytes<'file>,
    ) -> Self {
        Self { elf, bytes, imports: OnceCell::new(), starts: OnceCell::new() }
    }

    /// The code of the function at this address.
    pub(super) fn whole(&self, address: u64, size: u64) -> &'elf [u8] {
        // Without a size, the first bytes do.
        let length = if size == 0 { 64 } else { size.min(MOST_BYTES) };
        let offset = self.file_offset(address);
        offset.and_then(|offset| self.bytes.read_bytes_at(offset, length).ok()).unwrap_or_default()
    }

    /// The address that a function's jump leads to.
    fn target(&self, jump: Forward) -> Option<u64> {
        match jump {
            Forward::Through(word) => self.jumped_through(word),
            Forward::To(address) => exits::target(self, address),
        }
    }

    /// The offset in the file of a virtual address.
    pub(super) fn file_offset(&self, address: u64) -> Option<u64> {
        self.elf.segments().find_map(|segment| {
            let (offset, length) = segment.file_range();
            let within = address.checked_sub(segment.address())?;
            offset.checked_add(within).filter(|_| within < length)
        })
    }

    /// Words that the dynamic loader fills with the addresses of the object's own functions: the
    /// function of each word. Where another object that comes first defines the same function, the
    /// loader takes that one instead.
    fn read_imports(&self) -> HashMap<u64, u64> {
        let tables = (self.elf.dynamic_relocations(), self.elf.dynamic_symbol_table());
        let (Some(relocations), Some(symbols)) = tables else { return HashMap::new() };
        relocations
            .filter_map(|(word, relocation)| {
                let RelocationTarget::Symbol(index) = relocation.target() else { return None };
                let symbol = symbols.symbol_by_index(index).ok()?;
                (symbol.kind() == SymbolKind::Text && !symbol.is_undefined())
                    .then(|| (word, symbol.address()))
            })
            .collect()
    }

    /// The start addresses of functions in `.eh_frame_hdr`, in the one form that linkers write.
    fn read_starts(&self) -> Option<HashSet<u64>> {
        let section = self.elf.section_by_name(".eh_frame_hdr")?;
        let data = section.data().ok()?;
        // Version 1, .eh_frame by a relative word, a count, and a table sorted by address.
        let table = data.strip_prefix(&[1, 0x1b, 3, 0x3b])?.get(8..)?;
        let starts = table.chunks_exact(8).filter_map(|entry| {
            let (start, _) = entry.split_first_chunk::<4>()?;
            section.address().checked_add_signed(i32::from_le_bytes(*start).into())
        });
        Some(starts.collect())
    }
}

impl Code for ElfCode<'_, '_> {
    fn bytes(&self, address: u64) -> Option<&[u8]> {
        let offset = self.file_offset(address)?;
        let left = self.bytes.len().ok()?.checked_sub(offset)?;
        self.bytes.read_bytes_at(offset, left.min(exits::CHUNK_BYTES)).ok()
    }

    fn jumped_through(&self, word: u64) -> Option<u64> {
        self.imports.get_or_init(|| self.read_imports()).get(&word).copied()
    }

    fn is_start(&self, address: u64) -> bool {
        let starts = self.starts.get_or_init(|| self.read_starts().unwrap_or_default());
        starts.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use proptest::{prelude::*, sample::Index};

    use super::*;

    /// An ELF library with malloc and free.
    const ALLOCATOR: &[u8] = include_bytes!("../unwind/corpus/allocator.elf");

    fn find_in(image: &[u8]) -> Option<Allocator> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(image, 0).unwrap();
        find(&file, ProbeAt::Cheapest, false).ok().flatten()
    }

    #[test]
    fn a_small_allocator_is_found() {
        let found = find_in(ALLOCATOR).unwrap();
        assert_eq!((found.allocating.len(), found.freeing.len()), (1, 1), "{found:?}");
        // It is nothing but an allocator.
        assert!(found.code.iter().any(|part| part.contains(&0)), "{found:?}");
    }

    proptest! {
        /// Puts telling numbers anywhere into the library's headers and tables.
        #[test]
        fn a_damaged_allocator_is_found_or_refused(
            damages in prop::collection::vec((any::<Index>(), 1_usize..9, any::<u64>()), 1..6),
            extreme in prop::sample::select(vec![0, 1, 0xfff, 0xffff_ffff, u64::MAX - 1, u64::MAX]),
            keep in any::<Index>(),
            is_cut in any::<bool>(),
        ) {
            let mut image = ALLOCATOR.to_vec();
            for (at, width, value) in damages {
                let value = if value % 2 == 0 { extreme } else { value };
                let at = at.index(image.len() - 8);
                image[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
            if is_cut {
                image.truncate(keep.index(image.len()));
            }
            if let Some(found) = find_in(&image) {
                let probes = found.allocating.len() + found.freeing.len();
                assert!(probes <= AllocFunction::all().count(), "{found:?}");
            }
        }
    }

    /// The C library that this test runs on defines the whole family.
    #[test]
    fn this_process_has_an_allocator() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let path = maps
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .find(|path| path.contains("libc.so") || path.contains("ld-musl"))
            .expect("no C library is mapped");
        let file = File::open(path).unwrap();
        let allocator = find(&file, ProbeAt::Cheapest, false).unwrap().expect("no allocator found");
        assert!(allocator.allocating.len() >= 6, "{allocator:?}");
        assert_eq!(allocator.freeing.len(), 1);
        // A C library is more than its allocator.
        let code: u64 = allocator.code.iter().map(|part| part.end - part.start).sum();
        assert!(allocator.code.len() >= 7 && code < 64 * 1024, "{:?}", allocator.code);
        let at_entry = find(&file, ProbeAt::Entry, false).unwrap().unwrap();
        assert_eq!(at_entry.allocating.len(), allocator.allocating.len());
    }

    #[test]
    fn an_object_without_malloc_has_none() {
        let file = File::open("/proc/self/exe").unwrap();
        assert_eq!(find(&file, ProbeAt::Cheapest, false).unwrap(), None);
    }

    /// Makes each two bytes of a small library in turn say something absurd.
    #[test]
    fn an_object_that_lies_has_none() {
        let image = include_bytes!("../unwind/corpus/tiny.elf");
        let file = tempfile::tempfile().unwrap();
        for at in 0..image.len() - 2 {
            let mut damaged = image.to_vec();
            damaged[at..at + 2].fill(0xff);
            file.write_all_at(&damaged, 0).unwrap();
            if let Ok(found) = find(&file, ProbeAt::Cheapest, false) {
                assert_eq!(found, None, "byte {at}");
            }
        }
    }
}
