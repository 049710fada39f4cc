//! Constants that the loader writes into the BPF object before it is loaded.

/// When a full stack is taken.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StackMode {
    /// For the first allocations of a call site, a sample after that, and all once suspect.
    Adaptive = 0,
    /// For every allocation.
    All = 1,
    /// Never: the call site alone.
    Site = 2,
}

/// Read-only data of the BPF object: the verifier folds it and drops branches not taken.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Config {
    /// Allocations smaller than this are not tracked.
    pub min_size_bytes: u64,
    /// Allocations larger than this are not tracked.
    pub max_size_bytes: u64,
    /// Text of the entries of interrupts: `__irqentry_text_start` and `_end`; 0 if unknown.
    pub irq_start: u64,
    /// See [`Config::irq_start`].
    pub irq_end: u64,
    /// Text of the entry of soft interrupts: `__softirqentry_text_start` and `_end`.
    pub softirq_start: u64,
    /// See [`Config::softirq_start`].
    pub softirq_end: u64,
    /// A [`StackMode`].
    pub stack_mode: u32,
    /// Most frames taken of a stack, up to [`crate::MAX_FRAMES`].
    pub max_frames: u32,
    /// Slots in `SITES`.
    pub max_sites: u32,
    /// Process whose own kernel allocations are left out: leaktrace itself.
    pub own_tgid: u32,
    /// 1: kernel allocations of the processes in `FILTER_TGIDS` only.
    pub filter_tgids: u32,
    /// 1: kernel allocations of the commands in `FILTER_COMMS` only, those of threads and of their
    /// processes; or processes of these commands are traced once they begin.
    pub filter_comms: u32,
    /// 1: kernel allocations from the caches in `FILTER_CACHES` and `FILTER_KMALLOC` only.
    pub filter_caches: u32,
    /// 1: kernel allocations by calls that lie in `MODULE_TEXT` only.
    pub filter_modules: u32,
    /// 1: kernel allocations of the tasks in `cgroups` only; or processes in them are traced once
    /// they begin.
    pub filter_cgroups: u32,
    /// 1: kernel allocations with the GFP flags of a test in `gfp` only.
    pub filter_gfp: u32,
    /// Index of the `bytes_req` argument of the `kmalloc` tracepoint.
    pub kmalloc_size_arg: u32,
    /// Index of the `struct kmem_cache *` argument of `kmem_cache_alloc`, 0 if there is none.
    pub cache_arg: u32,
    /// Index of the `bytes_req` argument of `kmem_cache_alloc`, 0 if there is none.
    pub cache_size_arg: u32,
    /// Offset of `name` in `struct kmem_cache`.
    pub cache_name_offset: u32,
    /// Offset of `object_size` in `struct kmem_cache`.
    pub cache_object_size_offset: u32,
    /// GFP flags that choose a kmalloc cache (`__GFP_RECLAIMABLE`, `__GFP_ACCOUNT`, `__GFP_DMA`).
    pub gfp_cache_mask: u32,
    /// Buckets in `BLOCKS`.
    pub buckets: u32,
    /// Spaces of process images are below this.
    pub spaces: u32,
    /// 1: pairs of functions are traced (`--pair`).
    pub pairs: u32,
    /// 1: the second argument of `kvfree_call_rcu` is the offset of its first in the object.
    pub rcu_call_offset: u32,
    /// Index of the `size` argument of `percpu_alloc_percpu`.
    pub percpu_size_arg: u32,
    /// CPUs that may ever come.
    pub possible_cpus: u32,
    /// Offset of `tgid` in `struct task_struct`.
    pub task_tgid_offset: u32,
    /// Offset of `mm` in `struct task_struct`.
    pub task_mm_offset: u32,
    /// 1: also pages of processes, of files and of other allocators.
    pub all_pages: u32,
    /// `__GFP_MOVABLE`: pages of processes and of files.
    pub gfp_movable: u32,
    /// log2 of the bytes of `struct page`.
    pub page_struct_shift: u32,
    /// Bits of [`Follow`]: which processes are traced once they begin.
    pub follow: u32,
    /// Offset of `signal` in `struct task_struct`; 0: ends of processes are not told.
    pub task_signal_offset: u32,
    /// Offset of `live` in `struct signal_struct`.
    pub signal_live_offset: u32,
    /// Offset of `flags` in `struct signal_struct`.
    pub signal_flags_offset: u32,
    /// Offset of `group_exec_task` in `struct signal_struct`; 0 if there is none.
    pub signal_exec_offset: u32,
    /// Offset of `group_leader` in `struct task_struct`; 0: names of processes are not known.
    pub task_leader_offset: u32,
    /// Offset of `comm` in `struct task_struct`.
    pub task_comm_offset: u32,
    /// Offset of `start_time` in `struct task_struct`.
    pub task_start_offset: u32,
    /// 1: allocations of processes are sampled by the interval in `SAMPLING`, which may be 0.
    pub sampling: u32,
    /// 1: hits of probes in processes are counted in `CALLS`.
    pub count_calls: u32,
    /// 1 or 2: raw tracepoint programs can be preempted, and those that then would be missed have a
    /// second program; 2: they make the [`crate::KernelCall`]s that switch preemption off and on.
    pub preemptible: u32,
    /// Never anything but 0: see `own_stack` of leaktrace-ebpf.
    pub tail_calls: u32,
    /// 1: rare refusals are told one by one (`-vv`).
    pub log: u32,
    /// Where the kernel keeps what it knows of a mapping.
    pub areas: AreaLayout,
    /// Where the address of the cache of packets' heads lies; 0 if unknown.
    pub skb_cache_at: u64,
    /// Where `kfree_rcu` keeps what waits for its grace period; all zero where that is unknown.
    pub rcu: RcuLayout,
    /// The kernel's own text, from its first address to its last one.
    pub kernel_text: TextRange,
    /// Of modules that come and go.
    pub module: crate::ModuleLayout,
    /// Tests of GFP flags, any of which may hold.
    pub gfp: [GfpTest; GFP_TESTS],
    /// Control groups, in any of which a task may be; those with id 0 hold none.
    pub cgroups: [CgroupTest; CGROUPS],
    /// Functions of the kernel's other allocators, whose pages count as theirs.
    pub page_owners: [TextRange; PAGE_OWNERS],
    /// Functions of kmalloc that tell a large block as their own before it is told as the caller's.
    pub traced_twice: [TextRange; TRACED_TWICE],
}

