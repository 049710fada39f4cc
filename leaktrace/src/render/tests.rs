//! Whole renderings of hand-made snapshots.

mod apart;
mod reach;

use std::collections::BTreeMap;

use leaktrace_common::{
    AllocFunction, Kind, LIFETIME_BUCKETS, LossReason, MapCall, StackEnd, StackMode,
};

use super::*;
use crate::{
    report,
    session::spec::{By, Sort, View},
    snapshot::{
        Amount, Block, Found, Frame, FreedAt, Holder, Loss, Mapping, Mode, Names, Place, Process,
        Reclaimable, Resolved, Role, Sampled, Site, Snapshot, Stack, StackRef, Symbol, Unknown,
    },
};

const VIEW: View = View {
    top: 10,
    sort: Sort::Bytes,
    older: std::time::Duration::ZERO,
    show_allocs: false,
    by: By::Site,
};

fn amount(count: u64, bytes: u64) -> Amount {
    Amount { count, bytes }
}

fn frame(address: u64, place: Place) -> Frame {
    Frame::new(address, place)
}

fn known(name: &str, offset: u64, object: &str, line: Option<(&str, u32)>) -> Symbol {
    Symbol {
        name: name.into(),
        linkage: None,
        offset,
        object: object.into(),
        file: line.map(|(file, _)| file.into()),
        line: line.map(|(_, line)| line),
        inlined: false,
    }
}

fn site(id: u64, kind: Kind, call_site: Frame, stack: StackRef) -> Site {
    Site {
        id,
        kind,
        space: 0,
        cache: None,
        cache_made: None,
        is_page_array: false,
        function: None,
        pair: None,
        mapping: None,
        call_site,
        stack,
        allocated: amount(0, 0),
        freed: amount(0, 0),
        outstanding: amount(0, 0),
        sampled: None,
        oldest_ms: None,
        largest_bytes: 0,
        freed_at: Vec::new(),
        frees: 0,
        last_ms: 0,
        lifetimes: [0; LIFETIME_BUCKETS],
        born: None,
        reached: None,
        holders: Vec::new(),
        blocks: Vec::new(),
    }
}

fn snapshot(mode: Mode, stack_mode: StackMode) -> Snapshot {
    Snapshot {
        unix_ms: 1_795_539_600_000,
        host: "h".into(),
        mode,
        is_final: true,
        elapsed_ms: 10_000,
        stack_mode,
        user_kinds: Vec::new(),
        sites: Vec::new(),
        stacks: BTreeMap::new(),
        objects: Vec::new(),
        processes: BTreeMap::new(),
        loss: Loss::default(),
        processes_ended: 0,
        max_outstanding: 1_000_000,
        sample_bytes: 0,
        budget: None,
        blocks_read: true,
        modules: Vec::new(),
        gone_modules: std::collections::BTreeSet::new(),
        cache_growth: BTreeMap::new(),
        cache_aliases: BTreeMap::new(),
        reclaimable: Reclaimable::default(),
        watched: crate::snapshot::Watched::default(),
        older_ms: 0,
        scans: Vec::new(),
    }
}

/// A kernel call site with two known stacks, under `--stacks adaptive`.
fn kernel() -> (Snapshot, Names) {
    let mut snapshot = snapshot(Mode::Kernel, StackMode::Adaptive);
    let kernel = |address| frame(address, Place::Kernel);
    let (leaf, one, two) = (kernel(0x10), kernel(0x20), kernel(0x30));
    for (id, caller) in [(1, one), (2, two)] {
        snapshot.stacks.insert(id, Stack { frames: vec![leaf, caller], end: StackEnd::Complete });
    }
    let part = |id, stack, allocated: (u64, u64), outstanding: (u64, u64), held: u64| Site {
        cache: Some("kmalloc-64".into()),
        allocated: amount(allocated.0, allocated.1),
        freed: amount(allocated.0 - outstanding.0, allocated.1 - outstanding.1),
        outstanding: amount(outstanding.0, outstanding.1),
        oldest_ms: Some(9_800),
        largest_bytes: 64,
        freed_at: vec![FreedAt { frame: one, count: 3 }, FreedAt { frame: two, count: 1 }],
        frees: 4,
        lifetimes: {
            let mut lifetimes = [0; LIFETIME_BUCKETS];
            lifetimes[3] = allocated.0 - outstanding.0;
            lifetimes
        },
        holders: vec![Holder {
            pid: 7,
            comm: Some("modprobe".into()),
            exited: false,
            outstanding: amount(held, held * 64),
            oldest_ms: 9_800,
        }],
        ..site(id, Kind::Kmalloc, leaf, stack)
    };
    snapshot.sites = vec![
        part(11, StackRef::Known(1), (10, 640), (5, 320), 5),
        part(12, StackRef::Known(2), (10, 640), (2, 128), 2),
        part(13, StackRef::NotTaken, (100, 6_400), (90, 5_760), 90),
    ];
    snapshot.loss = Loss {
        reasons: [(LossReason::MissedFree, 3), (LossReason::UntrackedFree, 1_234)].into(),
        recursion_misses: [("lt_kfree".to_owned(), 2)].into(),
        stacks_truncated: 0,
        unseen: vec!["kmem_cache_free_bulk: no tracepoint fires".into()],
        blind: crate::snapshot::Blind::default(),
        filtered: false,
    };
    let mut names = Names::default();
    for (frame, name, object) in
        [(leaf, "clk_get", "vmlinux"), (one, "xyz_resume", "[xyz]"), (two, "xyz_probe", "[xyz]")]
    {
        names.frames.insert(frame, Resolved::Known(vec![known(name, 0x1c, object, None)]));
    }
    (snapshot, names)
}

