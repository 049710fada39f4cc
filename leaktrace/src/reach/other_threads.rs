//! Whether other threads were alive when a command ended: what they held in registers is gone.

use std::{fs::File, os::unix::fs::FileExt as _};

use object::{Object as _, ObjectSymbol as _, read::elf::ElfFile64};

use super::{memory::Memory, objects::Objects};

/// glibc's count of living threads (nptl/pthread_create.c, 2.36); the end of a process does not
/// count them down. It is there for debuggers, in libc since 2.34, in libpthread before.
const COUNT: &str = "__nptl_nthreads";

/// Functions that start threads, in C libraries (nptl/ of glibc, src/thread/ of musl).
const STARTS: [&str; 2] = ["pthread_create", "thrd_create"];

/// How many threads were alive in a command at its exit: by its C library's own count, or one where
/// none of its objects can start another. Unknown otherwise: with musl, or without symbols.
pub fn count(objects: &Objects, memory: &Memory) -> Option<u32> {
    let mut may_start = objects.all().is_empty();
    for object in objects.all() {
        match threads_of(&object.file) {
            Some(Threads::CountedAt(address)) => {
                let address = object.bias.wrapping_add(address);
                let word = memory.word(address & !7)?;
                return Some((word >> ((address & 4) * 8)) as u32);
            }
            Some(Threads::NotStarted) => {}
            Some(Threads::Started) | None => may_start = true,
        }
    }
    (!may_start).then_some(1)
}

/// What an object has to do with threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Threads {
    /// It has the count at this address.
    CountedAt(u64),
    /// It may start threads.
    Started,
    /// It starts none, or is the library that does so for others.
    NotStarted,
}

fn threads_of(file: &File) -> Option<Threads> {
    let mut bytes = vec![0; usize::try_from(file.metadata().ok()?.len()).ok()?];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let elf: ElfFile64<'_> = ElfFile64::parse(&*bytes).ok()?;
    let all = || elf.dynamic_symbols().chain(elf.symbols());
    let is_count = |name: &str| name == COUNT;
    if let Some(found) =
        all().find(|symbol| symbol.is_definition() && symbol.name().is_ok_and(is_count))
    {
        return Some(Threads::CountedAt(found.address()));
    }
    let is_start = |name: &str| STARTS.contains(&name);
    // A static executable has what it calls in itself, by its own symbols or by none.
    let is_static = elf.dynamic_symbols().next().is_none();
    let starts = match is_static {
        true => elf.symbols().next().is_none() || all().any(|it| it.name().is_ok_and(is_start)),
        false => elf
            .dynamic_symbols()
            .any(|symbol| symbol.is_undefined() && symbol.name().is_ok_and(is_start)),
    };
    Some(if starts { Threads::Started } else { Threads::NotStarted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_of_this_host_has_a_count() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
        let libc = path.into_iter().find(|path| path.contains("libc.so.6")).unwrap();
        let found = threads_of(&File::open(libc).unwrap());
        assert!(matches!(found, Some(Threads::CountedAt(1..))), "{found:?}");
    }

    #[test]
    fn a_program_that_starts_threads_is_known() {
        // This one does, as every test runs in a thread; cat does not.
        let of = |path| threads_of(&File::open(path).unwrap());
        assert_eq!(of("/proc/self/exe"), Some(Threads::Started));
        assert_eq!(of("/bin/cat"), Some(Threads::NotStarted));
    }
}
