//! The mappings of a process: which of them may hold addresses, and how to read them.
//!
//! Anonymous memory counts whatever its rights: programs seal and protect memory that they use.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Read as _,
};

/// A mapping that is read, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// First address.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// Its name in /proc/PID/maps; empty for anonymous memory.
    pub name: String,
    /// Offset in the file of the first address.
    pub file_offset: u64,
    /// Whether a file is behind it.
    pub has_file: bool,
    /// Whether that file is in memory or on a disk of this host: no server is asked for it.
    pub is_of_this_host: bool,
    /// Which of its pages are read.
    pub pages: Pages,
    /// Whether the process itself may read it.
    pub is_readable: bool,
    /// Whether it holds code made at run time, in which addresses stand anywhere.
    pub is_code: bool,
}

/// Which pages of a mapping are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Those that the process has: in memory or swapped out, and not the kernel's zero page.
    Own,
    /// Those that the process has and that are no longer those of the file.
    Changed,
    /// Those in memory alone: asking for any other would disturb the process (userfaultfd, huge
    /// pages).
    Present,
    /// All that the shared object holds, whether this process has touched it or not.
    Shared,
}

/// The mappings of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mappings {
    /// Those that are read, by address.
    pub read: Vec<Mapped>,
    /// Bytes of devices' memory, which is not read.
    pub device_bytes: u64,
    /// Bytes that are swapped out.
    pub swapped_bytes: u64,
    /// Names of the files that are mapped, each once.
    pub files: Vec<String>,
}

/// One entry of /proc/PID/smaps.
#[derive(Default)]
struct Entry<'a> {
    start: u64,
    end: u64,
    rights: &'a str,
    file_offset: u64,
    device: &'a str,
    inode: u64,
    name: &'a str,
    anonymous_kb: u64,
    swap_kb: u64,
    rss_kb: u64,
    hugetlb_kb: u64,
    flags: &'a str,
}

impl Mappings {
    /// Reads the mappings of a process.
    ///
    /// # Errors
    ///
    /// As reading /proc/PID/smaps.
    pub fn read(pid: u32) -> std::io::Result<Self> {
        let mut text = Vec::new();
        File::open(format!("/proc/{pid}/smaps"))?.read_to_end(&mut text)?;
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        Ok(Self::parse(&String::from_utf8_lossy(&text), &local_devices(&mounts)))
    }

    fn parse(text: &str, local: &HashSet<String>) -> Self {
        let mut mappings = Self::default();
        let mut entry: Option<Entry<'_>> = None;
        for line in text.lines() {
            let first = line.split(' ').next().unwrap_or_default();
            if first.ends_with(':') {
                if let Some(entry) = &mut entry {
                    entry.field(line);
                }
            } else if let Some(next) = header(line)
                && let Some(done) = entry.replace(next)
            {
                mappings.add(&done, local);
            }
        }
        if let Some(done) = entry {
            mappings.add(&done, local);
        }
        mappings
    }

    fn add(&mut self, entry: &Entry<'_>, local: &HashSet<String>) {
        let has = |flag: &str| entry.flags.split(' ').any(|set| set == flag);
        let has_file = entry.inode != 0;
        if has_file && !self.files.iter().any(|known| known == entry.name) {
            self.files.push(entry.name.to_owned());
        }
        if matches!(entry.name, "[vvar]" | "[vvar_vclock]" | "[vdso]" | "[vsyscall]" | "[uprobes]")
        {
            return;
        }
        // VM_IO and VM_PFNMAP (fs/proc/task_mmu.c, `show_smap_vma_flags`): a device's memory, whose
        // reading may have effects.
        if has("io") || has("pf") {
            self.device_bytes += entry.end - entry.start;
            return;
        }
        let is_shared = entry.rights.as_bytes().get(3) == Some(&b's');
        let is_writable = entry.rights.as_bytes().get(1) == Some(&b'w');
        let is_executable = entry.rights.as_bytes().get(2) == Some(&b'x');
        let is_fragile = has("ht") || has("um") || has("uw") || has("ui") || entry.hugetlb_kb > 0;
        let pages = match (is_shared, has_file) {
            // Nobody can have written to it through this mapping.
            (true, _) if !is_writable && !has("mw") => return,
            (true, _) if is_fragile => Pages::Present,
            (true, _) => Pages::Shared,
            (false, _)
                if entry.anonymous_kb == 0 && entry.swap_kb == 0 && entry.hugetlb_kb == 0 =>
            {
                return;
            }
            (false, _) if is_fragile => Pages::Present,
            (false, true) => Pages::Changed,
            (false, false) => Pages::Own,
        };
        // The kernel's own, which is mounted nowhere (mm/shmem.c, ipc/shm.c, mm/memfd.c).
        let is_in_memory =
            ["/dev/zero", "/memfd:", "/SYSV"].iter().any(|name| entry.name.starts_with(name));
        self.swapped_bytes += entry.swap_kb * 1024;
        self.read.push(Mapped {
            start: entry.start,
            end: entry.end,
            name: entry.name.to_owned(),
            file_offset: entry.file_offset,
            has_file,
            is_of_this_host: is_in_memory || local.contains(entry.device),
            pages,
            is_readable: entry.rights.starts_with('r'),
            is_code: is_executable && !has_file && !is_shared,
        });
    }

    /// Takes some ranges from the mappings of another process.
    pub fn take_from(&mut self, other: Self, ranges: &[std::ops::Range<u64>]) {
        let lies_in = |mapped: &Mapped| ranges.iter().any(|range| range.contains(&mapped.start));
        self.read.retain(|mapped| !lies_in(mapped));
        self.read.extend(other.read.into_iter().filter(lies_in));
        self.read.sort_by_key(|mapped| mapped.start);
    }

