//! The kernel's allocators that take memory from the page allocator. leaktrace does not count their
//! pages a second time.

use leaktrace_common::{PAGE_OWNERS, TRACED_TWICE, TextRange};

use super::kallsyms;

/// The functions of those allocators. One of them is in the stack of each such allocation, and in
/// no other stack. Kernels have different ones, as the compiler inlines some.
const FUNCTIONS: [&str; 24] = [
    // Slabs: mm/slub.c (5.15 to 6.18), mm/slab.c (to 6.7).
    "alloc_slab_page",
    "allocate_slab",
    "new_slab",
    "___slab_alloc",
    "cache_grow_begin",
    // Large kmallocs: mm/slub.c, mm/slab_common.c.
    "kmalloc_order",
    "kmalloc_large",
    "kmalloc_large_node",
    "__kmalloc_large_node",
    "___kmalloc_large_node",
    "__kmalloc_large_noprof",
    "__kmalloc_large_node_noprof",
    // vmalloc and its page tables: mm/vmalloc.c.
    "__vmalloc_area_node",
    "__vmalloc_node_range",
    "__vmalloc_node_range_noprof",
    // Percpu chunks: mm/percpu-vm.c.
    "pcpu_alloc_pages",
    "pcpu_populate_chunk",
    // Files whose pages do not move, and pages of processes: mm/filemap.c, mm/mempolicy.c.
    "__page_cache_alloc",
    "__filemap_get_folio",
    "__filemap_get_folio_mpol",
    "filemap_alloc_folio",
    "filemap_alloc_folio_noprof",
    "vma_alloc_folio",
    "vma_alloc_folio_noprof",
];

/// Functions of kmalloc that report a large block as their own before kmalloc reports it as the
/// caller's; several, as the compiler inlines `__do_kmalloc_node` and its callers: mm/slub.c, 6.11
/// to 7.2.
const TRACED_TWICE_FUNCTIONS: [&str; TRACED_TWICE / 2] = [
    "__do_kmalloc_node",
    "__kmalloc_noprof",
    "__kmalloc_node_noprof",
    "__kmalloc_node_track_caller_noprof",
    "__kvmalloc_node_noprof",
    "__do_krealloc",
    "krealloc_noprof",
    "krealloc_node_align_noprof",
];

/// Ranges of `TRACED_TWICE_FUNCTIONS` in this kernel; empty before 6.10, or where /proc/kallsyms
/// hides addresses.
pub fn traced_twice() -> [TextRange; TRACED_TWICE] {
    let mut ranges = [TextRange::EMPTY; TRACED_TWICE];
    for (range, (start, end)) in ranges.iter_mut().zip(kallsyms::ranges(&TRACED_TWICE_FUNCTIONS)) {
        *range = TextRange { start, end };
    }
    ranges
}

/// Ranges of `FUNCTIONS` in this kernel; `None` where /proc/kallsyms hides addresses, and where
/// there are more ranges than the programs look at.
pub fn ranges() -> Option<[TextRange; PAGE_OWNERS]> {
    let found = kallsyms::ranges(&FUNCTIONS);
    if found.is_empty() || found.len() > PAGE_OWNERS {
        return None;
    }
    let mut ranges = [TextRange::EMPTY; PAGE_OWNERS];
    for (range, (start, end)) in ranges.iter_mut().zip(found) {
        *range = TextRange { start, end };
    }
    Some(ranges)
}
