//! Pairs of functions that are named: what a driver gets and does not put, by its own count.

use leaktrace_tests::{
    SOON,
    binary::{leaktrace, run},
    driver::Driver,
    report::Report,
    traced::Traced,
};

use super::{assert_nothing_missed, end_as_counted};

/// The pairs of `leak_handles`.
const PAIRS: [&str; 6] = [
    "--pair",
    "handle_get(size=2):handle_put",
    "--pair",
    "object_hold(key=1,if=true):object_drop",
    "--pair",
    "slot_open(out=2):slot_close",
];

fn check(options: &[&str]) -> Report {
    let driver = Driver::load("leak_handles");
    let traced = Traced::start(&[&["kernel", "-i", "1s"], &PAIRS[..], options].concat());
    driver.command("get", 300);
    driver.command("fail", 50);
    driver.command("put", 100);
    driver.command("hold", 200);
    driver.command("drop", 90);
    driver.command("hold", 30);
    driver.command("open", 100);
    driver.command("close", 20);
    let report = end_as_counted(traced, &driver);
    let sites = report.sites();
    assert!(sites.iter().all(|site| site.kind() == "pair"), "{}", report.outline());
    driver.unload();
    report
}

/// By stacks, and by the call alone.
#[test]
fn what_a_driver_gets_and_does_not_put_is_counted_exactly() {
    for stacks in ["all", "adaptive", "site"] {
        let report = check(&["--stacks", stacks]);
        report.assert_complete();
        let held = report.sum_in_module("leak_handles", "take_reference");
        assert_eq!((held.outstanding_count, held.freed_count), (140, 90), "{stacks}");
        let got = report.sum_in_module("leak_handles", "take_handle");
        assert_eq!((got.outstanding_count, got.outstanding_bytes), (200, 200 * 24), "{stacks}");
        let sites = report.sites();
        let of = |pair: &str| sites.iter().any(|site| site.value["pair"] == pair);
        assert!(of("slot_open:slot_close"), "{}", report.outline());
    }
}

/// Numbers of processes, which the kernel's own functions give and take back, beside slab objects.
#[test]
fn functions_of_the_kernel_are_followed_beside_its_allocators() {
    let args = ["kernel", "--kind", "slab", "--pair", "alloc_pid:free_pid", "-i", "1s"];
    let mut traced = Traced::start(&args);
    for _ in 0..20 {
        let ended = std::process::Command::new("true").status();
        assert!(ended.is_ok_and(|status| status.success()), "true");
    }
    traced.wait_report("20 were given and taken back", SOON, |report| {
        let pairs = report.sum(|site| site.kind() == "pair" && site.has_frame("copy_process"));
        let slab = report.sum(|site| site.kind() == "kmem_cache").allocated_count;
        pairs.allocated_count >= 20 && pairs.freed_count >= 20 && slab > 0
    });
    assert_nothing_missed(traced.interrupt().final_report());
}

/// A function of which the kernel lets nobody have a probe: one line, and exit code 3.
#[test]
fn a_function_without_kprobes_is_refused_in_one_line() {
    // On x86 kprobes are int3 (NOKPROBE_SYMBOL, arch/x86/kernel/kprobes/core.c).
    let args = ["kernel", "--pair", "alloc_pid:kprobe_int3_handler"];
    let finished = run(&mut leaktrace(&args));
    assert_eq!((finished.code, finished.stdout.as_str()), (3, ""), "{}", finished.stderr);
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    assert!(finished.stderr.contains("the kernel permits no kprobe there"), "{}", finished.stderr);
}