/// A process with a whole stack, with a cut one without names, and with hostile names.
fn user() -> (Snapshot, Names) {
    let mut snapshot = snapshot(Mode::User, StackMode::All);
    snapshot.processes.insert(
        1,
        Process {
            pid: 42,
            comm: "de\x1b[2Jmo".into(),
            exe: "/usr/bin/demo".into(),
            cgroup: Some("/system.slice/demo.service".into()),
            exited: false,
            allocator: "/lib/libc.so.6".into(),
        },
    );
    let object = |address| frame(address, Place::Object { object: 0, file_offset: address });
    let (leaf, lost) = (object(0x1010), object(0x9999));
    let main = Frame { found: Found::FramePointer, ..object(0x1020) };
    snapshot.stacks.insert(1, Stack { frames: vec![leaf, main], end: StackEnd::Complete });
    snapshot.stacks.insert(2, Stack { frames: vec![lost], end: StackEnd::NoRow });
    snapshot.sites = vec![
        Site {
            space: 1,
            function: AllocFunction::of_symbol("malloc"),
            allocated: amount(11_000, 1_100_000),
            freed: amount(0, 0),
            outstanding: amount(11_000, 1_100_000),
            oldest_ms: Some(9_876),
            largest_bytes: 100,
            freed_at: Vec::new(),
            frees: 0,
            blocks: vec![Block { address: 0xdead_b000, size_bytes: 100, age_ms: 9_876 }],
            ..site(1, Kind::Malloc, leaf, StackRef::Known(1))
        },
        Site {
            space: 1,
            function: AllocFunction::of_symbol("calloc"),
            allocated: amount(2, 32),
            freed: amount(1, 16),
            outstanding: amount(1, 16),
            largest_bytes: 16,
            freed_at: Vec::new(),
            frees: 0,
            lifetimes: {
                let mut lifetimes = [0; LIFETIME_BUCKETS];
                lifetimes[15] = 1;
                lifetimes
            },
            ..site(2, Kind::Malloc, lost, StackRef::Known(2))
        },
    ];
    snapshot.loss.stacks_truncated = 1;
    let mut names = Names::default();
    let inlined =
        Symbol { inlined: true, ..known("fast_path", 0, "/usr/bin/demo", Some(("d.c", 7))) };
    names.frames.insert(
        leaf,
        Resolved::Known(vec![
            inlined,
            known("leak\nhere", 0x1c, "/usr/bin/demo", Some(("d.c", 42))),
        ]),
    );
    names.frames.insert(main, Resolved::Known(vec![known("run", 0x40, "/lib/libdemo.so.1", None)]));
    names.frames.insert(lost, Resolved::Unknown(Unknown::NoSymbol("/opt/stripped".into())));
    (snapshot, names)
}

/// The report of a snapshot alone: nothing is known of earlier moments, and nothing suppressed.
fn built(snapshot: &Snapshot, names: &Names, view: &View) -> Report {
    report::build(snapshot, names, &Default::default(), view, &Default::default())
}

