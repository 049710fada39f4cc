//! All facts on a call site together make a verdict.

use leaktrace_common::LIFETIME_BUCKETS;

use super::{
    Class, Confidence, Verdict,
    generations::Generations,
    survivors::freed_within_ms,
    trend::{Envelope, Slope},
};
use crate::{
    history::Point,
    snapshot::{
        Amount, GENERATIONS,
        reach::{Reached, Way},
    },
    units::{format_bytes, format_count, format_ms},
};

/// Before this time nothing is said of a call site but that it is too early.
const SHORTEST_MS: u64 = 10_000;
/// Before this time growth may be a start, a batch or a cache that fills.
const GROWTH_MS: u64 = 590_000;
/// The same where few blocks stay and all others are freed soon: no cache and no batch is like that.
const RARE_MS: u64 = 240_000;
/// Most blocks of a rare path, as a share of all.
const RARE_SHARE: f64 = 0.01;
/// Where even fewer stay, less time does.
const RAREST_MS: u64 = 45_000;
/// Most blocks of such a path.
const RAREST_SHARE: f64 = 0.001;
/// How much longer than the blocks that are freed the others must have lived.
const OUTLIVES: f64 = 4.0;
/// Fewest moments that growth is told from where the blocks' own times are not seen: between two of
/// them, whatever came looks as if it had come evenly.
const FEWEST_POINTS: usize = 8;
/// Fewest blocks that growth is told from.
const FEWEST_BLOCKS: f64 = 8.0;
/// Fewest blocks that stay, while no more come, and are told.
const FEWEST_AT_ONCE: f64 = 16.0;
/// Share of the settled generations of which blocks are alive, for growth.
const ALIVE: f64 = 0.7;
/// The same, for a leak whenever the path runs.
const ALIVE_STEADY: f64 = 0.9;
/// Where growth falls below this share of what it was, it may come to an end.
const SLOWER: f64 = 0.85;
/// Standard deviations from which on a difference is none by chance.
const SURE: f64 = 2.0;
/// A live scan may take one block in so many for lost that is not.
const LIVE_ERROR: u64 = 10_000;

/// Everything that is known of a call site.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The counters over time; the last point is the present.
    pub points: &'a [Point],
    /// The outstanding blocks by when they were allocated, see [`crate::snapshot::Site::born`].
    pub born: Option<[u64; GENERATIONS]>,
    /// Freed blocks by age, see [`crate::snapshot::Site::lifetimes`].
    pub lifetimes: [u64; LIFETIME_BUCKETS],
    /// What the report shows as outstanding.
    pub outstanding: Amount,
    /// Why nobody can free these blocks any more, if that is known, and how many bytes they are.
    pub certain: Option<(String, u64)>,
    /// Why outstanding blocks may have been freed, or growth may be none, if so.
    pub distrust: Option<&'static str>,
    /// What scans said, and how they were made.
    pub reached: Option<(Reached, Way)>,
    /// Whether the process has ended, so that no more will be known.
    pub has_ended: bool,
    /// Whether it is memory of the kernel, which does not start while it is traced: what is
    /// allocated meanwhile and stays is no start-up there.
    pub is_kernel: bool,
}

/// What the figures over time look like.
#[derive(Clone, Debug, PartialEq)]
enum Shape {
    /// Blocks of all ages stay, and more come: growth. In so many of so many settled generations.
    Grows { alive: usize, of: usize },
    /// It may be growth; `only_time` says that nothing speaks against it but that it is early.
    MayGrow { why: String, wait_ms: Option<u64>, only_time: bool },
    /// It grew and does no more.
    Stopped,
    /// Its blocks were allocated in the beginning and stay.
    Kept,
    /// Many blocks were allocated in the midst of the trace and stay, and no more come.
    Once,
    /// Its blocks are freed, sooner or later.
    ComesAndGoes,
}

