//! Names of code made at run time, from the map files that JIT compilers write for perf.

use std::{
    fs,
    time::{Duration, SystemTime},
};

/// By how much the times of files may lag behind the clock: they are those of its last tick
/// (`current_time`, fs/inode.c), and the fewest ticks that a kernel has are 100 in a second.
const LONGEST_TICK: Duration = Duration::from_millis(10);

/// The map of one process. Compilers append to the file, so it is read again when it has grown;
/// names that were read stay after the process is gone.
#[derive(Debug, Default)]
pub(super) struct PerfMap {
    /// Size and modification time of the file when it was read.
    version: Option<(u64, SystemTime)>,
    /// Each function's first address, the address behind its last byte, and its name; by address.
    functions: Vec<(u64, u64, String)>,
}

impl PerfMap {
    /// Reads the map of process `pid` if the file is new or has changed, unless an earlier process of
    /// that number has left it.
    pub(super) fn refresh(&mut self, pid: u32) {
        if let Some(path) = path(pid)
            && let Ok(metadata) = fs::metadata(&path)
            && metadata.is_file()
            && let Ok(written) = metadata.modified()
            && let version = Some((metadata.len(), written))
            && version != self.version
            && began(pid).is_some_and(|began| written + LONGEST_TICK >= began)
            && let Ok(map) = fs::read(&path)
        {
            self.version = version;
            self.functions = parse(&String::from_utf8_lossy(&map));
        }
    }

    /// Whether a map was ever read.
    pub(super) fn was_read(&self) -> bool {
        self.version.is_some()
    }

    /// The function at an address, and the offset of the address in it.
    pub(super) fn find(&self, address: u64) -> Option<(&str, u64)> {
        let at = self.functions.partition_point(|(start, _, _)| *start <= address);
        let (start, end, name) = self.functions.get(at.checked_sub(1)?)?;
        (address < *end).then(|| (name.as_str(), address - start))
    }
}

/// How to make the runtime of a program write its map, if the runtime is a known one.
pub(super) fn way(exe: &str, pid: u32) -> Option<String> {
    let name = exe.rsplit('/').next().unwrap_or_default();
    match name {
        // From JDK 17.
        "java" => Some(format!("`jcmd {pid} Compiler.perfmap`")),
        "node" | "nodejs" => Some("`node --perf-basic-prof`".to_owned()),
        // From 3.12.
        _ if name.starts_with("python3") => Some("`python3 -X perf`".to_owned()),
        _ => None,
    }
}

/// Path of the map that a process writes: in its own /tmp, under the process ID that it sees
/// itself.
fn path(pid: u32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let inner = inner.split_ascii_whitespace().last()?;
    Some(format!("/proc/{pid}/root/tmp/perf-{inner}.map"))
}

/// Gives when a process began, by the clock that files have their times from.
fn began(pid: u32) -> Option<SystemTime> {
    let ticks = ticks_at_start(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    // SAFETY: the call has no preconditions.
    let ticks_per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok()?;
    let at = Duration::from_millis(ticks.checked_mul(1000)?.checked_div(ticks_per_second)?);
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let since_boot = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
    SystemTime::now().checked_sub(since_boot.checked_sub(at)?)
}

/// Clock ticks from the boot to the start of a process: field 22 of its /proc/PID/stat (proc(5)).
fn ticks_at_start(stat: &str) -> Option<u64> {
    // A name may hold blanks and brackets.
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Parses `start size name`, with hexadecimal numbers (tools/perf/Documentation/jit-interface.txt).
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
        let map = PerfMap { version: None, functions };
        assert_eq!(map.find(0x100f), Some(("first", 0xf)));
        assert_eq!(map.find(0x1010), None);
        assert_eq!(map.find(0x2001), Some(("a name with blanks", 1)));
        assert_eq!(map.find(0xfff), None);
    }

    #[test]
    fn what_writes_a_map_is_known_of_some_runtimes() {
        assert_eq!(way("/opt/jdk/bin/java", 7).as_deref(), Some("`jcmd 7 Compiler.perfmap`"));
        assert!(way("/usr/bin/node", 7).is_some() && way("/usr/bin/python3.12", 7).is_some());
        assert_eq!(way("/usr/bin/qemu-system-x86_64", 7), None);
    }

    #[test]
    fn the_start_of_a_process_stands_behind_its_name() {
        let stat = "7 (a) (b c) S 1 7 7 0 -1 4194560 9 0 0 0 1 2 3 4 20 0 1 0 4321 5 6";
        assert_eq!(ticks_at_start(stat), Some(4321));
    }

    /// Reads the map of this test process, which writes it meanwhile, in place of an older one.
    #[test]
    fn functions_that_are_made_later_are_found() {
        let pid = std::process::id();
        let file = format!("/tmp/perf-{pid}.map");
        let mut map = PerfMap::default();
        map.refresh(pid);
        assert!(!map.was_read());
        fs::write(&file, "1000 10 earlier\n").unwrap();
        let before = began(pid).unwrap() - Duration::from_secs(1);
        fs::File::open(&file).unwrap().set_modified(before).unwrap();
        map.refresh(pid);
        assert!(!map.was_read());
        fs::write(&file, "1000 10 first\n").unwrap();
        map.refresh(pid);
        let first = map.find(0x1001).map(|(name, offset)| (name.to_owned(), offset));
        let second_too_early = map.find(0x2001).is_some();
        fs::write(&file, "1000 10 first\n2000 10 second\n").unwrap();
        map.refresh(pid);
        let second = map.find(0x2001).map(|(name, offset)| (name.to_owned(), offset));
        fs::remove_file(&file).unwrap();
        map.refresh(pid);
        assert!(map.was_read());
        assert_eq!(first, Some(("first".to_owned(), 1)));
        assert!(!second_too_early);
        assert_eq!(second, Some(("second".to_owned(), 1)));
        // It has gone, but what it said still holds.
        assert_eq!(map.find(0x1001), Some(("first", 1)));
    }
}
