//! Sampling by bytes: which allocations leaktrace records, and how many each recorded one stands
//! for.
//!
//! leaktrace records a block of `size` bytes with the probability `size / interval`, and always
//! from `interval` bytes on. A recorded block then stands for the inverse of that probability in
//! blocks, so that sums over recorded blocks are unbiased estimates of sums over all blocks
//! (Horvitz and Thompson, 1952, <https://doi.org/10.1080/01621459.1952.10483446>). The estimate
//! that a block adds follows from its size and interval alone: its free subtracts exactly what its
//! allocation has added.
//!
//! The usual probability, `1 - exp(-size / interval)`, is lower and turns large blocks into
//! estimates as well. The one used here needs no exponential and keeps large blocks exact.

/// Smaller blocks are sampled as if they had this size. No allocator gives less memory, and a block
/// of one byte would otherwise stand for as many blocks as the interval has bytes.
pub const SMALLEST_BYTES: u64 = 16;
/// Largest interval: beyond it, 32 random bits hardly tell small sizes apart.
pub const MAX_INTERVAL_BYTES: u32 = 1 << 28;
/// Fractional bits of a weight.
pub const WEIGHT_BITS: u32 = 16;

/// Number of the 2^32 random values for which a block is recorded: all values below the threshold.
#[inline(always)]
pub const fn threshold(size_bytes: u64, interval_bytes: u32) -> u64 {
    let interval = interval_bytes as u64;
    if size_bytes >= interval {
        return 1 << 32;
    }
    let size = if size_bytes < SMALLEST_BYTES { SMALLEST_BYTES } else { size_bytes };
    if size >= interval {
        return 1 << 32;
    }
    (size << 32).div_ceil(interval)
}

/// Blocks that a recorded block stands for, with [`WEIGHT_BITS`] fractional bits.
#[inline(always)]
pub const fn weight(size_bytes: u64, interval_bytes: u32) -> u64 {
    (1 << (32 + WEIGHT_BITS)) / threshold(size_bytes, interval_bytes)
}

/// Bytes that a recorded block of this weight stands for.
#[inline(always)]
pub const fn weighted_bytes(size_bytes: u64, weight: u64) -> u64 {
    // Whole blocks can be larger than what the product has room for; the others are smaller
    // than the interval, and the product is below 2^(28 + 16 + 4).
    if weight == 1 << WEIGHT_BITS { size_bytes } else { (size_bytes * weight) >> WEIGHT_BITS }
}

/// Fractional bits of the result of [`count_variance`].
pub const COUNT_VARIANCE_BITS: u32 = 4;
/// log2 of the unit of [`bytes_variance`], which is in bytes squared.
pub const BYTES_VARIANCE_SHIFT: u32 = 8;

/// The variance that a recorded block of weight `w` adds to the estimated count: `w * (w - 1)`
/// blocks squared, with [`COUNT_VARIANCE_BITS`] fractional bits (the estimator of Horvitz and
/// Thompson for independent blocks).
#[inline(always)]
pub const fn count_variance(weight: u64) -> u64 {
    // Both factors with 8 fractional bits: a weight is at most 2^24.
    let more = weight.saturating_sub(1 << WEIGHT_BITS) >> (WEIGHT_BITS - 8);
    ((weight >> (WEIGHT_BITS - 8)) * more) >> (16 - COUNT_VARIANCE_BITS)
}

/// The variance that a recorded block adds to the estimated bytes: `size * size * w * (w - 1)`
/// bytes squared, in the unit of [`BYTES_VARIANCE_SHIFT`]. `weighted_bytes` is `size * w`.
#[inline(always)]
pub const fn bytes_variance(size_bytes: u64, weighted_bytes: u64) -> u64 {
    // Nothing for whole blocks; of others both factors are at most 2^28.
    (weighted_bytes * weighted_bytes.saturating_sub(size_bytes)) >> BYTES_VARIANCE_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The probability of a block times the weight of a recorded one is one, for counts and for
    /// bytes.
    #[test]
    fn estimates_are_unbiased() {
        for interval in [0, 1, 16, 17, 4096, 65_536, 100_000, 1 << 20, MAX_INTERVAL_BYTES] {
            for size in [0, 1, 15, 16, 17, 61, 4095, 4096, 99_999, 1 << 20, 1 << 40, u64::MAX] {
                let probability = threshold(size, interval) as f64 / (1_u64 << 32) as f64;
                let weight = weight(size, interval);
                let blocks = probability * weight as f64 / (1 << WEIGHT_BITS) as f64;
                assert!((blocks - 1.0).abs() < 1e-4, "{size} of {interval}: {blocks}");
                let bytes = probability * weighted_bytes(size, weight) as f64;
                let error = (bytes - size as f64).abs();
                // Bytes are rounded down to whole ones, once for each block recorded.
                assert!(error <= size as f64 * 1e-4 + probability, "{size} of {interval}: {bytes}");
            }
        }
    }

    #[test]
    fn blocks_of_the_interval_and_more_are_exact() {
        for (size, interval) in [(65_536, 65_536), (1 << 40, 65_536), (0, 0), (u64::MAX, 1 << 28)] {
            assert_eq!(threshold(size, interval), 1 << 32);
            assert_eq!(weight(size, interval), 1 << WEIGHT_BITS);
            assert_eq!(weighted_bytes(size, weight(size, interval)), size);
        }
    }

    /// The mean of the variance estimate over both outcomes, recorded or not, is the variance `(1 -
    /// p) / p`.
    #[test]
    fn variances_are_unbiased() {
        for interval in [17, 4096, 65_536, 100_000, 1 << 20, MAX_INTERVAL_BYTES] {
            for size in [1, 16, 61, 3000, 4095, 65_000] {
                let probability = threshold(size, interval) as f64 / (1_u64 << 32) as f64;
                let weight = weight(size, interval);
                let of_count = count_variance(weight) as f64 / f64::from(1 << COUNT_VARIANCE_BITS);
                let of_bytes = bytes_variance(size, weighted_bytes(size, weight)) as f64
                    * f64::from(1 << BYTES_VARIANCE_SHIFT);
                let true_count = (1.0 - probability) / probability;
                let true_bytes = true_count * (size * size) as f64;
                // Rounded down to units that are small beside a block's share.
                let (off_count, off_bytes) = (
                    (of_count * probability - true_count).abs(),
                    (of_bytes * probability - true_bytes).abs(),
                );
                assert!(off_count < 0.1 + true_count * 0.01, "{size} of {interval}: {off_count}");
                // Bytes were rounded to whole ones before.
                let unit = f64::from(1 << BYTES_VARIANCE_SHIFT) + size as f64;
                assert!(off_bytes < unit + true_bytes * 0.02, "{size} of {interval}: {off_bytes}");
            }
        }
    }

    #[test]
    fn a_small_block_stands_for_an_interval() {
        assert_eq!(threshold(16, 65_536), 1 << 20);
        assert_eq!(weight(16, 65_536), 4096 << WEIGHT_BITS);
        assert_eq!(weighted_bytes(16, weight(16, 65_536)), 65_536);
    }
}
