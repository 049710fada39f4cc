//! A verdict for each call site, and their sum.

use leaktrace_common::LIFETIME_BUCKETS;

use super::{Group, Part, Row};
use crate::{
    analyze::{self, Confidence, Facts, Verdict},
    history::{History, Point},
    snapshot::{
        Amount, BudgetAction, GENERATIONS, Mode, Snapshot,
        reach::{Reached, Way},
    },
    units::format_count,
};

/// All verdicts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Number of call sites that leak, certainly or most probably.
    pub leaking_sites: usize,
    /// Bytes that they leaked so far.
    pub leaked_bytes: u64,
    /// Number of call sites with outstanding blocks of which it cannot be told yet.
    pub unknown_sites: usize,
    /// The longest time after which it can be told of all of these, where that is known.
    pub ask_again_ms: Option<u64>,
}

impl Summary {
    /// The verdict on everything that is traced, in a word or two.
    pub fn verdict(&self) -> &'static str {
        match (self.leaking_sites, self.unknown_sites) {
            (1.., _) => "leaking",
            (0, 1..) => "unknown yet",
            (0, 0) => "healthy",
        }
    }
}

/// Judges every call site.
pub(super) fn judge(groups: &mut [Group], snapshot: &Snapshot, history: &History) -> Summary {
    let replaced = Replaced::of(groups, snapshot, history);
    let allocated = groups.iter().map(|group| group.totals.allocated.count).sum();
    let mut summary = Summary::default();
    for group in groups.iter_mut().filter(|group| group.totals.outstanding.count > 0) {
        group.verdict = verdict(group, snapshot, history, replaced.as_ref(), allocated);
        match group.verdict.confidence {
            // They fill whatever happens.
            _ if group.is_reclaimable() => {}
            Confidence::Certain | Confidence::Likely => {
                summary.leaking_sites += 1;
                summary.leaked_bytes += group.verdict.leaked_bytes;
            }
            Confidence::Unknown => {
                summary.unknown_sites += 1;
                summary.ask_again_ms = summary.ask_again_ms.max(group.verdict.ask_again_ms);
            }
            Confidence::Healthy => {}
        }
    }
    summary
}

fn verdict(
    group: &Group,
    snapshot: &Snapshot,
    history: &History,
    replaced: Option<&Replaced>,
    allocated: u64,
) -> Verdict {
    let points = series(group, snapshot, history);
    let left = left(group);
    let mut verdict = analyze::judge(&Facts {
        points: &points,
        born: born(group),
        lifetimes: lifetimes(group),
        outstanding: group.totals.outstanding,
        certain: left
            .as_ref()
            .filter(|left| left.part == Part::MadeTheirCache)
            .map(|left| (left.why.clone(), left.bytes)),
        distrust: distrust(group, &points, snapshot, replaced, allocated),
        reached: reached(group, snapshot),
        is_kernel: snapshot.mode == Mode::Kernel,
        has_ended: group.rows.iter().all(|row| row.process.as_ref().is_some_and(|of| of.exited)),
    });
    if let Some(Left { part: Part::AllocatedThem, why, bytes }) = left
        && !verdict.is_leak()
        && group.rows.iter().all(|row| row.doubt.is_none() && !row.is_upper_bound)
    {
        verdict.class = analyze::Class::OneTime;
        verdict.confidence = Confidence::Likely;
        verdict.evidence = why;
        verdict.leaked_bytes = bytes;
        verdict.ask_again_ms = None;
    }
    verdict
}

fn series(group: &Group, snapshot: &Snapshot, history: &History) -> Vec<Point> {
    let ids: Vec<u64> = group.rows.iter().flat_map(|row| &row.ids).copied().collect();
    let (allocated, freed) = (group.totals.allocated, group.totals.freed);
    history.series(&ids, Point { ms: snapshot.elapsed_ms, allocated, freed })
}

/// The outstanding blocks by when they were allocated, if that is known of all rows. Where blocks are
/// sampled, what the recorded ones stand for, as in all other figures.
fn born(group: &Group) -> Option<[u64; GENERATIONS]> {
    let mut born = group.rows.iter().try_fold([0; GENERATIONS], |mut sum: [u64; _], row| {
        let born = row.born?;
        sum.iter_mut().zip(born).for_each(|(sum, count)| *sum += count);
        Some(sum)
    })?;
    let recorded: u64 = born.iter().sum();
    if group.totals.sampled.is_some() && recorded > 0 {
        let outstanding = group.totals.allocated.minus(group.totals.freed).count;
        let weight = outstanding as f64 / recorded as f64;
        for count in &mut born {
            *count = (*count as f64 * weight).round() as u64;
        }
    }
    Some(born)
}

fn lifetimes(group: &Group) -> [u64; LIFETIME_BUCKETS] {
    group.rows.iter().fold([0; LIFETIME_BUCKETS], |mut sum, row| {
        sum.iter_mut().zip(row.lifetimes).for_each(|(sum, count)| *sum += count);
        sum
    })
}

/// What an unloaded module left behind at a call site.
struct Left {
    part: Part,
    why: String,
    /// Bytes of those blocks.
    bytes: u64,
}

