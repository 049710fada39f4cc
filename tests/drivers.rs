//! Kernel modules with known leaks, and clean ones, traced in the machine of `cargo xtask vm`: no
//! other kernel takes them. One test at a time (`--test-threads=1`).
//!
//! Each driver counts by function what it allocates and frees; the report has to have the same six
//! figures under the same function of the same module, and nothing else outstanding of that module.

#[path = "drivers/entries.rs"]
mod entries;
#[path = "drivers/pairs.rs"]
mod pairs;
#[path = "drivers/verdicts.rs"]
mod verdicts;

use std::fs::{self, File};

use leaktrace_tests::{
    SOON,
    driver::Driver,
    report::{Amounts, Report, Site, number},
    traced::Traced,
};

/// Starts a leaktrace that takes every stack and reports each second.
fn trace() -> Traced {
    Traced::start(&["kernel", "--stacks", "all", "-i", "1s"])
}

/// Waits until a report is as the driver counted, ends leaktrace, and checks the last report.
fn end_as_counted(mut traced: Traced, driver: &Driver) -> Report {
    driver.wait_reported(&mut traced);
    let ended = traced.interrupt();
    let report = ended.final_report().clone();
    let differences = driver.differences(&report);
    assert!(differences.is_empty(), "the final report differs:\n{differences}");
    assert_nothing_missed(&report);
    report
}

fn assert_nothing_missed(report: &Report) {
    assert_eq!(report.loss("missed_allocs"), 0, "loss: {}", report.value["loss"]);
    assert_eq!(report.loss("stacks_lost"), 0, "loss: {}", report.value["loss"]);
}

/// Blocks outstanding by a driver's own count.
fn outstanding(driver: &Driver, function: &str) -> u64 {
    driver.account_of(function).outstanding_count
}

/// Has a driver do something, and finds as many blocks of each function as are to be left, and all
/// figures as the driver counts them.
fn check(name: &'static str, commands: &[(&str, u32)], left: &[(&str, u64)]) {
    let driver = Driver::load(name);
    let traced = trace();
    for (command, times) in commands {
        driver.command(command, *times);
    }
    for (function, blocks) in left {
        let account = driver.account_of(function);
        let got = (account.outstanding_count, account.allocated_count > 0);
        assert_eq!(got, (*blocks, true), "{function}: {account:?}");
    }
    end_as_counted(traced, &driver);
    driver.unload();
}

/// Tests by [`check`]: the driver, its commands with how often, and the blocks that each function
/// leaves.
macro_rules! cases {
    ($($name:ident:
        $driver:literal, [$($command:literal: $times:literal),+], [$($function:literal: $left:literal),+];
    )+) => {
        $(
            #[test]
            fn $name() {
                check($driver, &[$(($command, $times)),+], &[$(($function, $left)),+]);
            }
        )+
    };
}

cases! {
    a_clock_that_suspend_gives_back_is_not_leaked:
        "leak_clock", ["probe": 0, "cycle_fixed": 1000, "remove": 0], ["clock_get": 0];
    timers_and_works_that_are_deleted_are_no_leak:
        "leak_deferred", ["timers_deleted": 500, "works_deleted": 500],
        ["start_watchdog": 0, "start_job": 0];
    timers_and_works_that_are_never_deleted_are_leaked:
        "leak_deferred", ["timers": 250, "works": 350], ["start_watchdog": 250, "start_job": 350];
    one_in_a_hundred_is_leaked_by_a_way_out_of_a_failure:
        "leak_errors", ["handle": 20_000], ["make_header": 0, "make_body": 200];
    blocks_that_call_rcu_frees_are_no_leak:
        "clean_rcu", ["call_rcu": 5000], ["node_for_call_rcu": 0];
    a_block_that_krealloc_moves_is_one_block:
        "clean_slab", ["krealloc": 500], ["resize": 0];
    nothing_is_left_of_a_cache_that_was_emptied_and_destroyed:
        "clean_slab", ["cache": 512], ["object_for_cache": 0];
    nothing_is_left_of_a_mempool:
        "clean_slab", ["mempool": 200], ["make_element": 0];
}

