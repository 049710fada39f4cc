//! Loads the embedded BPF object after it has patched the constants and map sizes in.

use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroU32,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::Map,
    programs::{
        FEntry, FExit, KProbe, ProgramError, RawTracePoint, UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope},
    },
};
use leaktrace_common::{BlockWord, Config};

use super::{kernel_calls, refusal, sizes::Sizes};
use crate::{error::Error, host::preemption};

/// The BPF object, as `cargo xtask build` made it; empty in a build without one.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/leaktrace.o"));

/// The value of `AYA_LOG_LEVEL` that logs every level; 0 logs none (aya-log-ebpf 0.2).
const LOG_ALL: u8 = u8::MAX;
/// Bytes of the log's ring, some thousand lines: refusals come in storms.
const LOG_BYTES: u32 = 1 << 20;

/// The loaded object: its programs, and its maps until [`Loaded::maps`] takes them.
pub struct Loaded {
    pub(super) ebpf: Ebpf,
    has_preemptible_tracepoints: bool,
    pub(super) spaces: u32,
}

impl Loaded {
    /// Loads the object.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] when this binary holds no BPF object or the kernel refuses the maps.
    pub fn load(config: &Config, sizes: Sizes) -> Result<Self, Error> {
        let object = object()?;
        let buckets = BlockWord::buckets_for(sizes.outstanding);
        let has_preemptible_tracepoints = preemption::has_preemptible_tracepoints();
        let patched = has_preemptible_tracepoints.then(|| kernel_calls::put_into(object)).flatten();
        let preemptible = match (has_preemptible_tracepoints, &patched) {
            (false, _) => 0,
            (true, None) => 1,
            (true, Some(_)) => 2,
        };
        let config = Config {
            max_sites: sizes.sites,
            buckets,
            preemptible,
            spaces: sizes.spaces,
            ..*config
        };
        let ebpf = EbpfLoader::new()
            .override_global("CONFIG", &config, true)
            // Of the programs' own logging (aya-log), which `log` folds away.
            .override_global("AYA_LOG_LEVEL", &(if config.log != 0 { LOG_ALL } else { 0 }), true)
            .map_max_entries("AYA_LOGS", if config.log != 0 { LOG_BYTES } else { 4096 })
            .map_max_entries("BLOCKS", buckets)
            .map_max_entries("DISPLACED", buckets.div_ceil(64))
            .map_max_entries("OVERFLOW", BlockWord::overflow_for(sizes.outstanding))
            .map_max_entries("SITE_INDEX", sizes.sites)
            .map_max_entries("SITES", sizes.sites)
            .map_max_entries("FREE_SITES", sizes.sites)
            .map_max_entries("FREE_SPACES", sizes.spaces)
            .map_max_entries("FREE_PLACES", sizes.free_places)
            .map_max_entries("ENDED", sizes.ended)
            .map_max_entries("TEXT_MAPS", sizes.spaces)
            .map_max_entries("EVENTS", sizes.event_ring_bytes)
            .map_max_entries("STACKS", sizes.stacks)
            .map_max_entries("IN_FLIGHT", sizes.threads)
            .map_max_entries("WALKS", sizes.walks)
            .map_max_entries("OBJECTS", sizes.objects)
            .map_max_entries("PAIR_CALLS", sizes.pair_threads)
            .map_max_entries("PAIR_AGAIN", sizes.again)
            .map_max_entries("PAIR_LEVELS", sizes.again)
            .map_max_entries("KERNEL_PAIR_CALLS", sizes.kernel_pair_calls)
            .map_max_entries("MAP_EVENTS", sizes.map_ring_bytes)
            .map_max_entries("MODULE_EVENTS", sizes.module_ring_bytes)
            .map_max_entries("ROWS", sizes.unwind_rows)
            // 4 KiB of text have some 40 to 140 rows; small functions have few.
            .map_max_entries("PAGES", (sizes.unwind_rows / 16).max(1))
            .map_max_entries("MAPPINGS", (sizes.unwind_rows / 64).max(1))
            .load(patched.as_ref().map_or(object, kernel_calls::Aligned::as_bytes))
            .map_err(|error| Error::kernel("cannot load the BPF maps", error))?;
        Ok(Self { ebpf, has_preemptible_tracepoints, spaces: sizes.spaces })
    }

