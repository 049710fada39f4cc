//! Memory that an allocator takes for itself while it serves a caller, or keeps until later. It
//! belongs to no caller, and is never a leak of the caller that happened to be served.
//!
//! The innermost function outside the allocators' entry functions ([`super::owner`]) identifies
//! such memory; where that function is an entry function itself, the call does.

use leaktrace_common::Kind;

use super::{FrameView, Owner, Totals};

/// Who keeps memory, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keeper {
    /// Vectors that say which control group each object of a slab is charged to; they live as long
    /// as the slab.
    SlabMetadata,
    /// Arrays for the lists of a control group's inodes, dentries and shadow nodes; they live as
    /// long as the group.
    ListLru,
    /// Records of address areas, which vmalloc frees in batches after the areas
    /// (purge_vmap_area_lazy), and the arrays of page pointers that vmalloc allocates from itself.
    Vmalloc,
    /// Packet buffer heads that each CPU caches for the next packets.
    SkbCache,
    /// Maps of the chunks of percpu memory.
    Percpu,
    /// glibc or its dynamic loader, see `libraries`.
    CLibrary,
    /// libstdc++ in its constructors: the pool for exceptions.
    CplusplusLibrary,
}

/// The functions that keep memory: mm/slub.c, mm/slab.h, mm/memcontrol.c, mm/list_lru.c,
/// mm/vmalloc.c, mm/percpu.c; 5.15 to 6.18.
const FUNCTIONS: [(&str, Keeper); 20] = [
    ("alloc_slab_obj_exts", Keeper::SlabMetadata),
    ("memcg_alloc_slab_cgroups", Keeper::SlabMetadata),
    ("memcg_alloc_page_obj_cgroups", Keeper::SlabMetadata),
    ("__memcg_slab_post_alloc_hook", Keeper::SlabMetadata),
    ("memcg_slab_post_alloc_hook", Keeper::SlabMetadata),
    ("account_slab", Keeper::SlabMetadata),
    ("allocate_slab", Keeper::SlabMetadata),
    ("new_slab", Keeper::SlabMetadata),
    ("___slab_alloc", Keeper::SlabMetadata),
    ("alloc_empty_sheaf", Keeper::SlabMetadata),
    ("__alloc_empty_sheaf", Keeper::SlabMetadata),
    ("memcg_list_lru_alloc", Keeper::ListLru),
    ("__memcg_list_lru_alloc", Keeper::ListLru),
    ("memcg_init_list_lru_one", Keeper::ListLru),
    ("memcg_init_list_lru", Keeper::ListLru),
    ("alloc_vmap_area", Keeper::Vmalloc),
    ("va_clip", Keeper::Vmalloc),
    ("adjust_va_to_fit_type", Keeper::Vmalloc),
    ("pcpu_create_chunk", Keeper::Percpu),
    ("pcpu_alloc_chunk", Keeper::Percpu),
];

impl Keeper {
    /// Every keeper, in the order of a report.
    pub const ALL: [Self; 7] = [
        Self::SlabMetadata,
        Self::ListLru,
        Self::Vmalloc,
        Self::SkbCache,
        Self::Percpu,
        Self::CLibrary,
        Self::CplusplusLibrary,
    ];

    /// The keeper's name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SlabMetadata => "slab_metadata",
            Self::ListLru => "list_lru",
            Self::Vmalloc => "vmalloc",
            Self::SkbCache => "skb_cache",
            Self::Percpu => "percpu",
            Self::CLibrary => "c_library",
            Self::CplusplusLibrary => "cplusplus_library",
        }
    }
}

/// The memory that one keeper keeps, over all call sites.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    /// Who keeps it, and what for.
    pub keeper: Keeper,
    /// The figures of that memory.
    pub totals: Totals,
}

