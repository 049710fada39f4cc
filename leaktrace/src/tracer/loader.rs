//! Finds where a dynamic loader tells debuggers what it has mapped.
//!
//! A loader calls an empty function, and keeps what it is doing in `r_debug.r_state` (<link.h>).
//! glibc and musl call the function once more when all libraries of a command are mapped and
//! relocated, and none of their code has run: glibc before it calls their constructors (`dl_main`,
//! elf/rtld.c), musl before it enters the program, whose start calls them (`__dls3`,
//! ldso/dynlink.c).

use std::{fs, fs::File, io, io::Read as _, os::unix::fs::FileExt as _};

use object::{Object as _, ObjectSymbol as _};

use crate::host::{elf::ElfBytes, proc};

/// Keys of the auxiliary vector (<elf.h>).
const AT_BASE: u64 = 7;
const AT_ENTRY: u64 = 9;

/// The symbol of the empty function.
const BREAK: &str = "_dl_debug_state";
/// The symbol of glibc's `r_debug` for the command's own libraries; audit libraries have other
/// ones.
const DEBUG: &str = "_r_debug";
/// The symbol of musl's pointer to its only `r_debug`, which the loader sets once.
const DEBUG_POINTER: &str = "_dl_debug_addr";
/// Offset of `r_state` in `r_debug`, in 64-bit processes.
const STATE_OFFSET: u64 = 24;
const RT_CONSISTENT: u32 = 0;
const RT_ADD: u32 = 1;

/// The needed entries of a command's auxiliary vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Auxiliary {
    /// Address of the entry point of the executed file.
    pub(super) entry: u64,
    /// Address at which the command's interpreter is mapped; 0 if it has none.
    base: u64,
    /// Whether the process has 64-bit words.
    is_wide: bool,
}

/// A loader in a process.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Loader {
    /// Address of the empty function.
    pub(super) break_address: u64,
    /// Whether the loader itself was executed, so that the entry point is its own.
    pub(super) is_program: bool,
    debug: Debug,
    /// Whether the loader was adding libraries at its last call.
    is_adding: bool,
    had_others: bool,
}

/// Where the `r_debug` of a loader is.
#[derive(Debug, PartialEq, Eq)]
enum Debug {
    At(u64),
    /// Address of the pointer to `r_debug`.
    Behind(u64),
}

/// The program that maps a command's libraries.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Interpreter {
    /// There is none: the command is static.
    None,
    /// A loader that tells debuggers.
    Known(Loader),
    /// A loader that does not tell debuggers; its path.
    Silent(String),
}

impl Auxiliary {
    /// Reads the auxiliary vector of a process.
    ///
    /// # Errors
    ///
    /// The error of reading /proc, or that the auxiliary vector has no entry point.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let mut identification = [0; 5];
        File::open(format!("/proc/{pid}/exe"))?.read_exact(&mut identification)?;
        // EI_CLASS; the vector of a 32-bit process has 32-bit words.
        let is_wide = identification[4] != 1;
        Self::parse(&fs::read(format!("/proc/{pid}/auxv"))?, is_wide)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no AT_ENTRY in its auxv"))
    }

    fn parse(vector: &[u8], is_wide: bool) -> Option<Self> {
        let word = if is_wide { 8 } else { 4 };
        let number =
            |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let value = |wanted| {
            let mut pairs = vector.chunks_exact(2 * word).map(|pair| pair.split_at(word));
            pairs.find(|(key, _)| number(key) == wanted).map(|(_, value)| number(value))
        };
        Some(Self { entry: value(AT_ENTRY)?, base: value(AT_BASE).unwrap_or(0), is_wide })
    }
}

impl Interpreter {
    /// The interpreter of a process that has just executed a file.
    pub(super) fn of(pid: u32, auxiliary: &Auxiliary) -> Self {
        let Auxiliary { entry, base, is_wide } = *auxiliary;
        if base == 0 {
            // A static program, or a loader that is to load one.
            let loader = File::open(format!("/proc/{pid}/exe")).ok().and_then(|file| {
                let bytes = ElfBytes::new(&file);
                let elf = object::File::parse(&bytes).ok()?;
                Loader::in_file(&elf, entry.wrapping_sub(elf.entry()), true)
            });
            return match loader {
                Some(loader) if is_wide => Self::Known(loader),
                _ => Self::None,
            };
        }
        let mapping = proc::mappings(pid)
            .unwrap_or_default()
            .into_iter()
            .find(|mapping| mapping.start == base && mapping.inode != 0);
        let loader = mapping.as_ref().filter(|_| is_wide).and_then(|mapping| {
            let (start, end) = (mapping.start, mapping.end);
            let file = File::open(format!("/proc/{pid}/map_files/{start:x}-{end:x}")).ok()?;
            let bytes = ElfBytes::new(&file);
            Loader::in_file(&object::File::parse(&bytes).ok()?, base, false)
        });
        match loader {
            Some(loader) => Self::Known(loader),
            None => Self::Silent(mapping.and_then(|mapping| mapping.path).unwrap_or_default()),
        }
    }
}

