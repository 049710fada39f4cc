//! Addresses that the kernel keeps for a process, as far as it shows them: the data of epoll
//! descriptors and the values of timers.

use std::fs;

/// Most descriptors of a process that are looked at.
const MAX_DESCRIPTORS: usize = 100_000;

/// Words that the kernel keeps for a process and will give it back.
pub fn words(pid: u32) -> Vec<u64> {
    let mut words = Vec::new();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    for descriptor in descriptors.flatten().take(MAX_DESCRIPTORS) {
        let is_epoll = fs::read_link(descriptor.path())
            .is_ok_and(|target| target.as_os_str() == "anon_inode:[eventpoll]");
        if !is_epoll {
            continue;
        }
        let about = format!("/proc/{pid}/fdinfo/{}", descriptor.file_name().to_string_lossy());
        words.extend(epoll_data(&fs::read_to_string(about).unwrap_or_default()));
    }
    let timers = fs::read_to_string(format!("/proc/{pid}/timers")).unwrap_or_default();
    words.extend(timer_values(&timers));
    words
}

/// The data of each descriptor that an epoll watches: `tfd: 5 events: 19 data: 560f48996f50 ...`
/// (`ep_show_fdinfo`, fs/eventpoll.c).
fn epoll_data(about: &str) -> impl Iterator<Item = u64> + '_ {
    about.lines().filter_map(|line| {
        let data = line.split("data:").nth(1)?.split_whitespace().next()?;
        u64::from_str_radix(data, 16).ok()
    })
}

/// The value of each timer: `signal: 0/0000560f48996f80` (`show_timer`, fs/proc/base.c).
fn timer_values(timers: &str) -> impl Iterator<Item = u64> + '_ {
    timers.lines().filter_map(|line| {
        let value = line.strip_prefix("signal:")?.split('/').nth(1)?;
        u64::from_str_radix(value.trim(), 16).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_shows_is_parsed() {
        let about = "pos:\t0\nflags:\t02\nmnt_id:\t15\ntfd:        5 events:       19 data:     560f48996f50  pos:0 ino:1 sdev:e\n";
        assert_eq!(epoll_data(about).collect::<Vec<_>>(), [0x560f_4899_6f50]);
        let timers = "ID: 0\nsignal: 0/0000560f48996f80\nnotify: signal/pid.77\nClockID: 1\n";
        assert_eq!(timer_values(timers).collect::<Vec<_>>(), [0x560f_4899_6f80]);
    }
}
