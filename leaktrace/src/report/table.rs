//! Sums by another criterion than the call site: `--by module|cache|process`.

use std::{cmp::Reverse, collections::HashMap};

use leaktrace_common::Kind;

use super::{Group, Row};
use crate::{
    session::spec::{By, Sort},
    snapshot::Amount,
};

/// The sums that the user asked for.
#[derive(Clone, Debug)]
pub struct Table {
    /// The criterion of the sums; never [`By::Site`].
    pub by: By,
    /// The lines shown, in order; those with nothing outstanding come last.
    pub lines: Vec<Line>,
    /// Number of lines with outstanding blocks, shown or not.
    pub lines_total: usize,
}

/// The sum of all call sites of one module, cache or process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The line's name, if known. Memory outside slab caches stands under its kind.
    pub name: Option<String>,
    /// The process ID; for ended processes of one command, the highest.
    pub pid: Option<u32>,
    /// Whether the line stands for processes that have ended.
    pub exited: bool,
    /// Allocated since the start and not freed.
    pub outstanding: Amount,
    /// Allocated since the start, and the freed part of that; `None` for holders of kernel memory,
    /// where it is not known.
    pub ended: Option<Ended>,
    /// Age of the oldest outstanding block, if known.
    pub oldest_ms: Option<u64>,
    /// Number of call sites with outstanding blocks.
    pub sites: usize,
    /// Whether the figures are estimates from sampled blocks.
    pub is_estimated: bool,
}

/// What was counted since the start, whether it is outstanding or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// All allocations.
    pub allocated: Amount,
    /// The freed part of them.
    pub freed: Amount,
}

/// Two rows with equal keys are one line.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    name: Option<String>,
    pid: Option<u32>,
    exited: bool,
}

/// Sums over all call sites; `None` for [`By::Site`].
pub(super) fn build(groups: &[Group], by: By, sort: Sort, top: usize) -> Option<Table> {
    if by == By::Site {
        return None;
    }
    let mut lines: Vec<Line> = Vec::new();
    let mut index: HashMap<Key, usize> = HashMap::new();
    for group in groups {
        // Lines that this call site has been counted in.
        let mut counted: Vec<usize> = Vec::new();
        for (key, part) in group.rows.iter().flat_map(|row| parts(row, by)) {
            let at = *index.entry(key).or_insert_with(|| {
                lines.push(Line::default());
                lines.len() - 1
            });
            let Some(line) = lines.get_mut(at) else { continue };
            line.add(&part);
            if part.outstanding.count > 0 && !counted.contains(&at) {
                counted.push(at);
                line.sites += 1;
            }
        }
    }
    lines.sort_by_key(|line| {
        let Amount { count, bytes } = line.outstanding;
        let first = match sort {
            // Sums have no verdict.
            Sort::Leak | Sort::Growth | Sort::Bytes => bytes,
            Sort::Count => count,
            Sort::Age => line.oldest_ms.map_or(0, |age| age + 1),
        };
        (count == 0, Reverse(first), Reverse(bytes), line.name.clone(), line.pid)
    });
    let lines_total = lines.iter().filter(|line| line.outstanding.count > 0).count();
    lines.truncate(top);
    Some(Table { by, lines, lines_total })
}

/// The lines that a row adds to, and what it adds.
fn parts(row: &Row, by: By) -> Vec<(Key, Line)> {
    if by == By::Process && !row.kind.is_of_process() {
        return row
            .holders
            .iter()
            .map(|holder| Line {
                name: holder.comm.clone(),
                pid: Some(holder.pid),
                exited: holder.exited,
                outstanding: holder.outstanding,
                oldest_ms: Some(holder.oldest_ms),
                ..Line::default()
            })
            .map(|part| {
                // Those that have ended are one by their command.
                let key = match part.exited && part.name.is_some() {
                    true => Key { name: part.name.clone(), pid: None, exited: true },
                    false => Key { name: None, pid: part.pid, exited: part.exited },
                };
                (key, part)
            })
            .collect();
    }
    let (name, pid) = match by {
        By::Site => return Vec::new(),
        By::Module => (row.owner.as_ref().map(|owner| owner.module.clone()), None),
        By::Cache => (row.cache.clone().or_else(|| kind_name(row.kind)), None),
        By::Process => match &row.process {
            Some(process) => (Some(process.comm.clone()), Some(process.pid)),
            None => (None, None),
        },
    };
    let part = Line {
        name: name.clone(),
        pid,
        exited: false,
        outstanding: row.totals.outstanding,
        ended: Some(Ended { allocated: row.totals.allocated, freed: row.totals.freed }),
        oldest_ms: row.oldest_ms,
        sites: 0,
        is_estimated: row.totals.sampled.is_some(),
    };
    vec![(Key { name, pid, exited: false }, part)]
}

/// The name of memory that comes from no slab cache.
fn kind_name(kind: Kind) -> Option<String> {
    match kind {
        Kind::Vmalloc => Some("vmalloc".into()),
        Kind::Percpu => Some("percpu".into()),
        Kind::Pages => Some("pages".into()),
        // The kernel does not tell the cache.
        Kind::Pair => Some("pairs".into()),
        Kind::Kmalloc | Kind::KmemCache | Kind::Malloc | Kind::Mmap => None,
    }
}

impl Line {
    fn add(&mut self, part: &Self) {
        self.name = self.name.take().or_else(|| part.name.clone());
        self.pid = self.pid.max(part.pid);
        self.exited = part.exited;
        self.outstanding = self.outstanding.plus(part.outstanding);
        if let Some(more) = part.ended {
            let sum = self.ended.get_or_insert_default();
            sum.allocated = sum.allocated.plus(more.allocated);
            sum.freed = sum.freed.plus(more.freed);
        }
        self.oldest_ms = self.oldest_ms.max(part.oldest_ms);
        self.is_estimated |= part.is_estimated;
    }
}
