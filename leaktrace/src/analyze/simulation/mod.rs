//! Chooses the constants of verdicts by what they do: many made-up call sites of known truth are
//! judged after a minute, ten minutes, an hour and a day. Prints a table, and asserts that few
//! healthy ones are taken for leaks.

mod random;
mod sites;

use std::io::{self, Write as _};

use self::sites::{KINDS, Kind, Simulated};
use super::{Confidence, judge};

/// Windows, in seconds.
const WINDOWS: [(f64, &str); 5] =
    [(60.0, "1 min"), (120.0, "2 min"), (600.0, "10 min"), (3600.0, "1 h"), (86_400.0, "24 h")];
/// Made-up call sites of each kind and window.
const EACH: u64 = 100;
/// Least share of the leaks that is found in each window, in percent.
const RECALL: [f64; WINDOWS.len()] = [7.0, 8.0, 60.0, 85.0, 90.0];

/// Verdicts on call sites of one kind.
#[derive(Clone, Copy, Default)]
struct Tally {
    certain: u32,
    likely: u32,
    unknown: u32,
    healthy: u32,
}

impl Tally {
    fn all(&self) -> u32 {
        self.certain + self.likely + self.unknown + self.healthy
    }

    fn share(&self, part: u32) -> f64 {
        f64::from(part) * 100.0 / f64::from(self.all().max(1))
    }
}

fn tally(kind: Kind, window_s: f64) -> Tally {
    let mut tally = Tally::default();
    for number in 0..EACH {
        let site = Simulated::of(kind, window_s, number);
        if site.is_too_rare {
            continue;
        }
        match judge(&site.facts()).confidence {
            Confidence::Certain => tally.certain += 1,
            Confidence::Likely => tally.likely += 1,
            Confidence::Unknown => tally.unknown += 1,
            Confidence::Healthy => tally.healthy += 1,
        }
    }
    tally
}

/// Two sums for each window: of the leaks, and of the healthy.
type Sums = [(Tally, Tally); WINDOWS.len()];

/// The table of all kinds.
fn table(sums: &mut Sums) -> String {
    let mut text = format!("{:48}", "leaking / unknown yet / healthy, in %");
    for (_, name) in WINDOWS {
        text += &format!("{name:>12}");
    }
    for kind in KINDS {
        let mark = if kind.leaks() { "leak: " } else { "" };
        text += &format!("\n{:48}", format!("{mark}{}", kind.name()));
        for ((seconds, _), (leaks, healthy)) in WINDOWS.iter().zip(sums.iter_mut()) {
            let tally = tally(kind, *seconds);
            let sum = if kind.leaks() { leaks } else { healthy };
            sum.certain += tally.certain;
            sum.likely += tally.likely;
            sum.unknown += tally.unknown;
            sum.healthy += tally.healthy;
            let shares = [tally.certain + tally.likely, tally.unknown, tally.healthy]
                .map(|part| format!("{:.0}", tally.share(part)))
                .join("/");
            let shares = if tally.all() == 0 { "-".to_owned() } else { shares };
            text += &format!("{shares:>12}");
        }
    }
    text + "\n"
}

#[test]
fn few_healthy_call_sites_are_taken_for_leaks() {
    let mut sums = [(Tally::default(), Tally::default()); WINDOWS.len()];
    let mut text = table(&mut sums);
    for ((_, window), (leaks, healthy)) in WINDOWS.iter().zip(&sums) {
        // As many healthy call sites as leaks, whatever number there is of each.
        let found = leaks.share(leaks.certain + leaks.likely);
        let wrong = healthy.share(healthy.certain + healthy.likely);
        let precision = found / (found + wrong).max(1e-9);
        text += &format!(
            "{window:>7}: precision {precision:.3}, recall {:.3}; unknown yet: {:.0} % of leaks, \
             {:.0} % of the healthy; leaks taken for healthy: {:.1} %\n",
            found / 100.0,
            leaks.share(leaks.unknown),
            healthy.share(healthy.unknown),
            leaks.share(leaks.healthy),
        );
    }
    io::stdout().write_all(text.as_bytes()).unwrap();
    for ((_, window), (leaks, healthy)) in WINDOWS.iter().zip(&sums) {
        let found = leaks.share(leaks.certain + leaks.likely);
        let wrong = healthy.share(healthy.certain + healthy.likely);
        assert!(found / (found + wrong).max(1e-9) >= 0.95, "{window}: too many false leaks");
        assert_eq!(healthy.certain, 0, "{window}: growth alone is never certain");
        assert!(leaks.share(leaks.healthy) < 8.0, "{window}: leaks are taken for healthy");
    }
    let recalls = sums.map(|(leaks, _)| leaks.share(leaks.certain + leaks.likely));
    for (recall, at_least) in recalls.into_iter().zip(RECALL) {
        assert!(recall >= at_least, "{recalls:?}");
    }
}
