//! The layout of what the BPF programs read in the running kernel: the positions of tracepoint
//! arguments and the offsets of members, from its BTF. leaktrace never assumes a kernel version.

use std::path::Path;

use leaktrace_common::{AreaLayout, ModuleLayout, RcuLayout, TextRange};

use super::{
    btf::{Btf, Param},
    kallsyms,
};
use crate::error::Error;

/// The BTF of the kernel proper.
pub(super) const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The layout of the running kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelLayout {
    /// Positions of the arguments of the slab tracepoints.
    pub slab: SlabArguments,
    /// Offset of `name` in `struct kmem_cache`.
    pub cache_name_offset: u32,
    /// Offset of `object_size` in `struct kmem_cache`.
    pub cache_object_size_offset: u32,
    /// `__GFP_DMA`
    pub gfp_dma: u32,
    /// `__GFP_RECLAIMABLE`
    pub gfp_reclaimable: u32,
    /// `__GFP_ACCOUNT`
    pub gfp_account: u32,
    /// Where `kfree_rcu` keeps the objects that it gathers, if this kernel does so in a known way.
    pub rcu: Option<RcuLayout>,
    /// Whether the second argument of `kvfree_call_rcu` is an offset, as up to 6.3.
    pub rcu_call_offset: bool,
    /// Position of `size` in percpu_alloc_percpu, if the tracepoint has a known shape.
    pub percpu_size: Option<u32>,
    /// Start and end of the text of interrupt entries, then of soft interrupt entries; 0 if
    /// unknown.
    pub interrupts: [u64; 4],
    /// `__GFP_MOVABLE`
    pub gfp_movable: u32,
    /// log2 of the bytes of `struct page`, if the tracepoints of pages have a known shape.
    pub page_struct_shift: Option<u32>,
    /// The function that every vmalloc calls, if its arguments are known.
    pub vmalloc: Option<&'static str>,
    /// Where the name of a process lies.
    pub names: Option<NameLayout>,
    /// The kernel's own text, if it is known.
    pub text: Option<TextRange>,
    /// Where `struct module` has what leaktrace follows.
    pub module: Modules,
    /// The function that allocates slab objects in bulk, if its arguments are known.
    pub alloc_bulk: Option<&'static str>,
    /// The cache of packet buffer heads, if this kernel has it in a known way.
    pub skb_cache: Option<SkbCache>,
}

/// Whether and how leaktrace can follow modules that come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modules {
    /// This kernel has no modules: no code can come.
    None,
    /// The kernel lays modules out in a way that leaktrace does not know.
    Unknown,
    /// The offsets in `struct module`.
    Known(ModuleLayout),
}

/// Where the kernel keeps the name of a process, and what shows its start and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameLayout {
    /// Offset of `group_leader` in `struct task_struct`.
    pub leader_offset: u32,
    /// Offset of `comm` in `struct task_struct`.
    pub comm_offset: u32,
    /// Offset of `start_time` in `struct task_struct`.
    pub start_offset: u32,
    /// Offset of `signal` in `struct task_struct`.
    pub signal_offset: u32,
    /// Offset of `live` in `struct signal_struct`.
    pub live_offset: u32,
}

/// The packet buffer heads that each CPU caches: see leaktrace-ebpf's `bulk_alloc` module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkbCache {
    /// Address of the pointer to the slab cache of the heads.
    pub cache_at: u64,
    /// Whether the kernel has a function that takes many heads at once.
    pub has_bulk: bool,
    /// Whether a function of its own puts a head back; the compiler may have inlined it.
    pub has_put: bool,
}

/// Positions of arguments, as a raw tracepoint program counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabArguments {
    /// Position of `bytes_req` in kmalloc; `bytes_alloc` and `gfp_flags` follow it.
    pub kmalloc_size: u32,
    /// Position of `struct kmem_cache *` in kmem_cache_alloc, if it is passed.
    pub cache: Option<u32>,
    /// Position of `bytes_req` in kmem_cache_alloc, if it is passed.
    pub cache_size: Option<u32>,
    /// Whether the `*_node` variants exist (up to 6.0).
    pub node_variants: bool,
}

