//! Drivers that have gone when a report is made: the names of their code, and what they have to do
//! with what is outstanding. Part of `drivers.rs`.

use std::{collections::BTreeMap, fs};

use leaktrace_tests::{
    driver::Driver,
    report::{Amounts, Report, number},
    traced::Traced,
};

use super::trace;

#[test]
fn names_that_were_shown_stay() {
    let driver = Driver::load("leak_errors");
    let mut traced = trace();
    driver.command("handle", 5000);
    driver.wait_reported(&mut traced);
    let account = driver.account_of("make_body");
    driver.unload();
    let ended = traced.interrupt();
    let report = ended.final_report();
    let got = report.sum_in_module("leak_errors", "make_body");
    let lost = report.outline_of(|site| site.module() != "" || site.has_frame(""));
    assert_eq!(got, account, "{lost}");
}

/// No report needed its names while it was there; and nobody can free its blocks any more.
#[test]
fn names_that_were_never_shown_are_there() {
    let driver = Driver::load("leak_errors");
    let traced = Traced::start(&["kernel", "--stacks", "all", "-i", "1h"]);
    driver.command("handle", 5000);
    let account = driver.account_of("make_body");
    driver.unload();
    let ended = traced.interrupt();
    let report = ended.final_report();
    let got = report.sum_in_module("leak_errors", "make_body");
    let lost = report.outline_of(|site| site.module() != "" || site.has_frame(""));
    assert_eq!(got, account, "{lost}");
    let left = report.sum(|site| site.value["verdict"]["reachability"] == "left behind");
    assert_eq!(left.outstanding_count, account.outstanding_count, "{lost}");
}

/// Its debug information is read when it has gone, and the file says what was where.
#[test]
fn lines_and_inlined_functions_are_there_with_debug_information() {
    let driver = Driver::load("leak_clock");
    let folder = Driver::folder();
    let folder = folder.to_str().unwrap_or_default();
    let args = ["kernel", "--stacks", "all", "-i", "1h", "--debug-dir", folder];
    let traced = Traced::start(&args);
    driver.command("probe", 0);
    driver.command("cycle", 100);
    driver.unload();
    let ended = traced.interrupt();
    let report = ended.final_report();
    let source = fs::read_to_string("drivers/leak_clock.c").unwrap_or_default();
    let line = |text: &str, from: &str| {
        let behind = source.lines().position(|line| line.contains(from)).unwrap_or_default();
        let found = source.lines().skip(behind).position(|line| line.contains(text));
        behind + found.unwrap_or_else(|| panic!("no {text:?} in the driver")) + 1
    };
    // Function, line and whether it is inlined, of the driver's own file.
    let expected = [
        ("clock_get", line("kzalloc(", "*clock_get("), false),
        ("take_clock", line("clock_get(consumer)", "take_clock("), true),
        ("device_resume", line("take_clock();", "int device_resume("), false),
        ("cycle", line("device_resume();", "int cycle("), false),
    ]
    .map(|(name, line, is_inlined)| format!("{name} leak_clock.c:{line} {is_inlined}"));
    let handles = report.sum(|site| {
        let frames = site.value["stack"].as_array().map(Vec::as_slice).unwrap_or_default();
        let shown: Vec<String> = frames
            .iter()
            .filter_map(|frame| {
                let file = frame["file"].as_str()?.rsplit('/').next()?;
                let name = frame["symbol"].as_str()?;
                let is_inlined = frame["inlined"] == true;
                Some(format!("{name} {file}:{} {is_inlined}", frame["line"]))
            })
            .filter(|frame| frame.contains("leak_clock.c"))
            .collect();
        shown == expected
    });
    let all = report.outline_of(|site| site.module() == "leak_clock");
    assert_eq!(handles.outstanding_count, 100, "expected {expected:?}\n{all}");
}

