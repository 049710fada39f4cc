//! Compares what reports say of a case with what is true of it. Pure.

use leaktrace_tests::report::{Report, Site, number};

use crate::cases::{Case, Leak};

/// What reports say of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Each of its leaks is said to leak; or, of a healthy program, that nothing does.
    Right,
    /// A leak is said to be healthy, or nothing is said of it.
    Missed,
    /// It cannot be told yet.
    Unknown,
    /// The leak shows in no growth, and nobody searched for lost blocks.
    NotSearched,
}

/// A verdict is one of a leak.
pub(crate) fn is_leaking(site: &Site<'_>) -> bool {
    ["certain", "likely"].contains(&confidence(site))
}

pub(crate) fn confidence<'a>(site: &Site<'a>) -> &'a str {
    site.value["verdict"]["confidence"].as_str().unwrap_or("none")
}

pub(crate) fn class<'a>(site: &Site<'a>) -> &'a str {
    site.value["verdict"]["class"].as_str().unwrap_or("")
}

/// Whether a function of this name is in the stack; C++ adds arguments to it, Rust a path before.
fn has_function(site: &Site<'_>, function: &str) -> bool {
    site.symbols().into_iter().any(|symbol| {
        let name = symbol.split('(').next().unwrap_or_default();
        name.rsplit("::").next() == Some(function)
    })
}

/// The rows of one process, in the order of the report.
pub(crate) fn rows(report: &Report, pid: u32) -> Vec<Site<'_>> {
    report.sites().into_iter().filter(|site| site.pid() == Some(pid)).collect()
}

fn is_of(site: &Site<'_>, leak: &Leak) -> bool {
    has_function(site, leak.function)
}

/// Whether a row is one of the case's leaks.
pub(crate) fn is_true_leak(site: &Site<'_>, case: &Case) -> bool {
    case.leaks.iter().any(|leak| is_of(site, leak))
}

/// What one report says of a case.
pub(crate) fn said(case: &Case, rows: &[Site<'_>]) -> Said {
    if case.is_healthy() {
        let is_unknown = rows.iter().any(|site| confidence(site) == "unknown");
        return if is_unknown { Said::Unknown } else { Said::Right };
    }
    let searched = rows.iter().any(|site| site.value["reachability"].is_object());
    let of_leak = |leak: &Leak| {
        let mut unknown = false;
        for site in rows.iter().filter(|site| is_of(site, leak)) {
            if is_leaking(site) {
                return Said::Right;
            }
            unknown |= confidence(site) == "unknown";
        }
        if case.is_bounded() && !searched {
            Said::NotSearched
        } else if unknown {
            Said::Unknown
        } else {
            Said::Missed
        }
    };
    let all: Vec<Said> = case.leaks.iter().map(of_leak).collect();
    let worst = [Said::Missed, Said::NotSearched, Said::Unknown, Said::Right];
    worst.into_iter().find(|said| all.contains(said)).unwrap_or(Said::Missed)
}

/// The rows that a report calls leaks and that are none.
pub(crate) fn false_leaks<'a>(case: &Case, rows: &[Site<'a>]) -> Vec<Site<'a>> {
    let is_false = |site: &&Site<'_>| is_leaking(site) && !is_true_leak(site, case);
    rows.iter().filter(is_false).copied().collect()
}

/// The row that speaks for a case: that of its first leak, or the one that is most outstanding.
pub(crate) fn main_row<'a>(case: &Case, rows: &[Site<'a>]) -> Option<Site<'a>> {
    let Some(leak) = case.leaks.first() else {
        // Of a healthy program, what is doubted first.
        let doubt = |site: &&Site<'_>| is_leaking(site) || confidence(site) == "unknown";
        let bytes = |site: &&Site<'_>| number(site.value, "outstanding_bytes");
        return rows.iter().find(doubt).or_else(|| rows.iter().max_by_key(bytes)).copied();
    };
    let its: Vec<Site<'a>> = rows.iter().filter(|site| is_of(site, leak)).copied().collect();
    its.iter().find(|site| is_leaking(site)).or(its.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::CASES;

    fn report(rows: &[(&str, &str)]) -> Report {
        let row = |(function, confidence): &(&str, &str)| {
            format!(
                r#"{{"process":{{"pid":7}},"stack":[{{"symbol":"{function}"}}],"outstanding_bytes":5,
                "verdict":{{"class":"steady","confidence":"{confidence}"}}}}"#
            )
        };
        let rows: Vec<String> = rows.iter().map(row).collect();
        // No more than what is judged.
        let text = format!(r#"{{"sites":[{}]}}"#, rows.join(","));
        Report { value: serde_json::from_str(&text).unwrap() }
    }

    fn case(name: &str) -> &'static Case {
        CASES.iter().find(|case| case.name == name).unwrap()
    }

    fn said_of(name: &str, found: &[(&str, &str)]) -> (Said, usize) {
        let report = report(found);
        let rows = rows(&report, 7);
        (said(case(name), &rows), false_leaks(case(name), &rows).len())
    }

    #[test]
    fn a_leak_counts_only_where_it_is() {
        assert_eq!(said_of("ten", &[("leak_10", "likely")]), (Said::Right, 0));
        assert_eq!(said_of("ten", &[("leak_10", "unknown")]), (Said::Unknown, 0));
        assert_eq!(said_of("ten", &[("leak_10", "healthy")]), (Said::Missed, 0));
        assert_eq!(said_of("ten", &[("leak_100", "certain")]), (Said::Missed, 1));
        assert_eq!(said_of("ten", &[]), (Said::Missed, 0));
        assert_eq!(said_of("new", &[("forget_object()", "certain")]), (Said::Right, 0));
        assert_eq!(said_of("rust-forget", &[("cases::forget_box", "certain")]), (Said::Right, 0));
    }

    #[test]
    fn each_of_two_leaks_has_to_be_found() {
        let one = ("leak_more", "certain");
        assert_eq!(said_of("two", &[one]), (Said::Missed, 0));
        assert_eq!(said_of("two", &[one, ("leak_less", "unknown")]), (Said::Unknown, 0));
        assert_eq!(said_of("two", &[one, ("leak_less", "likely")]), (Said::Right, 0));
    }

    #[test]
    fn nothing_of_a_healthy_program_leaks() {
        assert_eq!(said_of("lru", &[("lru_insert", "healthy")]), (Said::Right, 0));
        assert_eq!(said_of("lru", &[("lru_insert", "unknown")]), (Said::Unknown, 0));
        assert_eq!(said_of("lru", &[("lru_insert", "likely")]), (Said::Right, 1));
    }

    #[test]
    fn what_leaked_once_is_found_by_a_search_alone() {
        assert_eq!(said_of("once", &[("leak_once", "healthy")]).0, Said::NotSearched);
        assert_eq!(said_of("once", &[("leak_once", "certain")]).0, Said::Right);
    }
}
