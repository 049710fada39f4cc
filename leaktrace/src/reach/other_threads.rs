//! Whether other threads were alive when a command ended: what they held in registers is gone.

use std::{fs::File, os::unix::fs::FileExt as _};

use object::{Object as _, ObjectSymbol as _, read::elf::ElfFile64};

use super::{memory::Memory, objects::Objects};

/// glibc's count of living threads (nptl/pthread_create.c, 2.36); the end of a process does not
/// count them down. It is there for debuggers, in libc since 2.34, in libpthread before.
const COUNT: &str = "__nptl_nthreads";

/// How many threads were alive in a command at its exit, by its C library's own count; unknown
/// without glibc, or if that is linked statically.
pub fn count(objects: &Objects, memory: &Memory) -> Option<u32> {
    objects.all().iter().find_map(|object| {
        let address = address_of(&object.file)?;
        let word = memory.word(object.bias.wrapping_add(address) & !7)?;
        let shift = (object.bias.wrapping_add(address) & 4) * 8;
        Some((word >> shift) as u32)
    })
}

/// The address of the count in an object.
fn address_of(file: &File) -> Option<u64> {
    let mut bytes = vec![0; usize::try_from(file.metadata().ok()?.len()).ok()?];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let elf: ElfFile64<'_> = ElfFile64::parse(&*bytes).ok()?;
    let mut symbols = elf.dynamic_symbols();
    let found = symbols.find(|symbol| symbol.is_definition() && symbol.name() == Ok(COUNT))?;
    Some(found.address())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_of_this_host_has_a_count() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
        let libc = path.into_iter().find(|path| path.contains("libc.so.6")).unwrap();
        assert!(address_of(&File::open(libc).unwrap()).is_some_and(|address| address > 0));
    }
}
