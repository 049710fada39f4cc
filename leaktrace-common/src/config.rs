//! Constants that the loader writes into the BPF object before it is loaded.

/// When a full stack is taken.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StackMode {
    /// For the first allocations of a call site, for a sample after that, and for all once the
    /// loader marks the call site as suspect.
    Adaptive = 0,
    /// For every allocation.
    All = 1,
    /// Never: a report shows the call site alone.
    Site = 2,
}

/// Read-only data of the BPF object. The verifier treats every field as a constant and drops the
/// branches that are not taken.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Config {
    /// Allocations smaller than this are not tracked.
    pub min_size_bytes: u64,
    /// Allocations larger than this are not tracked.
    pub max_size_bytes: u64,
    /// Text of interrupt entries, from `__irqentry_text_start` to `__irqentry_text_end`; 0 if
    /// unknown.
    pub irq_start: u64,
    /// See [`Config::irq_start`].
    pub irq_end: u64,
    /// Text of the soft interrupt entry, from `__softirqentry_text_start` to
    /// `__softirqentry_text_end`.
    pub softirq_start: u64,
    /// See [`Config::softirq_start`].
    pub softirq_end: u64,
    /// A [`StackMode`].
    pub stack_mode: u32,
    /// Most frames of a stack, up to [`crate::MAX_FRAMES`].
    pub max_frames: u32,
    /// Slots in `SITES`.
    pub max_sites: u32,
    /// Process ID of leaktrace, whose own kernel allocations are left out.
    pub own_tgid: u32,
    /// 1: track kernel allocations of the processes in `FILTER_TGIDS` only.
    pub filter_tgids: u32,
    /// 1: track kernel allocations only of threads in `FILTER_COMMS`, by the thread's command name
    /// or its process'; in user mode, trace processes with these command names once they begin.
    pub filter_comms: u32,
    /// A [`Choice`] of slab caches, those in `FILTER_CACHES` and `FILTER_KMALLOC`.
    pub filter_caches: u32,
    /// A [`Choice`] of modules, those with their code in `MODULE_TEXT`.
    pub filter_modules: u32,
    /// 1: track kernel allocations of the tasks in `cgroups` only; in user mode, trace processes in
    /// those control groups once they begin.
    pub filter_cgroups: u32,
    /// 1: track kernel allocations only if their GFP flags pass a test in `gfp`.
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
    /// Every space of a process image is below this number.
    pub spaces: u32,
    /// 1: leaktrace traces pairs of functions (`--pair`).
    pub pairs: u32,
    /// 1: the second argument of `kvfree_call_rcu` is the offset in the object of the `rcu_head`
    /// that the first argument points to.
    pub rcu_call_offset: u32,
    /// Index of the `size` argument of `percpu_alloc_percpu`.
    pub percpu_size_arg: u32,
    /// Number of possible CPUs: those that may ever come online.
    pub possible_cpus: u32,
    /// Offset of `tgid` in `struct task_struct`.
    pub task_tgid_offset: u32,
    /// Offset of `mm` in `struct task_struct`.
    pub task_mm_offset: u32,
    /// 1: also track the pages of processes, of files and of other allocators.
    pub all_pages: u32,
    /// `__GFP_MOVABLE`, the flag of pages of processes and of files.
    pub gfp_movable: u32,
    /// log2 of the bytes of `struct page`.
    pub page_struct_shift: u32,
    /// Bits of [`Follow`]: which processes leaktrace traces once they begin.
    pub follow: u32,
    /// Offset of `signal` in `struct task_struct`; 0: the programs do not report the end of a
    /// process.
    pub task_signal_offset: u32,
    /// Offset of `live` in `struct signal_struct`.
    pub signal_live_offset: u32,
    /// Offset of `flags` in `struct signal_struct`.
    pub signal_flags_offset: u32,
    /// Offset of `group_exec_task` in `struct signal_struct`; 0 if there is none.
    pub signal_exec_offset: u32,
    /// Offset of `group_leader` in `struct task_struct`; 0: the programs do not know process names.
    pub task_leader_offset: u32,
    /// Offset of `comm` in `struct task_struct`.
    pub task_comm_offset: u32,
    /// Offset of `start_time` in `struct task_struct`.
    pub task_start_offset: u32,
    /// 1: sample user allocations by the interval in `SAMPLING`, which may be 0.
    pub sampling: u32,
    /// 1: count the hits of user probes in `CALLS`.
    pub count_calls: u32,
    /// 1 or 2: raw tracepoint programs can be preempted, so each tracepoint that would miss events
    /// has a second program. 2: the programs also make the [`crate::KernelCall`]s that switch
    /// preemption off and on.
    pub preemptible: u32,
    /// Always 0: see `own_stack` of leaktrace-ebpf.
    pub tail_calls: u32,
    /// 1: report each rare refusal in a line of its own (`-vv`).
    pub log: u32,
    /// Where the kernel stores the properties of a mapping.
    pub areas: AreaLayout,
    /// Address of the pointer to the slab cache of packet buffer heads; 0 if unknown.
    pub skb_cache_at: u64,
    /// Where `kfree_rcu` stores the objects that wait for a grace period; all zero if unknown.
    pub rcu: RcuLayout,
    /// The kernel's own text, from its first address to its last one.
    pub kernel_text: TextRange,
    /// Where `struct module` stores what the programs report of a module.
    pub module: crate::ModuleLayout,
    /// Tests of GFP flags; an allocation is wanted if one of them holds.
    pub gfp: [GfpTest; GFP_TESTS],
    /// Control groups; a task is wanted if it is in one of them. A group with id 0 holds no task.
    pub cgroups: [CgroupTest; CGROUPS],
    /// Functions of the kernel's other allocators: the pages that they allocate belong to them.
    pub page_owners: [TextRange; PAGE_OWNERS],
    /// Functions of kmalloc that report a large block as their own before kmalloc reports the same
    /// block as the caller's.
    pub traced_twice: [TextRange; TRACED_TWICE],
}

