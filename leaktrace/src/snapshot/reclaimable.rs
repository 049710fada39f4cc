//! Slab caches that the kernel takes back under pressure.

use std::collections::BTreeSet;

/// The reclaimable ones among the slab caches of a snapshot's sites.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reclaimable {
    /// Their names, as the sites have them.
    pub caches: BTreeSet<String>,
    /// Whether a list of known caches told them, as the kernel does not.
    pub is_listed: bool,
    /// Whether such caches were left out (`--unreclaimable`).
    pub are_left_out: bool,
}

impl Reclaimable {
    /// The functions that allocate what security modules keep of each inode: freed with the inode,
    /// and so taken back with it, though the kernel does not count it so (security_inode_free,
    /// security/security.c, 5.15 to 6.18). Not the slab cache tells it, as others of its size may be
    /// merged with it.
    pub const OF_INODES: [&str; 2] = ["security_inode_alloc", "lsm_inode_alloc"];
}