impl Loader {
    fn in_file<'data>(
        elf: &object::File<'data, &'data ElfBytes<'data>>,
        bias: u64,
        is_program: bool,
    ) -> Option<Self> {
        let find = |wanted: &str| {
            // A static program has them as well, but exports nothing.
            let all = elf.dynamic_symbols().chain(elf.symbols().filter(|_| !is_program));
            let mut defined = all.filter(|symbol| symbol.is_definition());
            let found = defined.find(|symbol| symbol.name() == Ok(wanted))?;
            Some(bias.wrapping_add(found.address()))
        };
        let debug = match find(DEBUG) {
            Some(address) => Debug::At(address),
            None => Debug::Behind(find(DEBUG_POINTER)?),
        };
        let break_address = find(BREAK)?;
        Some(Self { break_address, is_program, debug, is_adding: false, had_others: false })
    }

    /// Whether all libraries of the command are mapped, at a call of the empty function.
    ///
    /// # Errors
    ///
    /// The error of reading the memory of the process.
    pub(super) fn is_done(&mut self, pid: u32) -> io::Result<bool> {
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let debug = match self.debug {
            Debug::At(address) => address,
            Debug::Behind(pointer) => {
                let mut word = [0; 8];
                memory.read_exact_at(&mut word, pointer)?;
                u64::from_le_bytes(word)
            }
        };
        let mut state = [0; 4];
        memory.read_exact_at(&mut state, debug.wrapping_add(STATE_OFFSET))?;
        Ok(self.take(u32::from_le_bytes(state)))
    }

    /// Takes in the loader's state at a call; returns whether all libraries are mapped.
    fn take(&mut self, state: u32) -> bool {
        match state {
            RT_CONSISTENT if self.is_adding || matches!(self.debug, Debug::Behind(_)) => true,
            RT_CONSISTENT => {
                // About libraries that the command's own are kept apart from.
                self.had_others = true;
                false
            }
            other => {
                self.is_adding |= other == RT_ADD;
                false
            }
        }
    }

    /// Whether libraries of other namespaces, those of `LD_AUDIT`, have run before.
    pub(super) fn had_others(&self) -> bool {
        self.had_others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loader(debug: Debug) -> Loader {
        Loader { break_address: 0, is_program: false, debug, is_adding: false, had_others: false }
    }

    #[test]
    fn glibc_is_done_once_it_has_added() {
        let mut glibc = loader(Debug::At(0));
        assert_eq!([RT_ADD, RT_CONSISTENT].map(|state| glibc.take(state)), [false, true]);
        assert!(!glibc.had_others());
        // The calls about audit libraries come first.
        let mut audited = loader(Debug::At(0));
        let states = [RT_CONSISTENT, RT_CONSISTENT, RT_ADD, RT_CONSISTENT];
        assert_eq!(states.map(|state| audited.take(state)), [false, false, false, true]);
        assert!(audited.had_others());
    }

    #[test]
    fn musl_calls_once() {
        assert!(loader(Debug::Behind(0)).take(RT_CONSISTENT));
    }

    #[test]
    fn the_auxiliary_vector_is_read_in_both_word_sizes() {
        let wide: Vec<u8> =
            [6u64, 4096, 9, 0x40_1000, 7, 0x7f00_0000_0000, 0, 0].map(u64::to_le_bytes).concat();
        let expected = Auxiliary { entry: 0x40_1000, base: 0x7f00_0000_0000, is_wide: true };
        assert_eq!(Auxiliary::parse(&wide, true), Some(expected));
        let narrow: Vec<u8> = [9u32, 0x804_8000, 0, 0].map(u32::to_le_bytes).concat();
        let expected = Auxiliary { entry: 0x804_8000, base: 0, is_wide: false };
        assert_eq!(Auxiliary::parse(&narrow, false), Some(expected));
        assert_eq!(Auxiliary::parse(&[], true), None);
    }

    /// The loader of whichever C library this test has.
    #[test]
    fn the_loader_of_this_test_tells() {
        let pid = std::process::id();
        let auxiliary = Auxiliary::of(pid).unwrap();
        let found = Interpreter::of(pid, &auxiliary);
        let Interpreter::Known(loader) = &found else { panic!("{found:?}") };
        let mappings = proc::mappings(pid).unwrap();
        let holds = |mapping: &&proc::Mapping| {
            mapping.executable && (mapping.start..mapping.end).contains(&loader.break_address)
        };
        let mapping = mappings.iter().find(holds).unwrap();
        assert!(mapping.path.as_ref().unwrap().contains("/ld-"), "{mapping:?}");
        assert!(!loader.is_program);
    }
}
