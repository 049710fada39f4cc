//! Pairs of functions that are named: what a driver gets and does not put, by its own count.

use std::thread;

use leaktrace_tests::{
    SOON,
    binary::{leaktrace, run},
    driver::Driver,
    kernel::kernel_release,
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

/// Whether this kernel tells how many runs of kprobes it has left out.
fn counts_misses() -> bool {
    kernel_release() >= (6, 7)
}

fn unseen(report: &Report) -> Vec<&str> {
    let lines = report.value["loss"]["unseen"].as_array().map(Vec::as_slice).unwrap_or_default();
    lines.iter().filter_map(|line| line.as_str()).collect()
}

/// Nothing was missed that the kernel can tell.
fn assert_complete(report: &Report) {
    if counts_misses() {
        return report.assert_complete();
    }
    assert_eq!(unseen(report), [UNCOUNTED], "{}", report.value["loss"]);
    let reasons = report.value["loss"]["reasons"].as_object();
    let is_note = |reason: &String| reason == "untracked_release";
    assert!(reasons.is_some_and(|all| all.keys().all(is_note)), "{}", report.value["loss"]);
}

const UNCOUNTED: &str = "calls in an interrupt that comes while a kprobe runs: this kernel does not \
                         count them (it is before 6.7): functions of --pair";

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
        assert_complete(&report);
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

/// While a kprobe's program runs, an interrupt's kprobes run none: a release that comes there is told
/// as lost, or that such are not counted.
#[test]
fn what_an_interrupt_puts_while_a_probe_runs_is_told() {
    let driver = Driver::load("leak_handles");
    let traced = Traced::start(&[&["kernel", "--stacks", "all"], &PAIRS[..]].concat());
    driver.command("interrupt", 5000);
    let ended = traced.interrupt();
    let report = ended.final_report();
    let counted = driver.account_of("take_reference");
    let got = report.sum_in_module("leak_handles", "take_reference");
    assert_eq!(got.allocated_count, counted.allocated_count);
    let lost = counted.freed_count - got.freed_count;
    assert!(lost > 0, "no interrupt came while a probe ran: {counted:?}");
    assert_eq!(report.value["loss"]["complete"], false, "{lost} lost of {counted:?}");
    match counts_misses() {
        true => {
            let told = &report.value["loss"]["recursion_misses"]["lt_pair_put"];
            assert_eq!(told.as_u64(), Some(lost), "{}", report.value["loss"]);
        }
        false => assert!(unseen(report).contains(&UNCOUNTED), "{}", report.value["loss"]),
    }
    driver.unload();
}

/// Lets the call return that waits in the driver, however a test ends.
struct LetGo<'a>(&'a Driver);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        self.0.command("go", 0);
    }
}

/// Has a call wait in an acquiring function meanwhile.
fn with_a_call_that_waits(driver: &Driver, meanwhile: impl FnOnce()) {
    thread::scope(|scope| {
        let waiting = scope.spawn(|| driver.command("wait", 0));
        driver.command("entered", 0);
        let let_go = LetGo(driver);
        meanwhile();
        drop(let_go);
        assert!(waiting.join().is_ok());
    });
}

/// It is a call that has not returned, and where the kernel counts returns that it does not watch, no
/// loss: neither while leaktrace runs, after ten seconds, nor at the end.
#[test]
fn a_call_that_waits_is_no_return_without_room() {
    let driver = Driver::load("leak_handles");
    let mut traced = Traced::start(&["kernel", "-i", "1s", "--pair", "handle_await:handle_put"]);
    with_a_call_that_waits(&driver, || {
        let elapsed = |report: &Report| report.value["elapsed_ms"].as_u64().unwrap_or(0);
        let start = elapsed(&traced.next_report(SOON));
        let late = traced
            .wait_report("eleven seconds later", SOON, |report| elapsed(report) > start + 11_000);
        assert_eq!(unreturned(&late), u64::from(!counts_misses()), "{}", late.value["loss"]);
        let ended = traced.interrupt();
        assert_eq!(unreturned(ended.final_report()), u64::from(!counts_misses()));
    });
    driver.unload();
}

/// The last report waits for no ten seconds.
#[test]
fn a_call_that_waits_at_the_end_is_told_where_its_return_may_be_missed() {
    let driver = Driver::load("leak_handles");
    let traced = Traced::start(&["kernel", "--pair", "handle_await:handle_put"]);
    with_a_call_that_waits(&driver, || {
        let ended = traced.interrupt();
        assert_eq!(unreturned(ended.final_report()), u64::from(!counts_misses()));
    });
    driver.unload();
}

fn unreturned(report: &Report) -> u64 {
    report.value["loss"]["reasons"]["skipped_return"].as_u64().unwrap_or(0)
}

/// Probes of a module go with it, and do not come again.
#[test]
fn a_module_that_is_loaded_again_has_no_probes() {
    let driver = Driver::load("leak_handles");
    let mut traced = Traced::start(&[&["kernel", "-i", "1s"], &PAIRS[..]].concat());
    driver.command("get", 10);
    driver.unload();
    // What has gone calls nothing.
    traced.next_report(SOON);
    assert_complete(&traced.next_report(SOON));
    let driver = Driver::load("leak_handles");
    driver.command("get", 5);
    let ended = traced.interrupt();
    let report = ended.final_report();
    let got = report.sum_in_module("leak_handles", "take_handle");
    assert_eq!(got.allocated_count, 10, "{}", report.outline());
    let line = "functions of --pair in module leak_handles: it was loaded again";
    assert!(unseen(report).iter().any(|what| what.starts_with(line)), "{:?}", unseen(report));
    assert_eq!(report.value["loss"]["complete"], false);
    driver.unload();
}
