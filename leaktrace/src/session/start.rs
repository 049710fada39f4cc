//! How a session starts: what is asked for becomes constants, maps, probes and a collector.

use leaktrace_common::{Config, Kind};

use super::{
    ENDS_READ, Session, filters,
    follow::{self, Rules},
    launch::Suspended,
    log,
    notes::{describe, note_memory, note_probes, note_tables},
    overhead::Overhead,
    processes::Processes,
    ring::watch,
    spared::Spared,
    spec::{KernelFilters, KernelKind, Spec, Target, Wanted},
    wait,
};
use crate::{
    attach::{kernel, user::Way},
    bpf::{Loaded, Maps, Sizes},
    collect::{
        Collector, CollectorOptions,
        kmalloc::{GfpFlags, KmallocNames},
    },
    error::Error,
    host::{
        features::HostFacts,
        layout::{KernelLayout, Modules},
        objects::ObjectTable,
        page_owners, proc,
    },
    snapshot::Mode,
};

impl Session {
    pub(super) fn start(
        spec: &Spec,
        facts: &HostFacts,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        match &spec.target {
            Target::Kernel { kinds, all_pages, filters } => {
                Self::start_kernel(spec, kinds, *all_pages, filters, note)
            }
            Target::Processes(wanted) => {
                for pid in &wanted.pids {
                    proc::check_traceable(*pid)?;
                }
                Self::start_user(spec, facts, Mode::User, wanted, None, note)
            }
            Target::Command { argv, .. } => {
                let suspended = Suspended::start(argv)?;
                let wanted = Wanted { pids: vec![suspended.pid()], ..Wanted::default() };
                Self::start_user(spec, facts, Mode::Run, &wanted, Some(suspended), note)
            }
        }
    }

    fn start_kernel(
        spec: &Spec,
        kinds: &[KernelKind],
        all_pages: bool,
        filters: &KernelFilters,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        let layout = KernelLayout::of_running_kernel()?;
        let config =
            Config { all_pages: u32::from(all_pages), ..kernel::constants(&layout, config(spec)) };
        let mut config = filters::constants(filters, config)?;
        config.told_twice = page_owners::told_twice();
        if kinds.contains(&KernelKind::Pages) {
            config.page_owners = page_owners::ranges().unwrap_or_default();
        }
        let sizes = Sizes::new(spec.trace.max_outstanding, false, false);
        let mut loaded = Loaded::load(&config, sizes)?;
        let map_bytes = loaded.map_bytes();
        // Before anything that is attached where it can be: on a kernel that is too old, all fails.
        kernel::load(&mut loaded, kinds, &layout)?;
        let log = log::open(spec, &mut loaded)?;
        let mut maps = loaded.maps()?;
        maps.set_filters(&filters.pids, &filters.comms)?;
        let follows = kernel::attach_modules(&mut loaded, &config, &layout);
        let mut unseen = filters::watch_modules(filters, &mut maps, &follows, note)?;
        if let Err(cause) = &follows
            && layout.module != Modules::None
        {
            unseen.push(format!(
                "modules that are loaded or unloaded meanwhile: {cause}; what they allocate may \
                 have another module's name"
            ));
        }
        let gfp = GfpFlags {
            dma: layout.gfp_dma,
            reclaimable: layout.gfp_reclaimable,
            account: layout.gfp_account,
        };
        let kmalloc_names = KmallocNames::read(gfp);
        let awaited_caches = filters::watch_caches(filters, &mut maps, &kmalloc_names, note)?;
        let unfiltered = *filters == KernelFilters::default() && takes_all(spec);
        let mut collector =
            collector(maps, spec, Mode::Kernel, unfiltered, kmalloc_names, Vec::new());
        // Names first: of a process whose allocations are seen the end is seen as well.
        if let Err(cause) = kernel::attach_names(&mut loaded, &layout) {
            note(&format!("processes that end will have no names: {cause}"));
        }
        let attached = kernel::attach(&mut loaded, kinds, &config, &layout)?;
        unseen.extend(attached.unseen);
        collector.blind = attached.blind;
        collector.follow_modules(config.kernel_text);
        let modules = wait::modules(&collector)?;
        collector.start();
        note_memory(map_bytes, spec, note);
        let kinds: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        let kinds = kinds.join(", ");
        note(&format!("tracing kernel allocations ({kinds}); Ctrl-C ends with a report"));
        Ok(Self {
            processes: None,
            rules: Rules::default(),
            loaded,
            collector,
            child: None,
            pidfds: Vec::new(),
            ring: None,
            map_ring: None,
            modules,
            records: Vec::new(),
            overhead: None,
            unseen,
            log,
            awaited_caches,
            ends: Some(tokio::time::interval(ENDS_READ)),
        })
    }