#[test]
fn each_size_of_kmalloc_has_its_function() {
    let driver = Driver::load("leak_sizes");
    let traced = trace();
    driver.command("leak", 300);
    let report = end_as_counted(traced, &driver);
    let sizes = [8, 16, 64, 100, 192, 1000, 4096, 8192, 8200, 100_000];
    for bytes in sizes {
        let function = format!("leak_{bytes}");
        let got = report.sum_in_module(driver.name(), &function);
        assert_eq!((got.outstanding_count, got.outstanding_bytes), (300, 300 * bytes));
    }
    assert_eq!(driver.account().len(), sizes.len());
    driver.unload();
}

/// Frames of a module have its name, and the call site is the driver's own function.
#[test]
fn a_stack_shows_the_way_through_the_driver() {
    let driver = Driver::load("leak_clock");
    let traced = trace();
    driver.command("probe", 0);
    driver.command("cycle", 100);
    let report = end_as_counted(traced, &driver);
    let handles = report.sum(|site| {
        let frames = site.value["stack"].as_array().map(Vec::as_slice).unwrap_or_default();
        let names = |name: &str| {
            frames.iter().any(|frame| frame["symbol"] == name && frame["object"] == "[leak_clock]")
        };
        names("clock_get") && names("device_resume") && site.has_frame("vfs_write")
    });
    assert_eq!(handles.outstanding_count, 200, "{}", report.outline_of(|site| site.module() != ""));
    driver.unload();
}

/// Only the driver's own calls are traced, and all of them.
#[test]
fn a_module_filter_leaves_out_all_other_calls() {
    let driver = Driver::load("leak_clock");
    let args = ["kernel", "--module", "leak-clock", "--by", "module", "--stacks", "all"];
    let traced = Traced::start(&[&args[..], &["-i", "1s"]].concat());
    driver.command("probe", 0);
    driver.command("cycle", 100);
    let report = end_as_counted(traced, &driver);
    let others = report.outline_of(|site| site.module() != "leak_clock");
    assert!(report.sites().iter().all(|site| site.module() == "leak_clock"), "{others}");
    let groups = &report.value["groups"];
    assert_eq!(groups[0]["name"], "leak_clock", "{groups}");
    assert_eq!(groups[0]["outstanding_count"], outstanding(&driver, "clock_get"), "{groups}");
    assert_eq!(report.value["groups_total"], 1, "{groups}");
    driver.unload();
}

/// Entries below /proc are allocated by the kernel for the driver: they are the module's, unless only
/// its own calls are asked for.
#[test]
fn a_module_filter_keeps_what_the_kernel_allocates_for_the_module() {
    let driver = Driver::load("leak_device");
    let entries = |report: &Report| {
        let sites = report.sites().into_iter().filter(|site| site.cache() == "proc_dir_entry");
        sites.map(|site| number(site.value, "outstanding_count")).sum::<u64>()
    };
    let args = ["kernel", "--module", "leak_device", "-i", "1s"];
    let data =
        |report: &Report| report.sum_in_module("leak_device", "entry_data").outstanding_count;
    let mut traced = Traced::start(&args);
    driver.command("add", 100);
    traced.wait_report("entries and their data are there", SOON, |report| {
        (entries(report), data(report)) == (100, 100)
    });
    let report = traced.interrupt().final_report().clone();
    let others = report.outline_of(|site| site.module() != "leak_device");
    assert!(report.sites().iter().all(|site| site.module() == "leak_device"), "{others}");
    driver.unload();

    let driver = Driver::load("leak_device");
    let mut traced = Traced::start(&[&args[..], &["--stacks", "site"]].concat());
    driver.command("add", 100);
    traced.wait_report("their data is there", SOON, |report| data(report) == 100);
    let report = traced.interrupt().final_report().clone();
    assert_eq!(entries(&report), 0, "{}", report.outline_of(|site| site.cache() != ""));
    driver.unload();
}