/// Judges a call site.
pub fn judge(facts: &Facts<'_>) -> Verdict {
    if facts.outstanding.count == 0 {
        return verdict(Class::InUse, Confidence::Healthy, "nothing is outstanding".into());
    }
    let seen = Seen::of(facts);
    let shape = seen.shape(facts);
    let growth = seen.slope.filter(|slope| slope.low > 0.0 && seen.may_grow(&shape));
    let mut verdict =
        by_scan(facts, &seen, &shape).unwrap_or_else(|| by_growth(facts, &seen, shape));
    if let Some((why, bytes)) = &facts.certain {
        verdict.confidence = Confidence::Certain;
        verdict.evidence = why.clone();
        verdict.leaked_bytes = *bytes;
        verdict.ask_again_ms = None;
        if !matches!(verdict.class, Class::Steady | Class::Sporadic) {
            verdict.class = Class::OneTime;
        }
    }
    verdict.growth_bytes_per_s = match (growth, verdict.confidence) {
        (Some(slope), _) => Some(slope.per_s),
        (None, Confidence::Healthy) => Some(0.0),
        (None, _) => None,
    };
    verdict
}

/// Whether blocks of a call site may only take the place of older ones, which were not traced: in
/// the last half of the time it has grown by `growth` blocks, all call sites together by `all`, and
/// `untracked` blocks were freed that are older than the trace.
pub fn is_replacement(growth: u64, all: u64, untracked: u64) -> bool {
    untracked.saturating_mul(2) > growth && untracked.saturating_mul(2) > all
}

fn verdict(class: Class, confidence: Confidence, evidence: String) -> Verdict {
    Verdict {
        class,
        confidence,
        evidence,
        growth_bytes_per_s: None,
        leaked_bytes: 0,
        ask_again_ms: None,
        only_time_is_missing: false,
    }
}

/// What the figures of a call site show.
struct Seen {
    /// Before this time it had allocated nothing, in milliseconds since the start.
    since_ms: u64,
    /// Time since then, in milliseconds.
    age_ms: u64,
    /// Number of moments since then at which its counters are known.
    moments: usize,
    generations: Generations,
    slope: Option<Slope>,
    grew: (usize, usize),
    /// How much of the outstanding bytes has come for good in the last third of the time.
    recent: f64,
    /// The age by which 99 % of the freed blocks were freed.
    scale_ms: Option<f64>,
}

impl Seen {
    fn of(facts: &Facts<'_>) -> Self {
        let points = facts.points;
        let before = points.iter().take_while(|point| point.allocated.count == 0).last();
        let since_ms = before.map_or(0, |point| point.ms);
        let age_ms = points.last().map_or(0, |now| now.ms.saturating_sub(since_ms));
        let bytes = Envelope::of(points, since_ms, |point| point.outstanding().bytes);
        let now = bytes.at((since_ms + age_ms) as f64);
        let before = bytes.at(since_ms as f64 + age_ms as f64 * 2.0 / 3.0);
        Self {
            since_ms,
            age_ms,
            moments: points.iter().filter(|point| point.ms > since_ms).count(),
            generations: Generations::of(points, since_ms, facts.born.as_ref()),
            slope: bytes.slope(),
            grew: bytes.grew(),
            recent: (now - before) / now.max(1.0),
            scale_ms: freed_within_ms(&facts.lifetimes, 0.99),
        }
    }

    /// The share of the blocks that stay, of those old enough to tell.
    fn share(&self) -> f64 {
        let len = self.generations.len();
        let (alive, allocated) = self.generations.sums(0..len - len / 4);
        (alive / allocated.max(1.0)).min(1.0)
    }

    /// Whether all blocks but few are freed soon.
    fn is_rare(&self) -> bool {
        self.share() <= RARE_SHARE
            && self.scale_ms.is_some_and(|scale| scale * 10.0 <= self.age_ms as f64)
    }

    /// The growth in words: `+1.2 MiB/h (1.1 to 1.3), grew in 12 of 12 intervals, blocks of each
    /// interval are still alive`.
    fn grows(&self, alive: usize, of: usize) -> String {
        let (grew, intervals) = self.grew;
        let mut text = match self.slope {
            Some(Slope { per_s, low, high }) if low > 0.0 => {
                let hourly = |per_s: f64| format_bytes((per_s * 3600.0).round() as u64);
                let (low, high) = (hourly(low), hourly(high));
                let range = match low == high {
                    true => String::new(),
                    false => format!(" ({low} to {high})"),
                };
                format!("+{}/h{range}, grew in {grew} of {intervals} intervals", hourly(per_s))
            }
            _ => format!("grew in {grew} of {intervals} intervals"),
        };
        match self.generations.are_exact {
            false => {}
            true if alive == of => text.push_str(", blocks of each interval are still alive"),
            true => {
                text.push_str(&format!(", blocks of {alive} of {of} intervals are still alive"))
            }
        }
        text
    }

