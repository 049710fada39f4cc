//! Slab caches that the kernel takes back under pressure.

use std::collections::BTreeSet;

/// The reclaimable ones among the slab caches of a snapshot's sites.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reclaimable {
    /// Their names, as the sites have them.
    pub caches: BTreeSet<String>,
    /// Whether a list of known caches told them, as the kernel does not.
    pub is_listed: bool,
}
