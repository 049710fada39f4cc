//! Tracepoints with two BPF programs: the second one sees the events that the first was refused.

/// A pair of programs on one tracepoint. The pair's number is its index in `HANDLED` and `HEALED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Pair {
    /// kmem:kfree
    Kfree,
    /// kmem:kmem_cache_free
    CacheFree,
    /// kmem:mm_page_free
    PageFree,
    /// sched:sched_process_fork
    Fork,
    /// sched:sched_process_exec
    Exec,
    /// sched:sched_process_exit
    Exit,
    /// kmem:kmalloc
    Kmalloc,
    /// kmem:kmem_cache_alloc
    CacheAlloc,
    /// kmem:mm_page_alloc
    PageAlloc,
    /// percpu:percpu_alloc_percpu
    PercpuAlloc,
    /// percpu:percpu_free_percpu
    PercpuFree,
    /// vmap:alloc_vmap_area
    AreaAlloc,
    /// vmap:free_vmap_area_noflush
    AreaFree,
    /// workqueue:workqueue_execute_start
    RcuWork,
    /// raw_syscalls:sys_enter
    SyscallEnter,
    /// raw_syscalls:sys_exit
    SyscallExit,
    /// mmap:vm_unmapped_area
    Mapped,
}

impl Pair {
    /// Number of pairs.
    pub const COUNT: usize = Self::Mapped as usize + 1;

    /// Every pair, at the index of its number, with the names of both programs.
    pub const ALL: [(Self, &'static str, &'static str); Self::COUNT] = [
        (Self::Kfree, "lt_kfree", "lt_kfree_2"),
        (Self::CacheFree, "lt_cache_free", "lt_cache_free_2"),
        (Self::PageFree, "lt_page_free", "lt_page_free_2"),
        (Self::Fork, "lt_fork", "lt_fork_2"),
        (Self::Exec, "lt_exec", "lt_exec_2"),
        (Self::Exit, "lt_exit", "lt_exit_2"),
        (Self::Kmalloc, "lt_kmalloc", "lt_kmalloc_2"),
        (Self::CacheAlloc, "lt_cache_alloc", "lt_cache_all_2"),
        (Self::PageAlloc, "lt_page_alloc", "lt_page_alloc_2"),
        (Self::PercpuAlloc, "lt_percpu_alloc", "lt_percpu_all_2"),
        (Self::PercpuFree, "lt_percpu_free", "lt_percpu_fre_2"),
        (Self::AreaAlloc, "lt_area_alloc", "lt_area_alloc_2"),
        (Self::AreaFree, "lt_area_free", "lt_area_free_2"),
        (Self::RcuWork, "lt_rcu_work", "lt_rcu_work_2"),
        (Self::SyscallEnter, "lt_sys_enter", "lt_sys_enter_2"),
        (Self::SyscallExit, "lt_sys_exit", "lt_sys_exit_2"),
        (Self::Mapped, "lt_mapped", "lt_mapped_2"),
    ];
}

/// Kernel functions that the programs call. In the BPF object each is a call of a helper with a
/// number that no helper has; the loader replaces that call by a call of the function.
pub struct KernelCall;

impl KernelCall {
    /// `bpf_preempt_disable`
    pub const PREEMPT_DISABLE: i32 = 0x6c74_7064;
    /// `bpf_preempt_enable`
    pub const PREEMPT_ENABLE: i32 = 0x6c74_7065;
    /// `bpf_local_irq_save`
    pub const IRQ_SAVE: i32 = 0x6c74_6973;
    /// `bpf_local_irq_restore`
    pub const IRQ_RESTORE: i32 = 0x6c74_6972;
}