    /// Blocks that stay, while no more come.
    fn kept(&self, facts: &Facts<'_>, count: f64) -> Shape {
        let is_once = facts.is_kernel && self.since_ms > 0 && count >= FEWEST_AT_ONCE;
        if is_once && facts.distrust.is_none() { Shape::Once } else { Shape::Kept }
    }

    fn may_grow(&self, shape: &Shape) -> bool {
        matches!(shape, Shape::Grows { .. } | Shape::MayGrow { .. })
    }

    fn shape(&self, facts: &Facts<'_>) -> Shape {
        let wait = |ms: f64| Some((ms - self.age_ms as f64).max(1_000.0) as u64);
        let may =
            |why: &str, wait_ms| Shape::MayGrow { why: why.to_owned(), wait_ms, only_time: false };
        let age = self.age_ms as f64;
        if self.age_ms < SHORTEST_MS {
            return may("too early to tell", wait(GROWTH_MS as f64));
        }
        if !self.generations.are_exact && self.moments < FEWEST_POINTS {
            return may("too early to tell", wait(age * 2.0));
        }
        let generations = &self.generations;
        // The first has what every program allocates when it starts, and the newest are in use.
        let (first, len) = (1, generations.len());
        let settled = len - len / 4;
        let half = first + (settled - first) / 2;
        let (old, old_of) = generations.sums(first..half);
        let (middle, middle_of) = generations.sums(half..settled);
        let (new, _) = generations.sums(settled..len);
        let alive = generations.alive_in(first..settled);
        let stays = old + middle;
        let grows_of_late = self.recent > 0.1;
        if alive == 0 {
            let (started, _) = generations.sums(0..first);
            return match (generations.are_exact, grows_of_late) {
                // All that was allocated in the middle is gone.
                (true, _) | (false, false) if started > 0.0 => self.kept(facts, started),
                (true, _) | (false, false) => Shape::ComesAndGoes,
                (false, true) => may("it has grown of late", wait(age * 1.5)),
            };
        }
        let per = |sum: f64, of: usize| sum / of.max(1) as f64;
        let expected = per(stays, settled - first) * (len - settled) as f64;
        // So many generations have survivors if they come one by one.
        let of = settled - first;
        let by_chance = of as f64 * (1.0 - (-stays / of as f64).exp());
        let is_even = alive as f64 >= by_chance * ALIVE;
        if generations.alive_in(half..settled) == 0 && generations.alive_in(first..half) <= 2 {
            return if grows_of_late {
                may("it has grown of late", wait(age * 1.5))
            } else {
                self.kept(facts, stays)
            };
        }
        if new < expected * 0.25 && expected >= 4.0 && (is_even || middle < old * 0.25) {
            return match self.kept(facts, stays) {
                Shape::Once if self.share() > 0.9 => Shape::Once,
                _ => Shape::Stopped,
            };
        }
        if old <= stays * 0.1 && generations.alive_in(first..half) * 2 < half - first {
            return if grows_of_late {
                may("it has grown of late", wait(age * 1.5))
            } else {
                Shape::ComesAndGoes
            };
        }
        if !grows_of_late && !generations.are_exact {
            return match stays * 2.0 > old_of + middle_of {
                true => Shape::Stopped,
                false => may("the ages of its blocks were not read", None),
            };
        }
        // Of each block that was allocated, so much stays.
        let (share_old, share_middle) = (old / old_of.max(1.0), middle / middle_of.max(1.0));
        let both = (stays / (old_of + middle_of).max(1.0)).min(1.0);
        let error =
            (both * (1.0 - both) * (1.0 / old_of.max(1.0) + 1.0 / middle_of.max(1.0))).sqrt();
        if share_old < share_middle * 0.75 && share_middle - share_old > SURE * error {
            return may("older blocks are freed more often than younger ones", wait(age * 2.0));
        }
        if share_middle < share_old * SLOWER && share_old - share_middle > SURE * error {
            return may("fewer of its blocks stay than before", wait(age * 2.0));
        }
        if !is_even {
            return may("it grew only now and then", wait(age * 2.0));
        }
        let slower = |late: f64, late_of: usize, early: f64, early_of: usize| {
            let (late, early) = (per(late, late_of), per(early, early_of));
            let error = (late / late_of.max(1) as f64 + early / early_of.max(1) as f64).sqrt();
            late < early * SLOWER && early - late > SURE * error
        };
        // Where most blocks are freed, fewer of them that stay are of less traffic.
        if both > 0.5
            && (slower(middle, settled - half, old, half - first)
                || slower(new, len - settled, stays, settled - first))
        {
            return may("it grows more slowly than it did", wait(age * 2.0));
        }
        if new < expected * 0.25 && expected >= 4.0 {
            return may("it pauses", wait(age * 1.5));
        }
        if stays < FEWEST_BLOCKS {
            return may("few blocks", wait(age * FEWEST_BLOCKS / stays.max(1.0)));
        }
        let needed = match (self.is_rare(), self.scale_ms) {
            (true, _) if both <= RAREST_SHARE => RAREST_MS as f64,
            (true, _) => RARE_MS as f64,
            (false, None) => GROWTH_MS as f64,
            (false, Some(scale)) => (GROWTH_MS as f64).max(scale * OUTLIVES),
        };
        if let Some(why) = facts.distrust {
            return may(&format!("{}, but {why}", self.grows(alive, of)), None);
        }
        if age < needed {
            return Shape::MayGrow {
                why: self.grows(alive, of),
                wait_ms: wait(needed),
                only_time: true,
            };
        }
        Shape::Grows { alive, of }
    }
}

