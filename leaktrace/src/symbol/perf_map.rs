//! Names of code made at run time, from the maps that JIT compilers write for perf.

use std::fs;

/// The map of one process. Compilers append to it as they go, so it is read again when it has
/// grown; what was read stays when the process has gone.
#[derive(Debug, Default)]
pub(super) struct PerfMap {
    /// Size of the file when it was read.
    file_bytes: u64,
    /// First address, address behind the last, name; by address.
    functions: Vec<(u64, u64, String)>,
}

impl PerfMap {
    /// The function at an address of process `pid`, and the offset in it.
    pub(super) fn find(&mut self, pid: u32, address: u64) -> Option<(&str, u64)> {
        if self.lookup(address).is_none()
            && let Some(path) = path(pid)
            && let Ok(metadata) = fs::metadata(&path)
            && metadata.is_file()
            && metadata.len() != self.file_bytes
            && let Ok(map) = fs::read(&path)
        {
            self.file_bytes = map.len() as u64;
            self.functions = parse(&String::from_utf8_lossy(&map));
        }
        self.lookup(address)
    }

    fn lookup(&self, address: u64) -> Option<(&str, u64)> {
        let at = self.functions.partition_point(|(start, _, _)| *start <= address);
        let (start, end, name) = self.functions.get(at.checked_sub(1)?)?;
        (address < *end).then(|| (name.as_str(), address - start))
    }
}

/// Where a process writes its map: in its own /tmp, under its own idea of its process ID.
fn path(pid: u32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let inner = inner.split_ascii_whitespace().last()?;
    Some(format!("/proc/{pid}/root/tmp/perf-{inner}.map"))
}

/// `start size name`, numbers in hexadecimal (tools/perf/Documentation/jit-interface.txt).
fn parse(map: &str) -> Vec<(u64, u64, String)> {
    let mut functions: Vec<(u64, u64, String)> = map
        .lines()
        // Where an address comes again, the code there was replaced: the last line holds.
        .rev()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ' ');
            let mut hex = || u64::from_str_radix(parts.next()?.trim_start_matches("0x"), 16).ok();
            let (start, size) = (hex()?, hex()?);
            Some((start, start.checked_add(size)?, parts.next()?.to_owned()))
        })
        .filter(|(_, _, name)| !name.is_empty())
        .collect();
    functions.sort_by_key(|(start, _, _)| *start);
    functions.dedup_by_key(|(start, _, _)| *start);
    functions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_by_address() {
        let functions =
            parse("1000 10 first\n0x2000 20 replaced\n2000 20 a name with blanks\nnonsense\n");
        let map = PerfMap { file_bytes: 0, functions };
        assert_eq!(map.lookup(0x100f), Some(("first", 0xf)));
        assert_eq!(map.lookup(0x1010), None);
        assert_eq!(map.lookup(0x2001), Some(("a name with blanks", 1)));
        assert_eq!(map.lookup(0xfff), None);
    }

    /// The map of this very process, which is written while it is being asked for.
    #[test]
    fn functions_that_are_made_later_are_found() {
        let pid = std::process::id();
        let file = format!("/tmp/perf-{pid}.map");
        let mut map = PerfMap::default();
        fs::write(&file, "1000 10 first\n").unwrap();
        let first = map.find(pid, 0x1001).map(|(name, offset)| (name.to_owned(), offset));
        let second_too_early = map.find(pid, 0x2001).is_some();
        fs::write(&file, "1000 10 first\n2000 10 second\n").unwrap();
        let second = map.find(pid, 0x2001).map(|(name, offset)| (name.to_owned(), offset));
        fs::remove_file(&file).unwrap();
        assert_eq!(first, Some(("first".to_owned(), 1)));
        assert!(!second_too_early);
        assert_eq!(second, Some(("second".to_owned(), 1)));
        // It has gone, but what it said still holds.
        assert_eq!(map.find(pid, 0x1001), Some(("first", 1)));
    }
}
