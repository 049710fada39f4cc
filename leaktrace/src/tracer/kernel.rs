//! The tracer of kernel allocations.

use std::{collections::BTreeSet, os::fd::OwnedFd, time::Duration};

use leaktrace_common::Config;
use tokio::{io::unix::AsyncFd, time::Interval};

use super::{
    constants::{constants, pair_names},
    filters,
    log::ProgramLog,
    notes::note_memory,
    step::Step,
    wait::{self, wait_for_ring},
};
use crate::{
    attach::{kernel, kernel_pairs},
    bpf::{Loaded, Sizes},
    collect::{
        Collector, CollectorOptions, Wants,
        kmalloc::{GfpFlags, KmallocNames},
    },
    error::Error,
    host::{
        layout::{KernelLayout, Modules},
        objects::ObjectTable,
        page_owners,
    },
    session::spec::{KernelFilters, KernelKind, TraceOptions, pairs},
    snapshot::{Counts, Mode, Snapshot},
};

/// Time between two readings of process ends. The kernel side keeps the last 16,384 ends, which is
/// enough for some 3,000 ends a second.
const ENDS_READ: Duration = Duration::from_secs(5);

/// Traces kernel allocations.
pub struct KernelTracer {
    loaded: Loaded,
    collector: Collector,
    log: ProgramLog,
    /// Readable once a kernel module comes or goes.
    modules: Option<AsyncFd<OwnedFd>>,
    /// Ticks at which the ends of processes are read.
    ends: Interval,
    /// Slab caches that the user asked for and that were not there at the start.
    awaited_caches: Vec<String>,
    /// Modules that functions of pairs are of.
    pair_modules: BTreeSet<String>,
    unseen: Vec<String>,
}

impl KernelTracer {
    /// Starts tracing. The caller must be in the event loop.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for filters that name nothing; [`Error::Host`], [`Error::Refused`] and
    /// [`Error::Kernel`] where the host does not allow it.
    pub(super) fn start(
        kinds: &[KernelKind],
        all_pages: bool,
        filters: &KernelFilters,
        trace: &TraceOptions,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        let layout = KernelLayout::of_running_kernel()?;
        let config = Config {
            all_pages: u32::from(all_pages),
            ..kernel::constants(&layout, constants(trace))
        };
        let mut config = filters::constants(filters, config)?;
        config.traced_twice = page_owners::traced_twice();
        if kinds.contains(&KernelKind::Pages) {
            config.page_owners = page_owners::ranges().unwrap_or_default();
        }
        let mut sizes = Sizes::new(trace.max_outstanding, false, false);
        if !trace.pairs.is_empty() {
            sizes = sizes.with_pairs();
        }
        let mut loaded = Loaded::load(&config, sizes)?;
        let map_bytes = loaded.map_bytes();
        // Before anything that is attached where it can be: on a kernel that is too old, all fails.
        kernel::load(&mut loaded, kinds, &layout)?;
        let log = ProgramLog::open(trace, &mut loaded)?;
        let mut maps = loaded.maps()?;
        maps.set_filters(&filters.pids, &filters.comms)?;
        let functions = pairs::functions(&trace.pairs);
        let found = kernel_pairs::find(&functions)?;
        maps.set_pair_functions(&found.addresses)?;
        let follows = kernel::attach_modules(&mut loaded, &config, &layout);
        let mut unseen = filters::watch_modules(filters, &mut maps, &follows, note)?;
        if let Err(cause) = &follows
            && layout.module != Modules::None
        {
            unseen.push(format!(
                "modules that are loaded or unloaded meanwhile: {cause}; what they allocate may \
                 have another module's name"
            ));
            unseen.extend(found.modules.iter().map(|module| {
                format!("functions of --pair in module {module}, should it be loaded again")
            }));
        }
        let gfp = GfpFlags {
            dma: layout.gfp_dma,
            reclaimable: layout.gfp_reclaimable,
            account: layout.gfp_account,
        };
        let kmalloc_names = KmallocNames::read(gfp);
        let awaited_caches = filters::watch_caches(filters, &mut maps, &kmalloc_names, note)?;
        let options = CollectorOptions {
            mode: Mode::Kernel,
            stack_mode: trace.stacks,
            max_outstanding: u64::from(trace.max_outstanding),
            unfiltered: *filters == KernelFilters::default() && trace.takes_all(),
            kmalloc_names,
            user_kinds: Vec::new(),
            pairs: pair_names(trace),
            counts_slabs: kinds.contains(&KernelKind::Slab),
            is_sampled: trace.is_sampled(),
        };
        let mut collector = Collector::new(maps, ObjectTable::default(), options);
        // Names first: of a process whose allocations are seen the end is seen as well.
        if let Err(cause) = kernel::attach_names(&mut loaded, &layout) {
            note(&format!("processes that end will have no names: {cause}"));
        }
        let attached = kernel::attach(&mut loaded, kinds, &config, &layout)?;
        unseen.extend(attached.unseen);
        kernel_pairs::attach(&mut loaded, &functions)?;
        collector.blind = attached.blind;
        collector.follow_modules(config.kernel_text);
        let modules = wait::modules(&collector)?;
        collector.start();
        note_memory(map_bytes, trace, note);
        let pairs = trace.pairs.iter().map(|pair| pair.name.as_str());
        let kinds: Vec<&str> = kinds.iter().map(|kind| kind.name()).chain(pairs).collect();
        let kinds = kinds.join(", ");
        note(&format!("tracing kernel allocations ({kinds}); Ctrl-C ends with a report"));
        let ends = tokio::time::interval(ENDS_READ);
        let pair_modules = found.modules;
        Ok(Self { loaded, collector, log, modules, ends, awaited_caches, pair_modules, unseen })
    }

    /// As [`super::Tracer::step`].
    pub(super) async fn step(&mut self) -> Step {
        let mut step = Step::default();
        tokio::select! {
            biased;
            () = wait_for_ring(self.modules.as_ref()) => self.collector.read_modules(),
            _ = self.ends.tick() => self.collector.read_ends(),
            () = self.log.wait() => step.notes = self.log.lines(),
        }
        step
    }

    /// As [`super::Tracer::snapshot`].
    pub(super) fn snapshot(&mut self, wants: Wants) -> Result<Snapshot, Error> {
        let mut unseen = self.unseen.clone();
        unseen.extend(filters::merged_since(&self.awaited_caches));
        let kprobes = self.loaded.kprobe_misses();
        unseen.extend(kprobes.unseen());
        self.collector.read_modules();
        let again = |module: &&String| self.collector.has_come_again(module);
        unseen.extend(self.pair_modules.iter().filter(again).map(|module| {
            format!(
                "functions of --pair in module {module}: it was loaded again, and they have no probes \
                 since"
            )
        }));
        let mut misses = self.loaded.misses();
        for (program, count) in &kprobes.counts {
            *misses.entry(program.clone()).or_default() += count;
        }
        self.collector.snapshot(wants, misses, kprobes.watches_returns(), &unseen)
    }

    /// As [`super::Tracer::sample`].
    pub(super) fn sample(&self) -> Counts {
        self.collector.counts()
    }

    /// As [`super::Tracer::end`].
    pub(super) fn end(mut self, note: &mut dyn FnMut(&str)) {
        self.log.lines().iter().for_each(|line| note(line));
        // First, so that no program runs on maps that are gone.
        drop(self.loaded);
    }
}
