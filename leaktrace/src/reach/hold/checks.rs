//! What is looked at before a process is held, so that nothing is tried that could hurt it.

use std::{fs, time::Duration};

use super::{
    Refusal,
    groups::{self, Controller},
    ptrace, registers,
    threads::{self, Stopped},
};
use crate::{host::seccomp, units};

/// Bytes that a scan reads in a second, at least (measured: 0.41 to 0.46 GiB with 25 % pointers).
const SCAN_BYTES_PER_S: u64 = (1 << 30) * 4 / 10;

/// What /proc/PID/status says of a process.
struct Status(String);

impl Status {
    /// By a living thread, as the leader may have ended.
    fn of(pid: u32) -> Result<Self, Refusal> {
        let mut threads = threads::living_threads(pid).into_iter();
        let read = |tid| fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok();
        threads.find_map(read).map(Self).ok_or_else(|| Refusal::ended(pid))
    }

    fn field(&self, name: &str) -> &str {
        let lines = self.0.lines().filter_map(|line| line.split_once(':'));
        let mut found = lines.filter(|(field, _)| *field == name);
        found.next().map(|(_, value)| value.trim()).unwrap_or_default()
    }

    /// A field of `kB`, in bytes.
    fn bytes(&self, name: &str) -> u64 {
        let number = self.field(name).split(' ').next().unwrap_or_default();
        number.parse::<u64>().unwrap_or(0) << 10
    }
}

/// How long a scan of a stopped process would take, by its resident and swapped memory.
///
/// # Errors
///
/// A [`Refusal`] when it has ended.
fn predicted_stop(pid: u32) -> Result<Duration, Refusal> {
    let status = Status::of(pid)?;
    let bytes = status.bytes("VmRSS") + status.bytes("VmSwap");
    Ok(Duration::from_secs_f64(bytes as f64 / SCAN_BYTES_PER_S as f64))
}

/// Checks that a process may be stopped for the time of a scan.
pub(super) fn check_stop(pid: u32, longest: Duration) -> Result<(), Refusal> {
    let predicted = predicted_stop(pid)?;
    if predicted <= longest {
        return Ok(());
    }
    Err(Refusal::new(format!(
        "process {pid} would be stopped for about {:.1} s, and {} ms is the limit",
        predicted.as_secs_f64(),
        longest.as_millis()
    )))
}

/// Checks that a process may be copied by a call of its own, and that the copy finds room.
pub(super) fn check_snapshot(pid: u32) -> Result<(), Refusal> {
    let status = Status::of(pid)?;
    // A filter may kill the process for a call that it does not know.
    if seccomp::is_filtered(pid) {
        return Err(Refusal::new(format!("process {pid} is under seccomp")));
    }
    // A return to an address that no call has left there would kill it.
    if status.field("x86_Thread_features").contains("shstk") {
        return Err(Refusal::new(format!("process {pid} has a shadow stack")));
    }
    // What is written while the copy lives exists twice.
    let wanted = status.bytes("RssAnon");
    let tight = groups::tight(pid, Controller::Memory, wanted)
        .map_err(|cause| Refusal::new(format!("process {pid}: {cause}")))?;
    if let Some(tight) = tight {
        return Err(Refusal::new(format!(
            "a copy of process {pid} may need {}, and its control group {} has room for {}",
            units::format_bytes(wanted),
            tight.folder.display(),
            units::format_bytes(tight.room)
        )));
    }
    let available = available_bytes();
    if available < wanted {
        return Err(Refusal::new(format!(
            "a copy of process {pid} may need {}, and the host has {} available",
            units::format_bytes(wanted),
            units::format_bytes(available)
        )));
    }
    let tight = groups::tight(pid, Controller::Pids, 1)
        .map_err(|cause| Refusal::new(format!("process {pid}: {cause}")))?;
    match tight {
        Some(tight) => Err(Refusal::new(format!(
            "the control group {} of process {pid} has no room for another process (pids.max)",
            tight.folder.display()
        ))),
        None => Ok(()),
    }
}

/// Checks that a stopped process runs 64-bit code.
pub(super) fn check_code(stopped: &Stopped) -> Result<(), Refusal> {
    for tid in &stopped.tids {
        let registers = ptrace::registers(*tid)
            .map_err(|error| Refusal::kernel(stopped.pid, "read the registers of", &error))?;
        if !registers::is_64_bit(&registers) {
            let pid = stopped.pid;
            return Err(Refusal::new(format!("process {pid} runs 32-bit code")));
        }
    }
    Ok(())
}

/// Why the kernel made no copy.
pub(super) fn no_copy(pid: u32, errno: i32) -> Refusal {
    Refusal::new(match errno {
        libc::EAGAIN => format!(
            "process {pid} may start no other process (RLIMIT_NPROC, or the host's threads-max)"
        ),
        libc::ENOMEM => format!(
            "the host refuses the memory for a copy of process {pid} (vm.overcommit_memory)"
        ),
        errno => {
            let error = std::io::Error::from_raw_os_error(errno);
            format!("the kernel refuses a copy of process {pid}: {error}")
        }
    })
}

/// `MemAvailable` of the host.
fn available_bytes() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Status(meminfo).bytes("MemAvailable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read_with_its_units() {
        let status = Status("Name:\tx: y\nSeccomp:\t2\nVmRSS:\t    1024 kB\n".into());
        assert_eq!((status.field("Seccomp"), status.field("None")), ("2", ""));
        assert_eq!((status.bytes("VmRSS"), status.bytes("VmSwap")), (1 << 20, 0));
    }

    #[test]
    fn a_long_stop_is_refused_with_its_length() {
        let refusal = check_stop(std::process::id(), Duration::ZERO).unwrap_err().to_string();
        assert!(refusal.contains("would be stopped for about 0."), "{refusal}");
        assert_eq!(check_stop(std::process::id(), Duration::from_secs(3600)), Ok(()));
        assert_eq!(check_stop(u32::MAX, Duration::ZERO), Err(Refusal::ended(u32::MAX)));
    }
}
