//! Kernel probes: on the raw tracepoints of the allocators, and on functions without a tracepoint.

use leaktrace_common::{Config, TextRange};

use crate::{
    bpf::{
        Loaded,
        object::{FunctionProgram, KernelProgram, TypedProgram},
        sizes::possible_cpus,
    },
    error::{self, Error},
    host::layout::{KernelLayout, Modules},
    session::spec::KernelKind,
    snapshot::Blind,
};

/// What the probes cannot see.
#[derive(Debug, Default)]
pub struct Attached {
    /// Sentences for the report's `unseen`.
    pub unseen: Vec<String>,
    /// The missing probes that change the meaning of figures.
    pub blind: Blind,
}

/// The constants that tell the programs the kernel's layout.
pub fn constants(layout: &KernelLayout, config: Config) -> Config {
    let [irq_start, irq_end, softirq_start, softirq_end] = layout.interrupts;
    Config {
        irq_start,
        irq_end,
        softirq_start,
        softirq_end,
        kmalloc_size_arg: layout.slab.kmalloc_size,
        cache_arg: layout.slab.cache.unwrap_or(0),
        cache_size_arg: layout.slab.cache_size.unwrap_or(0),
        rcu: layout.rcu.unwrap_or_default(),
        rcu_call_offset: u32::from(layout.rcu_call_offset),
        skb_cache_at: layout.skb_cache.map_or(0, |cache| cache.cache_at),
        percpu_size_arg: layout.percpu_size.unwrap_or(0),
        possible_cpus: possible_cpus(),
        gfp_movable: layout.gfp_movable,
        page_struct_shift: layout.page_struct_shift.unwrap_or(0),
        cache_name_offset: layout.cache_name_offset,
        cache_object_size_offset: layout.cache_object_size_offset,
        kernel_text: layout.text.unwrap_or_default(),
        module: layout.followed_modules(),
        gfp_cache_mask: layout.gfp_dma | layout.gfp_reclaimable | layout.gfp_account,
        task_leader_offset: layout.names.map_or(0, |names| names.leader_offset),
        task_comm_offset: layout.names.map_or(0, |names| names.comm_offset),
        task_start_offset: layout.names.map_or(0, |names| names.start_offset),
        task_signal_offset: layout.names.map_or(0, |names| names.signal_offset),
        signal_live_offset: layout.names.map_or(0, |names| names.live_offset),
        ..config
    }
}

/// Loads the tracepoint programs of these allocators and attaches nothing. A kernel that is too old
/// for one of the programs must not trace without it, as if its tracepoint were missing.
///
/// # Errors
///
/// [`Error::Refused`] when the kernel does not load a program.
pub fn load(loaded: &mut Loaded, kinds: &[KernelKind], layout: &KernelLayout) -> Result<(), Error> {
    use KernelProgram::{
        AreaAlloc, AreaAllocAgain, AreaFree, AreaFreeAgain, Kfree, KfreeAgain, Kmalloc,
        KmallocAgain, KmallocNode, KmemCacheAlloc, KmemCacheAllocAgain, KmemCacheAllocNode,
        KmemCacheFree, KmemCacheFreeAgain, PageAlloc, PageAllocAgain, PageFree, PageFreeAgain,
        PercpuAlloc, PercpuAllocAgain, PercpuFree, PercpuFreeAgain,
    };
    for kind in kinds {
        let (programs, again): (&[KernelProgram], &[KernelProgram]) = match kind {
            KernelKind::Slab => (
                &[Kfree, KfreeAgain, KmemCacheFree, KmemCacheFreeAgain, Kmalloc, KmemCacheAlloc],
                &[KmallocAgain, KmemCacheAllocAgain],
            ),
            KernelKind::Vmalloc => (&[AreaFree, AreaAlloc], &[AreaFreeAgain, AreaAllocAgain]),
            KernelKind::Percpu => {
                (&[PercpuFree, PercpuAlloc], &[PercpuFreeAgain, PercpuAllocAgain])
            }
            KernelKind::Pages => (&[PageFree, PageFreeAgain, PageAlloc], &[PageAllocAgain]),
        };
        let node_variants: &[KernelProgram] = match kind {
            KernelKind::Slab if layout.slab.node_variants => &[KmallocNode, KmemCacheAllocNode],
            _ => &[],
        };
        for program in programs.iter().chain(node_variants) {
            loaded.load_tracepoint(*program)?;
        }
        again.iter().try_for_each(|program| loaded.load_again(*program))?;
    }
    Ok(())
}