fn rendered((snapshot, names): &(Snapshot, Names), format: Format) -> String {
    let report = built(snapshot, names, &VIEW);
    let mut out = Vec::new();
    render(&report, format, &mut out, &TextStyle { color: false }).unwrap();
    String::from_utf8(out).unwrap()
}

/// A just-in-time compiler makes the same function several times, at any address.
#[test]
fn unnamed_code_made_at_run_time_makes_no_rows() {
    let (mut snapshot, mut names) = user();
    let leaf = snapshot.sites[0].call_site;
    let parts = [(7, 0x7000_1000, 30), (8, 0x7000_2000, 12)].map(|(id, address, count)| {
        let made = frame(address, Place::Anonymous { pid: 42 });
        names
            .frames
            .insert(made, Resolved::Unknown(Unknown::Anonymous { has_map: false, way: None }));
        let stack = Stack { frames: vec![leaf, made], end: StackEnd::Complete };
        snapshot.stacks.insert(id, stack);
        Site {
            allocated: amount(count, count * 10),
            outstanding: amount(count, count * 10),
            ..Site { stack: StackRef::Known(id), id, ..snapshot.sites[0].clone() }
        }
    });
    snapshot.sites = parts.to_vec();
    let report = built(&snapshot, &names, &VIEW);
    let rows: Vec<_> = report.groups.iter().flat_map(|group| &group.rows).collect();
    let amounts: Vec<_> = rows.iter().map(|row| row.totals.outstanding).collect();
    assert_eq!(amounts, [amount(42, 420)]);
}

#[test]
fn a_kernel_call_site_is_split_by_its_stacks() {
    insta::assert_snapshot!("kernel_text", rendered(&kernel(), Format::Text));
    insta::assert_snapshot!("kernel_json", rendered(&kernel(), Format::Json));
}

#[test]
fn user_stacks_are_whole_or_say_why_not() {
    insta::assert_snapshot!("user_text", rendered(&user(), Format::Text));
    insta::assert_snapshot!("user_json", rendered(&user(), Format::Json));
}

/// The program's own mappings are a call site; other mappings stand apart and in no sum.
#[test]
fn mappings_of_others_stand_apart() {
    let (mut snapshot, names) = user();
    snapshot.user_kinds = vec![Kind::Malloc, Kind::Mmap];
    let roles = [Role::Program, Role::Allocator, Role::Stack, Role::Reserved];
    for (id, role) in (100..).zip(roles) {
        snapshot.sites.push(Site {
            space: 1,
            mapping: Some(Mapping { call: MapCall::Mmap, role }),
            allocated: amount(id, id * 4096),
            freed: amount(99, 99 * 4096),
            outstanding: amount(id - 99, (id - 99) * 4096),
            ..site(id, Kind::Mmap, frame(0x77, Place::Unmapped), StackRef::Lost)
        });
    }
    let mapped = (snapshot, names);
    insta::assert_snapshot!("mappings_text", rendered(&mapped, Format::Text));
    insta::assert_snapshot!("mappings_json", rendered(&mapped, Format::Json));
}

#[test]
fn nothing_outstanding_is_one_sentence() {
    let nothing = (snapshot(Mode::Run, StackMode::All), Names::default());
    insta::assert_snapshot!("nothing_text", rendered(&nothing, Format::Text));
}

/// Sums by module, slab cache and holder. A site of which only a helper's call is known has no
/// module.
#[test]
fn sums_stand_in_a_table() {
    let (mut snapshot, mut names) = kernel();
    let symbol = known("kmalloc_reserve", 0x1c, "vmlinux", None);
    let leaf = snapshot.sites[0].call_site;
    names.frames.insert(leaf, Resolved::Known(vec![symbol]));
    snapshot.sites.push(Site {
        allocated: amount(2, 8_192),
        freed: amount(1, 4_096),
        outstanding: amount(1, 4_096),
        ..site(14, Kind::Vmalloc, frame(0x20, Place::Kernel), StackRef::NotTaken)
    });
    let of = |by, format| {
        let report = built(&snapshot, &names, &View { by, ..VIEW });
        let mut out = Vec::new();
        render(&report, format, &mut out, &TextStyle { color: false }).unwrap();
        String::from_utf8(out).unwrap()
    };
    insta::assert_snapshot!("by_module_text", of(By::Module, Format::Text));
    insta::assert_snapshot!("by_module_json", of(By::Module, Format::Json));
    insta::assert_snapshot!("by_cache_text", of(By::Cache, Format::Text));
    insta::assert_snapshot!("by_process_text", of(By::Process, Format::Text));
}

