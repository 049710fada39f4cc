//! What the recorded blocks of a sampled call site stand for.

use leaktrace_common::{Outstanding, SiteRecord, sampling};

use crate::snapshot::Amount;

/// The figures of a call site, estimated where only some of its blocks were recorded.
pub(super) struct Figures {
    pub(super) allocated: Amount,
    pub(super) freed: Amount,
    pub(super) outstanding: Amount,
    /// Recorded blocks behind `outstanding` if the figures are estimates.
    pub(super) sampled_count: Option<u64>,
}

/// The figures of a record; `is_sampled` says whether its weights count.
pub(super) fn figures(record: &SiteRecord, is_sampled: bool) -> Figures {
    let allocated = Amount { count: record.allocated_count, bytes: record.allocated_bytes };
    let freed = Amount { count: record.freed_count(), bytes: record.freed_bytes };
    let outstanding = allocated.minus(freed);
    let weights = &record.weights;
    // A block that stands for itself alone is no estimate.
    let is_estimated =
        is_sampled && (weights.allocated_count >> sampling::WEIGHT_BITS) != record.allocated_count;
    if !is_estimated {
        return Figures { allocated, freed, outstanding, sampled_count: None };
    }
    // Read while they change: never below zero.
    let left = weights.allocated_count.saturating_sub(weights.freed_count);
    Figures {
        allocated: rounded(weights.allocated_count, weights.allocated_bytes),
        freed: rounded(weights.freed_count, weights.freed_bytes),
        outstanding: rounded(left, weights.allocated_bytes.saturating_sub(weights.freed_bytes)),
        sampled_count: Some(outstanding.count),
    }
}

/// Sums of single blocks: what is older than so much.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BlockSum {
    weight: u64,
    bytes: u64,
}

impl BlockSum {
    /// Adds a block of a process.
    pub(super) fn add(&mut self, block: &Outstanding) {
        let weight = sampling::weight(block.size_bytes, block.detail);
        self.weight += weight;
        self.bytes += sampling::weighted_bytes(block.size_bytes, weight);
    }

    /// What the blocks stand for.
    pub(super) fn amount(self) -> Amount {
        rounded(self.weight, self.bytes)
    }
}

fn rounded(weight: u64, bytes: u64) -> Amount {
    let half = 1 << (sampling::WEIGHT_BITS - 1);
    Amount { count: weight.saturating_add(half) >> sampling::WEIGHT_BITS, bytes }
}

#[cfg(test)]
mod tests {
    use leaktrace_common::{LIFETIME_BUCKETS, SiteKey, Weights};

    use super::*;

    fn record(blocks: &[(u64, u32)], freed: usize) -> SiteRecord {
        let mut record = SiteRecord {
            key: SiteKey { kind: 3, space: 1, detail: 1, call_site: 1, stack: 0 },
            allocated_count: 0,
            allocated_bytes: 0,
            freed_bytes: 0,
            largest_bytes: 0,
            last_ns: 0,
            suspect: 0,
            calls: 0,
            verdict: 0,
            zero: 0,
            lifetimes: [0; LIFETIME_BUCKETS],
            weights: Weights::default(),
        };
        for (at, (size, interval)) in blocks.iter().enumerate() {
            let weight = sampling::weight(*size, *interval);
            let bytes = sampling::weighted_bytes(*size, weight);
            record.allocated_count += 1;
            record.allocated_bytes += size;
            record.weights.allocated_count += weight;
            record.weights.allocated_bytes += bytes;
            if at < freed {
                record.lifetimes[0] += 1;
                record.freed_bytes += size;
                record.weights.freed_count += weight;
                record.weights.freed_bytes += bytes;
            }
        }
        record
    }

    #[test]
    fn what_is_recorded_whole_is_no_estimate() {
        let figures = figures(&record(&[(100_000, 65_536), (16, 0)], 1), true);
        assert_eq!(figures.sampled_count, None);
        assert_eq!(figures.outstanding, Amount { count: 1, bytes: 16 });
    }

    /// Whatever the intervals were at their allocations: once all are freed, nothing is left.
    #[test]
    fn what_was_freed_leaves_nothing() {
        let blocks = [(16, 65_536), (61, 100_000), (7, 4096), (1 << 22, 65_536), (0, 4096)];
        let some = figures(&record(&blocks, 3), true);
        assert_eq!(some.sampled_count, Some(2));
        assert_eq!(some.outstanding, Amount { count: 257, bytes: 1 << 22 });
        let all = figures(&record(&blocks, 5), true);
        assert_eq!(all.outstanding, Amount::default());
        assert_eq!(all.allocated, all.freed);
        assert_eq!(all.allocated.bytes, 65_536 + 99_999 + 1792 + (1 << 22));
    }
}