/// Sums of what is outstanding, by what the report says of the module that has gone.
fn by_verdict(report: &Report, module: &str) -> BTreeMap<String, (u64, u64)> {
    let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for site in report.sites() {
        if site.value["unloaded_module"] == module {
            let verdict = site.value["verdict"]["reachability"].as_str().unwrap_or("none");
            let sum = sums.entry(verdict.to_owned()).or_default();
            sum.0 += number(site.value, "outstanding_count");
            sum.1 += number(site.value, "outstanding_bytes");
        }
    }
    sums
}

/// What a driver has had the kernel allocate may be in use, and is in use here.
#[test]
fn memory_in_use_is_no_leak_of_the_module_that_caused_it() {
    const FILES: u32 = 20;
    let mut traced = trace();
    let driver = Driver::load("leak_files");
    driver.command("files", FILES);
    driver.command("blocks", 30);
    driver.command("objects", 40);
    driver.wait_reported_of(&mut traced, &["leave_block", "leave_object"]);
    let (block, object) = (driver.account_of("leave_block"), driver.account_of("leave_object"));
    driver.unload();
    let ended = traced.interrupt();
    let report = ended.final_report();
    for number in 0..FILES {
        let path = format!("/run/leak_files-{number}");
        fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    let all = report.outline_of(|site| site.value["unloaded_module"] == "leak_files");
    let condemned = report.sum(|site| {
        site.cache() == "shmem_inode_cache"
            && site.value["verdict"]["reachability"] == "definitely lost"
    });
    assert_eq!(condemned, Amounts::default(), "{}", report.outline());
    let of = |function: &str, verdict: Option<&str>| {
        report.sum(|site| {
            site.has_frame(function)
                && site.value["unloaded_module"] == "leak_files"
                && site.value["verdict"]["reachability"].as_str() == verdict
        })
    };
    assert_eq!(of("leave_block", Some("left behind")), block, "{all}");
    assert_eq!(of("leave_object", Some("definitely lost")), object, "{all}");
    // An inode and a dentry each, at least.
    let inodes = report.sum(|site| {
        site.has_frame("make_file")
            && site.cache() == "shmem_inode_cache"
            && site.value["verdict"]["reachability"].is_null()
            && site.value["unloaded_module"] == "leak_files"
    });
    assert_eq!(inodes.outstanding_count, u64::from(FILES), "{all}");
    assert_eq!(of("make_file", Some("left behind")), Amounts::default(), "{all}");
    let lost = by_verdict(report, "leak_files").remove("definitely lost");
    assert_eq!(lost, Some((object.outstanding_count, object.outstanding_bytes)), "{all}");
    for number in 0..FILES {
        let _ = fs::remove_file(format!("/run/leak_files-{number}"));
    }
}

/// Blocks of the size that `leak_starting` alone asks for, by the module and the function of their call.
fn of_leak_starting(report: &Report) -> BTreeMap<(String, String), u64> {
    let mut sums = BTreeMap::new();
    for site in report.sites() {
        if site.value["largest_bytes"] == 321 {
            let call = &site.value["stack"][0];
            let name = |key: &str| call[key].as_str().unwrap_or_default().to_owned();
            *sums.entry((name("object"), name("symbol"))).or_default() +=
                number(site.value, "outstanding_count");
        }
    }
    sums
}

/// It is gone before anybody can ask for its names, but not taken for its neighbour.
#[test]
fn a_module_whose_init_fails_is_itself() {
    let args = ["kernel", "--stacks", "all", "--by", "module", "-i", "1h"];
    let traced = Traced::start(&args);
    let refused = Driver::try_load("leak_starting", c"blocks=50 fail=1");
    let error = refused.map(drop).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENODEV), "{error}");
    let ended = traced.interrupt();
    let report = ended.final_report();
    let found = of_leak_starting(report);
    let outline = report.outline_of(|site| site.value["largest_bytes"] == 321);
    let modules: Vec<&str> = found.keys().map(|(module, _)| module.as_str()).collect();
    assert!(modules.iter().all(|module| *module == "[leak_starting]"), "{found:?}\n{outline}");
    assert_eq!(found.values().sum::<u64>(), 100, "{found:?}\n{outline}");
    let named = ["", "leave_in_init", "leave_in_text"];
    assert!(found.keys().all(|(_, name)| named.contains(&name.as_str())), "{found:?}");
    assert_eq!(by_verdict(report, "leak_starting").get("left behind").map(|sum| sum.0), Some(100));
    let groups = report.value["groups"].as_array().cloned().unwrap_or_default();
    let group = groups.iter().find(|group| group["name"] == "leak_starting");
    let count = group.map(|group| number(group, "outstanding_count"));
    assert!(count.is_some_and(|count| count >= 100), "{groups:?}");
}