/// What a module allocates is left out, its own calls in the programs and what the kernel allocates
/// for it by the stacks; what another module allocates is counted as ever.
#[test]
fn a_module_can_be_left_out() {
    for stacks in ["all", "site"] {
        let (unwanted, other) = (Driver::load("leak_device"), Driver::load("leak_clock"));
        let args = ["kernel", "--not-module", "leak-device", "--stacks", stacks, "-i", "1s"];
        let traced = Traced::start(&args);
        unwanted.command("add", 100);
        other.command("probe", 0);
        other.command("cycle", 100);
        let report = end_as_counted(traced, &other);
        let (left, is_of_it) = (report.outline(), |site: &Site<'_>| site.has_frame("entry_data"));
        assert_eq!(report.sum(is_of_it), Amounts::default(), "{left}");
        assert!(report.sites().iter().all(|site| site.module() != "leak_device"), "{left}");
        let entries = report.sum(|site| site.cache() == "proc_dir_entry").outstanding_count;
        // Only stacks tell for whom the kernel allocates.
        assert_eq!(entries, if stacks == "all" { 0 } else { 100 }, "--stacks {stacks}: {left}");
        assert_eq!(Amounts::of(&report.value["totals"]), report.sum(|_| true), "{left}");
        other.unload();
        unwanted.unload();
    }
}

/// A module that is loaded later is left out from its init on.
#[test]
fn a_module_that_is_loaded_later_can_be_left_out() {
    let args = ["kernel", "--not-module", "leak_init", "--stacks", "all", "-i", "500ms"];
    let other = Driver::load("leak_clock");
    let traced = Traced::start(&args);
    let unwanted = Driver::load("leak_init");
    unwanted.command("more", 10);
    other.command("probe", 0);
    let report = end_as_counted(traced, &other);
    let is_of_it = |site: &Site<'_>| {
        [777, 1501, 3001].contains(&number(site.value, "largest_bytes"))
            || site.module() == "leak_init"
    };
    assert_eq!(report.sum(is_of_it), Amounts::default(), "{}", report.outline_of(is_of_it));
    other.unload();
    unwanted.unload();
}

/// A module that is not loaded yet is waited for: what it allocates from its init on is seen, each
/// time that it is loaded. The figures of blocks are told by their sizes, as text of the init has no
/// names once it is freed.
#[test]
fn a_module_that_is_loaded_later_is_traced_from_its_init_on() {
    for stacks in ["all", "adaptive", "site"] {
        let mut traced =
            Traced::start(&["kernel", "--module", "leak-init", "--stacks", stacks, "-i", "500ms"]);
        let blocks = |report: &Report| {
            [777, 1501, 3001].map(|bytes| {
                report.sum(|site| {
                    site.kind() == "kmalloc" && number(site.value, "largest_bytes") == bytes
                })
            })
        };
        let mut expected = [Amounts::default(); 3];
        for _ in 0..2 {
            let driver = Driver::load("leak_init");
            driver.command("more", 10);
            let account = ["leak_in_init", "xa_new", "vmapped"].map(|name| driver.account_of(name));
            for (sum, more) in expected.iter_mut().zip(account) {
                *sum = *sum + more;
            }
            traced.wait_report("all of its blocks are there", SOON, |it| blocks(it) == expected);
            driver.unload();
        }
        assert_eq!(expected.map(|it| it.outstanding_count), [80, 140, 140]);
        let ended = traced.interrupt();
        let stderr = &ended.finished.stderr;
        assert!(stderr.contains("module leak_init is not loaded: waiting for it"), "{stderr}");
        assert_eq!(blocks(ended.final_report()), expected, "--stacks {stacks}");
    }
}

