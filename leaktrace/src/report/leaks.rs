//! What counts as a leak of a command, for the exit code of `run`.

use leaktrace_common::Kind;

use super::{Report, Row};
use crate::session::spec::LeakKinds;

/// Leaks of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaks {
    /// So many blocks, and handles of pairs.
    Counted(u64),
    /// Nothing is known of the blocks, for this reason.
    NotJudged(String),
}

/// Blocks over all call sites, shown or not, but for those that are suppressed or that libraries
/// keep for themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Blocks that no address leads to.
    pub definite: u64,
    /// Blocks that only lost blocks lead to.
    pub indirect: u64,
    /// Blocks that only addresses inside them lead to.
    pub possible: u64,
    /// Outstanding handles of pairs.
    pub handles: u64,
    /// Whether there was any block of an allocator.
    pub has_blocks: bool,
}

/// Sums over rows.
pub(super) fn found(rows: &[Row]) -> Found {
    let mut found = Found::default();
    for row in rows {
        match row.kind {
            Kind::Pair => found.handles += row.totals.outstanding.count,
            Kind::Malloc => found.has_blocks |= row.totals.outstanding.count > 0,
            _ => {}
        }
        if let Some(reach) = &row.reach {
            found.definite += reach.definitely_lost.count;
            found.indirect += reach.indirectly_lost.count;
            found.possible += reach.possibly_lost.count;
        }
    }
    found
}

/// Counts leaks.
///
/// Handles that the user had traced by pairs of functions count whatever the kinds: nothing can be
/// said of addresses of them.
pub fn count(report: &Report, kinds: LeakKinds) -> Leaks {
    if kinds.reachable {
        return Leaks::Counted(report.totals.outstanding.count);
    }
    let found = &report.found;
    let of_kinds = [
        (kinds.definite, found.definite),
        (kinds.indirect, found.indirect),
        (kinds.possible, found.possible),
    ];
    let lost: u64 = of_kinds.iter().filter(|(counts, _)| *counts).map(|(_, count)| count).sum();
    // Several scans: the command and its children. What is known of one counts.
    let judged = report.scans.iter().any(|scan| scan.refused.is_none());
    if judged || found.handles > 0 || !found.has_blocks {
        return Leaks::Counted(found.handles + lost);
    }
    let refused = report.scans.iter().find_map(|scan| scan.refused.clone());
    Leaks::NotJudged(refused.unwrap_or_else(|| "its memory was not looked at".into()))
}