/// Offsets in `struct vm_area_struct` and in the structures that it points to. All are zero on a
/// kernel without `bpf_find_vma` (before 5.17), or where the offsets are not known.
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
    /// Offset of `user_path.dentry` in `struct backing_file`, whose first member is the `struct
    /// file` that overlayfs maps; 0 on a kernel without that structure (before 6.7).
    pub user_entry: u32,
    /// `d_inode` in `struct dentry`
    pub entry_inode: u32,
    /// `i_ino` in `struct inode`
    pub number: u32,
    /// `i_sb` in `struct inode`
    pub super_block: u32,
    /// `s_dev` in `struct super_block`
    pub device: u32,
    /// The [`crate::Unwinding`] of code that no file backs.
    pub without_file: u32,
    /// The [`crate::Unwinding`] of code whose file is not in `OBJECTS`.
    pub unknown_file: u32,
}

/// What a filter does with what it names.
pub struct Choice;

impl Choice {
    /// The filter names nothing, and all is tracked.
    pub const ALL: u32 = 0;
    /// Track what the filter names, and nothing else.
    pub const ONLY: u32 = 1;
    /// Track all but what the filter names.
    pub const ALL_BUT: u32 = 2;
}

/// Bits of [`Config::follow`].
pub struct Follow;

impl Follow {
    /// Trace the children of traced processes.
    pub const CHILDREN: u32 = 1;
    /// Trace all processes but the loader.
    pub const ALL: u32 = 2;
}

/// Number of tests in [`Config::gfp`].
pub const GFP_TESTS: usize = 8;
/// Number of ranges in one value of `MODULE_TEXT`.
pub const TEXT_RANGES: usize = 16;
/// Most modules that a session can name; the other ranges hold the init text of modules.
pub const MODULES_MOST: usize = 12;
/// Number of groups in [`Config::cgroups`].
pub const CGROUPS: usize = 4;
/// Number of ranges in [`Config::page_owners`].
pub const PAGE_OWNERS: usize = 24;
/// Number of ranges in [`Config::traced_twice`]: two for each function, as compilers put a
/// function's cold code elsewhere (`NAME.cold`).
pub const TRACED_TWICE: usize = 16;

/// A test of GFP flags: it holds if the flags under `mask` equal `value`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GfpTest {
    /// The flags that the test looks at.
    pub mask: u32,
    /// The flags under `mask` that must be set.
    pub value: u32,
}

impl GfpTest {
    /// A test that never holds.
    pub const NEVER: Self = Self { mask: 0, value: 1 };
}

impl Default for GfpTest {
    fn default() -> Self {
        Self::NEVER
    }
}

/// A control group of the unified hierarchy. A task is in it if its own group is this one or below
/// it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupTest {
    /// ID of the group, which is the inode number of its directory; a group with id 0 holds no
    /// task.
    pub id: u64,
    /// Number of groups above this one in the hierarchy.
    pub level: u32,
    /// Always zero.
    pub zero: u32,
}

impl CgroupTest {
    /// A group that holds no task.
    pub const NONE: Self = Self { id: 0, level: 0, zero: 0 };
}

/// A range of code addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextRange {
    /// First address.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
}

impl TextRange {
    /// The range that holds no address.
    pub const EMPTY: Self = Self { start: 0, end: 0 };
}

/// How the kernel (mm/slab_common.c from 6.15, kernel/rcu/tree.c before) stores the objects handed
/// to `kfree_rcu`: in pages of pointers, which stay in a list of their CPU until a work item frees
/// the objects in bulk.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RcuLayout {
    /// Address of `kfree_rcu_work`, which frees the objects whose grace period has passed.
    pub work_function: u64,
    /// Address of `kfree_rcu_monitor`, which hands on the objects that a CPU has gathered.
    pub monitor_function: u64,
    /// Offset of `func` in `struct work_struct`.
    pub func_offset: u32,
    /// Offset of `bulk_head_free` in `struct kfree_rcu_cpu_work`, counted from its work item.
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
