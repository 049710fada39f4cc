//! How much memory a process and the host have, as people watch it: /proc/PID/status and
//! /proc/meminfo.

use std::fs;

/// Memory of a process by what backs it, in bytes (man 5 proc_pid_status).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    /// `RssAnon`: resident, and no file's.
    pub anonymous_bytes: u64,
    /// `VmSwap`: the swapped part of such memory.
    pub swapped_bytes: u64,
    /// `RssShmem`: resident, and shared by mmap, System V or tmpfs.
    pub shared_bytes: u64,
}

/// The memory of a process; `None` if it has ended or has none.
pub fn of_process(pid: u32) -> Option<ProcessMemory> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    parse_status(&String::from_utf8_lossy(&status))
}

/// Figures of /proc/meminfo, in bytes (man 5 proc_meminfo).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// `SUnreclaim`: slabs that cannot be taken back.
    pub unreclaimable_slab_bytes: u64,
    /// `Percpu`
    pub percpu_bytes: u64,
    /// `VmallocUsed`
    pub vmalloc_bytes: u64,
    /// `KernelStack`
    pub kernel_stack_bytes: u64,
    /// `PageTables`
    pub page_table_bytes: u64,
}

/// The memory of the host; `None` where /proc does not tell.
pub fn of_host() -> Option<HostMemory> {
    parse_meminfo(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// The field `name` of lines `Name:   123 kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kib * 1024)
}

fn parse_status(text: &str) -> Option<ProcessMemory> {
    Some(ProcessMemory {
        anonymous_bytes: field(text, "RssAnon")?,
        // Without CONFIG_SWAP there is none.
        swapped_bytes: field(text, "VmSwap").unwrap_or(0),
        shared_bytes: field(text, "RssShmem")?,
    })
}

fn parse_meminfo(text: &str) -> Option<HostMemory> {
    Some(HostMemory {
        unreclaimable_slab_bytes: field(text, "SUnreclaim")?,
        percpu_bytes: field(text, "Percpu")?,
        vmalloc_bytes: field(text, "VmallocUsed")?,
        kernel_stack_bytes: field(text, "KernelStack")?,
        page_table_bytes: field(text, "PageTables")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_parsed() {
        let text = "Name:\tRssAnon: 7 kB\nVmRSS:\t    5000 kB\nRssAnon:\t    1024 kB\n\
                    RssFile:\t    2000 kB\nRssShmem:\t       8 kB\nVmSwap:\t      16 kB\n";
        let expected = ProcessMemory {
            anonymous_bytes: 1 << 20,
            swapped_bytes: 16 << 10,
            shared_bytes: 8 << 10,
        };
        assert_eq!(parse_status(text), Some(expected));
        // A kernel thread, and a zombie.
        assert_eq!(parse_status("Name:\tkthreadd\nState:\tS (sleeping)\n"), None);
    }

    #[test]
    fn meminfo_is_parsed() {
        let text = "MemTotal: 100 kB\nSlab: 12 kB\nSReclaimable: 3 kB\nSUnreclaim:  9 kB\n\
                    KernelStack: 4 kB\nPageTables: 5 kB\nSecPageTables: 0 kB\nVmallocUsed: 6 kB\n\
                    Percpu: 7 kB\n";
        let expected = HostMemory {
            unreclaimable_slab_bytes: 9 << 10,
            percpu_bytes: 7 << 10,
            vmalloc_bytes: 6 << 10,
            kernel_stack_bytes: 4 << 10,
            page_table_bytes: 5 << 10,
        };
        assert_eq!(parse_meminfo(text), Some(expected));
    }

    #[test]
    fn this_machine_tells() {
        assert!(of_process(std::process::id()).is_some_and(|memory| memory.anonymous_bytes > 0));
        assert!(of_host().is_some_and(|memory| memory.unreclaimable_slab_bytes > 0));
    }
}