/// The offsets by which the programs follow processes: who is whose child, and who ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskLayout {
    /// Offset of `tgid` in `struct task_struct`.
    pub tgid_offset: u32,
    /// Offset of `mm` in `struct task_struct`.
    pub mm_offset: u32,
    /// Offset of `signal` in `struct task_struct`.
    pub signal_offset: u32,
    /// Offset of `live` in `struct signal_struct`, to which `signal` points.
    pub live_offset: u32,
    /// Offset of `flags` in `struct signal_struct`.
    pub flags_offset: u32,
    /// Offset of `group_exec_task` in `struct signal_struct`: from 5.17.
    pub exec_offset: Option<u32>,
    /// Offsets in the mapping that `bpf_find_vma` finds, where the kernel has that helper: from
    /// 5.17.
    pub areas: Option<AreaLayout>,
}

impl TaskLayout {
    /// Reads the running kernel's layout.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] when the kernel has no BTF.
    pub fn of_running_kernel() -> Result<Self, Error> {
        let btf = read_btf("following processes from their start on")?;
        let offset = |name, member| {
            btf.member_offset(name, member).ok_or_else(|| unknown(&format!("struct {name}")))
        };
        Ok(Self {
            tgid_offset: offset("task_struct", "tgid")?,
            mm_offset: offset("task_struct", "mm")?,
            signal_offset: offset("task_struct", "signal")?,
            live_offset: offset("signal_struct", "live")?,
            flags_offset: offset("signal_struct", "flags")?,
            exec_offset: btf.member_offset("signal_struct", "group_exec_task"),
            areas: area_layout(&btf),
        })
    }
}

/// The offsets in a mapping, if the kernel has the helper that finds one.
fn area_layout(btf: &Btf) -> Option<AreaLayout> {
    btf.enumerator("BPF_FUNC_find_vma")?;
    let of_area = |member| btf.member_offset("vm_area_struct", member);
    Some(AreaLayout {
        start: of_area("vm_start")?,
        end: of_area("vm_end")?,
        file_offset: of_area("vm_pgoff")?,
        flags: of_area("vm_flags")?,
        file: of_area("vm_file")?,
        mode: btf.member_offset("file", "f_mode")?,
        inode: btf.member_offset("file", "f_inode")?,
        user_entry: btf.member_offset("backing_file", "user_path.dentry").unwrap_or(0),
        entry_inode: btf.member_offset("dentry", "d_inode")?,
        number: btf.member_offset("inode", "i_ino")?,
        super_block: btf.member_offset("inode", "i_sb")?,
        device: btf.member_offset("super_block", "s_dev")?,
        ..AreaLayout::default()
    })
}

/// The kernel's BTF, for something that cannot do without.
fn read_btf(what: &str) -> Result<Btf, Error> {
    Btf::read(Path::new(VMLINUX_BTF)).map_err(|error| {
        Error::Host(format!(
            "{what} needs the kernel's type information, {VMLINUX_BTF}: {error} (a kernel built \
             with CONFIG_DEBUG_INFO_BTF has it)"
        ))
    })
}

fn unknown(what: &str) -> Error {
    Error::Host(format!(
        "this kernel's {what} is not laid out in a way that leaktrace knows; please report the \
         kernel's version"
    ))
}

/// Values of GFP flags on the running kernel. Each flag is given by its name without `__GFP_` and
/// by the value that it had before the kernel had enumerators; a value is `None` if the kernel does
/// not tell.
///
/// # Errors
///
/// [`Error::Host`] when the kernel has no BTF.
pub fn gfp_values(flags: &[(&str, u32)]) -> Result<Vec<Option<u32>>, Error> {
    let btf = read_btf("--gfp")?;
    let has_enumerators = btf.enumerator("___GFP_DMA_BIT").is_some();
    let value = |(name, older): &(&str, u32)| {
        if has_enumerators {
            let bit = btf.enumerator(&format!("___GFP_{name}_BIT"));
            bit.filter(|bit| *bit < 32).map(|bit| 1 << bit)
        } else {
            Some(*older).filter(|older| *older != 0)
        }
    };
    Ok(flags.iter().map(value).collect())
}

