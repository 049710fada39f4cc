//! Finds processes that grow while no probe fires: leaktrace does not know the allocator of such a
//! process.

use std::{collections::BTreeMap, time::Duration};

use leaktrace_common::Kind;
use tokio::time::Instant;

use crate::{
    collect::Collector,
    host::proc::{self, Memory},
    units::format_bytes,
};

/// Time between two checks. In a process that the check finds, no probe fires for this time.
const PERIOD: Duration = Duration::from_secs(5);
/// Bytes that a process may grow by in this time.
const GROWTH_BYTES: u64 = 1 << 20;

/// Watches for growth that no probe sees.
pub(super) struct GrowthWatch {
    /// When the next check is due.
    due: Instant,
    /// State of each process at the last check.
    seen: BTreeMap<u32, Seen>,
    /// A sentence for each process that was found.
    found: BTreeMap<u32, String>,
}

struct Seen {
    /// Allocations and frees of the process image.
    calls: u64,
    memory: Memory,
}

impl GrowthWatch {
    pub(super) fn new() -> Self {
        Self { due: Instant::now(), seen: BTreeMap::new(), found: BTreeMap::new() }
    }

    /// When the next check is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Checks traced processes, given with their spaces; returns a sentence for each newly found
    /// one.
    pub(super) fn check(
        &mut self,
        processes: impl Iterator<Item = (u32, u32)>,
        collector: &Collector,
    ) -> Vec<String> {
        self.due = Instant::now() + PERIOD;
        let mut calls: BTreeMap<u32, u64> = BTreeMap::new();
        for (_, record) in collector.maps.sites() {
            if record.key.kind == Kind::Malloc as u16 {
                *calls.entry(record.key.space).or_default() +=
                    record.allocated_count + record.freed_count();
            }
        }
        let mut new = Vec::new();
        let before = std::mem::take(&mut self.seen);
        for (pid, space) in processes {
            let Some(memory) = proc::memory(pid) else { continue };
            let now = Seen { calls: calls.get(&space).copied().unwrap_or(0), memory };
            if let Some(before) = before.get(&pid)
                && let Some(bytes) = now.unseen_growth(before)
                && !self.found.contains_key(&pid)
            {
                let text = format!(
                    "process {pid}: its memory grew by {} within {} s while no allocator call \
                     was seen; if it has an allocator of its own, name the object that defines it \
                     with -O",
                    format_bytes(bytes),
                    PERIOD.as_secs(),
                );
                self.found.insert(pid, text.clone());
                new.push(text);
            }
            self.seen.insert(pid, now);
        }
        new
    }

    /// The sentences for all processes that were found, for the report.
    pub(super) fn found(&self) -> impl Iterator<Item = &String> {
        self.found.values()
    }
}

impl Seen {
    /// Bytes that a process has grown by since `before`, if it called no probed function meanwhile.
    /// A process may write to blocks long after it got them: where it has called a probed function
    /// before, only new addresses show that it has allocated.
    fn unseen_growth(&self, before: &Self) -> Option<u64> {
        let resident = self.memory.anonymous_bytes.checked_sub(before.memory.anonymous_bytes)?;
        let mapped = self.memory.mapped_bytes.saturating_sub(before.memory.mapped_bytes);
        let is_silent = self.calls == before.calls;
        let allocates = self.calls == 0 || mapped >= GROWTH_BYTES;
        (is_silent && allocates && resident >= GROWTH_BYTES).then_some(resident)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn seen(calls: u64, anonymous: u64, mapped: u64) -> Seen {
        let memory = Memory { anonymous_bytes: anonymous * MIB, mapped_bytes: mapped * MIB };
        Seen { calls, memory }
    }

    #[test]
    fn growth_without_calls_is_noticed() {
        assert_eq!(seen(0, 5, 9).unseen_growth(&seen(0, 2, 9)), Some(3 * MIB));
        assert_eq!(seen(7, 5, 12).unseen_growth(&seen(7, 2, 9)), Some(3 * MIB));
        // It has made calls, or what it has got before is now written to, or it shrinks.
        assert_eq!(seen(8, 5, 12).unseen_growth(&seen(7, 2, 9)), None);
        assert_eq!(seen(7, 5, 9).unseen_growth(&seen(7, 2, 9)), None);
        assert_eq!(seen(0, 1, 9).unseen_growth(&seen(0, 2, 9)), None);
    }
}
