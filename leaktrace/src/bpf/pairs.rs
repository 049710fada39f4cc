//! Counts the runs that the kernel refused to both programs of a pair: see leaktrace-ebpf's `pair`.

use std::collections::BTreeMap;

use aya::maps::Array;
use leaktrace_common::Pair;

use super::{Loaded, object::KernelProgram};

/// Refused runs, without those that the second program of a pair has made up for. For a pair the
/// result is an upper bound: the first program's refused runs less the events that the second
/// program recorded, and at most the second program's refused runs.
fn unhealed(
    mut misses: BTreeMap<String, u64>,
    healed: impl Fn(Pair) -> u64,
) -> BTreeMap<String, u64> {
    // A process whose end was refused has no name then, and is in all figures.
    misses.remove(KernelProgram::Ended.name());
    for (pair, first, second) in Pair::ALL {
        let (one, other) = (misses.remove(first), misses.remove(second));
        let both = one.unwrap_or(0).saturating_sub(healed(pair)).min(other.unwrap_or(0));
        if both > 0 {
            misses.insert(first.to_owned(), both);
        }
    }
    misses
}

impl Loaded {
    /// [`Loaded::recursion_misses`] without the runs that the second program of a pair has made up
    /// for.
    pub fn misses(&self) -> BTreeMap<String, u64> {
        // What cannot be read has healed nothing.
        let healed = self.ebpf.map("HEALED").and_then(|map| Array::<_, u64>::try_from(map).ok());
        unhealed(self.recursion_misses(), |pair| {
            healed.as_ref().and_then(|map| map.get(&(pair as u32), 0).ok()).unwrap_or(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_of_a_pair_has_seen_is_not_missed() {
        let misses = |list: &[(&str, u64)]| -> BTreeMap<String, u64> {
            list.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        let refused = [
            ("lt_kfree", 7),
            ("lt_cache_free", 200),
            ("lt_cache_free_2", 3),
            ("lt_exit", 9),
            ("lt_exit_2", 8),
            ("lt_ended", 5),
            ("lt_x", 1),
        ];
        let healed = |pair| if pair == Pair::Exit { 7 } else { 100 };
        let expected = [("lt_cache_free", 3), ("lt_exit", 2), ("lt_x", 1)];
        assert_eq!(unhealed(misses(&refused), healed), misses(&expected));
    }

    #[test]
    fn pairs_are_listed_by_number() {
        for (index, (pair, first, second)) in Pair::ALL.into_iter().enumerate() {
            assert_eq!(pair as usize, index);
            // What the kernel keeps of a name.
            assert!(first.len() < 16 && second.len() < 16, "{second}");
        }
    }
}
