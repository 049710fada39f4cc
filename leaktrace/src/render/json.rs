//! JSON, schema 1: one object a line. These structs are a promise to readers: fields are only
//! added.
//!
//! Unknown values are absent, never zero. docs/json.md describes every field.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use jiff::Timestamp;
use leaktrace_common::LossReason;
use serde::Serialize;

use super::reach::{WireHolding, WireReach, WireScan, wire, wire_holdings, wire_scans};
use crate::{
    report::{FrameView, Line, Part, Report, Row, Table, Unloaded, Untold},
    snapshot::{Amount, Budget, BudgetAction, Mode, Process, Sampled},
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    held: Vec<WireHeld>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kept: Vec<WireKept>,
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
struct WireDoubt {
    cache_outstanding: u64,
    cache_growth: i64,
}

#[derive(Serialize)]
struct WireVerdict {
    reachability: &'static str,
    evidence: String,
}

#[derive(Serialize)]
struct WireSite<'a> {
    id: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    cache_aliases: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    module: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner_module: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pair: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<WireProcess<'a>>,
    #[serde(flatten)]
    totals: WireTotals,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_ms: Option<u64>,
    largest_bytes: u64,
    estimated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    unloaded_module: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<WireVerdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    doubt: Option<WireDoubt>,
    #[serde(skip_serializing_if = "is_false")]
    upper_bound: bool,
    stack: Vec<WireFrame<'a>>,
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "is_true")]
    stack_taken: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    holders: Vec<WireHolder<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    blocks: Vec<WireBlock>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reachability: Option<WireReach>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    held_by: Vec<WireHolding<'a>>,
}

#[derive(Serialize)]
struct WireProcess<'a> {
    pid: u32,
    comm: &'a str,
    exe: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<&'a str>,
    #[serde(skip_serializing_if = "is_false")]
    exited: bool,
}

#[derive(Serialize)]
struct WireFrame<'a> {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    symbol: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
    inlined: bool,
    #[serde(skip_serializing_if = "is_false")]
    by_frame_pointer: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<&'a str>,
}

#[derive(Serialize)]
struct WireHolder<'a> {
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    comm: Option<&'a str>,
    #[serde(skip_serializing_if = "is_false")]
    exited: bool,
    outstanding_bytes: u64,
    outstanding_count: u64,
    oldest_ms: u64,
}

#[derive(Serialize)]
struct WireBlock {
    address: String,
    size_bytes: u64,
    age_ms: u64,
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
        sites: report.groups.iter().flat_map(|group| &group.rows).map(site).collect(),
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

fn verdict(row: &Row) -> Option<WireVerdict> {
    let Unloaded { module, part } = row.left_by()?;
    let (reachability, evidence) = match part {
        Part::MadeTheirCache => (
            "definitely lost",
            format!("module {module} made their cache, and was unloaded with these outstanding"),
        ),
        Part::AllocatedThem => {
            ("left behind", format!("module {module} allocated these itself, and was unloaded"))
        }
        // No verdict: whoever they were allocated for may need them.
        Part::CalledFor => return None,
    };
    Some(WireVerdict { reachability, evidence })
}

fn site(row: &Row) -> WireSite<'_> {
    WireSite {
        id: format!("{:016x}", row.id),
        kind: row.kind.name(),
        cache_aliases: &row.cache_aliases,
        cache: row.cache.as_deref(),
        module: row.module.as_deref(),
        owner: row.owner.as_ref().and_then(|owner| owner.symbol.as_deref()),
        owner_module: row.owner.as_ref().map(|owner| owner.module.as_str()),
        function: row
            .function
            .map(|function| function.name())
            .or(row.mapping.map(|mapping| mapping.call.name()))
            .or(row.pair.as_ref().map(|pair| pair.function.as_str())),
        pair: row.pair.as_ref().map(|pair| pair.name.as_str()),
        process: row.process.as_ref().map(process),
        totals: totals(&row.totals),
        oldest_ms: row.oldest_ms,
        largest_bytes: row.largest_bytes,
        estimated: row.totals.sampled.is_some(),
        unloaded_module: row.left_by().map(|unloaded| unloaded.module.as_str()),
        verdict: verdict(row),
        doubt: row.doubt.map(|doubt| WireDoubt {
            cache_outstanding: doubt.outstanding,
            cache_growth: doubt.growth,
        }),
        upper_bound: row.is_upper_bound,
        stack: row.stack.iter().map(frame).collect(),
        truncated: row.truncated.is_some(),
        truncated_reason: row.truncated,
        stack_taken: row.stack_taken,
        holders: row
            .holders
            .iter()
            .map(|holder| WireHolder {
                pid: holder.pid,
                comm: holder.comm.as_deref(),
                exited: holder.exited,
                outstanding_bytes: holder.outstanding.bytes,
                outstanding_count: holder.outstanding.count,
                oldest_ms: holder.oldest_ms,
            })
            .collect(),
        blocks: row
            .blocks
            .iter()
            .map(|block| WireBlock {
                address: hex(block.address),
                size_bytes: block.size_bytes,
                age_ms: block.age_ms,
            })
            .collect(),
        reachability: row.reach.as_ref().map(wire),
        held_by: row.reach.as_ref().map(wire_holdings).unwrap_or_default(),
    }
}

fn process(process: &Process) -> WireProcess<'_> {
    WireProcess {
        pid: process.pid,
        comm: &process.comm,
        exe: &process.exe,
        cgroup: process.cgroup.as_deref(),
        exited: process.exited,
    }
}

fn frame(frame: &FrameView) -> WireFrame<'_> {
    WireFrame {
        address: hex(frame.address),
        symbol: frame.symbol.as_deref(),
        offset: frame.symbol.is_some().then_some(frame.offset),
        object: frame.object.as_deref(),
        file: frame.file.as_deref(),
        line: frame.line,
        inlined: frame.inlined,
        by_frame_pointer: frame.by_frame_pointer,
        unknown: frame.unknown.as_deref(),
    }
}

fn hex(address: u64) -> String {
    format!("{address:#x}")
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