/// A cache that a module is yet to make can be asked for with it.
#[test]
fn a_cache_that_is_made_later_is_traced() {
    let args = ["kernel", "--cache", "leak_item", "--module", "leak_cache", "-i", "500ms"];
    let traced = Traced::start(&args);
    let driver = Driver::load("leak_cache");
    driver.command("leak", 100);
    let report = end_as_counted(traced, &driver);
    assert!(report.sites().iter().all(|site| site.cache() == "leak_item"), "{}", report.outline());
    driver.unload();
}

/// Functions of a driver own what they allocate, also those with names as the kernel's helpers have.
#[test]
fn a_driver_s_own_function_is_no_helper() {
    let driver = Driver::load("leak_init");
    let mut traced = trace();
    driver.command("more", 20);
    let report = traced.wait_report("all of its blocks are there", SOON, |report| {
        report.sum_in_module("leak_init", "more").outstanding_count == 40
    });
    for function in ["xa_new", "vmapped"] {
        let owned = report.sum(|site| {
            site.value["owner"] == function && site.value["owner_module"] == "leak_init"
        });
        assert_eq!(owned.outstanding_count, 20, "{}", report.outline_of(|it| it.module() != ""));
    }
    traced.interrupt();
    driver.unload();
}

#[test]
fn a_clock_that_resume_takes_again_is_leaked() {
    let driver = Driver::load("leak_clock");
    let mut traced = trace();
    driver.command("probe", 0);
    // A handle and its name.
    assert_eq!(outstanding(&driver, "clock_get"), 2);
    driver.wait_reported(&mut traced);
    driver.command("cycle", 1000);
    assert_eq!(outstanding(&driver, "clock_get"), 2002);
    driver.wait_reported(&mut traced);
    driver.command("remove", 0);
    assert_eq!(outstanding(&driver, "clock_get"), 2000);
    end_as_counted(traced, &driver);
    driver.unload();
}

/// Opens a file and closes it, as often as said.
fn open_and_close(path: &str, times: u32) {
    for _ in 0..times {
        drop(File::open(path).unwrap_or_else(|error| panic!("cannot open {path}: {error}")));
    }
}

#[test]
fn a_release_that_frees_nothing_leaks_each_open() {
    let driver = Driver::load("leak_device");
    let traced = trace();
    open_and_close("/dev/leak_device", 777);
    open_and_close("/dev/clean_device", 888);
    let report = end_as_counted(traced, &driver);
    let got = report.sum_in_module(driver.name(), "open_session");
    assert_eq!((got.outstanding_count, got.freed_count), (777, 0));
    let got = report.sum_in_module(driver.name(), "open_clean_session");
    assert_eq!((got.outstanding_count, got.freed_count), (0, 888));
    let held: u64 = report
        .sites()
        .into_iter()
        .filter(|site| site.has_frame("open_session"))
        .map(|site| site.held_by(std::process::id()))
        .sum();
    assert_eq!(held, 777, "held by the process that opened it");
    driver.unload();
}

