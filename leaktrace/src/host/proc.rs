//! Reads about processes in /proc.

use std::{fs, io};

use crate::error::Error;

/// `PF_EXITING` (include/linux/sched.h, 6.1 and 6.18).
const PF_EXITING: u64 = 4;
/// The number of open files that is enough: `fs.nr_open` allows no more by default.
const FILES: u64 = 1 << 20;

/// One line of /proc/PID/maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// Whether code there may be executed.
    pub executable: bool,
    /// Offset in the file of the mapping's first address.
    pub file_offset: u64,
    /// Device of the file, major and minor number, as the kernel shows it with mappings; `stat` may
    /// show another device (btrfs, overlayfs).
    pub device: (u32, u32),
    /// Inode of the file, 0 if there is none.
    pub inode: u64,
    /// Path of the file as the process sees it, or a name in brackets.
    pub path: Option<String>,
}

/// The mappings of a process, by address.
///
/// # Errors
///
/// [`Error::Usage`] when the process has ended, [`Error::Host`] when leaktrace may not read it.
pub fn mappings(pid: u32) -> Result<Vec<Mapping>, Error> {
    let maps = fs::read(format!("/proc/{pid}/maps")).map_err(|error| failed(pid, &error))?;
    if maps.is_empty() {
        // It has let go of its memory.
        return Err(Error::Usage(format!("process {pid} has ended")));
    }
    Ok(parse_maps(&String::from_utf8_lossy(&maps)))
}

/// The offset in leaktrace's own file of an address of its code.
pub fn own_offset(address: u64) -> Option<u64> {
    let mappings = mappings(std::process::id()).ok()?;
    let mapping =
        mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&address))?;
    Some(address - mapping.start + mapping.file_offset)
}

/// Checks that a process exists.
///
/// # Errors
///
/// [`Error::Usage`] when there is no such process.
pub fn check_exists(pid: u32) -> Result<(), Error> {
    match fs::metadata(format!("/proc/{pid}")) {
        Ok(_) => Ok(()),
        Err(error) => Err(failed(pid, &error)),
    }
}

/// Checks that a process can be traced at all.
///
/// # Errors
///
/// [`Error::Usage`] with the cause: the process does not exist, has ended, or is a kernel thread.
pub fn check_traceable(pid: u32) -> Result<(), Error> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(stat) => stat,
        Err(error) => return Err(failed(pid, &error)),
    };
    let field = |name: &str| {
        stat.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default()
    };
    let thread_group = field("Tgid:");
    if thread_group != pid.to_string() {
        return Err(Error::Usage(format!(
            "{pid} is a thread of process {thread_group}: trace that one"
        )));
    }
    if field("State:").starts_with(['Z', 'X']) {
        return Err(Error::Usage(format!("process {pid} has ended (it is a zombie)")));
    }
    if !stat.lines().any(|line| line.starts_with("VmSize:")) {
        return Err(Error::Usage(format!(
            "process {pid} is a kernel thread: it has no user memory (see `leaktrace kernel -p`)"
        )));
    }
    Ok(())
}

fn failed(pid: u32, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::Usage(format!("no process {pid}")),
        io::ErrorKind::PermissionDenied => {
            Error::Host(format!("process {pid} may not be traced: {error} (are you root?)"))
        }
        // ESRCH: it ended while it was read.
        _ => Error::Usage(format!("process {pid} has ended")),
    }
}

/// Whether a process has begun to end or has ended, and runs no code of its own any more.
pub fn is_ending(pid: u32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat);
    // The command's name comes second, in parentheses, and may hold anything; flags are seven
    // fields behind it (man 5 proc_pid_stat).
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u64>().ok()).is_none_or(|flags| flags & PF_EXITING != 0)
}

/// The process IDs of all processes, kernel threads included.
///
/// # Errors
///
/// [`Error::Host`] when /proc cannot be read.
pub fn all() -> Result<Vec<u32>, Error> {
    let entries = fs::read_dir("/proc")
        .map_err(|error| Error::Host(format!("cannot list the processes in /proc: {error}")))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

/// Raises the limit of open files as far as possible: leaktrace holds each file open that traced
/// processes map. A file that cannot be opened is reported where that happens.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write one rlimit.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return;
        }
        let more = libc::rlimit { rlim_cur: FILES, rlim_max: limit.rlim_max.max(FILES) };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const more) != 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Command name of a process.
