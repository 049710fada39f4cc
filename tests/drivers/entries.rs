//! The ways into the kernel's allocators that docs/kernel-allocations.md lists, each with a driver
//! that counts what it takes.

use leaktrace_tests::{
    SOON,
    driver::Driver,
    report::{Amounts, Report, Site, number},
    traced::Traced,
};

use super::{assert_nothing_missed, trace};

/// Waits until each account is as `got` finds it in a report.
fn wait_counted(
    traced: &mut Traced,
    driver: &Driver,
    got: impl Fn(&Report, &str) -> Amounts,
) -> Report {
    let expected = driver.account();
    traced.wait_report("it is as the driver counted", SOON, |report| {
        expected.iter().all(|(function, amounts)| got(report, function) == *amounts)
    })
}

/// What an allocator keeps for itself, by a report.
fn kept(report: &Report, keeper: &str) -> Amounts {
    let kept = report.value["kept"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = kept.iter().find(|kept| kept["keeper"] == keeper);
    found.map(Amounts::of).unwrap_or_default()
}

mod vmalloc {
    use super::*;

    /// Above 2 MiB, vmalloc gets the array of its pages from itself.
    #[test]
    fn blocks_on_both_sides_of_2_mib_are_exact() {
        // Of what these functions take nothing else is as large: records and small arrays of pages
        // come from slabs.
        const LEAST: u64 = 1 << 20;
        let of = |report: &Report, name: &str| {
            report.sum(|site| {
                site.module() == "vmalloc_sizes"
                    && site.has_frame(name)
                    && number(site.value, "largest_bytes") >= LEAST
            })
        };
        let small = |report: &Report| {
            report.sum(|site| {
                site.kind() == "vmalloc"
                    && site.module() == "vmalloc_sizes"
                    && number(site.value, "largest_bytes") < LEAST
            })
        };
        let driver = Driver::load("vmalloc_sizes");
        let mut traced = trace();
        driver.command("take", 2);
        let report = wait_counted(&mut traced, &driver, of);
        assert_eq!(small(&report), Amounts::default(), "arrays of pages are no caller's");
        // 8 bytes a page, by vmalloc and by vzalloc_node; kvmalloc may have found pages in a row.
        let pages = [2052, 5 << 10, 17 << 10, 64 << 10].map(|kib| kib / 4).iter().sum::<u64>();
        let arrays = kept(&report, "vmalloc");
        assert!(arrays.outstanding_bytes >= 2 * 2 * 8 * pages, "{arrays:?}");

        driver.command("give", 0);
        let report = wait_counted(&mut traced, &driver, of);
        assert_eq!(small(&report), Amounts::default());
        let arrays = kept(&report, "vmalloc");
        assert!(arrays.freed_bytes >= 2 * 2 * 8 * pages, "{arrays:?}");
        let left = report.sum(|site| site.kind() == "vmalloc" && site.module() == driver.name());
        assert_eq!(left.outstanding_bytes, 0);

        driver.command("take", 1);
        wait_counted(&mut traced, &driver, of);
        driver.command("give", 0);
        wait_counted(&mut traced, &driver, of);
        assert_nothing_missed(traced.interrupt().final_report());
        driver.unload();
    }

    /// The kernel watches ten returns of a function at once (twice as many as CPUs, if that is more:
    /// register_kretprobe, kernel/kprobes.c, 6.1): what 48 threads take is in the figures, or is told.
    #[test]
    fn a_call_whose_return_is_not_watched_is_told() {
        const THREADS: u64 = 48;
        const EACH: u64 = 8;
        let driver = Driver::load("vmalloc_sizes");
        let mut traced = trace();
        driver.command("crowd", EACH as u32);
        let got = |report: &Report| {
            let of = |site: &Site<'_>| {
                site.kind() == "vmalloc"
                    && site.module() == "vmalloc_sizes"
                    && site.has_frame("vmalloc_in_crowd")
            };
            report.sum(of).outstanding_count
        };
        let told = |report: &Report| {
            report.value["loss"]["reasons"]["skipped_return"].as_u64().unwrap_or(0)
        };
        let report = traced.wait_report("each call is recorded or told", SOON, |report| {
            got(report) + told(report) == THREADS * EACH
        });
        assert!(told(&report) > 0, "the kernel had room for all: {}", report.value["loss"]);
        assert_eq!(report.value["loss"]["complete"], false);
        driver.command("give", 0);
        traced.wait_report("none is left", SOON, |report| got(report) == 0);
        traced.interrupt();
        driver.unload();
    }
}

mod bulk {
    use super::*;

    fn of(report: &Report, function: &str) -> Amounts {
        report.sum(|site| {
            site.kind() == "kmem_cache" && site.module() == "leak_bulk" && site.has_frame(function)
        })
    }

    #[test]
    fn objects_of_a_bulk_allocation_are_exact() {
        let driver = Driver::load("leak_bulk");
        let mut traced = trace();
        driver.command("take", 4800);
        let report = wait_counted(&mut traced, &driver, of);
        let of_cache = report.sum(|site| site.cache() == "leak_bulk");
        assert_eq!(of_cache.outstanding_count, 4800);
        // Freed by both ways.
        driver.command("give", 0);
        wait_counted(&mut traced, &driver, of);
        driver.command("take", 1600);
        driver.command("give_bulk", 0);
        let report = wait_counted(&mut traced, &driver, of);
        assert_eq!(report.sum(|site| site.cache() == "leak_bulk").outstanding_count, 0);
        assert_nothing_missed(traced.interrupt().final_report());
        driver.unload();
    }

    /// Each head is that of who took it out of the CPU's cache. Debian's 6.1 has no function through
    /// which it goes back: there, what is at hand counts for who had it last, as the report says.
    #[test]
    fn heads_of_packets_are_those_of_who_took_them() {
        const AT_HAND: u64 = 64;
        let driver = Driver::load("leak_bulk");
        let mut traced = trace();
        driver.command("skbs", 3000);
        wait_counted(&mut traced, &driver, of);
        driver.command("skbs_given", 0);
        driver.command("skbs_freed", 1000);
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let report = traced.wait_report("all are taken, and back", SOON, |report| {
            let got = of(report, "take_skb");
            got.allocated_count == 4000 && got.outstanding_count <= cpus * AT_HAND
        });
        let unseen = report.value["loss"]["unseen"].as_array().map_or(0, Vec::len);
        let left = of(&report, "take_skb").outstanding_count;
        assert!(left == 0 || unseen > 0, "{}", report.outline_of(|site| site.module() != ""));
        let at_hand = kept(&report, "skb_cache");
        assert!(at_hand.allocated_count > 0, "the cache was filled in bulk: {at_hand:?}");
        assert_nothing_missed(traced.interrupt().final_report());
        driver.unload();
    }
}
