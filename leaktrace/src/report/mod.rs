//! Snapshot + names -> Report: merged, sorted, cut. A renderer gets nothing else.
//!
//! This module knows no format; its judgements are those of [`crate::analyze`].

mod freed;
mod kept;
pub mod leaks;
mod libraries;
mod merge;
mod owner;
mod reach;
mod reclaimed;
mod reconcile;
mod suppressed;
mod table;
mod trust;
mod verdict;

use leaktrace_common::{Kind, StackMode};

pub use freed::FreedFrom;
pub use kept::{Keeper, Kept};
pub use merge::{FrameView, Part, Row, Unloaded};
pub use owner::Owner;
pub use reach::{Holding, Reach};
pub use reclaimed::Reclaimed;
pub use reconcile::{Doubt, Untold};
pub use suppressed::Suppressed;
pub use table::{Ended, Line, Table};
pub use trust::Trust;
pub use verdict::Summary;

use self::reconcile::Reconciled;
pub use crate::analyze::{
    Class, Confidence, Verdict,
    explained::{Explained, What},
};
use crate::{
    analyze::explained,
    history::History,
    session::spec::{Sort, Suppressions, View},
    snapshot::{Amount, Budget, Mode, Names, Process, Role, Sampled, Snapshot, reach::Scan},
};

/// The content of a report.
#[derive(Clone, Debug)]
pub struct Report {
    /// Wall clock, in milliseconds since the epoch.
    pub unix_ms: u64,
    /// Host name.
    pub host: String,
    /// What was traced.
    pub mode: Mode,
    /// Whether it is the last report of its session.
    pub is_final: bool,
    /// Time since the probes were attached.
    pub elapsed_ms: u64,
    /// Age from which on blocks count as outstanding.
    pub older_ms: u64,
    /// Traced processes.
    pub processes: Vec<Process>,
    /// Number of traced processes that have ended and are in no figure any more.
    pub processes_ended: u64,
    /// The kinds of user allocations that were traced; empty in kernel mode.
    pub user_kinds: Vec<Kind>,
    /// Over all call sites, shown or not.
    pub totals: Totals,
    /// What counts for the exit code of `run`.
    pub found: leaks::Found,
    /// All verdicts together, of call sites shown or not.
    pub summary: Summary,
    /// Mappings that are no leaks of their own, by role; they are in no other figure.
    pub held: Vec<Held>,
    /// Memory that allocators of the kernel, or the C and C++ libraries, keep for themselves; it is
    /// in no other figure.
    pub kept: Vec<Kept>,
    /// The rules of `--suppressions` and what each has left out, in their order.
    pub suppressed: Vec<Suppressed>,
    /// The call sites of slab caches that the kernel takes back under pressure, if there are any.
    pub reclaimed: Option<Reclaimed>,
    /// The call sites shown, in order; those with nothing outstanding come last.
    pub groups: Vec<Group>,
    /// Number of call sites with outstanding blocks, shown or not.
    pub groups_total: usize,
    /// Sums by another criterion than the call site, if the user asked for them.
    pub table: Option<Table>,
    /// By how much what people watch grew, and how much of that the traced blocks explain.
    pub explained: Vec<Explained>,
    /// How the memory of processes was looked at; empty where it was not.
    pub scans: Vec<Scan>,
    /// What the report could not see.
    pub trust: Trust,
    /// Number of outstanding blocks that there is room for.
    pub max_outstanding: u64,
    /// Sampling interval: leaktrace records one allocation in every so many bytes; 0 if it records
    /// every one.
    pub sample_bytes: u64,
    /// What `--max-overhead` allows, and what leaktrace did to keep to it.
    pub budget: Option<Budget>,
}

/// Sums over all call sites.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Allocated since the start and not freed.
    pub outstanding: Amount,
    /// Allocated since the start.
    pub allocated: Amount,
    /// The part of `allocated` that was freed.
    pub freed: Amount,
    /// Set where figures are estimates from sampled blocks: the recorded blocks behind
    /// `outstanding`.
    pub sampled: Option<Sampled>,
}

/// Mappings of one role, over all call sites.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Held {
    /// The role of the mappings.
    pub role: Role,
    /// The figures of the mappings.
    pub totals: Totals,
}

/// A call site; with several stacks where only some allocations have one.
#[derive(Clone, Debug)]
pub struct Group {
    /// Sums over the call site's rows.
    pub totals: Totals,
    /// Age of the oldest outstanding block, if known.
    pub oldest_ms: Option<u64>,
    /// Whether it leaks.
    pub verdict: Verdict,
    /// A row for each stack, most outstanding bytes first; never empty. Under `--stacks all` there
    /// is just one.
    pub rows: Vec<Row>,
}