pub fn comm(pid: u32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&comm).trim_end_matches('\n').to_owned())
}

/// Path of a process' executable.
pub fn exe(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(path.to_string_lossy().into_owned())
}

/// Path of a process' control group, in the unified hierarchy or else in the first one.
pub fn cgroup(pid: u32) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let unified = groups.lines().find(|line| line.starts_with("0::"));
    let line = unified.or_else(|| groups.lines().next())?;
    line.splitn(3, ':').nth(2).map(str::to_owned)
}

/// Memory of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Resident bytes that no file backs.
    pub anonymous_bytes: u64,
    /// Bytes of mapped addresses, resident or not.
    pub mapped_bytes: u64,
}

/// How much memory a process has.
pub fn memory(pid: u32) -> Option<Memory> {
    let pages = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    // size resident shared ... (man 5 proc_pid_statm)
    let mut pages = pages.split(' ').map_while(|field| field.parse::<u64>().ok());
    let (size, resident, shared) = (pages.next()?, pages.next()?, pages.next()?);
    Some(Memory {
        anonymous_bytes: resident.saturating_sub(shared) * PAGE_BYTES,
        mapped_bytes: size * PAGE_BYTES,
    })
}

/// Bytes of a page on x86_64.
const PAGE_BYTES: u64 = 4096;

fn parse_maps(maps: &str) -> Vec<Mapping> {
    maps.lines().filter_map(parse_mapping).collect()
}

/// Parses `start-end perms offset dev inode    path` (man 5 proc_pid_maps).
fn parse_mapping(line: &str) -> Option<Mapping> {
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let mut parts = line.splitn(6, ' ');
    let (start, end) = parts.next()?.split_once('-')?;
    let permissions = parts.next()?;
    let file_offset = hex(parts.next()?)?;
    let (major, minor) = parts.next()?.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = parts.next()?.parse().ok()?;
    let path = parts.next().map(str::trim_start).filter(|path| !path.is_empty());
    Some(Mapping {
        start: hex(start)?,
        end: hex(end)?,
        executable: permissions.contains('x'),
        file_offset,
        device,
        inode,
        path: path.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lines_are_parsed() {
        let maps = "\
00400000-0041f000 r-xp 00002000 fe:00 1234                     /usr/bin/a name with blanks
7ffd1000-7ffd3000 r-xp 00000000 00:00 0                          [vdso]
7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n";
        let got = parse_maps(maps);
        assert_eq!(got.len(), 3);
        assert_eq!(
            got.first(),
            Some(&Mapping {
                start: 0x40_0000,
                end: 0x41_f000,
                executable: true,
                file_offset: 0x2000,
                device: (0xfe, 0),
                inode: 1234,
                path: Some("/usr/bin/a name with blanks".into()),
            })
        );
        assert_eq!(got.get(1).and_then(|mapping| mapping.path.as_deref()), Some("[vdso]"));
        assert_eq!(got.get(2).and_then(|mapping| mapping.path.as_deref()), None);
    }

    #[test]
    fn what_cannot_be_traced_is_named() {
        assert!(check_traceable(std::process::id()).is_ok());
        let missing = check_traceable(u32::MAX).unwrap_err();
        assert_eq!(missing.to_string(), format!("no process {}", u32::MAX));
    }

    #[test]
    fn this_process_is_described() {
        let pid = std::process::id();
        assert!(!is_ending(pid) && is_ending(u32::MAX));
        assert!(comm(pid).is_some_and(|comm| !comm.is_empty()));
        assert!(exe(pid).is_some_and(|exe| exe.starts_with('/')));
        assert!(mappings(pid).unwrap().iter().any(|mapping| mapping.executable));
        assert!(memory(pid).is_some_and(|memory| memory.mapped_bytes > memory.anonymous_bytes));
    }
}