/// Attaches to these allocators; the probes stay while `loaded` lives.
///
/// # Errors
///
/// [`Error::Host`] when the kernel's tracepoints have a shape that leaktrace does not know,
/// [`Error::Refused`] or [`Error::Kernel`] when the kernel refuses a program.
pub fn attach(
    loaded: &mut Loaded,
    kinds: &[KernelKind],
    config: &Config,
    layout: &KernelLayout,
) -> Result<Attached, Error> {
    let btf = aya::Btf::from_sys_fs().ok();
    let mut attached = Attached::default();
    let unseen = &mut attached.unseen;
    for kind in kinds {
        match kind {
            KernelKind::Slab => {
                attached.blind = attach_slab(loaded, config, layout, btf.as_ref(), unseen)?;
            }
            KernelKind::Vmalloc => {
                attach_vmalloc(loaded, config, layout, btf.as_ref(), unseen);
            }
            KernelKind::Percpu => attach_percpu(loaded, config, layout, unseen),
            KernelKind::Pages => attach_pages(loaded, config, layout, unseen),
        }
    }
    Ok(attached)
}

/// Records the names of the processes that end from now on.
///
/// # Errors
///
/// Says in one line why such processes have no names: no figure is wrong without them.
pub fn attach_names(loaded: &mut Loaded, layout: &KernelLayout) -> Result<(), String> {
    if layout.names.is_none() {
        return Err("this kernel's struct task_struct is not laid out as leaktrace knows it".into());
    }
    loaded.attach_tracepoint(KernelProgram::Ended).map_err(|error| error::one_line(&error))
}

/// Follows modules that come and go from now on. The caller must do this before it records any
/// allocation, so that no later code is taken for a module's.
///
/// # Errors
///
/// Says in one line why modules cannot be followed.
pub fn attach_modules(
    loaded: &mut Loaded,
    config: &Config,
    layout: &KernelLayout,
) -> Result<(), String> {
    match layout.module {
        Modules::None => Err("this kernel has no modules".into()),
        Modules::Unknown => {
            Err("struct module is not laid out in a way that leaktrace knows".into())
        }
        Modules::Known(_) if config.module.is_known == 0 => Err(
            "/proc/kallsyms hides where the kernel lies (kernel.kptr_restrict is 2: set it to 1)"
                .into(),
        ),
        Modules::Known(_) => [KernelProgram::ModuleFree, KernelProgram::ModuleLoad]
            .into_iter()
            .try_for_each(|program| loaded.attach_tracepoint(program))
            .map_err(|error| error::one_line(&error)),
    }
}