impl KernelLayout {
    /// Reads the layout of the running kernel.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] when the kernel has no BTF, or its types are not those that leaktrace knows.
    pub fn of_running_kernel() -> Result<Self, Error> {
        let btf = read_btf("kernel mode")?;
        let slab = slab_arguments(
            &btf.tracepoint("kmalloc").ok_or_else(|| unknown("tracepoint kmalloc"))?,
            &btf.tracepoint("kmem_cache_alloc")
                .ok_or_else(|| unknown("tracepoint kmem_cache_alloc"))?,
            btf.tracepoint("kmalloc_node").is_some(),
        )
        .ok_or_else(|| unknown("kmalloc or kmem_cache_alloc tracepoint"))?;
        let offset = |member| {
            btf.member_offset("kmem_cache", member).ok_or_else(|| unknown("struct kmem_cache"))
        };
        // Before 6.10 these were plain constants: include/linux/gfp_types.h, 6.1.
        let gfp = |name: &str, older: u32| {
            btf.enumerator(name).filter(|bit| *bit < 32).map_or(older, |bit| 1 << bit)
        };
        Ok(Self {
            slab,
            cache_name_offset: offset("name")?,
            cache_object_size_offset: offset("object_size")?,
            gfp_dma: gfp("___GFP_DMA_BIT", 0x01),
            gfp_reclaimable: gfp("___GFP_RECLAIMABLE_BIT", 0x10),
            gfp_account: gfp("___GFP_ACCOUNT_BIT", 0x40_0000),
            gfp_movable: gfp("___GFP_MOVABLE_BIT", 0x08),
            page_struct_shift: page_struct_shift(
                btf.tracepoint("mm_page_alloc").as_deref(),
                btf.tracepoint("mm_page_free").as_deref(),
                btf.struct_bytes("page"),
            ),
            rcu: rcu_layout(&btf),
            interrupts: interrupt_text(),
            percpu_size: btf
                .tracepoint("percpu_alloc_percpu")
                .and_then(|params| percpu_size(&params)),
            vmalloc: vmalloc_function(|name| btf.function(name)),
            names: name_layout(&btf),
            text: kernel_text(),
            module: module_layout(&btf),
            alloc_bulk: alloc_bulk_function(|name| btf.function(name)),
            skb_cache: skb_cache(&btf),
            rcu_call_offset: btf
                .function("kvfree_call_rcu")
                .is_some_and(|params| rcu_call_offset(&params)),
        })
    }
}

impl KernelLayout {
    /// The offsets in `struct module`; all zero if modules cannot be followed.
    pub fn followed_modules(&self) -> ModuleLayout {
        match (self.module, self.text) {
            (Modules::Known(layout), Some(_)) => layout,
            _ => ModuleLayout::default(),
        }
    }
}

/// Finds positions by type: the table in leaktrace-ebpf's slab module shows the shapes.
fn slab_arguments(
    kmalloc: &[Param],
    kmem_cache_alloc: &[Param],
    node_variants: bool,
) -> Option<SlabArguments> {
    let size_of = |params: &[Param]| {
        params.iter().position(|param| *param == Param::Typedef("size_t".into()))
    };
    let cache = kmem_cache_alloc
        .iter()
        .position(|param| *param == Param::StructPointer("kmem_cache".into()));
    let kmalloc_size = size_of(kmalloc)?;
    // bytes_req, bytes_alloc, gfp_flags stand together in every shape.
    let together = [
        Param::Typedef("size_t".into()),
        Param::Typedef("size_t".into()),
        Param::Typedef("gfp_t".into()),
    ];
    if kmalloc.get(kmalloc_size..kmalloc_size + 3) != Some(&together) {
        return None;
    }
    let cache_size = size_of(kmem_cache_alloc);
    if cache.is_none() && cache_size.is_none() {
        return None;
    }
    Some(SlabArguments {
        kmalloc_size: kmalloc_size as u32,
        cache: cache.map(|at| at as u32),
        cache_size: cache_size.map(|at| at as u32),
        node_variants,
    })
}