/// Entries below /proc that are never removed, and their data, which is lost with them.
#[test]
fn an_entry_in_proc_that_is_never_removed_is_leaked() {
    const CACHE: &str = "proc_dir_entry";
    let driver = Driver::load("leak_device");
    let mut traced = trace();
    driver.command("add", 400);
    let file = format!("/sys/kernel/slab/{CACHE}/object_size");
    let entry_bytes = fs::read_to_string(&file).map(|text| text.trim().parse::<u64>());
    let Ok(Ok(entry_bytes)) = entry_bytes else { panic!("{file}: {entry_bytes:?}") };
    // The driver does not see the entry's size, nor what else proc may need.
    let entries = |report: &Report| {
        let made = |function| {
            report.sum(|site| {
                site.module() == "leak_device"
                    && site.has_frame(function)
                    && (function != "make_entry" || site.cache() == CACHE)
            })
        };
        (made("make_entry"), made("entry_data"))
    };
    let held = |count, bytes| Amounts {
        outstanding_count: count,
        outstanding_bytes: count * bytes,
        allocated_count: count,
        allocated_bytes: count * bytes,
        ..Amounts::default()
    };
    let data = driver.account_of("entry_data");
    let all = (held(400, entry_bytes), data);
    traced.wait_report("all entries are held", SOON, |report| entries(report) == all);
    // As at rmmod: the entries go, and the data stays.
    driver.command("drop", 0);
    traced.wait_report("the data alone is held", SOON, |report| {
        let (made, its_data) = entries(report);
        (made.outstanding_count, made.freed_count) == (0, 400) && its_data == data
    });
    assert_nothing_missed(traced.interrupt().final_report());
    driver.unload();
}

#[test]
fn objects_of_a_cache_of_the_driver_s_own_have_its_name() {
    let driver = Driver::load("leak_cache");
    let mut traced = trace();
    driver.command("take", 1500);
    driver.command("leak", 600);
    driver.wait_reported(&mut traced);
    driver.command("give", 0);
    let report = end_as_counted(traced, &driver);
    let of_cache = report.sum(|site| site.kind() == "kmem_cache" && site.cache() == "leak_item");
    assert_eq!((of_cache.outstanding_count, of_cache.freed_count), (600, 1500));
    driver.unload();
}

/// Where an interrupt comes while the program of kmalloc runs on that CPU, the kernel refuses it; the
/// report says how often.
#[test]
fn leaks_in_interrupts_have_their_stacks() {
    const LEAKS: [(&str, &str, u64); 3] = [
        ("leak_in_hrtimer", "__hrtimer_run_queues", 1000),
        ("leak_in_tasklet", "tasklet_action_common", 1000),
        ("leak_in_timer", "call_timer_fn", 100),
    ];
    let driver = Driver::load("leak_interrupt");
    let mut traced = trace();
    for (command, (_, _, count)) in ["hrtimer", "tasklet", "timer"].into_iter().zip(LEAKS) {
        driver.command(command, count as u32);
    }
    let missing = |report: &Report| {
        LEAKS.map(|(function, below, count)| {
            let got = report.sum(|site| site.has_frame(function) && site.has_frame(below));
            count.checked_sub(got.outstanding_count).expect("more than the driver has leaked")
        })
    };
    traced.wait_report("each is recorded, or told as refused", SOON, |report| {
        let refused = &report.value["loss"]["recursion_misses"]["lt_kmalloc"];
        let refused = refused.as_u64().unwrap_or(0);
        missing(report).iter().sum::<u64>() <= refused
    });
    let ended = traced.interrupt();
    let left_out: u64 = missing(ended.final_report()).iter().sum();
    assert!(left_out <= 20, "too many for a rare case: {left_out} of 2,100");
    driver.unload();
}

/// Its symbols are read after the module was loaded.
#[test]
fn a_driver_that_is_loaded_later_has_its_names() {
    let mut traced = trace();
    // Names were read, when the module was not there.
    traced.next_report(SOON);
    let driver = Driver::load("leak_errors");
    driver.command("handle", 1000);
    let report = traced.wait_report("the driver's leak is there", SOON, |report| {
        report.sum_in_module("leak_errors", "make_body") == driver.account_of("make_body")
    });
    assert_nothing_missed(&report);
    traced.interrupt().final_report();
    driver.unload();
}

/// A leak is mostly looked for after its driver has gone.
#[path = "unloaded.rs"]
mod unloaded;

/// Frees that no tracepoint of the slab allocators tells.
mod freed_untold {
    use super::*;