    /// The mapping that an address lies in.
    pub fn find(&self, address: u64) -> Option<&Mapped> {
        let at = self.read.partition_point(|mapped| mapped.end <= address);
        self.read.get(at).filter(|mapped| mapped.start <= address)
    }
}

impl<'a> Entry<'a> {
    fn field(&mut self, line: &'a str) {
        let Some((name, value)) = line.split_once(':') else { return };
        let number = || value.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        match name {
            "Anonymous" => self.anonymous_kb = number(),
            "Swap" => self.swap_kb = number(),
            "Rss" => self.rss_kb = number(),
            "Private_Hugetlb" | "Shared_Hugetlb" => self.hugetlb_kb += number(),
            "VmFlags" => self.flags = value.trim(),
            _ => {}
        }
    }
}

/// Parses `start-end perms offset dev inode    path` (man 5 proc_pid_maps).
/// File systems of this host's memory and disks.
const LOCAL: [&str; 13] = [
    "bcachefs",
    "btrfs",
    "erofs",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "hugetlbfs",
    "ramfs",
    "squashfs",
    "tmpfs",
    "xfs",
    "zfs",
];

/// The devices of such file systems, as /proc/PID/maps writes them, from /proc/PID/mountinfo.
fn local_devices(mounts: &str) -> HashSet<String> {
    let device = |line: &str| {
        let (mount, system) = line.split_once(" - ")?;
        LOCAL.contains(&system.split(' ').next()?).then_some(())?;
        let (major, minor) = mount.split(' ').nth(2)?.split_once(':')?;
        let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
        Some(format!("{major:02x}:{minor:02x}"))
    };
    mounts.lines().filter_map(device).collect()
}

fn header(line: &str) -> Option<Entry<'_>> {
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let mut parts = line.splitn(6, ' ');
    let (start, end) = parts.next()?.split_once('-')?;
    let rights = parts.next()?;
    let file_offset = hex(parts.next()?)?;
    let device = parts.next()?;
    let inode = parts.next()?.parse().ok()?;
    let name = parts.next().map(str::trim_start).unwrap_or_default();
    Some(Entry {
        start: hex(start)?,
        end: hex(end)?,
        rights,
        file_offset,
        device,
        inode,
        name,
        ..Entry::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_may_hold_addresses_is_read_whatever_its_rights() {
        let entry = |header: &str, anonymous: u64, flags: &str| {
            format!(
                "{header}\nSize: 8 kB\nRss: 8 kB\nAnonymous:   {anonymous} kB\nSwap: 0 kB\nVmFlags: {flags}\n"
            )
        };
        let text = [
            entry("1000-3000 r-xp 00000000 fe:00 12                 /bin/a b", 0, "rd ex mr mw me"),
            entry(
                "3000-5000 rw-p 00002000 fe:00 12                 /bin/a b",
                4,
                "rd wr mr mw me ac",
            ),
            entry("5000-7000 ---p 00000000 00:00 0 ", 8, "mr mw me ac"),
            entry("7000-9000 r--p 00000000 00:00 0                  [heap]", 8, "rd mr mw me"),
            entry(
                "9000-b000 rw-s 00000000 00:01 77                 /memfd:x (deleted)",
                0,
                "rd wr sh mr mw me ms",
            ),
            entry("b000-d000 r--s 00000000 00:01 78                 /etc/x", 0, "rd mr me ms"),
            entry(
                "d000-f000 rw-s 00000000 00:05 79                 /dev/gpu",
                0,
                "rd wr sh mr mw me ms io pf",
            ),
            entry("f000-11000 rw-p 00000000 00:00 0 ", 8, "rd wr um"),
            entry("11000-13000 ---p 00000000 00:00 0 ", 0, "mr mw me"),
            entry("13000-15000 rwxp 00000000 00:00 0 ", 8, "rd wr ex mr mw me"),
            entry("15000-17000 r--p 00000000 00:00 0                  [vvar]", 8, "rd"),
        ]
        .concat();
        let mappings = Mappings::parse(&text, &HashSet::new());
        let read: Vec<(u64, Pages)> =
            mappings.read.iter().map(|mapped| (mapped.start, mapped.pages)).collect();
        assert_eq!(
            read,
            [
                (0x3000, Pages::Changed),
                (0x5000, Pages::Own),
                (0x7000, Pages::Own),
                (0x9000, Pages::Shared),
                (0xf000, Pages::Present),
                (0x13000, Pages::Own),
            ]
        );
        assert_eq!(mappings.device_bytes, 0x2000);
        assert!(mappings.find(0x5000).is_some_and(|mapped| !mapped.is_readable));
        assert!(mappings.find(0x13fff).is_some_and(|mapped| mapped.is_code));
        assert!(mappings.find(0x2000).is_none() && mappings.find(0xb000).is_none());
        assert_eq!(mappings.files.len(), 4);
    }

    #[test]
    fn this_process_has_a_stack_and_a_heap() {
        let mappings = Mappings::read(std::process::id()).unwrap();
        let local = 0_u64;
        let stack = mappings.find((&raw const local) as u64).unwrap();
        assert_eq!(stack.pages, Pages::Own);
        assert!(mappings.files.iter().any(|file| file.contains("leaktrace")));
    }

    #[test]
    fn files_of_this_host_are_known_by_their_device() {
        let mounts = "25 1 8:1 / / rw,noatime - ext4 /dev/sda1 rw\n\
                      31 25 0:27 / /mnt rw - nfs4 server:/x rw\n\
                      32 25 259:17 / /shm rw shared:3 - tmpfs none rw\n";
        let local = local_devices(mounts);
        assert_eq!(local, ["08:01", "103:11"].map(str::to_owned).into());
    }
}
