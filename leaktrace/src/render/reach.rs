//! What scans said, in words and in JSON. The words claim no more than was seen.

use std::io::{self, Write};

use serde::Serialize;

use super::escape::escape;
use crate::{
    report::{Group, Holding, Reach, Report},
    snapshot::{
        Amount,
        reach::{HeldBy, Scan, Way},
    },
    units::{format_bytes, format_count, format_ms},
};

/// Most holders named of one call site.
const HOLDERS_SHOWN: usize = 3;
/// Most scans told apart; more are counted.
const SCANS_SHOWN: usize = 4;

/// The lines below a call site.
pub(super) fn lines(report: &Report, group: &Group, out: &mut dyn Write) -> io::Result<()> {
    let pid = group.rows.first().and_then(|row| row.process.as_ref()).map(|process| process.pid);
    let scan = report.scans.iter().find(|scan| Some(scan.pid) == pid && scan.refused.is_none());
    let (Some(reach), Some(scan)) = (group.reach(), scan) else { return Ok(()) };
    let lost = reach.definitely_lost;
    if lost.count > 0 {
        writeln!(out, "      definitely lost: {}: {}", amount(lost), evidence(scan, lost))?;
    }
    if reach.leads.count > 0 {
        writeln!(out, "      they alone lead to {}", amount(reach.leads))?;
    }
    if reach.indirectly_lost.count > 0 {
        let held = "held only by blocks that are lost";
        writeln!(out, "      indirectly lost: {}: {held}", amount(reach.indirectly_lost))?;
    }
    if reach.possibly_lost.count > 0 {
        let held = "held by addresses inside them alone, and not counted as lost";
        writeln!(out, "      interior only: {}: {held}", amount(reach.possibly_lost))?;
    }
    if reach.still_reachable.count > 0 {
        let held = holders(&reach);
        writeln!(out, "      still reachable: {}{held}", amount(reach.still_reachable))?;
    }
    if reach.not_judged.count > 0 {
        let why = "too young, changed meanwhile, or held by such";
        writeln!(out, "      not judged: {}: {why}", amount(reach.not_judged))?;
    }
    Ok(())
}

fn amount(amount: Amount) -> String {
    let blocks = if amount.count == 1 { "block" } else { "blocks" };
    format!("{} in {} {blocks}", format_bytes(amount.bytes), format_count(amount.count))
}

/// What was seen of definitely lost blocks.
fn evidence(scan: &Scan, lost: Amount) -> String {
    let these = if lost.count == 1 { "this block" } else { "these blocks" };
    match scan.way {
        Way::Live { scans, time_ms } => format!(
            "no address in {these} was seen in any of {scans} scans over {} (memory changed meanwhile)",
            format_ms(time_ms)
        ),
        Way::Snapshot | Way::Stopped { .. } | Way::AtExit => format!(
            "nothing in the memory of the process ({}, {} threads' registers) held an address in {these}",
            format_bytes(scan.bytes),
            format_count(scan.threads)
        ),
    }
}

fn holders(reach: &Reach) -> String {
    let all = reach.still_reachable.bytes.max(1);
    let shown: Vec<String> = reach
        .held_by
        .iter()
        .take(HOLDERS_SHOWN)
        .map(|holding| {
            let percent =
                (u128::from(holding.held.bytes) * 100 + u128::from(all / 2)) / u128::from(all);
            let way = match holding.through {
                0 => ", directly".to_owned(),
                1 => ", through 1 block".to_owned(),
                HeldBy::LONG.. => format!(", through {} blocks or more", HeldBy::LONG),
                few => format!(", through {few} blocks"),
            };
            format!("{percent} % of the bytes hang from {}{way}", root(holding))
        })
        .collect();
    if shown.is_empty() { String::new() } else { format!(": {}", shown.join("; ")) }
}

/// A root in words.
fn root(holding: &Holding) -> String {
    let name = holding.name.as_deref().map(escape);
    let object = holding.object.as_deref().map(escape);
    let section = holding.section.as_deref().map(escape);
    let thread = holding.thread.map(|thread| format!("thread {thread}")).unwrap_or_default();
    let of = |what: &str| {
        object.as_ref().map_or_else(|| what.to_owned(), |object| format!("{what} of {object}"))
    };
    match (holding.kind, name) {
        ("global", Some(name)) => {
            format!("`{name}` ({})", of(section.as_deref().unwrap_or("data")))
        }
        ("global", None) => of(section.as_deref().unwrap_or("data")),
        ("thread_local", Some(name)) => format!("thread-local `{name}` ({})", of("TLS")),
        ("thread_local", None) => "thread-local memory".into(),
        ("stack", Some(name)) => format!("the stack frame of {name} in {thread}"),
        ("stack", None) => format!("the stack of {thread}"),
        ("register", _) => format!("a register of {thread}"),
        ("mapping", Some(name)) => format!("mapping {name}"),
        ("mapping", None) => "an anonymous mapping".into(),
        ("kernel", _) => "the kernel (epoll or a timer)".into(),
        _ => "older heap memory (allocated before tracing, or freed)".into(),
    }
}

