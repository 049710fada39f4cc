//! Decides which call sites get a stack for every allocation, under `--stacks adaptive`.

use std::collections::HashMap;

use leaktrace_common::SiteKey;

/// Intervals of growth in a row after which a call site is suspect.
const PATIENCE: u32 = 2;

/// Watches the growth of call sites, over all their stacks.
#[derive(Debug, Default)]
pub struct Suspects {
    seen: HashMap<SiteKey, Watch>,
}

#[derive(Debug, Default)]
struct Watch {
    outstanding_bytes: u64,
    growing: u32,
}

impl Suspects {
    /// Takes in one interval's outstanding bytes by call site (keys without stack); returns the
    /// call sites that have just become suspect.
    pub fn observe(&mut self, sites: &HashMap<SiteKey, u64>) -> Vec<SiteKey> {
        // Those of process images that are gone.
        self.seen.retain(|key, _| sites.contains_key(key));
        let mut suspects = Vec::new();
        for (key, bytes) in sites {
            let watch = self.seen.entry(*key).or_default();
            let grew = *bytes > watch.outstanding_bytes;
            watch.outstanding_bytes = *bytes;
            watch.growing = if grew { watch.growing + 1 } else { 0 };
            if watch.growing == PATIENCE {
                suspects.push(*key);
            }
        }
        suspects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_in_a_row_makes_suspect_once() {
        let key = SiteKey { kind: 1, generation: 0, space: 0, detail: 64, call_site: 7, stack: 0 };
        let mut suspects = Suspects::default();
        let mut observe = |bytes| suspects.observe(&HashMap::from([(key, bytes)]));
        assert_eq!(observe(10), []);
        assert_eq!(observe(10), []);
        assert_eq!(observe(20), []);
        assert_eq!(observe(30), [key]);
        assert_eq!(observe(40), []);
    }
}
