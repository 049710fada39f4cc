//! `--all`: every process of the machine, through probes in the machine's own C library. Only in a
//! machine of our own, as that costs everybody.

use leaktrace_tests::{
    leaker::{Leaker, children_of},
    report::{Amounts, Report},
    traced::Traced,
};

/// Says that this is a virtual machine of ours (`cargo xtask vm`).
const MACHINE: &str = "LEAKTRACE_MACHINE";

#[test]
fn all_processes_are_traced_from_their_start_on() {
    assert!(
        std::env::var_os(MACHINE).is_some(),
        "this test costs every process of the machine: it runs in `cargo xtask test vm` alone"
    );
    let mut before = Leaker::start("many", &[]);
    // Static: its children meet probes that are there.
    let mut family = Leaker::start("family", &["1"]);
    let traced = Traced::start(&["user", "--all", "--interval", "1h"]);
    let leaktrace = traced.pid();
    let mut after = Leaker::start("semantics", &[]);
    before.advance("holding");
    after.advance("holding");
    family.advance("round");
    let leaves = children_of(&family.advance("holding").line);
    let report: Report = traced.interrupt().final_report().clone();
    for leaker in [&before, &after, &family] {
        report.assert_sites(leaker.pid(), &leaker.stage().sites());
    }
    for (leaf, expected) in leaves {
        report.assert_sites(leaf, &expected);
    }
    let own = report.sum(|site| site.pid() == Some(leaktrace));
    assert_eq!(own, Amounts::default(), "of leaktrace itself:\n{}", report.outline());
    // Ten children at least.
    assert!(report.value["processes_ended"].as_u64() >= Some(10), "{}", report.outline());
    assert_eq!(
        report.loss("missed_allocs") + report.loss("missed_frees"),
        0,
        "{}",
        report.outline()
    );
    for leaker in [before, after, family] {
        leaker.end();
    }
}
