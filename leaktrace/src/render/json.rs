//! JSON, schema 1: one object a line. These structs are a promise to readers: fields are only
//! added.
//!
//! Unknown values are absent, never zero. docs/json.md describes every field.

mod site;

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use jiff::Timestamp;
use leaktrace_common::LossReason;
use serde::Serialize;

use self::site::{WireProcess, WireSite, process, site};
use super::{
    explained::WireExplained,
    reach::{WireScan, wire_scans},
    suppressions::WireSuppressed,
};
use crate::{
    report::{Line, Report, Table, Untold},
    snapshot::{Amount, Budget, BudgetAction, Mode, Sampled},
};

#[derive(Serialize)]
struct WireReport<'a> {
    schema: u32,
    time: String,
    host: &'a str,
    mode: &'static str,
    #[serde(rename = "final")]
    is_final: bool,
    elapsed_ms: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kinds: Vec<&'static str>,
    #[serde(skip_serializing_if = "is_zero")]
    older_ms: u64,
    #[serde(skip_serializing_if = "is_zero")]
    processes_ended: u64,
    #[serde(skip_serializing_if = "is_zero")]
    sample_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<WireBudget>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    processes: Vec<WireTraced<'a>>,
    totals: WireTotals,
    summary: WireSummary,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    held: Vec<WireHeld>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kept: Vec<WireKept>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reclaimable: Option<WireReclaimed>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    suppressed: Vec<WireSuppressed<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    explained: Vec<WireExplained<'a>>,
    loss: WireLoss<'a>,
    limits: WireLimits,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scans: Vec<WireScan<'a>>,
    sites_total: usize,
    sites: Vec<WireSite<'a>>,
    #[serde(flatten)]
    table: Option<WireTable<'a>>,
}

/// A traced process.
#[derive(Serialize)]
struct WireTraced<'a> {
    #[serde(flatten)]
    process: WireProcess<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    allocator: &'a str,
}

#[derive(Serialize)]
struct WireTable<'a> {
    by: &'static str,
    groups_total: usize,
    groups: Vec<WireGroup<'a>>,
}

#[derive(Serialize)]
struct WireGroup<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "is_false")]
    exited: bool,
    outstanding_bytes: u64,
    outstanding_count: u64,
    #[serde(flatten)]
    ended: Option<WireEnded>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_ms: Option<u64>,
    sites: usize,
    #[serde(skip_serializing_if = "is_false")]
    estimated: bool,
}

#[derive(Serialize)]
struct WireEnded {
    allocated_bytes: u64,
    allocated_count: u64,
    freed_bytes: u64,
    freed_count: u64,
}

#[derive(Serialize)]
struct WireTotals {
    outstanding_bytes: u64,
    outstanding_count: u64,
    allocated_bytes: u64,
    allocated_count: u64,
    freed_bytes: u64,
    freed_count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sampled_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outstanding_bytes_error: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outstanding_count_error: Option<u64>,
}

#[derive(Serialize)]
struct WireBudget {
    max_overhead_percent: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    overhead_percent: Option<f64>,
    steps: Vec<WireStep>,
}

#[derive(Serialize)]
struct WireStep {
    elapsed_ms: u64,
    overhead_percent: f64,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sample_bytes: Option<u32>,
}

#[derive(Serialize)]
struct WireHeld {
    role: &'static str,
    #[serde(flatten)]
    totals: WireTotals,
}

#[derive(Serialize)]
struct WireKept {
    keeper: &'static str,
    #[serde(flatten)]
    totals: WireTotals,
}

#[derive(Serialize)]
struct WireReclaimed {
    told_by: &'static str,
    sites: usize,
    #[serde(flatten)]
    totals: WireTotals,
}

#[derive(Serialize)]
struct WireUntold<'a> {
    cache: &'a str,
    growth: u64,
    outstanding: u64,
}

#[derive(Serialize)]
struct WireLoss<'a> {
    complete: bool,
    missed_allocs: u64,
    missed_frees: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    untracked_frees: Option<u64>,
    stacks_lost: u64,
    stacks_truncated: u64,
    unseen: &'a [String],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    untold_growth: Vec<WireUntold<'a>>,
    reasons: BTreeMap<String, u64>,
    recursion_misses: &'a BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct WireLimits {
    max_outstanding: u64,
}

#[derive(Serialize)]
struct WireSummary {
    verdict: &'static str,
    leaking_sites: usize,
    leaked_bytes: u64,
    unknown_sites: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    ask_again_ms: Option<u64>,
}

