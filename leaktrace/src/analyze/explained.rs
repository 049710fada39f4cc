//! By how much the memory that people watch grew since the start, and how much of that the traced
//! blocks explain.
//!
//! Bytes that were asked for are fewer than what they take: the allocator rounds up. Where it is
//! known how ([`rounding`]), the difference is part of what is explained, and told apart.

mod hints;
mod rounding;

use std::{cmp::Reverse, collections::BTreeMap};

use leaktrace_common::Kind;

use super::cache_class;
use crate::snapshot::{
    Amount, HostFigure, HostGrowth, Names, Process, Resolved, Role, Site, Snapshot, StackRef,
    WatchedProcess,
};

/// What has grown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A process' own memory: RssAnon and VmSwap of /proc/PID/status.
    ProcessOwn(Process),
    /// What a process has of memory that may be shared: RssShmem.
    ProcessShared(Process),
    /// A figure of /proc/meminfo.
    Host(HostFigure),
    /// Slabs of a cache, by /proc/slabinfo; kmalloc's caches of one size are one.
    SlabCache(String),
}

/// The growth of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// What has grown.
    pub what: What,
    /// By how many bytes; more than [`crate::snapshot::Watched::least_bytes`].
    pub grew_bytes: u64,
    /// Bytes asked for by the traced blocks that are in it, and not freed.
    pub explained_bytes: u64,
    /// What the allocator takes for these blocks beyond that, as far as it is known.
    pub overhead_bytes: u64,
    /// What the rest may be, and what would tell; as the end of a sentence.
    pub hint: Option<&'static str>,
    /// For a process that has ended: how long ago its memory was last read.
    pub age_ms: Option<u64>,
}

/// The least share at which growth counts as explained.
const WHOLE: f64 = 0.95;
/// The share above which more was asked for than memory came into use.
const TOO_MUCH: f64 = 1.05;

impl Explained {
    /// The explained part of the growth: 1.0 for all of it; above that, memory was asked for that
    /// has not come into use.
    pub fn share(&self) -> f64 {
        (self.explained_bytes + self.overhead_bytes) as f64 / self.grew_bytes.max(1) as f64
    }

    /// Whether the growth is explained, within a twentieth.
    pub fn is_whole(&self) -> bool {
        (WHOLE..=TOO_MUCH).contains(&self.share())
    }

    /// Whether more was asked for than came into use.
    pub fn is_too_much(&self) -> bool {
        self.share() > TOO_MUCH
    }
}

/// What traced blocks add up to.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    asked: u64,
    overhead: u64,
}

impl Sum {
    fn add(&mut self, asked: u64, overhead: u64) {
        self.asked += asked;
        self.overhead += overhead;
    }
}

/// Explains everything that grew by enough to mean something: processes, the host's figures, and
/// slab caches, most growth first in each.
pub fn explain(snapshot: &Snapshot, names: &Names) -> Vec<Explained> {
    let mut all = processes(snapshot);
    all.extend(host(snapshot, names));
    all.extend(caches(snapshot));
    all.retain(|one| one.grew_bytes >= snapshot.watched.least_bytes.max(1));
    all
}

/// Bytes that a site has allocated and not freed, whatever their age.
fn held(site: &Site) -> Amount {
    site.allocated.minus(site.freed)
}

fn processes(snapshot: &Snapshot) -> Vec<Explained> {
    let kinds = &snapshot.user_kinds;
    let (malloc, mmap) = (kinds.contains(&Kind::Malloc), kinds.contains(&Kind::Mmap));
    if !malloc && !mmap {
        return Vec::new();
    }
    let mut sums: BTreeMap<u32, hints::Held> = BTreeMap::new();
    for site in snapshot.sites.iter().filter(|site| site.kind.is_of_process()) {
        let sum = sums.entry(site.space).or_default();
        let amount = held(site);
        match site.mapping.map(|mapping| mapping.role) {
            None => {
                let is_glibc = snapshot
                    .processes
                    .get(&site.space)
                    .is_some_and(|process| process.allocator.starts_with("glibc "));
                let overhead = if is_glibc { rounding::glibc(amount) } else { 0 };
                sum.blocks.add(amount.bytes, overhead);
            }
            Some(Role::Program) => sum.mapped.add(amount.bytes, 0),
            Some(Role::Allocator) => sum.allocator_bytes += amount.bytes,
            Some(Role::Stack | Role::Loader | Role::Reserved | Role::Unknown) => {}
        }
    }
    let mut all = Vec::new();
    for (space, watched) in &snapshot.watched.processes {
        let Some(process) = snapshot.processes.get(space) else { continue };
        let WatchedProcess { then, now, age_ms } = *watched;
        let sum = sums.get(space).copied().unwrap_or_default();
        let own = Explained {
            what: What::ProcessOwn(process.clone()),
            grew_bytes: now.own.saturating_sub(then.own),
            explained_bytes: sum.blocks.asked + sum.mapped.asked,
            overhead_bytes: sum.blocks.overhead,
            hint: None,
            age_ms,
        };
        let hint = hints::of_process(&own, &sum, snapshot);
        all.push(Explained { hint, ..own });
        all.push(Explained {
            what: What::ProcessShared(process.clone()),
            grew_bytes: now.shared.saturating_sub(then.shared),
            explained_bytes: 0,
            overhead_bytes: 0,
            hint: Some(hints::SHARED),
            age_ms,
        });
    }
    all.sort_by_key(|one| Reverse(one.grew_bytes));
    all
}