/// Bounds of the sections of interrupt entries (include/asm-generic/vmlinux.lds.h, 6.1 and 6.18).
fn interrupt_text() -> [u64; 4] {
    let names = [
        "__irqentry_text_start",
        "__irqentry_text_end",
        "__softirqentry_text_start",
        "__softirqentry_text_end",
    ];
    let addresses = kallsyms::addresses(&names);
    let mut bounds = [0; 4];
    for (bound, address) in bounds.iter_mut().zip(addresses) {
        *bound = address.unwrap_or(0);
    }
    bounds
}

/// Bounds of the kernel's own code (include/asm-generic/vmlinux.lds.h, 6.1 and 6.18).
fn kernel_text() -> Option<TextRange> {
    match kallsyms::addresses(&["_stext", "_etext"]).as_slice() {
        [Some(start), Some(end)] => Some(TextRange { start: *start, end: *end }),
        _ => None,
    }
}

/// The offsets in `struct module` of name and code (include/linux/module.h). Up to 6.3 the kernel
/// has two layouts, each with its code first; from 6.4 on it has seven parts.
fn module_layout(btf: &Btf) -> Modules {
    if btf.tracepoint("module_load").is_none() || btf.tracepoint("module_free").is_none() {
        return Modules::None;
    }
    let offset = |path| btf.member_offset("module", path);
    let known = || {
        let name = offset("name")?;
        let layout = match offset("mem") {
            Some(parts) => {
                let part = |path| btf.member_offset("module_memory", path);
                let (base, bytes) = (part("base")?, part("size")?);
                let part_bytes = btf.struct_bytes("module_memory")?;
                let at = |number| Some(parts + btf.enumerator(number)? * part_bytes);
                let (text, init) = (at("MOD_TEXT")?, at("MOD_INIT_TEXT")?);
                [text + base, text + bytes, init + base, init + bytes]
            }
            None => [
                offset("core_layout.base")?,
                offset("core_layout.text_size")?,
                offset("init_layout.base")?,
                offset("init_layout.text_size")?,
            ],
        };
        let [text_base, text_bytes, init_base, init_bytes] = layout;
        Some(ModuleLayout { name, text_base, text_bytes, init_base, init_bytes, is_known: 1 })
    };
    known().map_or(Modules::Unknown, Modules::Known)
}

/// Position of `size`: the table in leaktrace-ebpf's percpu module shows the shapes.
fn percpu_size(params: &[Param]) -> Option<u32> {
    let size = params.iter().position(|param| *param == Param::Typedef("size_t".into()))?;
    matches!((size, params.len()), (2, 7) | (3, 10)).then_some(size as u32)
}

/// log2 of the bytes of a `struct page`, if the tracepoints of pages have the shapes that the table
/// in leaktrace-ebpf's pages module shows.
fn page_struct_shift(
    alloc: Option<&[Param]>,
    free: Option<&[Param]>,
    struct_bytes: Option<u32>,
) -> Option<u32> {
    let page = Param::StructPointer("page".into());
    let known = alloc?.starts_with(&[page.clone(), Param::Other, Param::Typedef("gfp_t".into())])
        && free? == [page, Param::Other];
    let bytes = struct_bytes.filter(|bytes| bytes.is_power_of_two())?;
    known.then(|| bytes.ilog2())
}

/// Whether the second argument of `kvfree_call_rcu` is an offset that is passed as a function
/// pointer's type (up to 6.3), and no plain pointer.
fn rcu_call_offset(params: &[Param]) -> bool {
    params.get(1) == Some(&Param::Typedef("rcu_callback_t".into()))
}

/// The function that every vmalloc calls; from 6.10 on allocating functions have another name. The
/// caller is the last of its nine arguments.
fn vmalloc_function(params_of: impl Fn(&str) -> Option<Vec<Param>>) -> Option<&'static str> {
    ["__vmalloc_node_range_noprof", "__vmalloc_node_range"]
        .into_iter()
        .find(|name| params_of(name).is_some_and(|params| params.len() == 9))
}

fn name_layout(btf: &Btf) -> Option<NameLayout> {
    let of_task = |member| btf.member_offset("task_struct", member);
    Some(NameLayout {
        leader_offset: of_task("group_leader")?,
        comm_offset: of_task("comm")?,
        start_offset: of_task("start_time")?,
        signal_offset: of_task("signal")?,
        live_offset: btf.member_offset("signal_struct", "live")?,
    })
}

