//! The owner of a kernel allocation: the innermost frame outside the allocators, and outside the
//! helpers that allocate for whoever calls them.
//!
//! The list of helpers is short on purpose, and docs/json.md has it. A function that makes a thing
//! of its own (a dentry, a bio) owns the memory of it, whoever asked for the thing.

use super::FrameView;

/// The function and the module that an allocation is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The function; `None` where only the module is known, which is unloaded.
    pub symbol: Option<String>,
    /// The module of the function; `vmlinux` for the kernel proper.
    pub module: String,
    /// The load of that module.
    pub(super) load: Option<u32>,
}

/// Beginnings of the names, without leading underscores, of allocators and their helpers. Only
/// functions of the kernel proper count, as a module may use such names for its own functions.
const HELPERS: [&str; 75] = [
    // mm/slub.c, mm/slab_common.c, mm/util.c, include/linux/slab.h
    "kmalloc",
    "kzalloc",
    "kcalloc",
    "krealloc",
    "kvmalloc",
    "kvzalloc",
    "kvcalloc",
    "kvrealloc",
    "kmem_cache_alloc",
    "kmem_cache_zalloc",
    "kmem_cache_create",
    "create_cache",
    "slab_alloc",
    "slab_post_alloc",
    "kmemdup",
    "kvmemdup",
    "kstrdup",
    "kstrndup",
    "memdup_user",
    "vmemdup_user",
    "strndup_user",
    // lib/kasprintf.c, lib/bitmap.c, lib/scatterlist.c
    "kasprintf",
    "kvasprintf",
    "bitmap_alloc",
    "bitmap_zalloc",
    "sg_alloc_table",
    "sg_kmalloc",
    // mm/vmalloc.c
    "vmalloc",
    "vzalloc",
    "vmap",
    "vm_map_ram",
    "alloc_vmap_area",
    "get_vm_area",
    "new_vmap_block",
    // mm/percpu.c, lib/percpu_counter.c, lib/percpu-refcount.c
    "pcpu_alloc",
    "alloc_percpu",
    "percpu_counter_init",
    "percpu_ref_init",
    // mm/page_alloc.c
    "alloc_pages",
    "get_free_pages",
    "alloc_frozen_pages",
    "get_zeroed_page",
    "folio_alloc",
    "page_frag_",
    "skb_page_frag_refill",
    // kernel/dma/mapping.c, kernel/dma/direct.c
    "dma_alloc_",
    "dma_direct_alloc",
    // mm/mempool.c, mm/dmapool.c
    "mempool_alloc",
    "mempool_kmalloc",
    "mempool_create",
    "mempool_init",
    "dma_pool_alloc",
    // drivers/base/devres.c
    "devm_k",
    "devres_alloc",
    "alloc_dr",
    // net/core/skbuff.c, net/core/sock.c
    "alloc_skb",
    "netdev_alloc_skb",
    "napi_alloc_skb",
    "build_skb",
    "napi_build_skb",
    "napi_skb_cache_get",
    "skb_clone",
    "skb_copy",
    "pskb_",
    "sock_alloc_send",
    "sock_wmalloc",
    "tcp_stream_alloc_skb",
    // fs/seq_file.c
    "seq_open",
    "single_open",
    // lib/radix-tree.c, lib/xarray.c, lib/idr.c, lib/maple_tree.c
    "radix_tree_",
    "xas_",
    "xa_",
    "idr_alloc",
    "ida_alloc",
    "mas_",
];

/// The object name of the kernel proper.
const VMLINUX: &str = "vmlinux";

/// The owner of an allocation with this stack, innermost frame first; `None` where only helpers are
/// known, or where a frame before the owner has no name.
pub(super) fn find(stack: &[FrameView]) -> Option<Owner> {
    for frame in stack {
        let object = frame.object.as_deref()?;
        match &frame.symbol {
            Some(symbol) if object == VMLINUX && is_helper(symbol) => continue,
            // No helper lies in a module.
            None if frame.load.is_none() => return None,
            Some(_) | None => {}
        }
        let module = object.trim_start_matches('[').trim_end_matches(']').to_owned();
        return Some(Owner { symbol: frame.symbol.clone(), module, load: frame.load });
    }
    None
}

/// Whether a frame is one of the functions through which vmalloc is called (mm/vmalloc.c,
/// mm/util.c, mm/slub.c).
pub(super) fn is_allocator(frame: &FrameView) -> bool {
    const FUNCTIONS: [&str; 9] = [
        "vmalloc",
        "vzalloc",
        "vrealloc",
        "kvmalloc",
        "kvzalloc",
        "kvrealloc",
        "alloc_vmap_area",
        "get_vm_area",
        "vmap",
    ];
    let symbol = frame.symbol.as_deref().map(|symbol| symbol.trim_start_matches('_'));
    frame.object.as_deref() == Some("vmlinux")
        && symbol.is_some_and(|name| FUNCTIONS.iter().any(|own| name.starts_with(own)))
}

fn is_helper(symbol: &str) -> bool {
    let name = symbol.trim_start_matches('_');
    HELPERS.iter().any(|helper| name.starts_with(helper))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(symbol: Option<&str>, object: &str) -> FrameView {
        FrameView {
            address: 1,
            symbol: symbol.map(str::to_owned),
            linkage: None,
            offset: 0,
            object: Some(object.into()),
            file: None,
            line: None,
            inlined: false,
            by_frame_pointer: false,
            made_at_run_time: false,
            unknown: None,
            load: None,
        }
    }

    fn check(symbols: &[(&str, &str)], expected: Option<(&str, &str)>) {
        let stack: Vec<FrameView> =
            symbols.iter().map(|(symbol, object)| frame(Some(symbol), object)).collect();
        let owner = find(&stack);
        let got = owner
            .as_ref()
            .map(|owner| (owner.symbol.as_deref().unwrap_or_default(), owner.module.as_str()));
        assert_eq!(got, expected, "{symbols:?}");
    }

    #[test]
    fn helpers_are_passed_over() {
        check(&[("__d_alloc", "vmlinux")], Some(("__d_alloc", "vmlinux")));
        check(
            &[
                ("__kmalloc_node_track_caller_noprof", "vmlinux"),
                ("kmalloc_reserve", "vmlinux"),
                ("__alloc_skb", "vmlinux"),
                ("xyz_send.isra.0", "[xyz]"),
                ("dev_hard_start_xmit", "vmlinux"),
            ],
            Some(("xyz_send.isra.0", "xyz")),
        );
        check(
            &[("alloc_dr", "vmlinux"), ("devm_kmalloc", "vmlinux"), ("xyz_probe", "[xyz]")],
            Some(("xyz_probe", "xyz")),
        );
        check(&[("seq_open", "vmlinux"), ("kernfs_fop_open", "vmlinux")], {
            Some(("kernfs_fop_open", "vmlinux"))
        });
    }

    #[test]
    fn a_module_s_own_functions_are_no_helpers() {
        for own in ["xa_new", "vmapped", "mas_open", "__alloc_skb_pool"] {
            check(&[("kmalloc_trace", "vmlinux"), (own, "[xyz]"), ("xyz_probe", "[xyz]")], {
                Some((own, "xyz"))
            });
        }
    }

    /// A lone helper is not the owner, and a frame without a name may be one.
    #[test]
    fn an_unknown_owner_is_not_guessed() {
        check(&[("__alloc_skb", "vmlinux")], None);
        let stack = [frame(None, "vmlinux"), frame(Some("xyz_probe"), "[xyz]")];
        assert_eq!(find(&stack), None);
    }
}