/// Sites are one row if the names in their stacks are the same; a whole stack and a cut one are
/// never one row.
#[test]
fn equal_stacks_merge_but_never_with_cut_ones() {
    let (mut snapshot, names) = user();
    let mut twin = snapshot.sites[0].clone();
    twin.id = 9;
    snapshot.sites.push(twin.clone());
    let cut = Stack { end: StackEnd::NoMapping, ..snapshot.stacks[&1].clone() };
    snapshot.stacks.insert(3, cut);
    twin.stack = StackRef::Known(3);
    snapshot.sites.push(twin);
    let report = built(&snapshot, &names, &VIEW);
    let counts: Vec<u64> =
        report.groups.iter().map(|group| group.totals.outstanding.count).collect();
    assert_eq!(counts, [22_000, 11_000, 1]);
    assert_eq!(report.totals.outstanding.count, 33_001);
}

#[test]
fn the_order_and_the_cut_are_as_asked() {
    let (snapshot, names) = user();
    let by_age = View { sort: Sort::Age, top: 1, ..VIEW };
    let report = built(&snapshot, &names, &by_age);
    assert_eq!(report.groups.len(), 1);
    assert_eq!(report.groups[0].oldest_ms, Some(9_876));
    assert_eq!(report.groups_total, 2);
}

/// docs/json.md promises the order; a name that only one of the merged sites has is kept.
#[test]
fn merged_holders_are_most_bytes_first() {
    let (mut snapshot, names) = kernel();
    let holder = |pid, comm: Option<&str>, count| Holder {
        pid,
        comm: comm.map(str::to_owned),
        exited: false,
        outstanding: amount(count, count * 64),
        oldest_ms: 1,
    };
    snapshot.sites.truncate(1);
    snapshot.sites[0].holders = vec![holder(1, None, 5), holder(2, Some("b"), 1)];
    let mut twin = snapshot.sites[0].clone();
    twin.id = 99;
    twin.holders = vec![holder(2, Some("b"), 9), holder(1, Some("a"), 1)];
    snapshot.sites.push(twin);
    let report = built(&snapshot, &names, &VIEW);
    assert_eq!(report.groups[0].rows.len(), 1);
    assert_eq!(
        report.groups[0].rows[0].holders,
        [holder(2, Some("b"), 10), holder(1, Some("a"), 6)]
    );
}

