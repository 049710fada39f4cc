//! How long the blocks of a call site live that are freed: the scale on which time has to pass
//! before the others say anything.

use leaktrace_common::LIFETIME_BUCKETS;

/// The age by which a share of the freed blocks had been freed, in milliseconds, rounded up to a
/// power of two of microseconds; `None` if none was freed.
///
/// Blocks that are still alive are not in it: a leak must not make the scale longer.
pub(super) fn freed_within_ms(lifetimes: &[u64; LIFETIME_BUCKETS], share: f64) -> Option<f64> {
    let freed: u64 = lifetimes.iter().sum();
    if freed == 0 {
        return None;
    }
    let wanted = (freed as f64 * share).ceil() as u64;
    let mut sum = 0;
    for (bucket, count) in lifetimes.iter().enumerate() {
        sum += count;
        if sum >= wanted {
            return Some(2f64.powi(bucket as i32 + 1) / 1000.0);
        }
    }
    None
}