/// The verdict where memory was scanned.
fn by_scan(facts: &Facts<'_>, seen: &Seen, shape: &Shape) -> Option<Verdict> {
    let (reached, way) = facts.reached.as_ref()?;
    let lost = reached.definitely_lost;
    let held = reached.still_reachable.plus(reached.possibly_lost);
    let judged = lost.plus(reached.indirectly_lost).plus(held);
    let is_enough = |lost: Amount| match way {
        Way::Live { .. } => lost.count * LIVE_ERROR >= judged.count,
        Way::Snapshot | Way::Stopped { .. } | Way::AtExit => true,
    };
    if lost.count > 0 && is_enough(lost) {
        let class = of_lost(lost.count, shape, &seen.generations);
        let (confidence, seen_how) = match way {
            Way::Live { scans, time_ms } => (
                Confidence::Likely,
                format!("was seen in any of {scans} scans over {}", format_ms(*time_ms)),
            ),
            _ => (Confidence::Certain, "is left in the process's memory".to_owned()),
        };
        let (bytes, count) = (format_bytes(lost.bytes), format_count(lost.count));
        let blocks = if lost.count == 1 { "block" } else { "blocks" };
        let of_any_age = match lost.count > facts.outstanding.count {
            true => " of any age",
            false => "",
        };
        let evidence = format!("no address of {bytes} in {count} {blocks}{of_any_age} {seen_how}");
        let mut verdict = verdict(class, confidence, evidence);
        verdict.leaked_bytes = lost.plus(reached.leads).bytes;
        return Some(verdict);
    }
    // Lost with a block of another call site, which is blamed.
    let indirect = reached.indirectly_lost;
    if indirect.count > 0 && is_enough(indirect) {
        let (bytes, count) = (format_bytes(indirect.bytes), format_count(indirect.count));
        let evidence = format!("{bytes} in {count} blocks are lost with blocks that led to them");
        let confidence = match way {
            Way::Live { .. } => Confidence::Likely,
            _ => Confidence::Certain,
        };
        let class = of_lost(indirect.count, shape, &seen.generations);
        return Some(verdict(class, confidence, evidence));
    }
    let unheld = lost.plus(indirect).plus(reached.not_judged);
    let are_all_held = held.count > 0 && unheld.count == 0;
    match shape {
        Shape::Grows { .. } if are_all_held => {
            let mut verdict = by_growth(facts, seen, shape.clone());
            verdict.class = Class::Hoarding;
            verdict.evidence = format!("all can still be reached, but {}", verdict.evidence);
            Some(verdict)
        }
        _ if facts.has_ended && are_all_held => {
            let evidence = "all could still be reached at the end".to_owned();
            Some(self::verdict(Class::InUse, Confidence::Healthy, evidence))
        }
        _ => None,
    }
}

