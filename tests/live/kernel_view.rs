//! Kernel mode: sums by module, cache and process, whom an allocation is for, and the filter by
//! GFP flags.

use std::{
    collections::BTreeMap, fs, os::unix::net::UnixStream, path::Path, process::Command,
    sync::Barrier,
};

use leaktrace_tests::{
    LATE, SOON,
    binary::{leaktrace, run},
    child::Child,
    groups::{Groups, MemoryGroups},
    leaker::Leaker,
    report::{Amounts, Report, Site, number},
    traced::Traced,
};
use serde_json::Value;

/// 500 pipes, 500 eventfds and 500 timerfds are held; the final report of `args`.
fn trace_objects(args: &[&str]) -> (Report, u32) {
    let mut program = Leaker::start("kobjects", &[]);
    let traced = Traced::start(&[&["kernel", "--interval", "1h"], args].concat());
    program.advance("holding");
    let report = traced.interrupt().final_report().clone();
    let pid = program.pid();
    program.end_after("closed");
    (report, pid)
}

/// Outstanding blocks and bytes.
type Sums = BTreeMap<String, (u64, u64)>;

fn outstanding(value: &Value) -> (u64, u64) {
    (number(value, "outstanding_count"), number(value, "outstanding_bytes"))
}

fn add(sums: &mut Sums, name: &str, value: &Value) {
    let (count, bytes) = outstanding(value);
    if count > 0 {
        let sum = sums.entry(name.to_owned()).or_default();
        *sum = (sum.0 + count, sum.1 + bytes);
    }
}