    /// Bytes of kernel memory that the maps take, as the kernel accounts them.
    pub fn map_bytes(&self) -> u64 {
        self.ebpf
            .maps()
            .filter_map(|(_, map)| map_data(map))
            .filter_map(|data| fdinfo(data.fd().as_fd().as_raw_fd(), "memlock:"))
            .sum()
    }
}

/// A program on a raw tracepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelProgram {
    /// kmem:kmalloc
    Kmalloc,
    /// kmem:kmalloc_node, up to 6.0
    KmallocNode,
    /// kmem:kfree
    Kfree,
    /// kmem:kmem_cache_alloc
    KmemCacheAlloc,
    /// kmem:kmem_cache_alloc_node, up to 6.0
    KmemCacheAllocNode,
    /// kmem:kmem_cache_free
    KmemCacheFree,
    /// sched:sched_process_exit, in kernel mode
    Ended,
    /// module:module_load
    ModuleLoad,
    /// module:module_free
    ModuleFree,
    /// sched:sched_process_exec
    Exec,
    /// sched:sched_process_fork
    Fork,
    /// sched:sched_process_exit
    Exit,
    /// mmap:vm_unmapped_area
    Mapped,
    /// workqueue:workqueue_execute_start
    RcuWork,
    /// kmem:kfree, a second look
    KfreeAgain,
    /// kmem:kmem_cache_free, a second look
    KmemCacheFreeAgain,
    /// percpu:percpu_alloc_percpu
    PercpuAlloc,
    /// percpu:percpu_free_percpu
    PercpuFree,
    /// vmap:alloc_vmap_area, from 6.2
    AreaAlloc,
    /// vmap:free_vmap_area_noflush, from 6.2
    AreaFree,
    /// raw_syscalls:sys_enter
    SyscallEnter,
    /// raw_syscalls:sys_exit
    SyscallExit,
    /// kmem:mm_page_alloc
    PageAlloc,
    /// kmem:mm_page_free
    PageFree,
    /// kmem:mm_page_free, a second look
    PageFreeAgain,
    /// sched:sched_process_exec, a second look
    ExecAgain,
    /// sched:sched_process_fork, a second look
    ForkAgain,
    /// sched:sched_process_exit, a second look
    ExitAgain,
    /// mmap:vm_unmapped_area, a second look
    MappedAgain,
    /// workqueue:workqueue_execute_start, a second look
    RcuWorkAgain,
    /// kmem:kmalloc, a second look
    KmallocAgain,
    /// kmem:kmem_cache_alloc, a second look
    KmemCacheAllocAgain,
    /// percpu:percpu_alloc_percpu, a second look
    PercpuAllocAgain,
    /// percpu:percpu_free_percpu, a second look
    PercpuFreeAgain,
    /// vmap:alloc_vmap_area, a second look
    AreaAllocAgain,
    /// vmap:free_vmap_area_noflush, a second look
    AreaFreeAgain,
    /// raw_syscalls:sys_enter, a second look
    SyscallEnterAgain,
    /// raw_syscalls:sys_exit, a second look
    SyscallExitAgain,
    /// kmem:mm_page_alloc, a second look
    PageAllocAgain,
}