/// Attaches to kmalloc and slab caches; adds what the probes do not see to `unseen`.
fn attach_slab(
    loaded: &mut Loaded,
    config: &Config,
    layout: &KernelLayout,
    btf: Option<&aya::Btf>,
    unseen: &mut Vec<String>,
) -> Result<Blind, Error> {
    let mut blind = Blind::default();
    let known_shape = matches!(config.kmalloc_size_arg, 2 | 3)
        && matches!((config.cache_arg, config.cache_size_arg), (0, 2) | (2, 0) | (2, 3));
    if !known_shape {
        return Err(Error::Host(
            "this kernel's kmalloc or kmem_cache_alloc tracepoint has arguments that leaktrace \
             does not know: please report the kernel's version"
                .into(),
        ));
    }
    let still = "objects freed through it still look outstanding";
    if let Err(refusal) = loaded.attach_function(FunctionProgram::FreeBulk, btf) {
        unseen.push(format!("kmem_cache_free_bulk: {refusal}; {still}"));
        blind.bulk_frees = true;
    }
    if let Err(refusal) = loaded.attach_function(FunctionProgram::RcuCall, btf) {
        // The next best: when the kernel's own work items pass what was gathered.
        if config.rcu.work_function == 0 {
            unseen.push(format!("kfree_rcu: {refusal}, unknown lists; {still}"));
        } else if let Err(error) = loaded
            .attach_tracepoint(KernelProgram::RcuWork)
            .and_then(|()| loaded.attach_again(KernelProgram::RcuWorkAgain))
        {
            unseen.push(format!("kfree_rcu: {refusal}, {}; {still}", error::one_line(&error)));
        }
    }
    // Frees first: an allocation seen without its free would look like a leak. Those that look
    // again come second: programs of a tracepoint run in the order of their attachment.
    for program in [
        KernelProgram::Kfree,
        KernelProgram::KmemCacheFree,
        KernelProgram::KfreeAgain,
        KernelProgram::KmemCacheFreeAgain,
    ] {
        loaded.attach_tracepoint(program)?;
    }
    for program in [KernelProgram::Kmalloc, KernelProgram::KmemCacheAlloc] {
        loaded.attach_tracepoint(program)?;
    }
    for again in [KernelProgram::KmallocAgain, KernelProgram::KmemCacheAllocAgain] {
        loaded.attach_again(again)?;
    }
    if layout.slab.node_variants {
        for program in [KernelProgram::KmallocNode, KernelProgram::KmemCacheAllocNode] {
            loaded.attach_tracepoint(program)?;
        }
    }
    match attach_skb_cache(loaded, layout, btf) {
        Err(refusal) => {
            blind.skb_cache = true;
            unseen.push(format!(
                "who takes heads of packets that a CPU has at hand (napi_skb_cache_get): {refusal}; \
                 up to 64 a CPU show as outstanding, where it got them"
            ));
        }
        Ok(Some(refusal)) => unseen.push(format!(
            "heads of packets that go back to a CPU (napi_skb_cache_put): {refusal}; up to 64 a CPU \
             show as outstanding at who had them last"
        )),
        Ok(None) => {}
    }
    let bulk = match layout.alloc_bulk {
        None => Err("it has arguments that leaktrace does not know".to_owned()),
        Some(function) => loaded.attach_typed(TypedProgram::AllocBulk, function, btf),
    };
    if let Err(refusal) = bulk {
        blind.bulk_allocations = true;
        unseen.push(format!(
            "kmem_cache_alloc_bulk: {refusal}; objects allocated through it are in no figure \
             (requests of io_uring, packets of network drivers, nodes of maple trees)"
        ));
    }
    Ok(blind)
}

/// Attaches to the packet buffer heads that each CPU caches; returns why heads that are put back
/// are not seen. The probe for those comes second: without the first probe, a head that is taken
/// again would be in no figure.
fn attach_skb_cache(
    loaded: &mut Loaded,
    layout: &KernelLayout,
    btf: Option<&aya::Btf>,
) -> Result<Option<String>, String> {
    let inlined = "the kernel has no such function, as its compiler inlined it";
    let cache = layout.skb_cache.ok_or(inlined)?;
    if cache.has_bulk {
        loaded.attach_typed(TypedProgram::SkbGetBulk, "napi_skb_cache_get_bulk", btf)?;
    }
    loaded.attach_typed(TypedProgram::SkbGet, "napi_skb_cache_get", btf)?;
    if !cache.has_put {
        return Ok(Some(inlined.to_owned()));
    }
    Ok(loaded.attach_typed(TypedProgram::SkbPut, "napi_skb_cache_put", btf).err())
}