/// The groups of a report, by a field that names them.
fn groups(report: &Report, name: impl Fn(&Value) -> String) -> Sums {
    let Some(groups) = report.value["groups"].as_array() else { panic!("{}", report.outline()) };
    let mut sums = Sums::new();
    for group in groups {
        add(&mut sums, &name(group), group);
    }
    sums
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The sums of all sites, by what `name` says of each.
fn sums(report: &Report, name: impl Fn(Site<'_>) -> String) -> Sums {
    let mut sums = Sums::new();
    for site in report.sites() {
        add(&mut sums, &name(site), site.value);
    }
    sums
}

#[test]
fn sums_by_cache_are_those_of_its_sites() {
    let (report, _) = trace_objects(&["--by", "cache"]);
    assert_eq!(report.value["by"], "cache");
    let of_sites = sums(&report, |site| match site.cache() {
        "" => site.kind().to_owned(),
        cache => cache.to_owned(),
    });
    let of_groups = groups(&report, |group| text(&group["name"]));
    assert_eq!(of_groups, of_sites);
    assert!(of_groups["filp"].0 >= 2000, "{of_groups:?}");
}

/// With all stacks every site has an owner; a dentry's is the function that makes dentries.
#[test]
fn sums_by_module_are_those_of_its_owner() {
    let (report, pid) = trace_objects(&["--by", "module", "--stacks", "all"]);
    let of_sites = sums(&report, |site| text(&site.value["owner_module"]));
    let of_groups = groups(&report, |group| text(&group["name"]));
    assert_eq!(of_groups, of_sites);
    assert!(of_groups["vmlinux"].0 >= 6500, "{of_groups:?}");
    let got = ["__d_alloc", "alloc_pipe_info", "do_eventfd"].map(|owner| held(&report, pid, owner));
    assert_eq!(got, [1500, 1000, 500], "{}", report.outline());
}

/// Every holder is there, and holds what the sites say of it.
#[test]
fn sums_by_process_are_those_of_the_holders() {
    let (report, pid) = trace_objects(&["--by", "process"]);
    // Those that have ended are one by their command.
    let name = |process: &Value, field: &str| match process["exited"] == true {
        true => format!("{} ended", process.get(field).unwrap_or(&process["pid"])),
        false => process["pid"].to_string(),
    };
    let mut of_sites = Sums::new();
    for site in report.sites() {
        for holder in site.value["holders"].as_array().into_iter().flatten() {
            add(&mut of_sites, &name(holder, "comm"), holder);
        }
    }
    let of_groups = groups(&report, |group| name(group, "name"));
    assert_eq!(of_groups, of_sites);
    assert!(of_groups[&pid.to_string()].0 >= 6500, "{of_groups:?}");
    let Some(groups) = report.value["groups"].as_array() else { panic!() };
    let own = groups.iter().find(|group| group["pid"] == pid);
    assert_eq!(own.map(|group| text(&group["name"])).as_deref(), Some("kobjects"));
    // How much a process has allocated in all is not known, and unknown is absent.
    assert!(groups.iter().all(|group| group.get("allocated_bytes").is_none()));
}

/// Blocks that a process holds of what a function has allocated itself, and is the owner of: what
/// the kernel's helpers need for it (an IDA's bitmap) is left out.
fn held(report: &Report, pid: u32, owner: &str) -> u64 {
    let is_its = |site: &Site<'_>| {
        site.value["owner"] == owner && site.symbols().first().is_some_and(|call| *call == owner)
    };
    report.sites().into_iter().filter(is_its).map(|site| site.held_by(pid)).sum()
}

/// A pipe is allocated with `kzalloc` and `GFP_KERNEL_ACCOUNT` (fs/pipe.c), an eventfd with
/// `kmalloc` and `GFP_KERNEL` (fs/eventfd.c), the same in 6.1 and 6.18.
#[test]
fn a_gfp_filter_leaves_out_all_other_allocations() {
    let cases: [(&[&str], u64, u64); 5] = [
        (&["--gfp", "__GFP_ZERO"], 1000, 0),
        (&["--gfp", "GFP_KERNEL_ACCOUNT"], 1000, 0),
        (&["--gfp", "GFP_KERNEL"], 1000, 500),
        (&["--gfp", "GFP_ATOMIC"], 0, 0),
        (&["--gfp", "GFP_ATOMIC", "--gfp", "__GFP_ACCOUNT"], 1000, 0),
    ];
    for (args, pipes, eventfds) in cases {
        let (report, pid) = trace_objects(&[args, &["--stacks", "all"]].concat());
        let got = (held(&report, pid, "alloc_pipe_info"), held(&report, pid, "do_eventfd"));
        assert_eq!(got, (pipes, eventfds), "{args:?}\n{}", report.outline());
    }
}

/// Filters are all to hold: a cache, and flags of its objects.
#[test]
fn a_gfp_filter_and_a_cache_filter_are_both_to_hold() {
    let args = ["--cache", "filp", "--gfp", "GFP_ATOMIC"];
    let (report, pid) = trace_objects(&args);
    assert!(report.sites().iter().all(|site| site.held_by(pid) == 0), "{}", report.outline());
    let args = ["--cache", "filp", "--gfp", "GFP_KERNEL"];
    let (report, pid) = trace_objects(&args);
    let held: u64 = report.sites().into_iter().map(|site| site.held_by(pid)).sum();
    assert_eq!(held, 2000, "{}", report.outline());
}

/// The kernel makes caches of one size one: a socket of AF_UNIX comes from that of the first of them.
#[test]
fn a_merged_cache_is_found_by_each_of_its_names() {
    const PAIRS: u64 = 50;
    let link = |name: &str| fs::read_link(Path::new("/sys/kernel/slab").join(name)).unwrap();
    let folder = link("UNIX");
    let pid = std::process::id();
    let traced = Traced::start(&["kernel", "--interval", "1h", "--cache", "UNIX"]);
    let pairs: Vec<_> = (0..PAIRS).map(|_| UnixStream::pair().unwrap()).collect();
    let ended = traced.interrupt();
    drop(pairs);
    let report = ended.final_report();
    let held: u64 = report.sites().into_iter().map(|site| site.held_by(pid)).sum();
    assert_eq!(held, 2 * PAIRS, "{}", report.outline());
    for site in report.sites() {
        let mut names = vec![site.cache()];
        let others = site.value["cache_aliases"].as_array().into_iter().flatten();
        names.extend(others.filter_map(Value::as_str));
        assert!(names.contains(&"UNIX"), "{}", site.value);
        for name in names {
            assert_eq!(link(name), folder, "{name}");
        }
    }
}

#[test]
fn a_cache_that_is_not_there_is_bad_input() {
    let finished = run(&mut leaktrace(&["kernel", "-d", "1s", "--cache", "UNX"]));
    assert_eq!(finished.code, 2, "{}", finished.stderr);
    let lines: Vec<&str> = finished.stderr.lines().collect();
    assert!(
        lines.len() == 1 && lines[0].contains("--cache UNX") && lines[0].contains("UNIX"),
        "{lines:?}"
    );
}

/// Whether the kernel takes a cache's objects back under pressure, by its own word.
fn is_reclaimable(cache: &str) -> bool {
    let file = Path::new("/sys/kernel/slab").join(cache).join("reclaim_account");
    fs::read_to_string(file).is_ok_and(|answer| answer.trim() == "1")
}

/// 1,500 files of the program have a dentry each, in a cache that the kernel takes back. Such call
/// sites come after all others, or are left out, of the totals as well.
#[test]
fn reclaimable_caches_come_last_or_not_at_all() {
    let (report, pid) = trace_objects(&[]);
    let of_program = |report: &Report, cache: &str| {
        let sites = report.sites().into_iter().filter(|site| site.cache() == cache);
        sites.map(|site| site.held_by(pid)).sum::<u64>()
    };
    assert!(is_reclaimable("dentry") && !is_reclaimable("filp"));
    assert_eq!((of_program(&report, "dentry"), of_program(&report, "filp")), (1500, 2000));
    let is_labelled = |site: &Site<'_>| site.value["reclaimable"] == true;
    for site in report.sites() {
        // What security modules keep of an inode goes with it.
        let is_of_inode = site.symbols().first() == Some(&"security_inode_alloc");
        let expected = is_reclaimable(site.cache()) || is_of_inode;
        assert_eq!(is_labelled(&site), expected, "{}", site.value);
    }
    let sites = report.sites();
    let held = sites.iter().filter(|site| number(site.value, "outstanding_count") > 0);
    let order: Vec<(bool, bool)> =
        held.map(|site| (is_labelled(site), site.value["upper_bound"] == true)).collect();
    assert!(order.is_sorted() && order.contains(&(true, false)), "{order:?}");
    let all = &report.value["reclaimable"];
    assert_eq!(all["told_by"], "kernel", "{all}");
    assert_eq!(Amounts::of(all), report.sum(is_labelled));

    let (report, pid) = trace_objects(&["--unreclaimable", "--not-cache", "filp"]);
    let held = |cache: &str| {
        let sites = report.sites().into_iter().filter(|site| site.cache() == cache);
        sites.map(|site| site.held_by(pid)).sum::<u64>()
    };
    assert_eq!((held("dentry"), held("filp")), (0, 0), "{}", report.outline());
    assert!(!report.sites().iter().any(|site| is_reclaimable(site.cache())));
    // The pipes' own blocks are there as ever.
    assert!(report.sum(|site| site.held_by(pid) > 0).outstanding_count >= 1500);
    assert_eq!(Amounts::of(&report.value["totals"]), report.sum(|_| true));
    assert!(report.value["reclaimable"].is_null());
}

/// What a cache is asked for and left out by another of its names is refused.
#[test]
fn filters_that_leave_nothing_are_bad_input() {
    let cases: [(&[&str], &[&str]); 4] = [
        (&["--not-cache", "UNX"], &["--not-cache UNX", "UNIX"]),
        (&["--cache", "UNIX", "--not-cache", "UNIX-STREAM"], &["one slab cache"]),
        (&["--cache", "dentry", "--unreclaimable"], &["--cache dentry is reclaimable"]),
        (&["--not-module", "../x"], &["--not-module ../x"]),
    ];
    for (args, words) in cases {
        let finished = run(&mut leaktrace(&[&["kernel", "-d", "1s"], args].concat()));
        let (code, stderr) = (finished.code, finished.stderr);
        assert_eq!((code, stderr.lines().count()), (2, 1), "{args:?}: {stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{args:?}: {stderr}");
    }
}

#[test]
fn a_control_group_holds_those_below_it_and_no_others() {
    let groups = Groups::new();
    let mut program = Leaker::start("kobjects", &[]);
    groups.take(program.pid());
    let outer = groups.outer().display().to_string();
    let traced =
        Traced::start(&["kernel", "--interval", "1h", "--by", "process", "--cgroup", &outer]);
    program.advance("holding");
    // This process is in no group below.
    let pipes: Vec<_> = (0..100).map(|_| std::io::pipe().unwrap()).collect();
    let report = traced.interrupt().final_report().clone();
    let pid = u64::from(program.pid());
    let holders: Vec<u64> = report.value["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| number(group, "pid"))
        .collect();
    assert_eq!(holders, [pid], "{}", report.value["groups"]);
    // A pipe has two kmallocs and six objects, an eventfd and a timerfd three each: see `kernel`.
    let got = report.sum(|_| true).outstanding_count;
    assert!(got >= 500 * (7 + 3 + 3), "{got} blocks:\n{}", report.outline());
    drop(pipes);
    program.end_after("closed");
}

/// Objects of a slab cache in use, by the kernel.
fn in_use(cache: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(cache));
    let count = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    count.unwrap_or_else(|| panic!("no {cache} in /proc/slabinfo"))
}

/// The name that /proc/slabinfo has for a cache: that of the one which it is one with, or its own.
fn known_as(cache: &str) -> String {
    let listed = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    let is_listed = |name: &str| listed.lines().any(|line| line.split(' ').next() == Some(name));
    let target = |name: &str| std::fs::read_link(format!("/sys/kernel/slab/{name}")).ok();
    let own = target(cache);
    let all = std::fs::read_dir("/sys/kernel/slab").into_iter().flatten().flatten();
    let mut names = all.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_same = |name: &String| own.is_some() && target(name) == own && is_listed(name);
    if is_listed(cache) { cache.to_owned() } else { names.find(is_same).unwrap_or_default() }
}

/// The kernel allocates them in bulk: they are counted, or, where that cannot be seen, the report says
/// that their cache has grown.
#[test]
fn requests_of_io_uring_are_not_passed_over() {
    let cache = known_as("io_kiocb");
    let mut program = Leaker::start("uring", &[]);
    let traced = Traced::start(&["kernel", "--interval", "1h"]);
    let before = in_use(&cache);
    let requests = number(&program.advance("holding").line, "requests");
    let grown = in_use(&cache) - before;
    assert!(grown + 100 > requests, "the kernel keeps a few ready: {grown} of {requests}");
    let ended = traced.interrupt();
    let report = ended.final_report();
    program.end_after("closed");
    // Where it is one with another cache, that one's objects are not io_uring's.
    let is_own = |site: &Site<'_>| {
        site.cache() == cache && site.symbols().iter().any(|name| name.contains("io_"))
    };
    let seen = report.sum(is_own).outstanding_count;
    let loss = &report.value["loss"];
    let untold = loss["untold_growth"].as_array().map(Vec::as_slice).unwrap_or_default();
    let told = untold.iter().find(|told| told["cache"] == cache.as_str());
    match told {
        // A ring takes them by eight.
        None => assert!((requests..requests + 8).contains(&seen), "{}", report.outline()),
        Some(told) => {
            assert_eq!((seen, &loss["complete"]), (0, &Value::Bool(false)), "{loss}");
            assert!(number(told, "growth").abs_diff(grown) < 100, "{told}: {grown}");
        }
    }
}

