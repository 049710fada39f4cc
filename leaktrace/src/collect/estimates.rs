//! Estimates all blocks of a sampled call site from the recorded ones.

use leaktrace_common::{Outstanding, SiteRecord, sampling};

use crate::snapshot::{Amount, Sampled};

/// The figures of a call site, estimated where only some of its blocks were recorded.
pub(super) struct Figures {
    pub(super) allocated: Amount,
    pub(super) freed: Amount,
    pub(super) outstanding: Amount,
    /// The recorded blocks behind `outstanding`, if the figures are estimates.
    pub(super) sampled: Option<Sampled>,
}

/// The figures of a site's record; `is_sampled` says whether its weights count.
pub(super) fn figures(record: &SiteRecord, is_sampled: bool) -> Figures {
    let allocated = Amount { count: record.allocated_count, bytes: record.allocated_bytes };
    let freed = Amount { count: record.freed_count(), bytes: record.freed_bytes };
    let outstanding = allocated.minus(freed);
    let weights = &record.weights;
    // A block that stands for itself alone is no estimate.
    let is_estimated =
        is_sampled && (weights.allocated_count >> sampling::WEIGHT_BITS) != record.allocated_count;
    if !is_estimated {
        return Figures { allocated, freed, outstanding, sampled: None };
    }
    // Read while they change: never below zero.
    let left = weights.allocated_count.saturating_sub(weights.freed_count);
    Figures {
        allocated: rounded(weights.allocated_count, weights.allocated_bytes),
        freed: rounded(weights.freed_count, weights.freed_bytes),
        outstanding: rounded(left, weights.allocated_bytes.saturating_sub(weights.freed_bytes)),
        sampled: Some(sampled(outstanding.count, weights.count_variance, weights.bytes_variance)),
    }
}

/// The sum over single blocks, as of those that are old enough.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BlockSum {
    blocks: u64,
    weight: u64,
    bytes: u64,
    count_variance: u64,
    bytes_variance: u64,
}

impl BlockSum {
    /// Adds a block of a process.
    pub(super) fn add(&mut self, block: &Outstanding) {
        let weight = sampling::weight(block.size_bytes, block.detail);
        let bytes = sampling::weighted_bytes(block.size_bytes, weight);
        self.blocks += 1;
        self.weight += weight;
        self.bytes += bytes;
        self.count_variance += sampling::count_variance(weight);
        self.bytes_variance += sampling::bytes_variance(block.size_bytes, bytes);
    }

    /// The blocks and bytes that the recorded blocks stand for.
    pub(super) fn amount(self) -> Amount {
        rounded(self.weight, self.bytes)
    }

    /// The recorded blocks behind that estimate.
    pub(super) fn sampled(self) -> Sampled {
        sampled(self.blocks, self.count_variance, self.bytes_variance)
    }
}

/// Makes a [`Sampled`] from the sums of [`sampling::count_variance`] and
/// [`sampling::bytes_variance`].
fn sampled(count: u64, count_variance: u64, bytes_variance: u64) -> Sampled {
    // Read while they change: never below zero.
    let sum = |variance: u64| variance.cast_signed().max(0) as f64;
    Sampled {
        count,
        count_variance: sum(count_variance) / f64::from(1 << sampling::COUNT_VARIANCE_BITS),
        bytes_variance: sum(bytes_variance) * f64::from(1 << sampling::BYTES_VARIANCE_SHIFT),
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
            key: SiteKey { kind: 3, generation: 0, space: 1, detail: 1, call_site: 1, stack: 0 },
            allocated_count: 0,
            allocated_bytes: 0,
            freed_bytes: 0,
            largest_bytes: 0,
            last_ns: 0,
            suspect: 0,
            calls: 0,
            verdict: 0,
            frees: 0,
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
            if at >= freed {
                record.weights.count_variance += sampling::count_variance(weight);
                record.weights.bytes_variance += sampling::bytes_variance(*size, bytes);
            } else {
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
        assert_eq!(figures.sampled, None);
        assert_eq!(figures.outstanding, Amount { count: 1, bytes: 16 });
    }

    /// Blocks are sampled by changing intervals: once all are freed, nothing is left.
    #[test]
    fn what_was_freed_leaves_nothing() {
        let blocks = [(16, 65_536), (61, 100_000), (7, 4096), (1 << 22, 65_536), (0, 4096)];
        let some = figures(&record(&blocks, 3), true);
        // One of 16 bytes or less in every 256, and a whole one.
        let sampled = some.sampled.unwrap();
        assert_eq!((sampled.count, sampled.count_error()), (2, Some(255)));
        assert_eq!(sampled.bytes_error(), None, "a block of no bytes, and a whole one");
        assert_eq!(some.outstanding, Amount { count: 257, bytes: 1 << 22 });
        let all = figures(&record(&blocks, 5), true);
        assert_eq!(all.outstanding, Amount::default());
        assert_eq!(all.allocated, all.freed);
        assert_eq!(all.allocated.bytes, 65_536 + 99_999 + 1792 + (1 << 22));
    }
}