/// Functions that allocate the stacks of threads: kernel/fork.c, 5.15 to 6.18.
const THREAD_STACKS: [&str; 2] = ["alloc_thread_stack_node", "dup_task_struct"];
/// Functions that allocate page tables: mm/memory.c, arch/x86/mm/pgtable.c, 5.15 to 6.18.
const PAGE_TABLES: [&str; 8] = [
    "pte_alloc_one",
    "__pte_alloc",
    "__pmd_alloc",
    "__pud_alloc",
    "__p4d_alloc",
    "pgd_alloc",
    "pmd_install",
    "do_huge_pmd_anonymous_page",
];

fn host(snapshot: &Snapshot, names: &Names) -> Vec<Explained> {
    let mut sums: BTreeMap<HostFigure, Sum> = BTreeMap::new();
    for site in snapshot.sites.iter().filter(|site| !site.is_of_process()) {
        let amount = held(site);
        let passes = |functions: &[&str]| has_frame(site, snapshot, names, functions);
        let (figure, overhead) = match site.kind {
            Kind::Kmalloc | Kind::KmemCache => {
                let is_taken_back = |cache| snapshot.reclaimable.caches.contains(cache);
                if site.cache.as_ref().is_some_and(is_taken_back) {
                    continue;
                }
                (HostFigure::UnreclaimableSlab, slab_overhead(site, snapshot))
            }
            Kind::Vmalloc => {
                if passes(&THREAD_STACKS) {
                    sums.entry(HostFigure::KernelStack).or_default().add(amount.bytes, 0);
                }
                (HostFigure::Vmalloc, rounding::pages(amount))
            }
            Kind::Percpu => (HostFigure::Percpu, 0),
            Kind::Pages if passes(&THREAD_STACKS) => (HostFigure::KernelStack, 0),
            Kind::Pages if passes(&PAGE_TABLES) => (HostFigure::PageTables, 0),
            Kind::Pages | Kind::Malloc | Kind::Mmap | Kind::Pair => continue,
        };
        sums.entry(figure).or_default().add(amount.bytes, overhead);
    }
    let of = |growth: &HostGrowth| {
        let sum = sums.get(&growth.figure).copied().unwrap_or_default();
        let one = Explained {
            what: What::Host(growth.figure),
            grew_bytes: growth.now.saturating_sub(growth.then),
            explained_bytes: sum.asked,
            overhead_bytes: sum.overhead,
            hint: None,
            age_ms: None,
        };
        let hint = hints::of_host(&one, growth.figure, snapshot);
        Explained { hint, ..one }
    };
    let mut all: Vec<Explained> = snapshot.watched.host.iter().map(of).collect();
    all.sort_by_key(|one| Reverse(one.grew_bytes));
    all
}

/// What the slabs take for a site's objects beyond what was asked for.
fn slab_overhead(site: &Site, snapshot: &Snapshot) -> u64 {
    let amount = held(site);
    let growth = site.cache.as_ref().and_then(|cache| snapshot.cache_growth.get(cache));
    growth.map_or(0, |growth| (amount.count * growth.object_bytes).saturating_sub(amount.bytes))
}

/// Whether one of these functions is in a site's stack, as far as it is known.
fn has_frame(site: &Site, snapshot: &Snapshot, names: &Names, functions: &[&str]) -> bool {
    let StackRef::Known(id) = site.stack else { return false };
    let Some(stack) = snapshot.stacks.get(&id) else { return false };
    stack.frames.iter().any(|frame| match names.frames.get(frame) {
        Some(Resolved::Known(symbols)) => symbols.iter().any(|symbol| {
            let plain = symbol.name.split('.').next().unwrap_or(&symbol.name);
            functions.contains(&plain.strip_suffix("_noprof").unwrap_or(plain))
        }),
        _ => false,
    })
}

/// Slab caches that grew by more than CPUs keep at hand.
fn caches(snapshot: &Snapshot) -> Vec<Explained> {
    let mut sums: BTreeMap<String, (i64, i64, u64, Sum)> = BTreeMap::new();
    for (cache, growth) in &snapshot.cache_growth {
        let (objects, at_hand, bytes, _) = sums.entry(cache_class(cache)).or_default();
        *objects += growth.objects;
        *at_hand = (*at_hand).max(growth.at_hand);
        *bytes = (*bytes).max(growth.object_bytes);
    }
    for site in &snapshot.sites {
        let Some(cache) = &site.cache else { continue };
        if let Some((_, _, _, sum)) = sums.get_mut(&cache_class(cache)) {
            sum.add(held(site).bytes, slab_overhead(site, snapshot));
        }
    }
    let of = |(cache, (objects, at_hand, bytes, sum)): (String, (i64, i64, u64, Sum))| {
        // Fewer may be in use by nobody.
        let grown = u64::try_from(objects).ok().filter(|_| objects > at_hand)?;
        let one = Explained {
            what: What::SlabCache(cache),
            grew_bytes: grown * bytes,
            explained_bytes: sum.asked,
            overhead_bytes: sum.overhead,
            hint: None,
            age_ms: None,
        };
        let hint = hints::of_cache(&one, snapshot);
        Some(Explained { hint, ..one })
    };
    let mut all: Vec<Explained> = sums.into_iter().filter_map(of).collect();
    all.sort_by_key(|one| Reverse(one.grew_bytes));
    all
}

#[cfg(test)]
mod tests;
