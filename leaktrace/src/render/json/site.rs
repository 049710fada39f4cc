//! A call site in JSON.

use std::borrow::Cow;

use serde::Serialize;

use super::super::{
    freed::{self, WireFreed},
    reach::{WireHolding, WireReach, wire, wire_holdings},
};
use super::{WireTotals, is_false, is_true, totals};
use crate::{
    report::{FrameView, Part, Row, Unloaded, Verdict},
    snapshot::Process,
};

#[derive(Serialize)]
struct WireDoubt {
    cache_outstanding: u64,
    cache_growth: i64,
}

#[derive(Serialize)]
struct WireVerdict<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    reachability: Option<&'static str>,
    class: &'static str,
    confidence: &'static str,
    evidence: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ask_again_ms: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct WireSite<'a> {
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
    growth_bytes_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<WireVerdict<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    doubt: Option<WireDoubt>,
    #[serde(skip_serializing_if = "is_false")]
    upper_bound: bool,
    #[serde(skip_serializing_if = "is_false")]
    reclaimable: bool,
    stack: Vec<WireFrame<'a>>,
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "is_true")]
    stack_taken: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    freed_at: Vec<WireFreed>,
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
pub(super) struct WireProcess<'a> {
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

/// The verdict on a row: that on its call site, but for what an unloaded module left behind.
fn verdict<'a>(row: &Row, of_group: &'a Verdict) -> WireVerdict<'a> {
    let left = row.left_by().and_then(|Unloaded { module, part }| match part {
        Part::MadeTheirCache => Some((
            "definitely lost",
            format!("module {module} made their cache, and was unloaded with these outstanding"),
        )),
        Part::AllocatedThem => Some((
            "left behind",
            format!("module {module} allocated these itself, and was unloaded"),
        )),
        // Whoever they were allocated for may need them.
        Part::CalledFor => None,
    });
    let (reachability, evidence) = match left {
        Some((reachability, evidence)) => (Some(reachability), Cow::Owned(evidence)),
        None => (None, Cow::Borrowed(of_group.evidence.as_str())),
    };
    WireVerdict {
        class: of_group.class.name(),
        confidence: of_group.confidence.name(),
        reachability,
        evidence,
        ask_again_ms: of_group.ask_again_ms,
    }
}

pub(super) fn site<'a>(row: &'a Row, of_group: &'a Verdict) -> WireSite<'a> {
    let is_outstanding = row.totals.outstanding.count > 0;
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
        growth_bytes_per_s: of_group.growth_bytes_per_s.filter(|_| is_outstanding),
        verdict: is_outstanding.then(|| verdict(row, of_group)),
        doubt: row.doubt.map(|doubt| WireDoubt {
            cache_outstanding: doubt.outstanding,
            cache_growth: doubt.growth,
        }),
        upper_bound: row.is_upper_bound,
        reclaimable: row.is_reclaimable,
        stack: row.stack.iter().map(frame).collect(),
        truncated: row.truncated.is_some(),
        truncated_reason: row.truncated,
        stack_taken: row.stack_taken,
        freed_at: freed::wire(row),
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

pub(super) fn process(process: &Process) -> WireProcess<'_> {
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
