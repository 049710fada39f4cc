//! What allocators take for blocks beyond what was asked for.

use crate::snapshot::Amount;

/// Blocks of this size and more are mapped by glibc, until it has freed such a block
/// (`DEFAULT_MMAP_THRESHOLD_MIN`, malloc/malloc.c, glibc 2.36).
const MAPPED_BYTES: u64 = 128 << 10;
const PAGE_BYTES: u64 = 4096;

/// What glibc takes for blocks of a call site beyond what they asked for: its chunks have a header
/// of 8 bytes, are multiples of 16, and have 32 at least (`request2size`, malloc/malloc.c, glibc
/// 2.36). Blocks of several sizes count as if all had their mean size.
pub(super) fn glibc(amount: Amount) -> u64 {
    let mean = amount.bytes.checked_div(amount.count).unwrap_or(0);
    let taken = match mean {
        MAPPED_BYTES.. => (mean + 16).next_multiple_of(PAGE_BYTES),
        _ => (mean + 8).next_multiple_of(16).max(32),
    };
    amount.count * (taken - mean)
}

/// What vmalloc takes for blocks of a call site beyond what they asked for: whole pages. Blocks of
/// several sizes count as if all had their mean size.
pub(super) fn pages(amount: Amount) -> u64 {
    let mean = amount.bytes.checked_div(amount.count).unwrap_or(0);
    amount.count * (mean.next_multiple_of(PAGE_BYTES) - mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_have_a_header_and_are_multiples_of_16() {
        for (bytes, taken) in
            [(0, 32), (1, 32), (24, 32), (25, 48), (40, 48), (100, 112), (1000, 1008)]
        {
            assert_eq!(glibc(Amount { count: 10, bytes: 10 * bytes }), 10 * (taken - bytes));
        }
        let mapped = Amount { count: 1, bytes: 1 << 20 };
        assert_eq!(glibc(mapped), 4096);
        assert_eq!(glibc(Amount::default()), 0);
    }

    #[test]
    fn vmalloc_gives_whole_pages() {
        assert_eq!(pages(Amount { count: 2, bytes: 2 * 5000 }), 2 * 3192);
        assert_eq!(pages(Amount { count: 2, bytes: 2 * 4096 }), 0);
        assert_eq!(pages(Amount::default()), 0);
    }
}
