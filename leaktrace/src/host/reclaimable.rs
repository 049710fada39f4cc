//! Which slab caches the kernel counts as reclaimable: under pressure it takes back those of their
//! objects that nobody uses (`SLAB_RECLAIM_ACCOUNT`, include/linux/slab.h; `SReclaimable` in
//! /proc/meminfo).

use std::{collections::HashMap, fs, path::Path};

/// The directory with an entry for each name of a cache; the other names of merged caches are links
/// to the entry of the cache (mm/slub.c). Caches are only merged where this property is the same
/// (SLAB_MERGE_SAME, mm/slab_common.c).
const FOLDER: &str = "/sys/kernel/slab";

/// Caches that are made with `SLAB_RECLAIM_ACCOUNT`, 5.15 to 6.18: fs/dcache.c, fs/inode.c,
/// fs/buffer.c, lib/radix-tree.c, fs/mbcache.c, fs/quota/dquot.c, block/bdev.c, net/socket.c,
/// drivers/dax/super.c, fs/jbd2/{journal,revoke,transaction}.c, and the file systems of the names.
const KNOWN: [&str; 44] = [
    "bdev_cache",
    "btrfs_inode",
    "buffer_head",
    "ceph_inode_info",
    "cifs_inode_cache",
    "dax_cache",
    "debugfs_inode_cache",
    "dentry",
    "dquot",
    "erofs_inode",
    "ext4_allocation_context",
    "ext4_extent_status",
    "ext4_free_data",
    "ext4_groupinfo_1k",
    "ext4_groupinfo_2k",
    "ext4_groupinfo_4k",
    "ext4_inode_cache",
    "ext4_io_end",
    "ext4_pending_reservation",
    "ext4_prealloc_space",
    "extent_status",
    "f2fs_inode_cache",
    "fat_inode_cache",
    "fuse_inode",
    "inode_cache",
    "isofs_inode_cache",
    "jbd2_inode",
    "jbd2_journal_handle",
    "jbd2_journal_head",
    "jbd2_revoke_record_s",
    "jbd2_revoke_table_s",
    "jbd2_transaction_s",
    "mb_cache_entry",
    "mbcache",
    "nfs_inode_cache",
    "ovl_inode",
    "pending_reservation",
    "proc_inode_cache",
    "radix_tree_node",
    "sock_inode_cache",
    "squashfs_inode_cache",
    "tracefs_inode_cache",
    "xfs_buf",
    "xfs_inode",
];
/// How the names of kmalloc's caches for reclaimable memory begin (mm/slab_common.c).
const KMALLOC: &str = "kmalloc-rcl-";

/// Tells which slab caches are reclaimable; remembers the answers.
#[derive(Debug)]
pub struct Reclaimable {
    /// The folder of the caches; `None` where the kernel does not show it.
    folder: Option<&'static Path>,
    answers: HashMap<String, bool>,
}

impl Reclaimable {
    /// Asks this kernel.
    pub fn of_running_kernel() -> Self {
        Self::of(Path::new(FOLDER))
    }

    /// Asks the kernel's folder. Without SLUB there is none, nor in SLUB_TINY.
    fn of(folder: &'static Path) -> Self {
        let is_told = folder.join("dentry/reclaim_account").exists();
        Self { folder: is_told.then_some(folder), answers: HashMap::new() }
    }

    /// Whether the kernel says of each cache what it is; otherwise a list of known caches does.
    pub fn is_told(&self) -> bool {
        self.folder.is_some()
    }

    /// Whether a cache is reclaimable.
    pub fn has(&mut self, cache: &str) -> bool {
        if let Some(answer) = self.answers.get(cache) {
            return *answer;
        }
        // A name is no path: the kernel writes another letter for a slash (kobject_set_name_vargs(),
        // lib/kobject.c).
        let file = |folder: &Path| folder.join(cache.replace('/', "!")).join("reclaim_account");
        let told = self.folder.and_then(|folder| fs::read_to_string(file(folder)).ok());
        let answer = match told {
            Some(text) => text.trim() == "1",
            None => cache.starts_with(KMALLOC) || KNOWN.contains(&cache),
        };
        self.answers.insert(cache.to_owned(), answer);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked_and_else_the_list() {
        let folder = tempfile::tempdir().unwrap();
        let path: &'static Path = Box::leak(folder.path().to_path_buf().into_boxed_path());
        let mut listed = Reclaimable::of(path);
        assert!(!listed.is_told());
        for (cache, expected) in
            [("dentry", true), ("kmalloc-rcl-64", true), ("kmalloc-64", false), ("filp", false)]
        {
            assert_eq!(listed.has(cache), expected, "{cache}");
        }
        for (cache, answer) in [("dentry", "1\n"), ("xyz", "1\n"), ("inode_cache", "0\n")] {
            fs::create_dir(path.join(cache)).unwrap();
            fs::write(path.join(cache).join("reclaim_account"), answer).unwrap();
        }
        let mut told = Reclaimable::of(path);
        assert!(told.is_told());
        for (cache, expected) in [("dentry", true), ("xyz", true), ("inode_cache", false)] {
            assert_eq!(told.has(cache), expected, "{cache}");
        }
        // What went with its module is remembered.
        fs::remove_dir_all(path.join("xyz")).unwrap();
        assert!(told.has("xyz"));
    }

    #[test]
    fn the_list_is_sorted() {
        assert!(KNOWN.is_sorted());
    }
}