/// Attaches to percpu memory; adds what the probes do not see to `unseen`.
fn attach_percpu(
    loaded: &mut Loaded,
    config: &Config,
    layout: &KernelLayout,
    unseen: &mut Vec<String>,
) {
    let attached = match layout.percpu_size {
        None => Err("its tracepoint has arguments that leaktrace does not know".to_owned()),
        Some(_) => [KernelProgram::PercpuFree, KernelProgram::PercpuAlloc]
            .into_iter()
            .try_for_each(|program| loaded.attach_tracepoint(program))
            .and_then(|()| loaded.attach_again(KernelProgram::PercpuFreeAgain))
            .and_then(|()| loaded.attach_again(KernelProgram::PercpuAllocAgain))
            .map_err(|error| error::one_line(&error)),
    };
    if let Err(cause) = attached {
        unseen.push(format!("percpu memory: {cause}"));
    } else if layout.percpu_size == Some(2) && config.filter_gfp != 0 {
        unseen.push("percpu memory: this kernel does not tell its flags".into());
    }
}

/// Attaches to vmalloc, by probes on its functions or else by tracepoints; adds what the probes do
/// not see to `unseen`.
fn attach_vmalloc(
    loaded: &mut Loaded,
    config: &Config,
    layout: &KernelLayout,
    btf: Option<&aya::Btf>,
    unseen: &mut Vec<String>,
) {
    let by_function = match layout.vmalloc {
        None => Err("its function has arguments that leaktrace does not know".to_owned()),
        // The allocating side last: if it is refused, the frees see nothing, which does no harm.
        Some(function) => [FunctionProgram::Vfree, FunctionProgram::VfreeAtomic]
            .into_iter()
            .try_for_each(|program| loaded.attach_function(program, btf))
            .and_then(|()| loaded.attach_vmalloc(function)),
    };
    let Err(refusal) = by_function else { return };
    let by_tracepoint = [KernelProgram::AreaFree, KernelProgram::AreaAlloc]
        .into_iter()
        .try_for_each(|program| loaded.attach_tracepoint(program))
        .and_then(|()| loaded.attach_again(KernelProgram::AreaFreeAgain))
        .and_then(|()| loaded.attach_again(KernelProgram::AreaAllocAgain));
    if let Err(error) = by_tracepoint {
        unseen.push(format!("vmalloc: {refusal}, {}", error::one_line(&error)));
    } else if config.filter_gfp != 0 {
        unseen.push(format!("vmalloc: its address areas do not tell its flags ({refusal})"));
    }
}

/// Attaches to pages; adds what the probes do not see to `unseen`.
fn attach_pages(
    loaded: &mut Loaded,
    config: &Config,
    layout: &KernelLayout,
    unseen: &mut Vec<String>,
) {
    let knows_owners = config.all_pages != 0 || config.page_owners[0] != TextRange::EMPTY;
    let attached = if layout.page_struct_shift.is_none() {
        Err("its tracepoints have arguments that leaktrace does not know".to_owned())
    } else if !knows_owners {
        Err("/proc/kallsyms hides the other allocators, which have pages of their own \
             (kernel.kptr_restrict is 2: set it to 1)"
            .to_owned())
    } else {
        [KernelProgram::PageFree, KernelProgram::PageFreeAgain, KernelProgram::PageAlloc]
            .into_iter()
            .try_for_each(|program| loaded.attach_tracepoint(program))
            .and_then(|()| loaded.attach_again(KernelProgram::PageAllocAgain))
            .map_err(|error| error::one_line(&error))
    };
    unseen.push(match attached {
        Err(cause) => format!("pages: {cause}"),
        // mm/page_alloc.c, 6.1 and 6.18.
        Ok(()) => "pages that alloc_pages_bulk gives: no tracepoint tells of them (page pools of \
                   network drivers, NFS)"
            .into(),
    });
}
