//! The variables of an object, by its own symbol tables: where each lies, and its name.

use std::fs::File;

use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, SectionFlags, SymbolKind, elf,
    read::elf::{FileHeader as _, ProgramHeader as _},
};

use super::elf::ElfBytes;

/// Most variables of one object that are remembered.
const MAX_VARIABLES: usize = 1 << 20;
/// Most sections and segments of one object.
const MAX_PARTS: usize = 4096;

/// A variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its address in the object, or its offset in the object's thread-local segment.
    pub address: u64,
    /// Bytes of it; 0 if that is not known.
    pub bytes: u64,
    /// Its name, as the symbol table has it.
    pub name: String,
}

/// A section, or a loaded segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The section's name; empty for a segment.
    pub name: String,
    /// Address of its beginning in the object.
    pub address: u64,
    /// Bytes of it in memory.
    pub bytes: u64,
    /// Offset of it in the file.
    pub file_offset: u64,
    /// Whether the program may write to it.
    pub is_writable: bool,
}

/// The data of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Data {
    /// The loaded segments.
    pub loads: Vec<Part>,
    /// Bytes of the thread-local segment, and its alignment.
    pub thread_local: Option<(u64, u64)>,
    /// Whether its code is for 32-bit processors or for others than x86_64.
    pub is_foreign: bool,
    sections: Vec<Part>,
    variables: Vec<Variable>,
    thread_locals: Vec<Variable>,
}

impl Data {
    /// Reads an object.
    ///
    /// # Errors
    ///
    /// Says why the file cannot be read as an ELF object.
    pub fn read(file: &File) -> Result<Self, object::Error> {
        let bytes = ElfBytes::new(file);
        if !matches!(object::FileKind::parse(&bytes)?, object::FileKind::Elf64) {
            return Ok(Self { is_foreign: true, ..Self::default() });
        }
        let file = object::read::elf::ElfFile64::<object::LittleEndian, _>::parse(&bytes)?;
        let endian = object::LittleEndian;
        let header = file.elf_header();
        let mut data =
            Self { is_foreign: header.e_machine.get(endian) != elf::EM_X86_64, ..Self::default() };
        for segment in header.program_headers(endian, &bytes)?.iter().take(MAX_PARTS) {
            match segment.p_type(endian) {
                elf::PT_LOAD => data.loads.push(Part {
                    name: String::new(),
                    address: segment.p_vaddr(endian),
                    bytes: segment.p_memsz(endian),
                    file_offset: segment.p_offset(endian),
                    is_writable: segment.p_flags(endian) & elf::PF_W != 0,
                }),
                elf::PT_TLS => {
                    data.thread_local =
                        Some((segment.p_memsz(endian), segment.p_align(endian).max(1)));
                }
                _ => {}
            }
        }
        for section in file.sections().take(MAX_PARTS) {
            let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
            let flags = sh_flags as u32;
            let is_data = flags & elf::SHF_WRITE != 0 && flags & elf::SHF_ALLOC != 0;
            if is_data && flags & elf::SHF_TLS == 0 && section.size() > 0 {
                data.sections.push(Part {
                    name: section.name().unwrap_or_default().to_owned(),
                    address: section.address(),
                    bytes: section.size(),
                    file_offset: 0,
                    is_writable: true,
                });
            }
        }
        data.sections.sort_by_key(|section| section.address);
        for symbol in file.symbols().chain(file.dynamic_symbols()) {
            let list = match symbol.kind() {
                SymbolKind::Data if data.is_writable(symbol.address()) => &mut data.variables,
                SymbolKind::Tls => &mut data.thread_locals,
                _ => continue,
            };
            let is_named = symbol.name().is_ok_and(|name| !name.is_empty());
            if symbol.is_undefined() || !is_named || list.len() >= MAX_VARIABLES {
                continue;
            }
            // Versioned names of .symtab: `environ@@GLIBC_2.2.5`.
            let name = symbol.name().unwrap_or_default().split('@').next().unwrap_or_default();
            list.push(Variable {
                address: symbol.address(),
                bytes: symbol.size(),
                name: name.to_owned(),
            });
        }
        for list in [&mut data.variables, &mut data.thread_locals] {
            // Of several names for one variable: the longest extent, and the name with the fewest
            // underscores before it.
            let rank = |variable: &Variable| {
                let underscores = variable.name.bytes().take_while(|byte| *byte == b'_').count();
                (
                    variable.address,
                    std::cmp::Reverse(variable.bytes),
                    underscores,
                    variable.name.len(),
                )
            };
            list.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name)));
            list.dedup_by_key(|variable| variable.address);
        }
        Ok(data)
    }

    fn is_writable(&self, address: u64) -> bool {
        self.loads.iter().any(|load| load.is_writable && load.has(address))
    }

    /// The variable that an address of the object lies in.
    pub fn variable(&self, address: u64) -> Option<&Variable> {
        find(&self.variables, address)
    }

    /// The thread-local variable that an offset in the thread-local segment lies in.
    pub fn thread_local(&self, offset: u64) -> Option<&Variable> {
        find(&self.thread_locals, offset)
    }

    /// The section of data that an address of the object lies in.
    pub fn section(&self, address: u64) -> Option<&Part> {
        let after = self.sections.partition_point(|section| section.address <= address);
        self.sections.get(after.checked_sub(1)?).filter(|section| section.has(address))
    }
}

impl Part {
    /// Whether an address of the object lies in it.
    pub fn has(&self, address: u64) -> bool {
        address.checked_sub(self.address).is_some_and(|offset| offset < self.bytes)
    }
}

fn find(list: &[Variable], address: u64) -> Option<&Variable> {
    let after = list.partition_point(|variable| variable.address <= address);
    let variable = list.get(after.checked_sub(1)?)?;
    // Without a size, only its first word is known to be its own.
    (address - variable.address < variable.bytes.max(8)).then_some(variable)
}

#[cfg(test)]
mod tests {
    use super::*;

    static A_VARIABLE_TO_BE_FOUND: std::sync::atomic::AtomicU64 =
        std::sync::atomic::AtomicU64::new(5);

    #[test]
    fn variables_of_this_program_are_found() {
        A_VARIABLE_TO_BE_FOUND.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let data = Data::read(&File::open("/proc/self/exe").unwrap()).unwrap();
        assert!(!data.is_foreign);
        let is_it = |variable: &&Variable| variable.name.contains("A_VARIABLE_TO_BE_FOUND");
        let variable = data.variables.iter().find(is_it).unwrap();
        assert_eq!(variable.bytes, 8);
        assert_eq!(data.variable(variable.address + 7), Some(variable));
        assert_ne!(data.variable(variable.address + 8), Some(variable));
        let section = data.section(variable.address).unwrap();
        assert!([".data", ".bss"].contains(&section.name.as_str()), "{section:?}");
    }

    #[test]
    fn the_c_library_has_variables_though_it_is_stripped() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.contains("/libc.so")).unwrap();
        let data = Data::read(&File::open(&line[line.find('/').unwrap()..]).unwrap()).unwrap();
        assert!(data.thread_local.is_some());
        let environ = data.variables.iter().find(|variable| variable.name == "environ").unwrap();
        assert_eq!(data.variable(environ.address).map(|variable| variable.bytes), Some(8));
    }
}
