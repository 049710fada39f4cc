//! Names of GFP flags, in the form that `--gfp` and the kernel's sources use.

/// A name, and the flags that an allocation must and must not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GfpName {
    /// The name: `GFP_ATOMIC`, `__GFP_RECLAIM`, ...; a single flag stands without `__GFP_`.
    pub name: &'static str,
    /// Single flags that must be set, by name without `__GFP_`.
    pub set: &'static [&'static str],
    /// Single flags that must be clear, by name without `__GFP_`.
    pub clear: &'static [&'static str],
}

/// A single flag, and its value in kernels before 6.10, which have no enumerators for the flags
/// (include/linux/gfp_types.h, 6.1; gfp.h, 5.15); 0 if the flag is newer, or if its value has
/// changed.
pub const FLAGS: [(&str, u32); 27] = [
    ("DMA", 0x01),
    ("HIGHMEM", 0x02),
    ("DMA32", 0x04),
    ("MOVABLE", 0x08),
    ("RECLAIMABLE", 0x10),
    ("HIGH", 0x20),
    ("IO", 0x40),
    ("FS", 0x80),
    ("ZERO", 0x100),
    ("DIRECT_RECLAIM", 0x400),
    ("KSWAPD_RECLAIM", 0x800),
    ("WRITE", 0x1000),
    ("NOWARN", 0x2000),
    ("RETRY_MAYFAIL", 0x4000),
    ("NOFAIL", 0x8000),
    ("NORETRY", 0x1_0000),
    ("MEMALLOC", 0x2_0000),
    ("COMP", 0x4_0000),
    ("NOMEMALLOC", 0x8_0000),
    ("HARDWALL", 0x10_0000),
    ("THISNODE", 0x20_0000),
    ("ACCOUNT", 0x40_0000),
    ("ZEROTAGS", 0),
    ("SKIP_ZERO", 0),
    ("SKIP_KASAN", 0),
    ("NOLOCKDEP", 0),
    ("NO_OBJ_EXT", 0),
];

/// Names that stand for several flags (include/linux/gfp_types.h). What an allocation may do to get
/// memory tells the names apart, so that `GFP_KERNEL` does not also match `GFP_NOWAIT`.
const COMMON: [GfpName; 13] = [
    common("GFP_ATOMIC", &["HIGH", "KSWAPD_RECLAIM"], &["DIRECT_RECLAIM", "IO", "FS"]),
    common("GFP_NOWAIT", &["KSWAPD_RECLAIM"], &["HIGH", "DIRECT_RECLAIM", "IO", "FS"]),
    common("GFP_KERNEL", &["DIRECT_RECLAIM", "KSWAPD_RECLAIM", "IO", "FS"], &["HIGH"]),
    common(
        "GFP_KERNEL_ACCOUNT",
        &["DIRECT_RECLAIM", "KSWAPD_RECLAIM", "IO", "FS", "ACCOUNT"],
        &["HIGH"],
    ),
    common("GFP_NOIO", &["DIRECT_RECLAIM", "KSWAPD_RECLAIM"], &["HIGH", "IO", "FS"]),
    common("GFP_NOFS", &["DIRECT_RECLAIM", "KSWAPD_RECLAIM", "IO"], &["HIGH", "FS"]),
    common("GFP_USER", &["DIRECT_RECLAIM", "KSWAPD_RECLAIM", "IO", "FS", "HARDWALL"], &["HIGH"]),
    common(
        "GFP_HIGHUSER",
        &["DIRECT_RECLAIM", "KSWAPD_RECLAIM", "IO", "FS", "HARDWALL", "HIGHMEM"],
        &["HIGH"],
    ),
    common(
        "GFP_HIGHUSER_MOVABLE",
        &["DIRECT_RECLAIM", "KSWAPD_RECLAIM", "IO", "FS", "HARDWALL", "HIGHMEM", "MOVABLE"],
        &["HIGH"],
    ),
    common("GFP_DMA", &["DMA"], &[]),
    common("GFP_DMA32", &["DMA32"], &[]),
    common("__GFP_RECLAIM", &["DIRECT_RECLAIM", "KSWAPD_RECLAIM"], &[]),
    // Gone since 6.4, where this is what it meant.
    common("__GFP_ATOMIC", &["HIGH", "KSWAPD_RECLAIM"], &["DIRECT_RECLAIM"]),
];

const fn common(
    name: &'static str,
    set: &'static [&'static str],
    clear: &'static [&'static str],
) -> GfpName {
    GfpName { name, set, clear }
}

/// The flags that a name stands for.
pub fn find(name: &str) -> Option<GfpName> {
    if let Some(common) = COMMON.iter().find(|common| common.name == name) {
        return Some(*common);
    }
    let flag = name.strip_prefix("__GFP_")?;
    let (flag, _) = FLAGS.iter().find(|(known, _)| *known == flag)?;
    let set: &'static [&'static str] = std::slice::from_ref(flag);
    Some(GfpName { name: flag, set, clear: &[] })
}

/// The names that are most similar to this one.
pub fn nearest(name: &str) -> Vec<String> {
    let bare = |name: &str| {
        let upper = name.to_uppercase();
        let upper = upper.trim_start_matches('_');
        upper.strip_prefix("GFP_").unwrap_or(upper).to_owned()
    };
    let wanted = bare(name);
    let flags = FLAGS.iter().map(|(flag, _)| format!("__GFP_{flag}"));
    let mut names: Vec<String> =
        COMMON.iter().map(|common| common.name.to_owned()).chain(flags).collect();
    names.sort_by_cached_key(|name| distance(&bare(name), &wanted));
    names.truncate(3);
    names
}

/// Number of letters to add, remove or change to turn one name into the other.
pub fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.bytes().enumerate() {
        let mut diagonal = at;
        let mut left = at + 1;
        for (cell, against) in row.iter_mut().skip(1).zip(other.bytes()) {
            let above = *cell;
            *cell = (above + 1).min(left + 1).min(diagonal + usize::from(letter != against));
            (diagonal, left) = (above, *cell);
        }
        if let Some(first) = row.first_mut() {
            *first = at + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_or_have_neighbours() {
        assert_eq!(find("__GFP_ZERO").map(|name| name.set), Some(&["ZERO"][..]));
        assert!(find("GFP_ZERO").is_none() && find("ZERO").is_none());
        assert_eq!(nearest("GFP_ZERO")[0], "__GFP_ZERO");
        assert_eq!(nearest("gfp_atomc")[0], "GFP_ATOMIC");
        assert_eq!(
            (distance("kitten", "sitting"), distance("", "ab"), distance("a", "a")),
            (3, 2, 0)
        );
    }

    #[test]
    fn every_name_is_made_of_known_flags() {
        for name in COMMON {
            for flag in name.set.iter().chain(name.clear) {
                assert!(FLAGS.iter().any(|(known, _)| known == flag), "{flag}");
            }
        }
    }
}