    fn start_user(
        spec: &Spec,
        facts: &HostFacts,
        mode: Mode,
        wanted: &Wanted,
        suspended: Option<Suspended>,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        let kinds = spec.trace.user_kinds;
        let command = suspended.as_ref().map(Suspended::pid);
        let spared = Spared::new(spec, wanted, command, &facts.kernel_release, note)?;
        let sizes = Sizes::new(spec.trace.max_outstanding, true, kinds.mmap);
        let rules = Rules::new(wanted)?;
        let config =
            follow::constants(wanted, spec.trace.children, spec.trace.unwind, config(spec))?;
        if rules.is_open() || spec.trace.children || suspended.is_some() {
            proc::raise_file_limit();
        }
        let mut loaded = Loaded::load(&config, sizes)?;
        let map_bytes = loaded.map_bytes();
        let way = Way::best(facts);
        let mut processes =
            Processes::new(&mut loaded, way, spec, rules.is_open(), command, spared)?;
        let log = log::open(spec, &mut loaded)?;
        let mut maps = loaded.maps()?;
        maps.set_filters(&[], &wanted.comms)?;
        let unfiltered = takes_all(spec);
        let mut user_kinds = Vec::new();
        user_kinds.extend(kinds.malloc.then_some(Kind::Malloc));
        user_kinds.extend(kinds.mmap.then_some(Kind::Mmap));
        let names = KmallocNames::default();
        let mut collector = collector(maps, spec, mode, unfiltered, names, user_kinds);
        collector.maps.set_sample_bytes(spec.trace.sample_bytes)?;
        let ring = collector.maps.take_events().map(watch).transpose()?;
        let mut map_ring = None;
        if kinds.mmap {
            collector.follow_mappings((spec.trace.min_size_bytes, spec.trace.max_size_bytes));
            map_ring = collector.maps.take_map_events().map(watch).transpose()?;
        }
        let mut pidfds = Vec::new();
        for pid in &wanted.pids {
            pidfds.push((*pid, wait::pidfd(*pid)?));
            processes.add(*pid, true, &mut loaded, &mut collector)?;
        }
        processes.add_present(&rules, &mut loaded, &mut collector)?;
        if suspended.is_none() && !rules.is_open() {
            // A command, or a process that is yet to come, may map them later.
            processes.check_named()?;
        }
        let records = match processes.records.as_ref().map(wait::descriptors) {
            Some(Ok(records)) => records,
            // Unread they would overflow: as if the kernel had none.
            Some(Err(_)) => {
                processes.records = None;
                Vec::new()
            }
            None => Vec::new(),
        };
        let overhead = Overhead::start(&spec.trace, &processes)?;
        let unseen = suspended.as_ref().and_then(Suspended::unseen).map(str::to_owned);
        let child = suspended.map(Suspended::resume).transpose()?;
        collector.start();
        if spec.output.verbose > 0 {
            note_tables(&processes, note);
            note_probes(&processes, &collector, note);
        }
        note_memory(map_bytes, spec, note);
        for line in rules.waiting(collector.processes()) {
            note(&line);
        }
        if processes.shares_probes() {
            note(
                "probes are shared: while this runs, each call of malloc or free costs about a \
                 microsecond in processes that are not traced and map the same files",
            );
        }
        note(&format!("tracing {}; Ctrl-C ends with a report", describe(&collector)));
        if child.is_some() {
            // Its end is seen through the child itself.
            pidfds.clear();
        }
        Ok(Self {
            processes: Some(processes),
            rules,
            loaded,
            collector,
            child,
            pidfds,
            ring,
            map_ring,
            modules: None,
            records,
            overhead,
            log,
            unseen: unseen.into_iter().collect(),
            awaited_caches: Vec::new(),
            ends: None,
        })
    }
}

/// The constants that all modes share.
fn config(spec: &Spec) -> Config {
    let trace = &spec.trace;
    Config {
        min_size_bytes: trace.min_size_bytes,
        max_size_bytes: trace.max_size_bytes,
        stack_mode: trace.stacks as u32,
        max_frames: trace.max_depth,
        own_tgid: std::process::id(),
        sampling: u32::from(is_sampled(spec)),
        count_calls: u32::from(trace.max_overhead_ppm.is_some()),
        log: u32::from(log::is_on(spec)),
        ..Config::default()
    }
}

/// Whether blocks may be left out that belong to the whole.
fn is_sampled(spec: &Spec) -> bool {
    spec.trace.sample_bytes != 0 || spec.trace.max_overhead_ppm.is_some()
}

/// Whether no allocation of what is traced is left out.
pub(super) fn takes_all(spec: &Spec) -> bool {
    let trace = &spec.trace;
    trace.min_size_bytes == 0 && trace.max_size_bytes == u64::MAX && !is_sampled(spec)
}

fn collector(
    maps: Maps,
    spec: &Spec,
    mode: Mode,
    unfiltered: bool,
    kmalloc_names: KmallocNames,
    user_kinds: Vec<Kind>,
) -> Collector {
    Collector::new(
        maps,
        ObjectTable::default(),
        CollectorOptions {
            mode,
            stack_mode: spec.trace.stacks,
            max_outstanding: u64::from(spec.trace.max_outstanding),
            unfiltered,
            kmalloc_names,
            user_kinds,
            is_sampled: is_sampled(spec),
        },
    )
}
