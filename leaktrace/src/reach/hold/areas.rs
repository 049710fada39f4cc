//! Memory that a fork does not have as its parent has it.

use std::{fs, io, ops::Range};

/// Ranges that must be read from the parent: those that madvise(2) keeps from forks
/// (MADV_DONTFORK), and those that are zero there (MADV_WIPEONFORK). Both are seen in the fork, so
/// that the parent need not wait.
///
/// # Errors
///
/// When either process has ended.
pub(super) fn from_parent(parent: u32, fork: u32) -> io::Result<Vec<Range<u64>>> {
    let fork = fs::read_to_string(format!("/proc/{fork}/smaps"))?;
    let parent = fs::read(format!("/proc/{parent}/maps"))?;
    Ok(differing(&String::from_utf8_lossy(&parent), &fork))
}

fn differing(parent_maps: &str, fork_smaps: &str) -> Vec<Range<u64>> {
    let mut copied: Vec<Range<u64>> = Vec::new();
    let mut wiped = Vec::new();
    for line in fork_smaps.lines() {
        if let Some((range, _)) = range_of(line) {
            copied.push(range);
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && flags.split(' ').any(|flag| flag == "wf")
            && let Some(range) = copied.last()
        {
            wiped.push(range.clone());
        }
    }
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for line in parent_maps.lines() {
        let Some((range, rest)) = range_of(line) else { continue };
        if holds_data(rest) {
            ranges.extend(without(range, &copied));
        }
    }
    ranges.extend(wiped);
    ranges.sort_unstable_by_key(|range| range.start);
    ranges
}

/// Whether a mapping may hold addresses that the process wrote: it is anonymous, or written to; and
/// it is no device.
fn holds_data(rest: &str) -> bool {
    let mut parts = rest.splitn(5, ' ');
    let rights = parts.next().unwrap_or_default();
    let path = parts.nth(3).unwrap_or_default().trim_start();
    let is_kernels = path.starts_with("[v");
    (rights.contains('w') || path.is_empty()) && !is_kernels && !path.starts_with("/dev/")
}

/// A range without the parts that sorted others have.
fn without(range: Range<u64>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut start = range.start;
    let first = others.partition_point(|other| other.end <= range.start);
    for other in others.iter().skip(first).take_while(|other| other.start < range.end) {
        if start < other.start {
            left.push(start..other.start);
        }
        start = start.max(other.end);
    }
    if start < range.end {
        left.push(start..range.end);
    }
    left
}

/// The addresses of a line of maps or smaps, and what stands behind them.
fn range_of(line: &str) -> Option<(Range<u64>, &str)> {
    let (addresses, rest) = line.split_once(' ')?;
    let (start, end) = addresses.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some((hex(start)?..hex(end)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_fork_lacks_is_read_from_the_parent() {
        let parent = "\
1000-3000 rw-p 00000000 00:00 0
3000-5000 rw-p 00000000 00:00 0
6000-7000 rw-p 00000000 00:00 0\n\
7000-8000 r-xp 00000000 fe:00 12                         /usr/bin/x
8000-9000 rw-s 00000000 00:05 3                          /dev/kvm
9000-a000 r--p 00000000 00:00 0                          [vvar]\n";
        let fork = "\
1000-3000 rw-p 00000000 00:00 0
Size:                  8 kB
VmFlags: rd wr mr mw me ac
4000-5000 rw-p 00000000 00:00 0
VmFlags: rd wr mr mw me wf ac\n";
        assert_eq!(differing(parent, fork), [0x3000..0x4000, 0x4000..0x5000, 0x6000..0x7000]);
    }
}
