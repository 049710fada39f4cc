//! The kernel's own counts of its slab caches: /proc/slabinfo.

use std::{collections::BTreeMap, fs};

/// The kernel's counts of one slab cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Objects in use. Those that a CPU keeps for its next allocations count as in use as well
    /// (get_slabinfo(), mm/slub.c, 5.15 to 6.18).
    pub in_use: i64,
    /// Objects that the cache has room for.
    room: i64,
    /// Objects in one slab.
    in_slab: i64,
    /// Pages of one slab.
    pages: i64,
}

/// Objects that a CPU may keep in partly used slabs: 120 of the smallest, in slabs that may be half
/// full (slub_set_cpu_partial(), mm/slub.c, 5.16 to 6.18).
const IN_PARTIAL_SLABS: i64 = 240;
/// Objects in the sheaves of a CPU, and its share of the node's sheaves (mm/slub.c, from 6.18): two
/// sheaves, one for RCU, and ten full ones for each node, of up to 64 objects.
const IN_SHEAVES: i64 = 256;
/// The least result of [`Usage::at_hand`], for small machines as well.
const LEAST: i64 = 1024;

impl Usage {
    /// Bytes of slab for each object, with its share of what is left over in a slab.
    pub fn object_bytes(&self) -> u64 {
        let bytes = self.pages * 4096 / self.in_slab.max(1);
        u64::try_from(bytes).unwrap_or(0)
    }

    /// Objects that the kernel may count as in use though nobody has them. In long lists of slabs
    /// the kernel counts some and estimates the rest (count_partial_free_approx(), mm/slub.c, from
    /// 6.10), so in a large cache the number is a share of the cache.
    pub fn at_hand(&self) -> i64 {
        let cpus = aya::util::online_cpus().map_or(1, |cpus| cpus.len() as i64);
        let by_cpu = IN_PARTIAL_SLABS + IN_SHEAVES + 2 * self.in_slab;
        (cpus * by_cpu).max(self.room / 32).max(LEAST)
    }
}

/// The counts of each slab cache; `None` where the kernel does not show them.
pub fn usage() -> Option<BTreeMap<String, Usage>> {
    Some(parse(&fs::read_to_string("/proc/slabinfo").ok()?))
}

/// Parses `name <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> ...` after two lines of headings.
fn parse(text: &str) -> BTreeMap<String, Usage> {
    text.lines()
        .skip(2)
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let name = words.next()?.to_owned();
            let mut number = || words.next()?.parse().ok();
            let (in_use, room, _, in_slab) = (number()?, number()?, number()?, number()?);
            let pages = number()?;
            Some((name, Usage { in_use, room, in_slab, pages }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_of_slabinfo() {
        let text = "slabinfo - version: 2.1\n\
                    # name <active_objs> <num_objs> <objsize>\n\
                    dentry 12180 12222 192 21 1 : tunables 0 0 0 : slabdata 582 582 0\n";
        let usage = Usage { in_use: 12180, room: 12222, in_slab: 21, pages: 1 };
        assert_eq!(usage.object_bytes(), 195);
        assert_eq!(parse(text), BTreeMap::from([("dentry".to_owned(), usage)]));
    }

    #[test]
    fn what_cpus_keep_at_hand_is_a_share_of_a_large_cache() {
        let usage = |room| Usage { in_use: room, room, in_slab: 21, pages: 1 };
        assert!(usage(100).at_hand() >= LEAST);
        assert!(usage(1_000_000_000).at_hand() >= 31_250_000);
    }
}