/// The function that allocates slab objects in bulk; arguments s, flags, size, p (mm/slub.c, 5.15
/// to 6.18).
fn alloc_bulk_function(params_of: impl Fn(&str) -> Option<Vec<Param>>) -> Option<&'static str> {
    ["kmem_cache_alloc_bulk_noprof", "kmem_cache_alloc_bulk"]
        .into_iter()
        .find(|name| params_of(name).is_some_and(|params| params.len() == 4))
}

/// The cache of packet buffer heads: net/core/skbuff.c, 5.15 to 6.18. From 6.9 on the pointer to it
/// is a member of a struct (include/net/hotdata.h).
fn skb_cache(btf: &Btf) -> Option<SkbCache> {
    btf.function("napi_skb_cache_get")?;
    let names = ["net_hotdata", "skbuff_head_cache", "skbuff_cache"];
    let addresses = kallsyms::addresses(&names);
    let cache_at = match (addresses.first()?, btf.member_offset("net_hotdata", "skbuff_cache")) {
        (Some(address), Some(offset)) => Some(address + u64::from(offset)),
        _ => addresses.iter().skip(1).find_map(|address| *address),
    };
    let has_bulk = btf.function("napi_skb_cache_get_bulk").is_some_and(|params| params.len() == 2);
    let has_put = btf.function("napi_skb_cache_put").is_some_and(|params| params.len() == 1);
    Some(SkbCache { cache_at: cache_at?, has_bulk, has_put })
}

