//! The slab caches of kmalloc: tells from size and GFP flags which one an allocation came from.

use std::{collections::HashSet, fs};

/// Sizes of the objects in kmalloc's caches (create_kmalloc_caches(), mm/slab_common.c, 6.1 and
/// 6.18).
const SIZES: [u64; 13] = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];

/// The GFP flags by which kmalloc chooses a cache (kmalloc_type(), include/linux/slab.h).
#[derive(Clone, Copy, Debug, Default)]
pub struct GfpFlags {
    /// `__GFP_DMA`
    pub dma: u32,
    /// `__GFP_RECLAIMABLE`
    pub reclaimable: u32,
    /// `__GFP_ACCOUNT`
    pub account: u32,
}

/// Names of those of kmalloc's caches that this kernel has.
#[derive(Clone, Debug, Default)]
pub struct KmallocNames {
    gfp: GfpFlags,
    known: HashSet<String>,
}

impl KmallocNames {
    /// Reads the names of the running kernel.
    pub fn read(gfp: GfpFlags) -> Self {
        let slabinfo = fs::read_to_string("/proc/slabinfo").unwrap_or_default();
        let known = slabinfo
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect();
        Self { gfp, known }
    }

    /// Every detail of a kmalloc site ([`leaktrace_common::SiteKey::detail`]) that has one of
    /// these names.
    pub fn details(&self, names: &[String]) -> Vec<u64> {
        let GfpFlags { dma, reclaimable, account } = self.gfp;
        let mut details = Vec::new();
        for bytes in SIZES {
            for flags in 0..8 {
                let flag = |bit: u32, value: u32| if flags & bit != 0 { value } else { 0 };
                let flags = flag(1, dma) | flag(2, reclaimable) | flag(4, account);
                let detail = u64::from(flags) << 32 | bytes;
                if names.contains(&self.name(detail)) {
                    details.push(detail);
                }
            }
        }
        details
    }

    /// The name of the cache behind a site's detail: the object's size, and the flags above bit 32.
    pub fn name(&self, detail: u64) -> String {
        let (bytes, flags) = (detail & 0xffff_ffff, (detail >> 32) as u32);
        let size = if bytes >= 1024 && bytes % 1024 == 0 {
            format!("{}k", bytes / 1024)
        } else {
            bytes.to_string()
        };
        // The order of kmalloc_type(), include/linux/slab.h, 5.14 to 6.18.
        let special = if flags & self.gfp.dma != 0 {
            Some(format!("dma-kmalloc-{size}"))
        } else if flags & self.gfp.reclaimable != 0 {
            Some(format!("kmalloc-rcl-{size}"))
        } else if flags & self.gfp.account != 0 {
            Some(format!("kmalloc-cg-{size}"))
        } else {
            None
        };
        special
            .filter(|name| self.known.contains(name))
            .unwrap_or_else(|| format!("kmalloc-{size}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_details_that_have_it() {
        let gfp = GfpFlags { dma: 1, reclaimable: 0x10, account: 0x40_0000 };
        let known = ["kmalloc-64", "kmalloc-cg-64", "kmalloc-1k"].map(str::to_owned).into();
        let names = KmallocNames { gfp, known };
        let details = names.details(&["kmalloc-cg-64".to_owned()]);
        assert_eq!(details, [0x40_0000 << 32 | 64]);
        let details = names.details(&["kmalloc-1k".to_owned()]);
        assert!(details.contains(&1024) && details.iter().all(|at| at & 0xffff_ffff == 1024));
        assert_eq!(names.details(&["dentry".to_owned()]), [0; 0]);
    }
}