/// What the allocators take for themselves, and what may have been freed unseen, is not ranked among
/// the callers' call sites.
#[test]
fn what_allocators_keep_and_upper_bounds_are_apart() {
    let (report, _) = trace_objects(&["--stacks", "all"]);
    let keepers = ["alloc_slab_obj_exts", "memcg_alloc_slab_cgroups", "memcg_list_lru_alloc"];
    let first =
        |site: &Site<'_>| site.symbols().first().map_or(String::new(), |name| (*name).into());
    let sites = report.sites();
    let ranked: Vec<String> =
        sites.iter().map(first).filter(|name| keepers.contains(&name.as_str())).collect();
    assert!(ranked.is_empty(), "{ranked:?}");
    // Where some are, none but such comes after the first of them, as far as it holds anything.
    let mut held = sites.iter().filter(|site| number(site.value, "outstanding_count") > 0);
    let is_bound = |site: &&Site<'_>| site.value["upper_bound"] == true;
    held.by_ref().find(is_bound);
    assert!(held.all(|site| is_bound(&site)), "{}", report.outline());
    let blind = report.value["loss"]["unseen"].as_array().is_some_and(|unseen| {
        unseen.iter().any(|what| text(what).starts_with("kmem_cache_free_bulk"))
    });
    for site in sites.iter().filter(|site| site.cache() == "maple_node") {
        assert_eq!(is_bound(&site), blind, "{}", site.value);
    }
}