/// Writes one report as one line.
pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let loss = &report.trust.loss;
    let wire = WireReport {
        schema: 1,
        time: time(report.unix_ms),
        host: &report.host,
        mode: match report.mode {
            Mode::Kernel => "kernel",
            Mode::User => "user",
            Mode::Run => "run",
        },
        is_final: report.is_final,
        elapsed_ms: report.elapsed_ms,
        kinds: report.user_kinds.iter().map(|kind| kind.name()).collect(),
        older_ms: report.older_ms,
        processes_ended: report.processes_ended,
        sample_bytes: report.sample_bytes,
        budget: report.budget.as_ref().map(budget),
        processes: report
            .processes
            .iter()
            .map(|traced| WireTraced { process: process(traced), allocator: &traced.allocator })
            .collect(),
        totals: totals(&report.totals),
        summary: WireSummary {
            verdict: report.summary.verdict(),
            leaking_sites: report.summary.leaking_sites,
            leaked_bytes: report.summary.leaked_bytes,
            unknown_sites: report.summary.unknown_sites,
            ask_again_ms: report.summary.ask_again_ms,
        },
        held: report
            .held
            .iter()
            .map(|held| WireHeld { role: held.role.name(), totals: totals(&held.totals) })
            .collect(),
        kept: report
            .kept
            .iter()
            .map(|kept| WireKept { keeper: kept.keeper.name(), totals: totals(&kept.totals) })
            .collect(),
        reclaimable: report.reclaimed.map(|all| WireReclaimed {
            told_by: if all.is_listed { "list" } else { "kernel" },
            sites: all.sites,
            totals: totals(&all.totals),
        }),
        suppressed: report.suppressed.iter().map(WireSuppressed::of).collect(),
        explained: report.explained.iter().map(WireExplained::of).collect(),
        loss: WireLoss {
            complete: report.trust.complete,
            missed_allocs: loss.missed_allocs(),
            missed_frees: loss.missed_frees(),
            untracked_frees: (!loss.filtered).then(|| loss.count(LossReason::UntrackedFree)),
            stacks_lost: loss.stacks_lost(),
            stacks_truncated: loss.stacks_truncated,
            unseen: &loss.unseen,
            untold_growth: report.trust.untold.iter().map(untold).collect(),
            reasons: loss
                .reasons
                .iter()
                .map(|(reason, count)| (snake_case(&format!("{reason:?}")), *count))
                .collect(),
            recursion_misses: &loss.recursion_misses,
        },
        limits: WireLimits { max_outstanding: report.max_outstanding },
        scans: wire_scans(report),
        sites_total: report.groups_total,
        sites: report
            .groups
            .iter()
            .flat_map(|group| group.rows.iter().map(|row| site(row, &group.verdict)))
            .collect(),
        table: report.table.as_ref().map(table),
    };
    serde_json::to_writer(&mut *out, &wire)?;
    out.write_all(b"\n")
}

fn totals(totals: &crate::report::Totals) -> WireTotals {
    let Amount { count: outstanding_count, bytes: outstanding_bytes } = totals.outstanding;
    let Amount { count: allocated_count, bytes: allocated_bytes } = totals.allocated;
    let Amount { count: freed_count, bytes: freed_bytes } = totals.freed;
    WireTotals {
        outstanding_bytes,
        outstanding_count,
        allocated_bytes,
        allocated_count,
        freed_bytes,
        freed_count,
        sampled_count: totals.sampled.map(|sampled| sampled.count),
        outstanding_bytes_error: totals.sampled.and_then(Sampled::bytes_error),
        outstanding_count_error: totals.sampled.and_then(Sampled::count_error),
    }
}

fn untold(untold: &Untold) -> WireUntold<'_> {
    WireUntold { cache: &untold.cache, growth: untold.growth, outstanding: untold.outstanding }
}

fn budget(budget: &Budget) -> WireBudget {
    WireBudget {
        max_overhead_percent: percent(u64::from(budget.max_ppm)),
        overhead_percent: budget.cost_ppm.map(percent),
        steps: budget
            .steps
            .iter()
            .map(|step| WireStep {
                elapsed_ms: step.elapsed_ms,
                overhead_percent: percent(step.cost_ppm),
                action: step.action.name(),
                sample_bytes: match step.action {
                    BudgetAction::SampleBy(bytes) => Some(bytes),
                    BudgetAction::FreesOnly | BudgetAction::Nothing => None,
                },
            })
            .collect(),
    }
}

fn percent(ppm: u64) -> f64 {
    ppm as f64 / 10_000.0
}

fn table(table: &Table) -> WireTable<'_> {
    WireTable {
        by: table.by.name(),
        groups_total: table.lines_total,
        groups: table.lines.iter().map(group).collect(),
    }
}

fn group(line: &Line) -> WireGroup<'_> {
    WireGroup {
        name: line.name.as_deref(),
        pid: line.pid,
        exited: line.exited,
        outstanding_bytes: line.outstanding.bytes,
        outstanding_count: line.outstanding.count,
        ended: line.ended.map(|ended| WireEnded {
            allocated_bytes: ended.allocated.bytes,
            allocated_count: ended.allocated.count,
            freed_bytes: ended.freed.bytes,
            freed_count: ended.freed.count,
        }),
        oldest_ms: line.oldest_ms,
        sites: line.sites,
        estimated: line.is_estimated,
    }
}

fn time(unix_ms: u64) -> String {
    let time = Timestamp::from_millisecond(unix_ms as i64).unwrap_or(Timestamp::UNIX_EPOCH);
    time.to_string()
}

/// `OutstandingFull` -> `outstanding_full`
fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for character in name.chars() {
        if character.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(character.to_lowercase());
    }
    text
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_false(value: &bool) -> bool {
    !*value
}
