//! Names of functions in mapped files, by offset in the file: this works for deleted files, in
//! other mount namespaces, and after the process is gone.

use std::{borrow::Cow, collections::HashMap, fs::File, os::unix::fs::FileExt as _};

use blazesym::symbolize::{
    Input, Sym, Symbolized, Symbolizer as Blazesym,
    source::{Elf, Source},
};
use leaktrace_common::ends_with_call;

use super::{convert, functions::Functions};
use crate::snapshot::{Found, Frame, Object, Resolved, Unknown};

/// Names frames of one object, given with their file offsets.
pub(super) fn resolve(
    blazesym: &Blazesym,
    functions: &mut HashMap<String, Functions>,
    object: &Object,
    frames: &[(Frame, u64)],
) -> Vec<(Frame, Resolved)> {
    let all = |unknown: Unknown| {
        frames.iter().map(|(frame, _)| (*frame, Resolved::Unknown(unknown.clone()))).collect()
    };
    if object.readable_at.is_empty() {
        return all(match object.path.starts_with('[') {
            // Code that the kernel maps into processes; no file, and no allocator's caller.
            true => Unknown::NoSymbol(object.path.clone()),
            false => Unknown::Unreadable(object.path.clone(), "it could not be opened".to_owned()),
        });
    }
    // The call lies before its return address.
    let offsets: Vec<u64> = frames.iter().map(|(_, offset)| offset.saturating_sub(1)).collect();
    let source = Source::Elf(Elf::new(&object.readable_at));
    let symbolize = |offsets: &[u64]| blazesym.symbolize(&source, Input::FileOffset(offsets));
    let mut found = match symbolize(&offsets) {
        Ok(found) => found,
        Err(error) => {
            return all(Unknown::Unreadable(object.path.clone(), error.to_string()));
        }
    };
    // Where nobody has called, somebody may have put the address of a function into a stack that
    // he has made (makecontext).
    let uncalled = uncalled(object, frames);
    let at: Vec<u64> = uncalled.iter().map(|(_, offset)| *offset).collect();
    let functions = functions
        .entry(object.readable_at.clone())
        .or_insert_with(|| Functions::of(&object.readable_at));
    if let (false, Ok(there)) = (at.is_empty(), symbolize(&at)) {
        for ((index, _), symbolized) in uncalled.iter().zip(there) {
            if let Symbolized::Sym(sym) = symbolized
                && let sym = corrected(sym, functions)
                && sym.offset == 0
                && let Some(place) = found.get_mut(*index)
            {
                *place = Symbolized::Sym(sym);
            }
        }
    }
    frames
        .iter()
        .zip(found)
        .map(|((frame, _), symbolized)| {
            let resolved = match symbolized {
                Symbolized::Sym(sym) => convert(&corrected(sym, functions), &object.path),
                Symbolized::Unknown(_) => Resolved::Unknown(Unknown::NoSymbol(object.path.clone())),
            };
            (*frame, resolved)
        })
        .collect()
}

/// The return addresses that no call precedes, by index and file offset.
fn uncalled(object: &Object, frames: &[(Frame, u64)]) -> Vec<(usize, u64)> {
    let Ok(file) = File::open(&object.readable_at) else { return Vec::new() };
    let is_called = |offset: u64| {
        let mut code = [0; 8];
        let before = offset.checked_sub(code.len() as u64);
        // What cannot be read is taken for a call, as nearly all are.
        before.is_none_or(|before| {
            file.read_exact_at(&mut code, before).is_err()
                || ends_with_call(u64::from_le_bytes(code))
        })
    };
    let wanted = frames
        .iter()
        .enumerate()
        .filter(|(_, (frame, offset))| frame.found != Found::Interrupted && !is_called(*offset));
    wanted.map(|(index, (_, offset))| (index, *offset)).collect()
}