/// The code of an init is freed when it has run, and nothing that lies before it has its name.
#[test]
fn code_of_an_init_that_has_ended_is_not_its_neighbour() {
    let traced = Traced::start(&["kernel", "--stacks", "all", "-i", "1h"]);
    let driver = Driver::load_with("leak_starting", c"blocks=50");
    let ended = traced.interrupt();
    let report = ended.final_report();
    let mut found = of_leak_starting(report);
    let outline = report.outline_of(|site| site.value["largest_bytes"] == 321);
    let of = |name: &str| ("[leak_starting]".to_owned(), name.to_owned());
    assert_eq!(found.remove(&of("leave_in_text")), Some(50), "{found:?}\n{outline}");
    // Named if its symbols were read while it ran.
    let init = found.remove(&of("")).or_else(|| found.remove(&of("leave_in_init")));
    assert_eq!((init, found.len()), (Some(50), 0), "{found:?}\n{outline}");
    driver.unload();
}

/// Loads a driver where another one lay, has it leave blocks behind and gives it.
fn twin(name: &'static str, base: Option<u64>, blocks: u32) -> Driver {
    let driver = Driver::load(name);
    assert_eq!(base.unwrap_or_else(|| driver.base()), driver.base(), "address of {name}");
    driver.command("leave", blocks);
    assert_eq!(driver.account()[0].1.outstanding_count, u64::from(blocks));
    driver
}

#[test]
fn a_module_that_comes_to_lie_where_another_one_lay_is_itself() {
    let traced = Traced::start(&["kernel", "--stacks", "all", "-i", "1h"]);
    let one = twin("twin_one", None, 40);
    let base = one.base();
    one.unload();
    let two = twin("twin_two", Some(base), 60);
    let ended = traced.interrupt();
    let report = ended.final_report();
    let outline = report.outline_of(|site| site.module().starts_with("twin"));
    let of = |module: &str, gone: bool| {
        report.sum(|site| {
            site.kind() == "kmalloc"
                && site.value["largest_bytes"] == 555
                && site.module() == module
                && site.value["unloaded_module"].is_null() != gone
        })
    };
    assert_eq!(of("twin_one", true).outstanding_count, 40, "{outline}");
    assert_eq!(of("twin_two", false).outstanding_count, 60, "{outline}");
    let all = report.sum(|site| site.value["largest_bytes"] == 555);
    assert_eq!(all.outstanding_count, 100, "{outline}");
    two.unload();
}

/// A driver that is built anew and loaded again; the call site alone tells the loads apart as well.
#[test]
fn each_load_of_a_module_has_its_own_figures() {
    for stacks in ["all", "site"] {
        let traced = Traced::start(&["kernel", "--stacks", stacks, "-i", "1h"]);
        let first = twin("twin_one", None, 40);
        let base = first.base();
        first.unload();
        let second = twin("twin_one", Some(base), 60);
        let ended = traced.interrupt();
        let report = ended.final_report();
        let outline = report.outline_of(|site| site.module().starts_with("twin"));
        let of = |gone: bool| {
            report.sum(|site| {
                site.value["largest_bytes"] == 555
                    && site.module() == "twin_one"
                    && (site.value["verdict"]["reachability"] == "left behind") == gone
            })
        };
        assert_eq!(of(true).outstanding_count, 40, "{stacks}: {outline}");
        assert_eq!(of(false).outstanding_count, 60, "{stacks}: {outline}");
        second.unload();
    }
}