/// A control group gets an array for each list of a file system that it has an object on: one for
/// inodes, one for names (`memcg_list_lru_alloc`, mm/list_lru.c, 6.1 and 6.18). They are no caller's.
#[test]
fn arrays_of_control_groups_lists_are_kept() {
    const GROUPS: usize = 20;
    let groups = MemoryGroups::new(GROUPS);
    let folder = tempfile::tempdir().unwrap();
    let script = "read go; n=0; for f; do echo $$ > $f; n=$((n+1)); : > file-$n; done; \
                  echo done; read go";
    let mut shell = {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).args(groups.files()).current_dir(folder.path());
        Child::start(&mut command)
    };
    let traced = Traced::start(&["kernel", "--stacks", "all", "--interval", "1h"]);
    shell.send("\n");
    assert_eq!(shell.next_line(SOON).trim(), "done");
    let ended = traced.interrupt();
    shell.send("\n");
    assert_eq!(shell.wait(SOON), 0);
    let report = ended.final_report();
    let kept = report.kept("list_lru");
    assert!(kept.outstanding_count >= 2 * GROUPS as u64, "{kept:?}\n{}", report.outline());
    let allocates = |site: &Site<'_>| {
        let innermost = site.symbols().into_iter().take(3);
        innermost.into_iter().any(|name| name.contains("memcg_list_lru_alloc"))
    };
    let ranked = report.sum(allocates);
    assert_eq!(ranked.outstanding_count, 0, "{}", report.outline_of(allocates));
}