/// The largest part that an unloaded module had in outstanding blocks, if it had one: of all rows, or
/// of those whose stack is known.
fn left(group: &Group) -> Option<Left> {
    let rows = || group.rows.iter().filter(|row| row.totals.outstanding.count > 0);
    let is_part = |row: &&Row, part| row.left_by().is_some_and(|left| left.part == part);
    let (part, did) = [
        (Part::MadeTheirCache, "made their cache, and was unloaded with these outstanding"),
        (Part::AllocatedThem, "allocated these itself, and was unloaded"),
    ]
    .into_iter()
    .find(|(part, _)| rows().any(|row| is_part(&row, *part)))?;
    let left = rows().find(|row| is_part(row, part))?.left_by()?;
    let amount = rows()
        .filter(|row| row.left_by() == Some(left))
        .fold(Amount::default(), |sum, row| sum.plus(row.totals.outstanding));
    let of_some = match amount == group.totals.outstanding {
        true => String::new(),
        false => format!("of {} blocks: ", format_count(amount.count)),
    };
    let why = format!("{of_some}module {} {did}", left.module);
    Some(Left { part, why, bytes: amount.bytes })
}

/// Why the call site's growth may be none; `allocated` is the number of blocks that all call sites
/// have allocated.
fn distrust(
    group: &Group,
    points: &[Point],
    snapshot: &Snapshot,
    replaced: Option<&Replaced>,
    allocated: u64,
) -> Option<&'static str> {
    let loss = &snapshot.loss;
    let missed = loss.missed_frees() + loss.recursion_misses.values().sum::<u64>();
    // Any call site may have had its share of them.
    let share = group.totals.allocated.count as f64 / allocated.max(1) as f64;
    let missed_here = missed as f64 * share.min(1.0);
    let last_step = snapshot.budget.as_ref().and_then(|budget| budget.steps.last());
    if group.is_reclaimable() {
        Some("the kernel takes these back under pressure")
    } else if group.rows.iter().any(|row| row.doubt.is_some()) {
        Some("its slab cache did not grow as these blocks did")
    } else if group.rows.iter().any(|row| row.is_upper_bound) {
        Some("frees in bulk are not seen")
    } else if missed_here * 2.0 > group.totals.outstanding.count as f64 {
        Some("frees were missed")
    } else if last_step.is_some_and(|step| step.action == BudgetAction::Nothing) {
        Some("its probes were taken away")
    } else if replaced.is_some_and(|replaced| replaced.may_be(points, snapshot.elapsed_ms)) {
        Some("as many older blocks of the process were freed meanwhile")
    } else {
        None
    }
}

/// Frees of blocks that are older than the trace: such blocks may have made room for those that
/// look like growth. The kernel is too large for that; there slab caches tell.
struct Replaced {
    /// Such frees in the second half of the time.
    untracked: u64,
    /// Growth of all call sites meanwhile, in blocks.
    growth: u64,
}

impl Replaced {
    fn of(groups: &[Group], snapshot: &Snapshot, history: &History) -> Option<Self> {
        if snapshot.mode != Mode::User || snapshot.loss.filtered {
            return None;
        }
        let now = snapshot.loss.count(leaktrace_common::LossReason::UntrackedFree);
        let untracked = now.saturating_sub(history.untracked_frees(snapshot.elapsed_ms / 2)?);
        if untracked == 0 {
            return None;
        }
        let grown =
            |group: &Group| late_growth(&series(group, snapshot, history), snapshot.elapsed_ms);
        Some(Self { untracked, growth: groups.iter().map(grown).sum() })
    }

    fn may_be(&self, points: &[Point], now_ms: u64) -> bool {
        analyze::is_replacement(late_growth(points, now_ms), self.growth, self.untracked)
    }
}

/// Blocks that were added in the second half of the time.
fn late_growth(points: &[Point], now_ms: u64) -> u64 {
    let half = points.iter().take_while(|point| point.ms <= now_ms / 2).last();
    let before = half.map_or(0, |point| point.outstanding().count);
    points.last().map_or(0, |now| now.outstanding().count.saturating_sub(before))
}

/// What scans said of all rows with blocks, and how they were made; `None` unless all were scanned.
fn reached(group: &Group, snapshot: &Snapshot) -> Option<(Reached, Way)> {
    let scan = |row: &&Row| {
        let mut scans = snapshot.scans.iter();
        scans.find(|scan| scan.space == row.space && scan.refused.is_none())
    };
    let way = group.rows.first().as_ref().and_then(scan)?.way;
    let has_blocks = |row: &&Row| row.totals.outstanding.count > 0;
    if group.rows.iter().filter(has_blocks).any(|row| row.reach.is_none()) {
        return None;
    }
    let all = group.reach()?;
    let reached = Reached {
        definitely_lost: all.definitely_lost,
        indirectly_lost: all.indirectly_lost,
        possibly_lost: all.possibly_lost,
        still_reachable: all.still_reachable,
        not_judged: all.not_judged,
        leads: all.leads,
        // Who holds them is no matter of the verdict.
        held_by: Vec::new(),
    };
    Some((reached, way))
}