    cases! {
        blocks_that_kfree_rcu_frees_are_no_leak:
            "clean_rcu", ["kfree_rcu": 5000], ["node_for_kfree_rcu": 0];
        blocks_that_kvfree_rcu_frees_are_no_leak:
            "clean_rcu", ["kvfree_rcu": 5000], ["block_for_kvfree_rcu": 0];
        objects_that_are_freed_in_bulk_are_no_leak:
            "clean_slab", ["free_bulk": 512], ["object_for_bulk": 0];
    }
}

/// Kernel memory that is not of the slab allocators.
mod beyond_slab {
    use super::*;

    /// Waits until each function's figures of a kind are as the driver counted. The same functions
    /// have sites of other kinds: vmalloc needs slab objects and pages.
    fn end_as_counted_in(mut traced: Traced, driver: &Driver, kind: &str, functions: &[&str]) {
        let expected: Vec<Amounts> =
            functions.iter().map(|function| driver.account_of(function)).collect();
        let got = |report: &Report| -> Vec<Amounts> {
            let of = |function: &&str| {
                report.sum(|site| {
                    site.kind() == kind
                        && site.module() == driver.name()
                        && site.has_frame(function)
                })
            };
            functions.iter().map(of).collect()
        };
        traced.wait_report("it is as the driver counted", SOON, |report| got(report) == expected);
        let ended = traced.interrupt();
        assert_eq!(got(ended.final_report()), expected, "{kind} in the final report");
        assert_nothing_missed(ended.final_report());
    }

    #[test]
    fn vmalloc_is_counted_as_asked_for() {
        let driver = Driver::load("leak_beyond");
        let traced = trace();
        driver.command("vmalloc", 100);
        driver.command("freed", 50);
        end_as_counted_in(traced, &driver, "vmalloc", &["leak_vmalloc"]);
        driver.unload();
    }

    #[test]
    fn percpu_is_counted_once_for_all_cpus() {
        let driver = Driver::load("leak_beyond");
        let traced = trace();
        driver.command("percpu", 100);
        driver.command("freed", 50);
        end_as_counted_in(traced, &driver, "percpu", &["leak_percpu"]);
        driver.unload();
    }

    #[test]
    fn pages_are_counted_by_order() {
        let driver = Driver::load("leak_beyond");
        let traced = Traced::start(&["kernel", "--pages", "--stacks", "all", "-i", "1s"]);
        driver.command("pages", 100);
        driver.command("freed", 50);
        let functions = ["leak_order_0", "leak_order_1", "leak_order_2", "leak_order_3"];
        end_as_counted_in(traced, &driver, "pages", &functions);
        driver.unload();
    }

    /// `split_page` makes pages of a block, which are freed one by one.
    #[test]
    fn pages_of_a_block_that_was_split_are_freed_one_by_one() {
        let driver = Driver::load("leak_beyond");
        let mut traced = Traced::start(&["kernel", "--pages", "--stacks", "all", "-i", "1s"]);
        let outstanding_bytes = |report: &Report| {
            let sites = report.sites().into_iter();
            sites
                .filter(|site| site.kind() == "pages" && site.has_frame("split_block"))
                .map(|site| number(site.value, "outstanding_bytes"))
                .sum::<u64>()
        };
        // Every other page of 100 blocks of 8 stays: bytes alone, as how many blocks a part of a
        // block is can be told in more than one way.
        driver.command("split_half", 100);
        let left = driver.account_of("split_block").outstanding_bytes;
        assert_eq!(left, 400 * 4096);
        traced.wait_report("half of the pages are left", SOON, |report| {
            outstanding_bytes(report) == left
        });
        driver.command("split_all", 100);
        traced.wait_report("no more are left", SOON, |report| {
            let got = report.sum(|site| site.kind() == "pages" && site.has_frame("split_block"));
            outstanding_bytes(report) == left && got.allocated_bytes == 1600 * 4096
        });
        assert_eq!(outstanding_bytes(traced.interrupt().final_report()), left);
        driver.unload();
    }
}