/// Mappings of threads are in nodes that the kernel frees in bulk. So few of them are no reason to
/// doubt the cache's figures, but where such frees cannot be seen their sites say so and come last.
#[test]
fn a_few_nodes_that_are_freed_in_bulk_come_last() {
    const THREADS: usize = 20;
    /// What a cache may be off by without a doubt (`AT_HAND` in report/reconcile.rs).
    const NO_DOUBT: u64 = 256;
    let pid = std::process::id().to_string();
    let with_threads = |args: &[&str]| {
        let mut child =
            Child::start(&mut leaktrace(&[&["kernel", "-i", "1h", "-p", &pid], args].concat()));
        child.wait_stderr("tracing", LATE);
        let gate = Barrier::new(THREADS + 1);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| (gate.wait(), gate.wait()));
            }
            gate.wait();
            child.signal(libc::SIGINT);
            let code = child.wait(LATE);
            gate.wait();
            let (stdout, stderr) = child.into_output();
            assert_eq!(code, 0, "{stderr}");
            stdout
        })
    };
    let report = Report::parse(with_threads(&["--format", "json", "--top", "100000"]).trim());
    let nodes = report.sum(|site| site.cache() == "maple_node");
    assert!((1..NO_DOUBT).contains(&nodes.outstanding_count), "{nodes:?}");
    let blind = report.value["loss"]["unseen"].as_array().is_some_and(|unseen| {
        unseen.iter().any(|what| text(what).starts_with("kmem_cache_free_bulk"))
    });
    let sites = report.sites();
    for site in sites.iter().filter(|site| site.cache() == "maple_node") {
        assert_eq!(site.value["upper_bound"] == true, blind, "{}", site.value);
        assert!(site.value["doubt"].is_null(), "{}", site.value);
    }
    // What the kernel takes back comes even later.
    let held = sites.iter().filter(|site| {
        number(site.value, "outstanding_count") > 0 && site.value["reclaimable"] != true
    });
    let is_bound: Vec<bool> = held.map(|site| site.value["upper_bound"] == true).collect();
    assert!(is_bound.is_sorted(), "{}", report.outline());
    let shown = with_threads(&["--top", "1000"]);
    assert_eq!(shown.contains("upper bound: objects of maple_node"), blind, "{shown}");
}