/// Offsets of kfree_rcu's lists: mm/slab_common.c from 6.15, kernel/rcu/tree.c from 6.4.
fn rcu_layout(btf: &Btf) -> Option<RcuLayout> {
    btf.tracepoint("workqueue_execute_start")?;
    let work_list = btf.member_offset("kfree_rcu_cpu_work", "bulk_head_free")?;
    let work = btf.member_offset("kfree_rcu_cpu_work", "rcu_work.work")?;
    // The pages are linked by their first member, a list_head (before 6.4: a plain pointer).
    if btf.member_offset("kvfree_rcu_bulk_data", "list.next")? != 0 {
        return None;
    }
    let symbols = kallsyms::addresses(&["kfree_rcu_work", "kfree_rcu_monitor"]);
    Some(RcuLayout {
        work_function: *symbols.first()?.as_ref()?,
        monitor_function: *symbols.get(1)?.as_ref()?,
        func_offset: btf.member_offset("work_struct", "func")?,
        work_list_offset: work_list.checked_sub(work)?,
        monitor_offset: btf.member_offset("kfree_rcu_cpu", "monitor_work.work")?,
        monitor_list_offset: btf.member_offset("kfree_rcu_cpu", "bulk_head")?,
        count_offset: btf.member_offset("kvfree_rcu_bulk_data", "nr_records")?,
        records_offset: btf.member_offset("kvfree_rcu_bulk_data", "records")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `c`: unsigned long, `p`: pointer, `s`: struct kmem_cache *, `z`: size_t, `g`: gfp_t,
    /// `i`: int.
    fn params(shape: &str) -> Vec<Param> {
        shape
            .chars()
            .map(|letter| match letter {
                'p' => Param::Pointer,
                's' => Param::StructPointer("kmem_cache".into()),
                'z' => Param::Typedef("size_t".into()),
                'g' => Param::Typedef("gfp_t".into()),
                _ => Param::Other,
            })
            .collect()
    }

    fn check(kmalloc: &str, cache_alloc: &str, expected: Option<(u32, Option<u32>, Option<u32>)>) {
        let got = slab_arguments(&params(kmalloc), &params(cache_alloc), false)
            .map(|found| (found.kmalloc_size, found.cache, found.cache_size));
        assert_eq!(got, expected, "{kmalloc} {cache_alloc}");
    }

    #[test]
    fn every_known_shape_is_found() {
        // 5.15
        check("cpzzg", "cpzzg", Some((2, None, Some(2))));
        // 5.19 and 6.0
        check("cpszzg", "cpszzg", Some((3, Some(2), Some(3))));
        // 6.1 to 6.18
        check("cpzzgi", "cpsgi", Some((2, Some(2), None)));
    }

    #[test]
    fn an_unknown_shape_is_refused() {
        check("cpg", "cpsgi", None);
        check("cpzzgi", "cpg", None);
        check("cpzgz", "cpsgi", None);
    }

    #[test]
    fn percpu_memory_has_two_shapes() {
        // To 5.17: reserved, is_atomic, size, align, base_addr, off, ptr.
        assert_eq!(percpu_size(&params("iizzpip")), Some(2));
        // From 5.18: call_site first, bytes_alloc and gfp_flags last.
        assert_eq!(percpu_size(&params("ciizzpipzg")), Some(3));
        assert_eq!(percpu_size(&params("ciizzpip")), None);
        assert_eq!(percpu_size(&params("iip")), None);
    }

    #[test]
    fn kvfree_call_rcu_has_two_shapes() {
        let head = || Param::StructPointer("callback_head".into());
        // 5.15 and 6.1
        assert!(rcu_call_offset(&[head(), Param::Typedef("rcu_callback_t".into())]));
        // 6.6 to 6.18
        assert!(!rcu_call_offset(&[head(), Param::Pointer]));
        assert!(!rcu_call_offset(&[]));
    }

    #[test]
    fn vmalloc_has_two_names() {
        // size, align, start, end, gfp_mask, prot, vm_flags, node, caller
        let nine = || params("ccccgccip");
        let of = |known: &'static str, shape: Vec<Param>| {
            vmalloc_function(|name| (name == known).then(|| shape.clone()))
        };
        // 5.15 to 6.9
        assert_eq!(of("__vmalloc_node_range", nine()), Some("__vmalloc_node_range"));
        // 6.10 to 6.18
        let noprof = "__vmalloc_node_range_noprof";
        assert_eq!(of(noprof, nine()), Some(noprof));
        assert_eq!(of(noprof, params("ccg")), None);
    }

    #[test]
    fn bulk_allocation_has_two_names() {
        let of = |known: &'static str, shape: &'static str| {
            alloc_bulk_function(|name| (name == known).then(|| params(shape)))
        };
        // 5.15 to 6.9, and from 6.10 on.
        assert_eq!(of("kmem_cache_alloc_bulk", "sgzp"), Some("kmem_cache_alloc_bulk"));
        let noprof = "kmem_cache_alloc_bulk_noprof";
        assert_eq!(of(noprof, "sgzp"), Some(noprof));
        assert_eq!(of(noprof, "sgz"), None);
    }

    #[test]
    fn pages_have_one_shape() {
        let page = || Param::StructPointer("page".into());
        // 5.15 to 6.18
        let alloc = [page(), Param::Other, Param::Typedef("gfp_t".into()), Param::Other];
        let free = [page(), Param::Other];
        assert_eq!(page_struct_shift(Some(&alloc), Some(&free), Some(64)), Some(6));
        // Blocks could not be told from their parts.
        assert_eq!(page_struct_shift(Some(&alloc), Some(&free), Some(56)), None);
        let number = [Param::Other, Param::Other];
        assert_eq!(page_struct_shift(Some(&alloc), Some(&number), Some(64)), None);
        assert_eq!(page_struct_shift(None, Some(&free), Some(64)), None);
    }

    #[test]
    fn the_running_kernel_says_where_mappings_are() {
        if Path::new(VMLINUX_BTF).exists() {
            let layout = TaskLayout::of_running_kernel().unwrap();
            let has_helper = read_btf("").unwrap().enumerator("BPF_FUNC_find_vma").is_some();
            assert_eq!(layout.areas.is_some(), has_helper);
            assert!(layout.areas.is_none_or(|areas| areas.file != 0 && areas.device != 0));
        }
    }

    #[test]
    fn the_running_kernel_has_a_layout() {
        if Path::new(VMLINUX_BTF).exists() {
            let layout = KernelLayout::of_running_kernel().unwrap();
            assert!(layout.cache_name_offset > 0);
            assert_eq!(layout.gfp_account, 0x40_0000);
            assert_eq!(layout.page_struct_shift, Some(6));
        }
    }
}
