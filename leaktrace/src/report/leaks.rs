//! What counts as a leak of a command, for the exit code of `run`.

use leaktrace_common::Kind;

use crate::{session::spec::LeakKinds, snapshot::Snapshot};

/// Leaks of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaks {
    /// So many blocks, and handles of pairs.
    Counted(u64),
    /// Nothing is known of the blocks, for this reason.
    NotJudged(String),
}

/// Counts leaks. `outstanding` is what is outstanding in all but what libraries keep for themselves.
///
/// Handles that the user had traced by pairs of functions count whatever the kinds: nothing can be
/// said of addresses of them.
pub fn count(snapshot: &Snapshot, kinds: LeakKinds, outstanding: u64) -> Leaks {
    if kinds.reachable {
        return Leaks::Counted(outstanding);
    }
    let mut handles = 0;
    let mut lost = 0;
    for site in &snapshot.sites {
        if site.kind == Kind::Pair {
            handles += site.outstanding.count;
        }
        let Some(reached) = &site.reached else { continue };
        for (counts, amount) in [
            (kinds.definite, reached.definitely_lost),
            (kinds.indirect, reached.indirectly_lost),
            (kinds.possible, reached.possibly_lost),
        ] {
            lost += if counts { amount.count } else { 0 };
        }
    }
    // Several scans: the command and its children. What is known of one counts.
    let judged = snapshot.scans.iter().any(|scan| scan.refused.is_none());
    let has_blocks = snapshot.sites.iter().any(|site| site.kind == Kind::Malloc);
    if judged || handles > 0 || !has_blocks {
        return Leaks::Counted(handles + lost);
    }
    let refused = snapshot.scans.iter().find_map(|scan| scan.refused.clone());
    Leaks::NotJudged(refused.unwrap_or_else(|| "its memory was not looked at".into()))
}
