//! Finds the allocator functions of a mapped object.

mod families;

use std::{collections::HashMap, fs::File, ops::Range};

use leaktrace_common::{AllocFunction, Takes};
use object::{
    Object as _, ObjectSegment as _, ObjectSymbol as _, ReadRef as _, RelocationTarget, SymbolKind,
};

use self::families::{Candidate, Symbols};
use super::placement::{self, Forward};
use crate::{host::elf::ElfBytes, session::spec::ProbeAt};

/// The allocator functions of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocator {
    /// What it is, as `jemalloc`; empty if unknown.
    pub name: String,
    /// Functions that give memory.
    pub allocating: Vec<Probe>,
    /// Functions that only take memory back.
    pub freeing: Vec<Probe>,
    /// Offsets in the file that hold its code: those of its functions, or all of them where the
    /// object is nothing but an allocator.
    pub code: Vec<Range<u64>>,
}

/// A probe on an allocator function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its offset in the file.
    pub offset: u64,
    /// The function.
    pub function: AllocFunction,
    /// What the programs know it by, see [`AllocFunction::cookie`].
    pub cookie: u32,
    /// Whether the kernel single-steps the instruction there, which costs a second trap.
    pub single_steps: bool,
}

impl Allocator {
    /// All probes.
    pub fn probes(&self) -> impl Iterator<Item = &Probe> {
        self.allocating.iter().chain(&self.freeing)
    }
}

/// The object's allocator, if it defines at least `malloc` and `free`, or those of a prefixed
/// build. With `is_named` (`-O`), any prefix will do, and operators without a malloc.
///
/// Symbols come from `.dynsym`, and from `.symtab` where there is one (static executables).
///
/// # Errors
///
/// Why the file cannot be read as an ELF object.
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
    let found = symbols.choose(is_named);
    if found.candidates.is_empty() {
        return Ok(None);
    }
    let mut allocator = Allocator { name: found.name, ..Allocator::default() };
    let addresses: HashMap<u64, bool> = found
        .candidates
        .iter()
        .map(|candidate| (candidate.address, frees(candidate.function)))
        .collect();
    let mut imports = None;
    for Candidate { function, address, size } in found.candidates {
        let Some(start) = file_offset(&elf, address) else { continue };
        allocator.code.push(start..start.saturating_add(size.max(1)));
        // Without a size, the first bytes do.
        let length = if size == 0 { 64 } else { size.min(4096) };
        let code = (&bytes).read_bytes_at(start, length).unwrap_or(&[]);
        let place = match probe_at {
            ProbeAt::Entry => placement::entry(code, function.shape()),
            ProbeAt::Cheapest => placement::cheapest(code, function.shape()),
        };
        // What jumps to another function of the same kind is seen there.
        let target = placement::forward(code, address).and_then(|forward| {
            let stub = match forward {
                Forward::Through(word) => word,
                Forward::To(target) if addresses.contains_key(&target) => return Some(target),
                Forward::To(target) => {
                    let stub = file_offset(&elf, target)?;
                    let stub = (&bytes).read_bytes_at(stub, STUB_BYTES).ok()?;
                    match placement::forward(stub, target)? {
                        Forward::Through(word) => word,
                        Forward::To(_) => return None,
                    }
                }
            };
            let imports = imports.get_or_insert_with(|| imported(&elf));
            imports.get(&stub).copied()
        });
        if target.is_some_and(|target| {
            target != address && addresses.get(&target) == Some(&frees(function))
        }) {
            continue;
        }
        let probe = Probe {
            offset: start.saturating_add(place.offset),
            function,
            cookie: function.cookie(place.shape),
            single_steps: place.single_steps,
        };
        let list = if frees(function) { &mut allocator.freeing } else { &mut allocator.allocating };
        list.push(probe);
    }
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

/// Bytes of a stub of the procedure linkage table.
const STUB_BYTES: u64 = 16;

fn frees(function: AllocFunction) -> bool {
    function.shape().takes == Takes::Free
}

/// Which of the object's own functions the words that its stubs jump through are filled with,
/// unless another object comes before it.
fn imported<'data>(elf: &object::File<'data, &'data ElfBytes<'_>>) -> HashMap<u64, u64> {
    use object::ObjectSymbolTable as _;

    let (Some(relocations), Some(symbols)) =
        (elf.dynamic_relocations(), elf.dynamic_symbol_table())
    else {
        return HashMap::new();
    };
    relocations
        .filter_map(|(word, relocation)| {
            let RelocationTarget::Symbol(index) = relocation.target() else { return None };
            let symbol = symbols.symbol_by_index(index).ok()?;
            (symbol.kind() == SymbolKind::Text && !symbol.is_undefined())
                .then(|| (word, symbol.address()))
        })
        .collect()
}

/// Offset in the file of a virtual address of the object.
fn file_offset<'data>(elf: &impl object::Object<'data>, address: u64) -> Option<u64> {
    elf.segments().find_map(|segment| {
        let (offset, length) = segment.file_range();
        let within = address.checked_sub(segment.address())?;
        offset.checked_add(within).filter(|_| within < length)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use proptest::{prelude::*, sample::Index};

    use super::*;

    /// A library of malloc and free.
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
        /// Numbers that mean something somewhere, anywhere in its headers and tables.
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

    /// Each two bytes of a small library in turn say something absurd.
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
