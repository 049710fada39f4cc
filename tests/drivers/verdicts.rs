//! What a driver leaks stands first, however busy the kernel is.

use std::time::{Duration, Instant};

use leaktrace_tests::{driver::Driver, report::Site, storm::Storm, traced::Traced};

/// How long the leak goes on.
const TIME: Duration = Duration::from_secs(60);

/// One in a hundred requests is not given back: a block a second, beside connections, files and
/// processes.
#[test]
fn a_driver_s_block_a_second_stands_among_the_first_three() {
    let driver = Driver::load("leak_errors");
    // Default options: the order of the report is what is asked for.
    let traced = Traced::start(&["kernel"]);
    let leak = || {
        let start = Instant::now();
        for second in 1.. {
            driver.command("handle", 100);
            let due = start + Duration::from_secs(second);
            if due >= start + TIME {
                break;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(leak);
        Storm::start().blow(TIME);
    });
    let report = traced.interrupt().final_report().clone();
    let is_leak = |site: &Site<'_>| site.value["owner_module"] == driver.name();
    let sites = report.sites();
    let place = sites.iter().position(is_leak);
    let first: Vec<String> = sites
        .iter()
        .take(10)
        .map(|site| {
            format!("{} {} {}", site.symbols().join(" < "), site.cache(), site.value["verdict"])
        })
        .collect();
    assert!(place.is_some_and(|place| place < 3), "place {place:?}\n{}", first.join("\n"));
    driver.unload();
}