/// Offsets in `struct vm_area_struct` and what it leads to; all zero on a kernel without
/// `bpf_find_vma` (before 5.17), or where they are not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AreaLayout {
    /// `vm_start`
    pub start: u32,
    /// `vm_end`
    pub end: u32,
    /// `vm_pgoff`
    pub file_offset: u32,
    /// `vm_flags`
    pub flags: u32,
    /// `vm_file`
    pub file: u32,
    /// `f_mode` in `struct file`
    pub mode: u32,
    /// `f_inode` in `struct file`
    pub inode: u32,
    /// `user_path.dentry` in `struct backing_file`, of which a file of overlayfs is the first
    /// member; 0 on a kernel that has none (before 6.7).
    pub user_entry: u32,
    /// `d_inode` in `struct dentry`
    pub entry_inode: u32,
    /// `i_ino` in `struct inode`
    pub number: u32,
    /// `i_sb` there
    pub super_block: u32,
    /// `s_dev` in `struct super_block`
    pub device: u32,
    /// [`crate::Unwinding`] of code without a file.
    pub without_file: u32,
    /// [`crate::Unwinding`] of a file that is not in `OBJECTS`.
    pub unknown_file: u32,
}

/// Bits of [`Config::follow`].
pub struct Follow;

impl Follow {
    /// Children of traced processes are traced.
    pub const CHILDREN: u32 = 1;
    /// All processes but the loader are traced.
    pub const ALL: u32 = 2;
}

/// Tests in [`Config::gfp`].
pub const GFP_TESTS: usize = 8;
/// Ranges in one value of `MODULE_TEXT`.
pub const TEXT_RANGES: usize = 16;
/// Modules that can be asked for; the other ranges are for the text of their start.
pub const MODULES_MOST: usize = 12;
/// Groups in [`Config::cgroups`].
pub const CGROUPS: usize = 4;
/// Ranges in [`Config::page_owners`].
pub const PAGE_OWNERS: usize = 24;
/// Ranges in [`Config::traced_twice`]: two for each function, as compilers put what runs rarely apart
/// (`NAME.cold`).
pub const TRACED_TWICE: usize = 16;

/// Holds for GFP flags that have this value under this mask.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GfpTest {
    /// Flags that are looked at.
    pub mask: u32,
    /// Those of them that are to be set.
    pub value: u32,
}

impl GfpTest {
    /// Holds for nothing.
    pub const NEVER: Self = Self { mask: 0, value: 1 };
}

impl Default for GfpTest {
    fn default() -> Self {
        Self::NEVER
    }
}

/// A control group of the unified hierarchy; holds the tasks in it and in the groups below it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupTest {
    /// Its number, which is the inode of its folder; 0 holds none.
    pub id: u64,
    /// Groups above it.
    pub level: u32,
    /// Always zero.
    pub zero: u32,
}

impl CgroupTest {
    /// Holds nothing.
    pub const NONE: Self = Self { id: 0, level: 0, zero: 0 };
}

/// Addresses of code.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextRange {
    /// First address.
    pub start: u64,
    /// Address behind the last one.
    pub end: u64,
}

impl TextRange {
    /// Holds nothing.
    pub const EMPTY: Self = Self { start: 0, end: 0 };
}

/// How mm/slab_common.c (from 6.15; kernel/rcu/tree.c before) keeps the objects handed to
/// `kfree_rcu`: pages of pointers, listed by CPU until a work item frees them in bulk.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RcuLayout {
    /// Address of `kfree_rcu_work`, which frees what waited for a grace period.
    pub work_function: u64,
    /// Address of `kfree_rcu_monitor`, which hands on what a CPU has gathered.
    pub monitor_function: u64,
    /// Offset of `func` in `struct work_struct`.
    pub func_offset: u32,
    /// Offset of `bulk_head_free` in `struct kfree_rcu_cpu_work`, from its work item.
    pub work_list_offset: u32,
    /// Offset of `monitor_work` in `struct kfree_rcu_cpu`.
    pub monitor_offset: u32,
    /// Offset of `bulk_head` in `struct kfree_rcu_cpu`.
    pub monitor_list_offset: u32,
    /// Offset of `nr_records` in `struct kvfree_rcu_bulk_data`.
    pub count_offset: u32,
    /// Offset of `records` in `struct kvfree_rcu_bulk_data`.
    pub records_offset: u32,
}

const _: () = assert!(size_of::<RcuLayout>() == 2 * 8 + 6 * 4);
const _: () = assert!(size_of::<CgroupTest>() == 16);
const _: () = assert!(size_of::<GfpTest>() == 8 && size_of::<TextRange>() == 16);
const _: () = assert!(
    size_of::<Config>()
        == 7 * 8
            + 40 * 4
            + size_of::<AreaLayout>()
            + size_of::<RcuLayout>()
            + size_of::<TextRange>()
            + size_of::<crate::ModuleLayout>()
            + GFP_TESTS * 8
            + (CGROUPS + PAGE_OWNERS + TRACED_TWICE) * 16
);
