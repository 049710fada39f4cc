//! Counts the runs that the kernel refused to both programs of a pair: see leaktrace-ebpf's `pair`.

use std::collections::BTreeMap;

use aya::maps::Array;
use leaktrace_common::Pair;

use super::{Loaded, object::KernelProgram};

/// Refused runs, without those that the second program of a pair has made up for. For a pair the
/// result is an upper bound: the first program's refused runs less the events that the second
/// program recorded, and at most the second program's refused runs. `healed` gives that number of
/// events, and `None` where this kernel has no second program.
fn unhealed(
    mut misses: BTreeMap<String, u64>,
    healed: impl Fn(Pair) -> Option<u64>,
) -> BTreeMap<String, u64> {
    // A process whose end was refused has no name then, and is in all figures.
    misses.remove(KernelProgram::Ended.name());
    for (pair, first, second) in Pair::ALL {
        let one = misses.remove(first).unwrap_or(0);
        let other = misses.remove(second).unwrap_or(0);
        let both = healed(pair).map_or(one, |healed| one.saturating_sub(healed).min(other));
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
        let has_second = |pair: Pair| {
            let (_, _, second) = Pair::ALL[pair as usize];
            self.ebpf.program(second).is_some_and(|program| program.fd().is_ok())
        };
        unhealed(self.recursion_misses(), |pair| {
            let count = || healed.as_ref()?.get(&(pair as u32), 0).ok();
            has_second(pair).then(|| count().unwrap_or(0))
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
            // Without a second program, all are missed.
            ("lt_kmalloc", 6),
        ];
        let healed = |pair| match pair {
            Pair::Exit => Some(7),
            Pair::Kmalloc => None,
            _ => Some(100),
        };
        let expected = [("lt_cache_free", 3), ("lt_exit", 2), ("lt_kmalloc", 6), ("lt_x", 1)];
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