impl KernelProgram {
    /// The program's name in the object.
    pub const fn name(self) -> &'static str {
        self.names().0
    }

    /// Name of the program in the object, and of its tracepoint.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Kmalloc => ("lt_kmalloc", "kmalloc"),
            Self::KmallocNode => ("lt_kmalloc_node", "kmalloc_node"),
            Self::Kfree => ("lt_kfree", "kfree"),
            Self::KmemCacheAlloc => ("lt_cache_alloc", "kmem_cache_alloc"),
            Self::KmemCacheAllocNode => ("lt_cache_alloc_n", "kmem_cache_alloc_node"),
            Self::KmemCacheFree => ("lt_cache_free", "kmem_cache_free"),
            Self::Ended => ("lt_ended", "sched_process_exit"),
            Self::ModuleLoad => ("lt_module_load", "module_load"),
            Self::ModuleFree => ("lt_module_free", "module_free"),
            Self::Exec => ("lt_exec", "sched_process_exec"),
            Self::Fork => ("lt_fork", "sched_process_fork"),
            Self::Exit => ("lt_exit", "sched_process_exit"),
            Self::Mapped => ("lt_mapped", "vm_unmapped_area"),
            Self::RcuWork => ("lt_rcu_work", "workqueue_execute_start"),
            Self::KfreeAgain => ("lt_kfree_2", "kfree"),
            Self::KmemCacheFreeAgain => ("lt_cache_free_2", "kmem_cache_free"),
            Self::PercpuAlloc => ("lt_percpu_alloc", "percpu_alloc_percpu"),
            Self::PercpuFree => ("lt_percpu_free", "percpu_free_percpu"),
            Self::AreaAlloc => ("lt_area_alloc", "alloc_vmap_area"),
            Self::AreaFree => ("lt_area_free", "free_vmap_area_noflush"),
            Self::SyscallEnter => ("lt_sys_enter", "sys_enter"),
            Self::SyscallExit => ("lt_sys_exit", "sys_exit"),
            Self::PageAlloc => ("lt_page_alloc", "mm_page_alloc"),
            Self::PageFree => ("lt_page_free", "mm_page_free"),
            Self::PageFreeAgain => ("lt_page_free_2", "mm_page_free"),
            Self::ExecAgain => ("lt_exec_2", "sched_process_exec"),
            Self::ForkAgain => ("lt_fork_2", "sched_process_fork"),
            Self::ExitAgain => ("lt_exit_2", "sched_process_exit"),
            Self::MappedAgain => ("lt_mapped_2", "vm_unmapped_area"),
            Self::RcuWorkAgain => ("lt_rcu_work_2", "workqueue_execute_start"),
            Self::KmallocAgain => ("lt_kmalloc_2", "kmalloc"),
            Self::KmemCacheAllocAgain => ("lt_cache_all_2", "kmem_cache_alloc"),
            Self::PercpuAllocAgain => ("lt_percpu_all_2", "percpu_alloc_percpu"),
            Self::PercpuFreeAgain => ("lt_percpu_fre_2", "percpu_free_percpu"),
            Self::AreaAllocAgain => ("lt_area_alloc_2", "alloc_vmap_area"),
            Self::AreaFreeAgain => ("lt_area_free_2", "free_vmap_area_noflush"),
            Self::SyscallEnterAgain => ("lt_sys_enter_2", "sys_enter"),
            Self::SyscallExitAgain => ("lt_sys_exit_2", "sys_exit"),
            Self::PageAllocAgain => ("lt_page_alloc_2", "mm_page_alloc"),
        }
    }
}

/// A program at the entry of a kernel function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionProgram {
    /// `kvfree_call_rcu`
    RcuCall,
    /// `kmem_cache_free_bulk`
    FreeBulk,
    /// `vfree`
    Vfree,
    /// `vfree_atomic`
    VfreeAtomic,
}

/// A program that works by fexit or fentry alone, at the return or the entry of a kernel function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TypedProgram {
    /// `kmem_cache_alloc_bulk`
    AllocBulk,
    /// `napi_skb_cache_get`
    SkbGet,
    /// `napi_skb_cache_get_bulk`
    SkbGetBulk,
    /// `napi_skb_cache_put`
    SkbPut,
}

impl TypedProgram {
    const fn name(self) -> &'static str {
        match self {
            Self::AllocBulk => "lt_alloc_bulk",
            Self::SkbGet => "lt_skb_get",
            Self::SkbGetBulk => "lt_skb_get_bulk",
            Self::SkbPut => "lt_skb_put",
        }
    }
}

impl FunctionProgram {
    /// Names in the object of the fentry and of the kprobe program, and the function's name.
    const fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::RcuCall => ("lt_rcu_call", "lt_rcu_call_k", "kvfree_call_rcu"),
            Self::FreeBulk => ("lt_free_bulk", "lt_free_bulk_k", "kmem_cache_free_bulk"),
            Self::Vfree => ("lt_vfree", "lt_vfree_k", "vfree"),
            Self::VfreeAtomic => ("lt_vfree_atomic", "lt_vfree_atomic_k", "vfree_atomic"),
        }
    }
}

/// The innermost cause of an error, which is the kernel's own.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

