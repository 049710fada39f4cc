//! Verdicts in words.

use std::io::{self, Write};

use super::{TextStyle, escape::escape};
use crate::{
    report::{Class, Confidence, Summary, Verdict},
    units::{format_bytes, format_count, format_ms},
};

/// The line below the first one of a call site.
pub(super) fn line(verdict: &Verdict, out: &mut dyn Write, style: &TextStyle) -> io::Result<()> {
    let color = match verdict.confidence {
        Confidence::Certain | Confidence::Likely => style.paint("\x1b[1;31m"),
        Confidence::Unknown => style.paint("\x1b[1;33m"),
        Confidence::Healthy => "",
    };
    let reset = if color.is_empty() { "" } else { style.paint("\x1b[0m") };
    let (words, evidence) = (words(verdict), escape(&verdict.evidence));
    writeln!(out, "      {color}{words}{reset}: {evidence}{}", ask_again(verdict.ask_again_ms))
}

fn words(verdict: &Verdict) -> &'static str {
    match (verdict.confidence, verdict.class) {
        (Confidence::Certain, _) => "certain leak",
        (Confidence::Likely, Class::Steady) => "leaks steadily",
        (Confidence::Likely, Class::Sporadic) => "leaks now and then",
        (Confidence::Likely, Class::Hoarding) => "hoards",
        (Confidence::Likely, _) => "leaked",
        (Confidence::Unknown, Class::OneTime) => "perhaps leaked once",
        (Confidence::Unknown, _) => "unknown yet",
        (Confidence::Healthy, Class::Saturating) => "saturated",
        (Confidence::Healthy, _) => "in use",
    }
}

fn ask_again(ms: Option<u64>) -> String {
    // Whole seconds: nobody waits for less.
    ms.map(|ms| format!(" (ask again in {})", format_ms(ms.next_multiple_of(1000))))
        .unwrap_or_default()
}

/// The line below a report's sums.
pub(super) fn summary(summary: &Summary, out: &mut dyn Write, style: &TextStyle) -> io::Result<()> {
    let (bold, reset) = (style.paint("\x1b[1m"), style.paint("\x1b[0m"));
    let sites = |count: usize, one: &str, many: &str| {
        let words = if count == 1 { one } else { many };
        format!("{} {words}", format_count(count as u64))
    };
    let mut parts = Vec::new();
    if summary.leaking_sites > 0 {
        let sites = sites(summary.leaking_sites, "call site leaks", "call sites leak");
        parts.push(format!("{sites} ({})", format_bytes(summary.leaked_bytes)));
    }
    if summary.unknown_sites > 0 {
        let sites = match parts.is_empty() {
            true => sites(summary.unknown_sites, "call site is", "call sites are"),
            false => sites(summary.unknown_sites, "is", "are"),
        };
        parts.push(format!("{sites} unknown yet{}", ask_again(summary.ask_again_ms)));
    }
    if parts.is_empty() {
        parts.push("no call site grows".to_owned());
    }
    writeln!(out, "{bold}verdict{reset}: {}", parts.join(", "))
}
