//! What the kernel itself counts of its slab caches: /proc/slabinfo.

use std::{collections::BTreeMap, fs};

/// Objects in use by slab cache; nothing where the kernel does not tell. Objects that a CPU keeps
/// for its next allocations count as in use (mm/slub.c, 6.1 and 6.18), some hundred a cache.
pub fn active_objects() -> Option<BTreeMap<String, i64>> {
    Some(parse(&fs::read_to_string("/proc/slabinfo").ok()?))
}

/// `name <active_objs> <num_objs> ...` after two lines of headings.
fn parse(text: &str) -> BTreeMap<String, i64> {
    text.lines()
        .skip(2)
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_column_counts() {
        let text = "slabinfo - version: 2.1\n\
                    # name <active_objs> <num_objs> <objsize>\n\
                    dentry 12180 12222 192 21 1 : tunables 0 0 0 : slabdata 582 582 0\n";
        assert_eq!(parse(text), BTreeMap::from([("dentry".to_owned(), 12180)]));
    }
}