/// Corrects blazesym (0.2.7) on functions with debug information: where a function begins that the
/// compiler split in two, and which name a function has that has several.
fn corrected<'a>(mut sym: Sym<'a>, functions: &mut Functions) -> Sym<'a> {
    let address = sym.addr.wrapping_add(sym.offset as u64);
    if sym.size.is_none_or(|size| sym.offset >= size) {
        // Not known from anywhere: the beginning is the only offset that misleads nobody.
        sym.addr = functions.start(address).unwrap_or(address);
        sym.offset = address.wrapping_sub(sym.addr) as usize;
    }
    if let Some(plain) = functions.plain_name(sym.addr, &sym.name) {
        sym.name = Cow::Owned(plain.to_owned());
    }
    sym
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

    use super::*;
    use crate::snapshot::Place;

    /// Path of the C library of this test.
    fn libc() -> String {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.contains("/libc.so")).unwrap();
        line[line.find('/').unwrap()..].to_owned()
    }

    /// The offset in the file of an exported function.
    fn file_offset(data: &[u8], name: &str) -> u64 {
        let file = object::File::parse(data).unwrap();
        let is_wanted = |symbol: &object::Symbol<'_, '_>| {
            symbol.name() == Ok(name) && symbol.kind() == SymbolKind::Text
        };
        let address = file.dynamic_symbols().find(is_wanted).unwrap().address();
        let text = file.section_by_name(".text").unwrap();
        address - text.address() + text.file_range().unwrap().0
    }

    fn resolve_in(object: &Object, file_offset: u64) -> Resolved {
        let place = Place::Object { object: 0, file_offset };
        let frame = Frame::new(0x7000_0000_0000, place);
        let blazesym = super::super::Symbolizer::new(&[]).blazesym;
        resolve(&blazesym, &mut HashMap::new(), object, &[(frame, file_offset)]).pop().unwrap().1
    }

    /// The names are the same whether the library's debug information is installed or not.
    #[test]
    fn functions_of_the_c_library_have_the_names_that_people_call() {
        let path = libc();
        let data = std::fs::read(&path).unwrap();
        let object = Object { path: path.clone(), readable_at: path };
        for name in ["malloc", "realloc", "free", "puts", "getdelim", "fopen", "__libc_start_main"]
        {
            let resolved = resolve_in(&object, file_offset(&data, name) + 1);
            let Resolved::Known(symbols) = resolved else { panic!("{name}: {resolved:?}") };
            let symbol = symbols.last().unwrap();
            assert_eq!((symbol.name.as_str(), symbol.offset), (name, 0));
        }
    }

    /// The functions include those that the compiler split into a hot and a cold part.
    #[test]
    fn every_function_of_the_c_library_begins_at_its_beginning() {
        let path = libc();
        let data = std::fs::read(&path).unwrap();
        let file = object::File::parse(data.as_slice()).unwrap();
        let text = file.section_by_name(".text").unwrap();
        let shift = text.address() - text.file_range().unwrap().0;
        let frames: Vec<(Frame, u64)> = file
            .dynamic_symbols()
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
            .map(|symbol| {
                let file_offset = symbol.address() - shift + 1;
                let place = Place::Object { object: 0, file_offset };
                (Frame::new(file_offset, place), file_offset)
            })
            .collect();
        assert!(frames.len() > 1000);
        let object = Object { path: path.clone(), readable_at: path };
        let blazesym = super::super::Symbolizer::new(&[]).blazesym;
        for (frame, resolved) in resolve(&blazesym, &mut HashMap::new(), &object, &frames) {
            let Resolved::Known(symbols) = resolved else { panic!("{frame:x?}: {resolved:?}") };
            assert_eq!(symbols.last().unwrap().offset, 0, "{frame:x?}: {symbols:?}");
        }
    }

    /// A return address that is the first byte of a function, and that no call precedes.
    #[test]
    fn a_function_that_nobody_has_called_is_named() {
        let path = libc();
        let data = std::fs::read(&path).unwrap();
        let object = Object { path: path.clone(), readable_at: path };
        let mut checked = 0;
        for name in ["malloc", "realloc", "free", "puts", "getdelim", "fopen", "qsort_r"] {
            let offset = file_offset(&data, name);
            let before: [u8; 8] = data[offset as usize - 8..offset as usize].try_into().unwrap();
            if ends_with_call(u64::from_le_bytes(before)) {
                continue;
            }
            let resolved = resolve_in(&object, offset);
            let Resolved::Known(symbols) = resolved else { panic!("{name}: {resolved:?}") };
            let symbol = symbols.last().unwrap();
            assert_eq!((symbol.name.as_str(), symbol.offset), (name, 0));
            checked += 1;
        }
        assert!(checked > 0, "calls before all of them");
    }

    #[test]
    fn an_object_that_cannot_be_read_is_the_reason() {
        let check = |path: &str, readable_at: &str, expected: &str| {
            let object = Object { path: path.into(), readable_at: readable_at.into() };
            match resolve_in(&object, 1) {
                Resolved::Unknown(unknown) => {
                    assert_eq!(unknown.object(), Some(path));
                    assert!(unknown.reason().starts_with(expected), "{unknown:?}");
                }
                known => panic!("{known:?}"),
            }
        };
        check("/gone", "", "the file cannot be read: it could not be opened");
        check("/gone", "/no/such/file", "the file cannot be read: ");
        check("/dev/null", "/dev/null", "the file cannot be read: ");
        check("[vdso]", "", "no symbol there");
    }
}
