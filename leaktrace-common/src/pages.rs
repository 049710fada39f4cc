//! Blocks of pages that are freed in parts.

/// log2 of the pages of the largest block (`MAX_ORDER`, include/linux/mmzone.h, and its
/// successor `MAX_PAGE_ORDER`, x86_64).
pub const MAX_PAGE_ORDER: u32 = 10;
/// Number of [`PageRegion`]s, a power of two. On a machine with more than 16 GiB, several regions
/// share one.
pub const PAGE_REGIONS_COUNT: u32 = 4096;

/// State of one region: as many pages as the largest block has.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PageRegion {
    /// Number of tracked blocks of more than one page in the region.
    pub larger_blocks: u64,
    /// 1 while a CPU splits a block of the region.
    pub lock: u64,
}

const _: () = assert!(size_of::<PageRegion>() == 16);