/// The class of a call site of which `count` blocks are lost, by the generations that are alive.
fn of_lost(count: u64, shape: &Shape, generations: &Generations) -> Class {
    if let Shape::Grows { alive, of } = shape {
        return of_alive(*alive, *of);
    }
    if count < FEWEST_BLOCKS as u64 {
        return Class::OneTime;
    }
    // All but those in use; no growth has to be proved here.
    let settled = generations.len() - generations.len() / 4;
    let alive = generations.alive_in(0..settled);
    let (stays, _) = generations.sums(0..settled);
    // So many have survivors if they come one by one.
    let of = settled as f64;
    let by_chance = of * (1.0 - (-stays / of).exp());
    if alive as f64 >= by_chance * ALIVE_STEADY {
        Class::Steady
    } else if alive > 2 {
        Class::Sporadic
    } else {
        Class::OneTime
    }
}

fn of_alive(alive: usize, of: usize) -> Class {
    if alive as f64 >= of as f64 * ALIVE_STEADY { Class::Steady } else { Class::Sporadic }
}

/// The verdict by the figures over time alone.
fn by_growth(facts: &Facts<'_>, seen: &Seen, shape: Shape) -> Verdict {
    let age = format_ms(seen.age_ms);
    match shape {
        Shape::Grows { alive, of } => {
            let class = of_alive(alive, of);
            let rare = match (seen.is_rare(), seen.scale_ms) {
                (true, Some(scale)) => format!(
                    ", {} % of its blocks die within {}, the rest outlives them all",
                    percent(1.0 - seen.share()),
                    short(scale)
                ),
                _ => String::new(),
            };
            let evidence = format!("{}{rare}", seen.grows(alive, of));
            let mut verdict = verdict(class, Confidence::Likely, evidence);
            verdict.leaked_bytes = facts.outstanding.bytes;
            verdict
        }
        Shape::MayGrow { why, wait_ms, only_time } => {
            let evidence = match facts.has_ended {
                true => format!("{why}, and the process has ended"),
                false => why,
            };
            let mut verdict = verdict(Class::UnknownYet, Confidence::Unknown, evidence);
            verdict.ask_again_ms = wait_ms.filter(|_| !facts.has_ended);
            verdict.only_time_is_missing = only_time;
            verdict
        }
        Shape::Stopped => {
            let evidence = format!("it grew, and has stopped growing within {age}");
            verdict(Class::Saturating, Confidence::Healthy, evidence)
        }
        Shape::Kept => {
            let evidence = format!("it does not grow: allocated in the beginning of {age}");
            verdict(Class::InUse, Confidence::Healthy, evidence)
        }
        Shape::Once => {
            let evidence = format!("allocated within the last {age} and kept, and no more come");
            verdict(Class::OneTime, Confidence::Unknown, evidence)
        }
        Shape::ComesAndGoes => {
            let evidence = format!(
                "it does not grow: nearly all blocks that came soon after its start are freed, \
                 within {age}"
            );
            verdict(Class::InUse, Confidence::Healthy, evidence)
        }
    }
}

/// A share as a percentage that is never rounded to 100.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        99.995.. => "over 99.99".into(),
        99.0.. => format!("{percent:.2}"),
        _ => format!("{percent:.1}"),
    }
}

/// Milliseconds that may be less than one.
fn short(ms: f64) -> String {
    if ms < 1.0 { format!("{:.0} us", ms * 1000.0) } else { format_ms(ms.round() as u64) }
}