/// Merged caches of one size are one, and so are ended processes of one command.
#[test]
fn merged_caches_and_ended_processes_are_named() {
    let (mut snapshot, names) = kernel();
    let others = ["UNIX", "b", "c", "d", "e"].map(str::to_owned).to_vec();
    snapshot.cache_aliases.insert("kmalloc-64".into(), others);
    for site in &mut snapshot.sites {
        for holder in &mut site.holders {
            holder.exited = true;
        }
    }
    let all = (snapshot, names);
    let text = rendered(&all, Format::Text);
    assert!(text.contains("from cache kmalloc-64 (also UNIX, b, c, d and 1 more)"), "{text}");
    assert!(text.contains("allocated while running: modprobe (ended) 97"), "{text}");
    let json = rendered(&all, Format::Json);
    assert!(json.contains(r#""cache_aliases":["UNIX","b","c","d","e"],"#), "{json}");
    assert!(json.contains(r#"{"pid":7,"comm":"modprobe","exited":true,"#), "{json}");
}

/// A call site of a cache that the kernel takes back comes last, however much it holds.
#[test]
fn reclaimable_caches_are_labelled_and_come_last() {
    let (mut snapshot, names) = kernel();
    snapshot.sites.push(Site {
        cache: Some("dentry".into()),
        allocated: amount(1000, 192_000),
        outstanding: amount(1000, 192_000),
        ..site(1, Kind::KmemCache, frame(0x99, Place::Kernel), StackRef::NotTaken)
    });
    snapshot.reclaimable.caches.insert("dentry".into());
    let mut all = (snapshot, names);
    let text = rendered(&all, Format::Text);
    let first = "#2  187.5 KiB in 1,000 blocks (96.9 %)  kmem_cache_alloc from cache dentry\n";
    let label = "\n      reclaimable: the kernel takes these back under pressure, unless they are in \
                 use\n";
    assert!(text.contains(first) && text.contains(label), "{text}");
    let line = "\nreclaimable, and after the rest: 187.5 KiB in 1,000 blocks of 1 call site \
                (--unreclaimable leaves them out)";
    assert!(text.contains(line), "{text}");
    let json = rendered(&all, Format::Json);
    assert!(json.contains(r#""reclaimable":{"told_by":"kernel","sites":1,"outst"#), "{json}");
    assert_eq!(json.matches(r#""reclaimable":true"#).count(), 1, "{json}");
    all.0.reclaimable.is_listed = true;
    let text = rendered(&all, Format::Text);
    assert!(text.contains("(by a list, as this kernel does not tell; --unrecl"), "{text}");
}

/// A second program on the tracepoint, or one on a function, adds frames that belong to no caller.
#[test]
fn frames_of_other_tracers_make_no_other_site() {
    let (mut snapshot, mut names) = kernel();
    let kernel = |address| frame(address, Place::Kernel);
    let own = [(0x50, "bpf_prog_1_lt_page_alloc"), (0x51, "__bpf_trace_mm_page_alloc")];
    let other = [(0x52, "__traceiter_mm_page_alloc"), (0x53, "bpf_trampoline_64424")];
    for (address, name) in own.into_iter().chain(other) {
        let known = Resolved::Known(vec![known(name, 1, "vmlinux", None)]);
        names.frames.insert(kernel(address), known);
    }
    let frames = |list: &[u64]| Stack {
        frames: list.iter().map(|address| kernel(*address)).collect(),
        end: StackEnd::Complete,
    };
    snapshot.stacks.insert(1, frames(&[0x50, 0x51, 0x10, 0x20]));
    snapshot.stacks.insert(2, frames(&[0x50, 0x51, 0x52, 0x10, 0x53, 0x20]));
    let page = |id, stack| Site {
        outstanding: amount(1, 4096),
        allocated: amount(1, 4096),
        ..site(id, Kind::Pages, kernel(0), StackRef::Known(stack))
    };
    snapshot.stack_mode = StackMode::All;
    snapshot.sites = vec![page(1, 1), page(2, 2)];
    let report = built(&snapshot, &names, &VIEW);
    assert_eq!(report.groups.len(), 1, "{:?}", report.groups);
    assert_eq!(report.groups[0].totals.outstanding, amount(2, 8192));
    let owner = report.groups[0].rows[0].owner.as_ref().map(|owner| owner.symbol.clone());
    assert_eq!(owner.flatten().as_deref(), Some("clk_get"));
}

/// `malloc(0)` leaks blocks of no bytes: call sites that have freed everything never push it out.
#[test]
fn nothing_outstanding_comes_behind_blocks_of_no_bytes() {
    let (mut snapshot, names) = user();
    let freed = &mut snapshot.sites[0];
    freed.outstanding = amount(0, 0);
    freed.freed = freed.allocated;
    snapshot.sites[1].outstanding = amount(3, 0);
    for sort in [Sort::Bytes, Sort::Count, Sort::Age] {
        let report = built(&snapshot, &names, &View { top: 1, sort, ..VIEW });
        assert_eq!(report.groups[0].totals.outstanding, amount(3, 0), "{sort:?}");
        assert_eq!(report.groups_total, 1);
    }
}

/// One line of code that the compiler turned into two calls is one call site, in whatever order its
/// sites come.
#[test]
fn one_line_is_one_call_site() {
    let (mut snapshot, mut names) = kernel();
    let (one, two) = (frame(0x100, Place::Kernel), frame(0x108, Place::Kernel));
    for (frame, offset) in [(one, 4), (two, 12)] {
        let symbol = known("xyz_open", offset, "[xyz]", Some(("xyz.c", 5)));
        names.frames.insert(frame, Resolved::Known(vec![symbol]));
    }
    snapshot.stacks.insert(1, Stack { frames: vec![one], end: StackEnd::Complete });
    snapshot.sites.remove(1);
    snapshot.sites[0].call_site = one;
    snapshot.sites[1].call_site = two;
    for _ in 0..2 {
        let report = built(&snapshot, &names, &VIEW);
        assert_eq!(report.groups.len(), 1);
        assert_eq!(report.groups[0].rows.len(), 2);
        snapshot.sites.reverse();
    }
}

/// The last bucket has no upper limit, and the text claims none.
#[test]
fn long_lives_have_no_made_up_bound() {
    let (mut snapshot, names) = user();
    snapshot.sites[1].lifetimes = [0; LIFETIME_BUCKETS];
    snapshot.sites[1].lifetimes[LIFETIME_BUCKETS - 1] = 1;
    let text = rendered(&(snapshot, names), Format::Text);
    assert!(text.contains("freed: 1, half of them after more than 35 min"), "{text}");
}

/// The programs count a free before its bucket: a report in between does not invent a long life.
#[test]
fn a_free_without_its_bucket_yet_is_no_long_life() {
    let (mut snapshot, names) = user();
    snapshot.sites[1].freed = amount(9, 144);
    snapshot.sites[1].lifetimes = [0; LIFETIME_BUCKETS];
    let text = rendered(&(snapshot.clone(), names.clone()), Format::Text);
    assert!(text.contains("freed: 9\n"), "{text}");
    snapshot.sites[1].lifetimes[2] = 1;
    let text = rendered(&(snapshot, names), Format::Text);
    assert!(text.contains("freed: 9, half of them within 8 us"), "{text}");
}

/// A lone frame whose stack was not wanted does not pass for a whole stack.
#[test]
fn a_lone_call_says_that_no_stack_was_taken() {
    let (mut snapshot, names) = kernel();
    snapshot.stack_mode = StackMode::Site;
    snapshot.sites.drain(..2);
    let text = rendered(&(snapshot, names), Format::Text);
    assert!(text.contains("clk_get+0x1c\n        (the call alone: no stack taken)\n"), "{text}");
}

/// An estimate has a standard error; one without recorded blocks has none, as nothing is known of
/// it.
#[test]
fn estimates_have_their_errors() {
    let (mut snapshot, names) = user();
    let sampled = |count, count_variance, bytes_variance| {
        Some(Sampled { count, count_variance, bytes_variance })
    };
    // 110,000 bytes of 1,100,000, and 1,100 of 11,000 blocks.
    snapshot.sites[0].sampled = sampled(100, 1.21e6, 1.21e10);
    snapshot.sites[1].sampled = sampled(0, 0.0, 0.0);
    snapshot.sites[1].outstanding = amount(0, 0);
    let text = rendered(&(snapshot.clone(), names.clone()), Format::Text);
    assert!(text.contains("~1.0 MiB in ~11,000 blocks"), "{text}");
    assert!(text.contains("(estimated from 100 sampled, bytes ±10 %)"), "{text}");
    let json = rendered(&(snapshot, names), Format::Json);
    let errors =
        r#""sampled_count":100,"outstanding_bytes_error":110000,"outstanding_count_error":1100"#;
    // The call site's, and the totals'.
    assert_eq!(json.matches(errors).count(), 2, "{json}");
    assert!(!json.contains(r#""sampled_count":0,"outstanding"#), "{json}");
}

/// Only leaktrace's own colours are in the text, and only where colours are allowed.
#[test]
fn colours_are_only_our_own() {
    let (snapshot, names) = user();
    let report = built(&snapshot, &names, &VIEW);
    let text = |color| {
        let mut out = Vec::new();
        render(&report, Format::Text, &mut out, &TextStyle { color }).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert!(!text(false).contains('\x1b'));
    let coloured = text(true);
    let plain = ["\x1b[1m", "\x1b[1;31m", "\x1b[1;33m", "\x1b[0m"]
        .iter()
        .fold(coloured.clone(), |text, code| text.replace(code, ""));
    assert_ne!(coloured, plain);
    assert_eq!(plain, text(false));
}

/// The first line stays readable, and the text counts the processes that have left.
#[test]
fn many_processes_are_counted() {
    let mut snapshot = snapshot(Mode::User, StackMode::All);
    for space in 1..=213 {
        let process = Process {
            pid: 1000 + space,
            comm: "worker".into(),
            exe: "/usr/bin/worker".into(),
            cgroup: None,
            exited: false,
            allocator: "/usr/lib/libc.so.6".into(),
        };
        snapshot.processes.insert(space, process);
    }
    snapshot.processes_ended = 4_096;
    let of = |format| rendered(&(snapshot.clone(), Names::default()), format);
    let text = of(Format::Text);
    let first = text.lines().next().unwrap_or_default();
    assert_eq!(first, "leaktrace user: 213 processes, traced for 10.0 s");
    assert!(text.contains("left with all that they held: 4,096"), "{text}");
    let json = of(Format::Json);
    assert!(json.contains(r#""processes_ended":4096,"#), "{json}");
}
