//! What has grown since the start, and how much of that the traced blocks explain.

use std::io::{self, Write};

use serde::Serialize;

use super::escape::escape;
use crate::{
    report::{Explained, Report, What},
    units::{format_bytes, format_ms},
};

/// Most processes shown in text, and most slab caches.
const SHOWN: usize = 3;

/// Writes a line for each thing that has grown, if any has.
pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let is_cache = |one: &&Explained| matches!(one.what, What::SlabCache(_));
    let is_process =
        |one: &&Explained| matches!(one.what, What::ProcessOwn(_) | What::ProcessShared(_));
    let all = &report.explained;
    let shown = all
        .iter()
        .filter(is_process)
        .take(SHOWN)
        .chain(all.iter().filter(|one| !is_process(one) && !is_cache(one)))
        .chain(all.iter().filter(is_cache).take(SHOWN));
    for (index, one) in shown.enumerate() {
        if index == 0 {
            writeln!(out, "\ngrown since the start, and what the traced blocks explain of it:")?;
        }
        writeln!(out, "  {}", sentence(one, report.processes.len() > 1))?;
    }
    Ok(())
}

fn sentence(one: &Explained, names_process: bool) -> String {
    let of = |process: &crate::snapshot::Process| match names_process {
        true => format!(" of process {} {}", process.pid, escape(&process.comm)),
        false => String::new(),
    };
    let what = match &one.what {
        What::ProcessOwn(process) => format!("RssAnon and swap{}", of(process)),
        What::ProcessShared(process) => format!("RssShmem{}", of(process)),
        What::Host(figure) => figure.name().to_owned(),
        What::SlabCache(cache) => format!("slab cache {}", escape(cache)),
    };
    let grew = format_bytes(one.grew_bytes);
    let seen = one.age_ms.map_or(String::new(), |age| {
        format!(" (last seen {} before the report, as it has ended)", format_ms(age))
    });
    let overhead = match one.overhead_bytes {
        0 => String::new(),
        more => format!(" and {} of overhead", format_bytes(more)),
    };
    let held = format!("{}{overhead}", format_bytes(one.explained_bytes));
    let verb = if one.is_too_much() { "blocks hold more" } else { "explained" };
    let share = one.share() * 100.0;
    let hint = one.hint.map_or(String::new(), |hint| format!("; {hint}"));
    format!("{what} grew by {grew}{seen}, {verb}: {held} ({share:.0} %){hint}")
}

/// One element of `explained` in JSON.
#[derive(Serialize)]
pub(super) struct WireExplained<'a> {
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<WireWhose<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<&'a str>,
    grew_bytes: u64,
    explained_bytes: u64,
    overhead_bytes: u64,
    share: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen_ms: Option<u64>,
}

#[derive(Serialize)]
struct WireWhose<'a> {
    pid: u32,
    comm: &'a str,
}

impl<'a> WireExplained<'a> {
    pub(super) fn of(one: &'a Explained) -> Self {
        let (what, process, cache) = match &one.what {
            What::ProcessOwn(process) => ("process_own", Some(process), None),
            What::ProcessShared(process) => ("process_shared", Some(process), None),
            What::Host(figure) => (figure.name(), None, None),
            What::SlabCache(cache) => ("slab_cache", None, Some(cache.as_str())),
        };
        Self {
            what,
            process: process.map(|process| WireWhose { pid: process.pid, comm: &process.comm }),
            cache,
            grew_bytes: one.grew_bytes,
            explained_bytes: one.explained_bytes,
            overhead_bytes: one.overhead_bytes,
            share: (one.share() * 1000.0).round() / 1000.0,
            hint: one.hint,
            last_seen_ms: one.age_ms,
        }
    }
}
