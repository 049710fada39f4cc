//! Growth of hand-made snapshots.

use std::collections::BTreeMap;

use leaktrace_common::{LIFETIME_BUCKETS, MapCall, StackMode};

use super::*;
use crate::snapshot::{
    CacheGrowth, Frame, Loss, Mapping, Mode, Place, ProcessBytes, Reclaimable, Watched,
};

const MIB: u64 = 1 << 20;

fn site(kind: Kind, space: u32, count: u64, bytes: u64) -> Site {
    let amount = Amount { count, bytes };
    Site {
        id: 1,
        kind,
        space,
        cache: None,
        cache_made: None,
        is_page_array: false,
        function: None,
        pair: None,
        mapping: None,
        call_site: Frame::new(1, Place::Unmapped),
        stack: StackRef::Lost,
        // As many were freed.
        allocated: amount.plus(amount),
        freed: amount,
        outstanding: Amount::default(),
        sampled: None,
        oldest_ms: None,
        largest_bytes: 0,
        freed_at: Vec::new(),
        frees: 0,
        born: None,
        reached: None,
        last_ms: 0,
        lifetimes: [0; LIFETIME_BUCKETS],
        holders: Vec::new(),
        blocks: Vec::new(),
    }
}

fn mapped(role: Role, bytes: u64) -> Site {
    let mapping = Some(Mapping { call: MapCall::Mmap, role });
    Site { mapping, ..site(Kind::Mmap, 1, 1, bytes) }
}

fn snapshot(mode: Mode, kinds: &[Kind], sites: Vec<Site>) -> Snapshot {
    let process = Process {
        pid: 42,
        comm: "demo".into(),
        exe: "/demo".into(),
        cgroup: None,
        exited: false,
        allocator: "glibc (/lib/libc.so.6)".into(),
    };
    let processes = if mode == Mode::Kernel { BTreeMap::new() } else { [(1, process)].into() };
    Snapshot {
        unix_ms: 0,
        host: String::new(),
        mode,
        is_final: true,
        elapsed_ms: 0,
        stack_mode: StackMode::All,
        user_kinds: kinds.to_vec(),
        sites,
        stacks: BTreeMap::new(),
        objects: Vec::new(),
        processes,
        processes_ended: 0,
        loss: Loss::default(),
        max_outstanding: 0,
        sample_bytes: 0,
        budget: None,
        blocks_read: false,
        modules: Vec::new(),
        gone_modules: std::collections::BTreeSet::new(),
        cache_growth: BTreeMap::new(),
        cache_aliases: BTreeMap::new(),
        reclaimable: Reclaimable::default(),
        watched: Watched { least_bytes: 2 * MIB, ..Watched::default() },
        older_ms: 0,
        scans: Vec::new(),
    }
}

/// What is said of a process that grew from 10 MiB by so many.
fn of_process(kinds: &[Kind], sites: Vec<Site>, grew: u64) -> Option<Explained> {
    let mut snapshot = snapshot(Mode::User, kinds, sites);
    let bytes = |own| ProcessBytes { own, shared: 0 };
    let watched =
        WatchedProcess { then: bytes(10 * MIB), now: bytes(10 * MIB + grew), age_ms: None };
    snapshot.watched.processes.insert(1, watched);
    let mut all = explain(&snapshot, &Names::default());
    assert!(all.len() < 2, "{all:?}");
    all.pop()
}

#[test]
fn blocks_explain_with_their_headers() {
    // 24 bytes are a chunk of 32.
    let blocks = vec![site(Kind::Malloc, 1, 1 << 20, 24 << 20)];
    let one = of_process(&[Kind::Malloc], blocks, 32 * MIB).unwrap();
    assert_eq!((one.explained_bytes, one.overhead_bytes), (24 * MIB, 8 * MIB));
    assert!(one.is_whole() && one.hint.is_none(), "{one:?}");
}

#[test]
fn growth_that_means_nothing_is_not_told() {
    assert_eq!(of_process(&[Kind::Malloc], Vec::new(), 2 * MIB - 1), None);
    assert!(of_process(&[Kind::Malloc], Vec::new(), 2 * MIB).is_some());
    // No memory is traced.
    assert_eq!(of_process(&[Kind::Pair], Vec::new(), 100 * MIB), None);
}

#[test]
fn what_is_missing_depends_on_what_was_traced() {
    let blocks = || site(Kind::Malloc, 1, 1, 45 * MIB);
    let hint = |kinds: &[Kind], more: Vec<Site>| {
        let sites = [vec![blocks()], more].concat();
        of_process(kinds, sites, 178 * MIB).unwrap().hint.unwrap_or_default()
    };
    let only = hint(&[Kind::Malloc], Vec::new());
    assert!(only.contains("maps itself") && only.contains("--kind malloc,mmap"), "{only}");
    let both = [Kind::Malloc, Kind::Mmap];
    let fragmented = hint(&both, vec![mapped(Role::Allocator, 170 * MIB)]);
    assert!(fragmented.contains("fragmentation"), "{fragmented}");
    let older = hint(&both, vec![mapped(Role::Allocator, 46 * MIB)]);
    assert!(older.contains("got before"), "{older}");
    // Addresses of allocators, stacks and reserves are no blocks.
    assert_eq!(hint(&both, vec![mapped(Role::Program, 133 * MIB)]), "");
    let unwritten = hint(&both, vec![mapped(Role::Program, 1000 * MIB)]);
    assert!(unwritten.contains("not written to"), "{unwritten}");
}

#[test]
fn slabs_take_more_than_their_objects() {
    let cached = |cache: &str, count, bytes| Site {
        cache: Some(cache.into()),
        ..site(Kind::KmemCache, 0, count, bytes)
    };
    let sites = vec![cached("kmalloc-64", 100_000, 5_000_000), cached("dentry", 9, 9 * MIB)];
    let mut snapshot = snapshot(Mode::Kernel, &[], sites);
    snapshot.reclaimable.caches.insert("dentry".into());
    let grown = |objects| CacheGrowth { objects, at_hand: 1000, object_bytes: 64 };
    snapshot.cache_growth = [("kmalloc-64", 60_000), ("kmalloc-rnd-01-64", 40_000), ("still", 900)]
        .map(|(name, objects)| (name.to_owned(), grown(objects)))
        .into();
    snapshot.watched.host = [
        (HostFigure::UnreclaimableSlab, 6_500_000),
        (HostFigure::Percpu, 3_000_000),
        (HostFigure::Vmalloc, 1_000_000),
    ]
    .map(|(figure, now)| HostGrowth { figure, then: 100_000, now: 100_000 + now })
    .to_vec();
    let all = explain(&snapshot, &Names::default());
    let told: Vec<_> = all
        .iter()
        .map(|one| (one.what.clone(), one.grew_bytes, one.explained_bytes, one.overhead_bytes))
        .collect();
    let (slab, percpu) = (HostFigure::UnreclaimableSlab, HostFigure::Percpu);
    assert_eq!(
        told,
        [
            (What::Host(slab), 6_500_000, 5_000_000, 1_400_000),
            (What::Host(percpu), 3_000_000, 0, 0),
            (What::SlabCache("kmalloc-*64".into()), 6_400_000, 5_000_000, 1_400_000),
        ]
    );
    assert_eq!(all[0].hint, None);
    assert!(all[1].hint.is_some_and(|hint| hint.contains("--kind percpu")), "{:?}", all[1]);
}