/// Builds the report of a snapshot, without what is suppressed.
pub fn build(
    snapshot: &Snapshot,
    names: &Names,
    history: &History,
    view: &View,
    suppressions: &Suppressions,
) -> Report {
    let Reconciled { doubts, untold } = reconcile::reconcile(snapshot);
    let (held, mut rows) = set_aside(merge::rows(snapshot, names));
    libraries::find(&mut rows, snapshot);
    let (kept, rows) = set_kept_aside(rows);
    let (suppressed, mut rows) = suppressed::set_aside(rows, suppressions);
    for row in &mut rows {
        row.doubt = row.cache.as_ref().and_then(|cache| doubts.get(cache)).copied();
    }
    let mut totals = Totals::default();
    for row in &rows {
        totals.add(&row.totals);
    }
    let found = leaks::found(&rows);
    let mut groups = group(rows, snapshot.stack_mode == StackMode::All);
    let summary = verdict::judge(&mut groups, snapshot, history);
    sort(&mut groups, view.sort);
    let groups_total = groups.iter().filter(|group| group.totals.outstanding.count > 0).count();
    let reclaimed = reclaimed::sum(&groups, snapshot);
    let table = table::build(&groups, view.by, view.sort, view.top);
    groups.truncate(view.top);
    Report {
        unix_ms: snapshot.unix_ms,
        host: snapshot.host.clone(),
        mode: snapshot.mode,
        is_final: snapshot.is_final,
        elapsed_ms: snapshot.elapsed_ms,
        older_ms: snapshot.older_ms,
        processes: snapshot.processes.values().cloned().collect(),
        processes_ended: snapshot.processes_ended,
        user_kinds: snapshot.user_kinds.clone(),
        totals,
        found,
        summary,
        held,
        kept,
        suppressed,
        reclaimed,
        groups,
        groups_total,
        table,
        explained: explained::explain(snapshot, names),
        scans: snapshot.scans.clone(),
        trust: trust::trust(snapshot, &totals, &doubts, untold),
        max_outstanding: snapshot.max_outstanding,
        sample_bytes: snapshot.sample_bytes,
        budget: snapshot.budget.clone(),
    }
}

impl Group {
    /// What scans said of its blocks, over its rows.
    pub fn reach(&self) -> Option<Reach> {
        let mut rows = self.rows.iter().filter_map(|row| row.reach.clone());
        let mut sum = rows.next()?;
        rows.for_each(|row| sum.merge(row));
        Some(sum)
    }
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.outstanding = self.outstanding.plus(other.outstanding);
        self.allocated = self.allocated.plus(other.allocated);
        self.freed = self.freed.plus(other.freed);
        if let Some(more) = other.sampled {
            self.sampled = Some(self.sampled.unwrap_or_default().plus(more));
        }
    }
}

/// Takes out the mappings that are no leaks of their own: the blocks in them are counted elsewhere.
fn set_aside(rows: Vec<Row>) -> (Vec<Held>, Vec<Row>) {
    let mut held: std::collections::BTreeMap<Role, Totals> = std::collections::BTreeMap::new();
    let mut others = Vec::new();
    for row in rows {
        match row.mapping.map(|mapping| mapping.role) {
            None | Some(Role::Program) => others.push(row),
            Some(role) => held.entry(role).or_default().add(&row.totals),
        }
    }
    (held.into_iter().map(|(role, totals)| Held { role, totals }).collect(), others)
}

/// Takes out the rows that allocators and libraries keep for themselves.
fn set_kept_aside(rows: Vec<Row>) -> (Vec<Kept>, Vec<Row>) {
    let (kept, others): (Vec<Row>, Vec<Row>) =
        rows.into_iter().partition(|row| row.keeper.is_some());
    let of = |keeper: Keeper| {
        let mut rows = kept.iter().filter(|row| row.keeper == Some(keeper)).peekable();
        rows.peek()?;
        let mut totals = Totals::default();
        rows.for_each(|row| totals.add(&row.totals));
        Some(Kept { keeper, totals })
    };
    (Keeper::ALL.into_iter().filter_map(of).collect(), others)
}

/// Joins the rows of one call site, unless each row has its full stack anyway.
fn group(rows: Vec<Row>, each_alone: bool) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut index = std::collections::HashMap::new();
    for row in rows {
        // A mapping's call site is that of a C library's wrapper, and its stack always taken.
        let each_alone = each_alone || row.kind == Kind::Mmap;
        let known = if each_alone { None } else { index.get(&row.call_site()).copied() };
        let at = known.unwrap_or(groups.len());
        match groups.get_mut(at) {
            Some(group) => {
                group.totals.add(&row.totals);
                group.oldest_ms = group.oldest_ms.max(row.oldest_ms);
                group.rows.push(row);
            }
            None => {
                if !each_alone {
                    index.insert(row.call_site(), at);
                }
                groups.push(Group {
                    totals: row.totals,
                    oldest_ms: row.oldest_ms,
                    verdict: Verdict::default(),
                    rows: vec![row],
                });
            }
        }
    }
    for group in &mut groups {
        group.rows.sort_by_key(|row| (std::cmp::Reverse(row.totals.outstanding.bytes), row.id));
    }
    groups
}

fn sort(groups: &mut [Group], by: Sort) {
    use std::cmp::Reverse;

    let id = |group: &Group| group.rows.iter().map(|row| row.id).min();
    groups.sort_by_key(|group| {
        let Amount { count, bytes } = group.totals.outstanding;
        let growth = group.verdict.growth_bytes_per_s.map_or(0, |per_s| (per_s * 3600.0) as u64);
        let confidence = match by {
            Sort::Leak => Some((group.verdict.confidence, !group.verdict.only_time_is_missing)),
            _ => None,
        };
        let first = match by {
            // What may grow is told apart by its bytes.
            Sort::Leak if group.verdict.is_in_doubt() => bytes,
            Sort::Leak | Sort::Growth => growth,
            Sort::Bytes => bytes,
            Sort::Count => count,
            // Unknown ages come last.
            Sort::Age => group.oldest_ms.map_or(0, |age| age + 1),
        };
        let is_upper_bound = group.rows.iter().any(|row| row.is_upper_bound);
        // Blocks of no bytes are outstanding too: malloc(0) can leak, and what functions give need
        // have no size.
        let is_last = (count == 0, group.is_reclaimable(), is_upper_bound);
        let then = (Reverse(bytes), Reverse(count), id(group));
        (is_last, confidence, Reverse(first), then)
    });
}