impl Loaded {
    /// Loads a program unless it is loaded, and attaches it to its tracepoint until `self` is
    /// dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when the kernel does not load the program, else [`Error::Kernel`] with
    /// the tracepoint's name.
    pub fn attach_tracepoint(&mut self, program: KernelProgram) -> Result<(), Error> {
        let (_, tracepoint) = program.names();
        self.load_tracepoint(program)?.attach(tracepoint).map_err(|error| {
            Error::kernel(format!("cannot attach to tracepoint {tracepoint}"), error)
        })?;
        Ok(())
    }

    /// Loads a program, unless it is loaded.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when the kernel does not load the program.
    pub fn load_tracepoint(&mut self, program: KernelProgram) -> Result<&mut RawTracePoint, Error> {
        let (name, _) = program.names();
        let fail = |error| refusal::of_aya(name, "cannot load a BPF program", error);
        let program: &mut RawTracePoint = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| Error::kernel(format!("program {name}"), "is not in the BPF object"))?
            .try_into()
            .map_err(fail)?;
        if program.fd().is_err() {
            program.load().map_err(fail)?;
        }
        Ok(program)
    }

    /// As [`Loaded::load_tracepoint`], for a second program that is needed only where the first can
    /// be preempted.
    ///
    /// # Errors
    ///
    /// As for [`Loaded::load_tracepoint`].
    pub fn load_again(&mut self, program: KernelProgram) -> Result<(), Error> {
        match self.has_preemptible_tracepoints {
            true => self.load_tracepoint(program).map(drop),
            false => Ok(()),
        }
    }

    /// As [`Loaded::attach_tracepoint`], for a second program that is needed only where the first
    /// can be preempted.
    ///
    /// # Errors
    ///
    /// As for [`Loaded::attach_tracepoint`].
    pub fn attach_again(&mut self, program: KernelProgram) -> Result<(), Error> {
        match self.has_preemptible_tracepoints {
            true => self.attach_tracepoint(program),
            false => Ok(()),
        }
    }

    /// Loads a program and attaches it to the entry of its kernel function until `self` is dropped:
    /// by fentry, else by kprobe.
    ///
    /// # Errors
    ///
    /// Says in one line why the kernel refuses both.
    pub fn attach_function(
        &mut self,
        program: FunctionProgram,
        btf: Option<&aya::Btf>,
    ) -> Result<(), String> {
        let (fentry, kprobe, function) = program.names();
        let refusal = match btf {
            Some(btf) => match self.attach_fentry(fentry, function, btf) {
                Ok(()) => return Ok(()),
                Err(error) => format!("fentry: {}", root_cause(&error)),
            },
            None => "fentry: the kernel has no BTF".to_owned(),
        };
        self.attach_kprobe(kprobe, function)
            .map_err(|error| format!("{refusal}, kprobe: {}", root_cause(&error)))
    }

    /// Loads a program and attaches it to a kernel function by fentry or fexit alone, until `self`
    /// is dropped.
    ///
    /// # Errors
    ///
    /// Says in one line why the kernel refuses the program.
    pub fn attach_typed(
        &mut self,
        program: TypedProgram,
        function: &str,
        btf: Option<&aya::Btf>,
    ) -> Result<(), String> {
        let Some(btf) = btf else { return Err("fexit: the kernel has no BTF".into()) };
        match program {
            TypedProgram::SkbPut => self
                .attach_fentry(program.name(), function, btf)
                .map_err(|error| format!("fentry: {}", root_cause(&error))),
            _ => self
                .attach_fexit(program.name(), function, btf)
                .map_err(|error| format!("fexit: {}", root_cause(&error))),
        }
    }

    fn attach_fexit(
        &mut self,
        name: &str,
        function: &str,
        btf: &aya::Btf,
    ) -> Result<(), ProgramError> {
        let program: &mut FExit =
            self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
        program.load(function, btf)?;
        program.attach()?;
        Ok(())
    }

    /// Loads the programs of vmalloc's entry and return, and attaches them by kprobe and kretprobe.
    ///
    /// # Errors
    ///
    /// Says in one line why the kernel refuses.
    pub fn attach_vmalloc(&mut self, function: &str) -> Result<(), String> {
        // The return first, so that no call is entered whose return is not watched.
        ["lt_vmalloc_return", "lt_vmalloc"].into_iter().try_for_each(|name| {
            self.attach_kprobe(name, function)
                .map_err(|error| format!("kprobe: {}", root_cause(&error)))
        })
    }

    fn attach_fentry(
        &mut self,
        name: &str,
        function: &str,
        btf: &aya::Btf,
    ) -> Result<(), ProgramError> {
        let program: &mut FEntry =
            self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
        program.load(function, btf)?;
        program.attach()?;
        Ok(())
    }

    fn attach_kprobe(&mut self, name: &str, function: &str) -> Result<(), ProgramError> {
        let program: &mut KProbe =
            self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
        program.load()?;
        program.attach(function, 0)?;
        Ok(())
    }

    /// Attaches a program to an offset of a file with a perf_event link until `self` is dropped:
    /// the way for kernels without uprobe_multi. `pid` 0 stands for all processes.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] with the program's name.
    pub fn attach_uprobe(
        &mut self,
        name: &'static str,
        path: &str,
        probe: (u64, u64),
        pid: u32,
    ) -> Result<(), Error> {
        let fail = |error: aya::programs::ProgramError| {
            let whose = match pid {
                0 => "to all processes".to_owned(),
                pid => format!("to process {pid}"),
            };
            Error::kernel(format!("cannot attach {name} {whose}"), error)
        };
        let program = self.load_uprobe(name)?;
        let (offset, cookie) = probe;
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(offset),
            cookie: Some(cookie),
        };
        let scope = NonZeroU32::new(pid).map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess);
        program.attach(point, path, scope).map_err(fail)?;
        Ok(())
    }

    /// Loads one of the programs of [`Loaded::attach_uprobe`], unless it is loaded.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when the kernel does not load the program.
    pub fn load_uprobe(&mut self, name: &'static str) -> Result<&mut UProbe, Error> {
        let fail = |error| refusal::of_aya(name, "cannot load a BPF program", error);
        let program: &mut UProbe = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| Error::kernel(format!("program {name}"), "is not in the BPF object"))?
            .try_into()
            .map_err(fail)?;
        if program.fd().is_err() {
            program.load().map_err(fail)?;
        }
        Ok(program)
    }

    /// Has the kernel measure the run time of every program until the result is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] before 5.8 (BPF_ENABLE_STATS).
    pub fn time_programs() -> Result<OwnedFd, Error> {
        aya::sys::enable_stats(aya::sys::Stats::RunTime)
            .map_err(|error| Error::kernel("cannot take the time of BPF programs", error))
    }

    /// Run time in nanoseconds of one of the programs of [`Loaded::attach_uprobe`], while measured.
    pub fn uprobe_run_time_ns(&self, name: &str) -> u64 {
        let program = self.ebpf.program(name).and_then(|program| program.fd().ok());
        program.and_then(|fd| fdinfo(fd.as_fd().as_raw_fd(), "run_time_ns:")).unwrap_or(0)
    }

    /// Detaches one of the programs of [`Loaded::attach_uprobe`] from everything, for good.
    pub fn detach_uprobe(&mut self, name: &str) {
        if let Some(Ok(program)) = self.ebpf.program_mut(name).map(<&mut UProbe>::try_from) {
            // One that was never loaded is attached to nothing.
            let _ = program.unload();
        }
    }

    /// Number of runs of each program that the kernel refused because the program was running on
    /// that CPU already; programs with no refused run are left out.
    ///
    /// The numbers are `recursion_misses` in /proc/self/fdinfo (kernel/bpf/syscall.c, from 5.12).
    pub fn recursion_misses(&self) -> BTreeMap<String, u64> {
        self.ebpf
            .programs()
            .filter_map(|(name, program)| {
                let fd = program.fd().ok()?;
                let misses = fdinfo(fd.as_fd().as_raw_fd(), "recursion_misses:")?;
                (misses > 0).then(|| (name.to_owned(), misses))
            })
            .collect()
    }
}

/// A number in /proc/self/fdinfo.
pub(super) fn fdinfo(fd: i32, field: &str) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix(field))?.trim().parse().ok()
}

/// The embedded object.
pub(super) fn object() -> Result<&'static [u8], Error> {
    if OBJECT.is_empty() {
        return Err(Error::Host(
            "this build of leaktrace holds no BPF programs: build it with `cargo xtask build`"
                .into(),
        ));
    }
    Ok(OBJECT)
}

/// The data of a map of any kind that the object uses.
pub(super) fn map_data(map: &Map) -> Option<&aya::maps::MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data)
        | Map::Queue(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}