/// How the processes were looked at, and what was refused.
pub(super) fn scans(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    for scan in report.scans.iter().take(SCANS_SHOWN) {
        let pid = scan.pid;
        if let Some(reason) = &scan.refused {
            writeln!(out, "reachability: process {pid} not judged: {}", escape(reason))?;
            continue;
        }
        let bytes = format_bytes(scan.bytes);
        match scan.way {
            Way::Live { scans, time_ms } => {
                let scans = if scans == 1 {
                    "1 scan".to_owned()
                } else {
                    format!("{scans} scans over {}", format_ms(time_ms))
                };
                writeln!(out, "reachability: process {pid}: {scans} of {bytes} while it ran")?;
            }
            Way::Snapshot => writeln!(out, "reachability: process {pid}: {bytes} of a snapshot")?,
            Way::Stopped { time_ms } => {
                let time = format_ms(time_ms);
                writeln!(
                    out,
                    "reachability: process {pid}: {bytes} while it was stopped for {time}"
                )?;
            }
            Way::AtExit => writeln!(out, "reachability: process {pid}: {bytes} at its exit")?,
        }
        for limit in &scan.limits {
            writeln!(out, "  note: {}", escape(limit))?;
        }
    }
    let more = report.scans.len().saturating_sub(SCANS_SHOWN);
    if more > 0 {
        let judged =
            report.scans.iter().skip(SCANS_SHOWN).filter(|scan| scan.refused.is_none()).count();
        let (more, judged) = (format_count(more as u64), format_count(judged as u64));
        writeln!(out, "reachability: {more} more processes, {judged} of them judged")?;
    }
    Ok(())
}

/// How a process was looked at.
#[derive(Serialize)]
pub(super) struct WireScan<'a> {
    pid: u32,
    way: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    scans: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "is_zero")]
    threads: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    limits: &'a [String],
}

/// What was found of a call site.
#[derive(Serialize)]
pub(super) struct WireReach {
    definitely_lost_bytes: u64,
    definitely_lost_count: u64,
    indirectly_lost_bytes: u64,
    indirectly_lost_count: u64,
    possibly_lost_bytes: u64,
    possibly_lost_count: u64,
    still_reachable_bytes: u64,
    still_reachable_count: u64,
    not_judged_bytes: u64,
    not_judged_count: u64,
    leads_to_bytes: u64,
    leads_to_count: u64,
}

/// Who holds blocks.
#[derive(Serialize)]
pub(super) struct WireHolding<'a> {
    root: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    section: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thread: Option<u32>,
    bytes: u64,
    count: u64,
    through: u32,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// The scans of a report.
pub(super) fn wire_scans(report: &Report) -> Vec<WireScan<'_>> {
    report.scans.iter().map(wire_scan).collect()
}

fn wire_scan(scan: &Scan) -> WireScan<'_> {
    let (way, scans, time_ms) = match scan.way {
        Way::Live { scans, time_ms } => ("live", Some(scans), Some(time_ms)),
        Way::Snapshot => ("snapshot", None, None),
        Way::Stopped { time_ms } => ("stop", None, Some(time_ms)),
        Way::AtExit => ("exit", None, None),
    };
    let is_done = scan.refused.is_none();
    WireScan {
        pid: scan.pid,
        way,
        scans: scans.filter(|_| is_done),
        time_ms: time_ms.filter(|_| is_done),
        bytes: is_done.then_some(scan.bytes),
        threads: scan.threads,
        refused: scan.refused.as_deref(),
        limits: &scan.limits,
    }
}

/// What was found of a row.
pub(super) fn wire(reach: &Reach) -> WireReach {
    WireReach {
        definitely_lost_bytes: reach.definitely_lost.bytes,
        definitely_lost_count: reach.definitely_lost.count,
        indirectly_lost_bytes: reach.indirectly_lost.bytes,
        indirectly_lost_count: reach.indirectly_lost.count,
        possibly_lost_bytes: reach.possibly_lost.bytes,
        possibly_lost_count: reach.possibly_lost.count,
        still_reachable_bytes: reach.still_reachable.bytes,
        still_reachable_count: reach.still_reachable.count,
        not_judged_bytes: reach.not_judged.bytes,
        not_judged_count: reach.not_judged.count,
        leads_to_bytes: reach.leads.bytes,
        leads_to_count: reach.leads.count,
    }
}

/// The holders of a row's blocks.
pub(super) fn wire_holdings(reach: &Reach) -> Vec<WireHolding<'_>> {
    reach.held_by.iter().map(wire_holding).collect()
}

fn wire_holding(holding: &Holding) -> WireHolding<'_> {
    WireHolding {
        root: holding.kind,
        name: holding.name.as_deref(),
        object: holding.object.as_deref(),
        section: holding.section.as_deref(),
        thread: holding.thread,
        bytes: holding.held.bytes,
        count: holding.held.count,
        through: holding.through,
    }
}
