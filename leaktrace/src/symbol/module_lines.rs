//! File, line and inlined functions of a loaded module, from the debug information in its file.
//!
//! A module's file is not linked to an address: each section begins at 0, and the debug information
//! has gaps that relocations fill (ELF64 `ET_REL`). This module fills the gaps with the addresses
//! at which the kernel put the sections, so that debug information and stacks use the same
//! addresses.

use std::{collections::HashMap, fs::File, io, path::Path, sync::Arc};

use gimli::{EndianArcSlice, LittleEndian, SectionId};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationKind, RelocationTarget,
};

use super::mangled::demangle;
use crate::host::elf::ElfBytes;

/// The sections from which lines and inlined functions are read.
const NEEDED: [SectionId; 10] = [
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugAranges,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
];

/// A function at an address, and the source line of the address in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The function's name, demangled; empty if the debug information has none.
    pub(super) function: String,
    pub(super) file: Option<String>,
    pub(super) line: Option<u32>,
}

/// The debug information of one module, relocated to where the kernel loaded it.
pub(super) struct ModuleLines {
    context: addr2line::Context<EndianArcSlice<LittleEndian>>,
}

impl std::fmt::Debug for ModuleLines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ModuleLines")
    }
}

impl ModuleLines {
    /// Reads the file of a module whose sections lie at these addresses; `None` if the file is of
    /// another build, or has no debug information.
    ///
    /// # Errors
    ///
    /// The error of reading the file.
    pub(super) fn read(
        path: &Path,
        build_id: &[u8],
        sections: &HashMap<String, u64>,
    ) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let bytes = ElfBytes::new(&file);
        let file = object::File::parse(&bytes).map_err(io::Error::other)?;
        let is_it = file.build_id().is_ok_and(|found| found == Some(build_id));
        if !is_it || file.section_by_name(".debug_info").is_none() {
            return Ok(None);
        }
        let load = |id: SectionId| -> Result<EndianArcSlice<LittleEndian>, object::Error> {
            let section = NEEDED.contains(&id).then(|| file.section_by_name(id.name())).flatten();
            let data = section.map(|section| relocated(&file, &section, sections)).transpose()?;
            Ok(EndianArcSlice::new(Arc::from(data.unwrap_or_default()), LittleEndian))
        };
        let dwarf = gimli::Dwarf::load(load).map_err(io::Error::other)?;
        let context = addr2line::Context::from_dwarf(dwarf).map_err(io::Error::other)?;
        Ok(Some(Self { context }))
    }

    /// The functions at an address, inlined ones first, the innermost of them leading; empty where
    /// none is known.
    pub(super) fn find(&self, address: u64) -> Vec<Line> {
        let mut lines = Vec::new();
        let Ok(mut frames) = self.context.find_frames(address).skip_all_loads() else {
            return lines;
        };
        // What cannot be read ends the list: a part of it would name the wrong function last.
        loop {
            match frames.next() {
                Ok(Some(frame)) => {
                    let place = frame.location;
                    let name = frame.function.as_ref().and_then(|name| name.raw_name().ok());
                    lines.push(Line {
                        function: name.map(|name| demangle(&name).into_owned()).unwrap_or_default(),
                        file: place.as_ref().and_then(|place| place.file).map(str::to_owned),
                        line: place.and_then(|place| place.line),
                    });
                }
                Ok(None) => return lines,
                Err(_) => return Vec::new(),
            }
        }
    }
}

/// The contents of a section, with its relocations filled in by the addresses of the loaded
/// sections.
fn relocated<'data, R: object::ReadRef<'data>>(
    file: &object::File<'data, R>,
    section: &object::Section<'data, '_, R>,
    sections: &HashMap<String, u64>,
) -> Result<Vec<u8>, object::Error> {
    let mut data = section.uncompressed_data()?.into_owned();
    for (offset, relocation) in section.relocations() {
        let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
        let symbol = file.symbol_by_index(symbol)?;
        let base = symbol
            .section_index()
            .and_then(|index| file.section_by_index(index).ok())
            .and_then(|section| sections.get(section.name().ok()?).copied());
        // Sections of debug information begin at 0; what has no address is nowhere in the stacks.
        let value = base
            .unwrap_or(0)
            .wrapping_add(symbol.address())
            .wrapping_add_signed(relocation.addend());
        let bytes = usize::from(relocation.size() / 8);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let gap = start.checked_add(bytes).and_then(|end| data.get_mut(start..end));
        if let (Some(gap), RelocationKind::Absolute) = (gap, relocation.kind()) {
            let value = value.to_le_bytes();
            gap.copy_from_slice(value.get(..bytes).unwrap_or_default());
        }
    }
    Ok(data)
}