/// The keeper of memory that an allocator took for itself. `has_skb_cache` says that the probes see
/// who takes a head out of a CPU's cache, so that the heads in the cache belong to nobody.
pub(super) fn keeper(
    kind: Kind,
    is_page_array: bool,
    stack: &[FrameView],
    owner: Option<&Owner>,
    has_skb_cache: bool,
) -> Option<Keeper> {
    let symbols = || stack.iter().map(|frame| frame.symbol.as_deref().map(plain));
    match kind {
        Kind::Vmalloc => {
            // Where the kernel does not tell the call, it is in the stack twice.
            let calls = symbols().filter(|symbol| *symbol == Some("__vmalloc_node_range"));
            (is_page_array || calls.count() > 1).then_some(Keeper::Vmalloc)
        }
        Kind::Kmalloc | Kind::KmemCache | Kind::Pages => {
            let mut innermost = symbols();
            let (first, second) = (innermost.next().flatten(), innermost.next().flatten());
            if first == Some("kmem_cache_alloc_bulk")
                && second.is_some_and(|symbol| symbol.starts_with("napi_skb_cache_get"))
            {
                return has_skb_cache.then_some(Keeper::SkbCache);
            }
            let of = |symbol: &str| {
                FUNCTIONS.iter().find(|(name, _)| *name == symbol).map(|(_, keeper)| *keeper)
            };
            let owner = owner.filter(|owner| owner.module == "vmlinux");
            first.and_then(of).or_else(|| of(plain(owner?.symbol.as_deref()?)))
        }
        Kind::Percpu | Kind::Malloc | Kind::Mmap | Kind::Pair => None,
    }
}

/// A function's name without the suffixes of the compiler and of allocation profiling (from 6.10).
fn plain(symbol: &str) -> &str {
    let name = symbol.split('.').next().unwrap_or(symbol);
    name.strip_suffix("_noprof").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: Kind, stack: &[&str], expected: Option<Keeper>) {
        let frames: Vec<FrameView> = stack
            .iter()
            .map(|symbol| FrameView {
                address: 1,
                symbol: Some((*symbol).to_owned()),
                linkage: None,
                offset: 0,
                object: Some("vmlinux".into()),
                file: None,
                line: None,
                inlined: false,
                by_frame_pointer: false,
                made_at_run_time: false,
                unknown: None,
                load: None,
            })
            .collect();
        let owner = super::super::owner::find(&frames);
        let got = keeper(kind, false, &frames, owner.as_ref(), true);
        assert_eq!(got, expected, "{stack:?}");
    }

    #[test]
    fn what_an_allocator_takes_for_itself_is_its_own() {
        let slab =
            ["alloc_slab_obj_exts", "__memcg_slab_post_alloc_hook", "kmem_cache_alloc_noprof"];
        check(Kind::Kmalloc, &slab, Some(Keeper::SlabMetadata));
        check(Kind::KmemCache, &["xas_alloc", "xas_store", "memcg_list_lru_alloc.part.0"], {
            Some(Keeper::ListLru)
        });
        let area = ["alloc_vmap_area", "__get_vm_area_node", "__vmalloc_node_range_noprof"];
        check(Kind::KmemCache, &area, Some(Keeper::Vmalloc));
        // The block itself, and the array of its pages.
        check(Kind::Vmalloc, &["__vmalloc_node_range_noprof", "vmalloc_noprof", "xyz"], None);
        let range = "__vmalloc_node_range_noprof";
        check(
            Kind::Vmalloc,
            &[range, "__vmalloc_node_noprof", range, "xyz"],
            Some(Keeper::Vmalloc),
        );
        let refill = ["kmem_cache_alloc_bulk", "napi_skb_cache_get", "__alloc_skb", "xyz"];
        check(Kind::KmemCache, &refill, Some(Keeper::SkbCache));
        check(Kind::KmemCache, &refill[1..], None);
        check(Kind::Kmalloc, &["__d_alloc", "d_alloc", "alloc_slab_obj_exts"], None);
    }
}
