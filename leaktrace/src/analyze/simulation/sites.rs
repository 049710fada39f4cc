//! Made-up call sites, leaking and healthy, as leaktrace would see them from some moment on.

use std::f64::consts::TAU;

use leaktrace_common::{LIFETIME_BUCKETS, lifetime_bucket};

use super::random::Random;
use crate::{
    analyze::{Facts, is_replacement},
    history::Point,
    snapshot::{Amount, GENERATIONS},
};

/// Most blocks of a made-up call site, but for those that live for moments.
const MOST_BLOCKS: f64 = 3_000.0;
/// Most points of a history.
const POINTS: f64 = 128.0;
/// Fewer leaked blocks than this are not to be found.
const FEWEST_LEAKED: usize = 8;

/// What a call site does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    LeakAlone,
    /// Leaks this share of its blocks, and frees the others soon.
    LeakInChurn(f64),
    LeakNowAndThen,
    LeakInSawtooth,
    LeakBesidePool,
    LeakByDay,
    LeakAmongDelayedFrees,
    LeakThatStartsLate,
    Cache,
    CacheThatSlows,
    CacheInChurn,
    Pool,
    WarmUp,
    Sawtooth,
    DelayedFrees,
    LoadByDay,
    Ramp,
    Bursts,
    Churn,
}

pub(super) const KINDS: [Kind; 22] = [
    Kind::LeakAlone,
    Kind::LeakInChurn(0.1),
    Kind::LeakInChurn(0.01),
    Kind::LeakInChurn(0.001),
    Kind::LeakInChurn(0.0001),
    Kind::LeakNowAndThen,
    Kind::LeakInSawtooth,
    Kind::LeakBesidePool,
    Kind::LeakByDay,
    Kind::LeakAmongDelayedFrees,
    Kind::LeakThatStartsLate,
    Kind::Cache,
    Kind::CacheThatSlows,
    Kind::CacheInChurn,
    Kind::Pool,
    Kind::WarmUp,
    Kind::Sawtooth,
    Kind::DelayedFrees,
    Kind::LoadByDay,
    Kind::Ramp,
    Kind::Bursts,
    Kind::Churn,
];

impl Kind {
    pub(super) fn leaks(self) -> bool {
        matches!(
            self,
            Self::LeakAlone
                | Self::LeakInChurn(_)
                | Self::LeakNowAndThen
                | Self::LeakInSawtooth
                | Self::LeakBesidePool
                | Self::LeakByDay
                | Self::LeakAmongDelayedFrees
                | Self::LeakThatStartsLate
        )
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::LeakAlone => "1 in 10 min to 10/s, nothing else".into(),
            Self::LeakInChurn(share) => format!("one in {} blocks", (1.0 / share).round()),
            Self::LeakNowAndThen => "1 to 20 blocks at a time, seldom".into(),
            Self::LeakInSawtooth => "beside batches".into(),
            Self::LeakBesidePool => "beside a pool".into(),
            Self::LeakByDay => "as the load of the day".into(),
            Self::LeakAmongDelayedFrees => "among blocks that live 1 s to 1 min".into(),
            Self::LeakThatStartsLate => "a path that runs later".into(),
            Self::Cache => "cache, full after 5 s to 3 h".into(),
            Self::CacheThatSlows => "cache that fills ever more slowly".into(),
            Self::CacheInChurn => "such a cache, among blocks freed at once".into(),
            Self::Pool => "pool or start-up".into(),
            Self::WarmUp => "warm-up of 2 s to 2 min".into(),
            Self::Sawtooth => "batches of 1 s to 30 min".into(),
            Self::DelayedFrees => "blocks that live 0.1 s to 1 h".into(),
            Self::LoadByDay => "in use, as the load of the day".into(),
            Self::Ramp => "in use, by ever more traffic".into(),
            Self::Bursts => "bursts".into(),
            Self::Churn => "freed at once".into(),
        }
    }
}

/// A block; times in seconds since tracing began, which may be negative.
#[derive(Clone, Copy)]
struct Block {
    born_s: f64,
    freed_s: f64,
    is_leaked: bool,
}

/// Blocks that are freed within moments.
#[derive(Clone, Copy)]
struct Churn {
    per_s: f64,
    life_s: f64,
}

/// What leaktrace would see of a call site.
pub(super) struct Simulated {
    points: Vec<Point>,
    born: Option<[u64; GENERATIONS]>,
    lifetimes: [u64; LIFETIME_BUCKETS],
    is_replacement: bool,
    /// Whether it leaks too few blocks for anybody to see.
    pub(super) is_too_rare: bool,
}

impl Simulated {
    /// The `number`th call site of a kind, always the same.
    pub(super) fn of(kind: Kind, window_s: f64, number: u64) -> Self {
        let seed = number * 1_000_003 + window_s as u64 * 31 + kind.name().len() as u64;
        let mut random = Random::new(seed);
        let mut maker = Maker { random: &mut random, window_s, blocks: Vec::new(), churn: None };
        maker.make(kind);
        let Maker { blocks, churn, .. } = maker;
        let mut site = observe(&blocks, churn, window_s, &mut random);
        site.is_too_rare &= kind.leaks();
        site
    }

    pub(super) fn facts(&self) -> Facts<'_> {
        Facts {
            points: &self.points,
            born: self.born,
            lifetimes: self.lifetimes,
            outstanding: self.points.last().unwrap().outstanding(),
            certain: None,
            distrust: self.is_replacement.then_some("older blocks are freed in their place"),
            reached: None,
            has_ended: false,
            is_kernel: false,
        }
    }
}

struct Maker<'a> {
    random: &'a mut Random,
    window_s: f64,
    blocks: Vec<Block>,
    churn: Option<Churn>,
}

impl Maker<'_> {
    fn make(&mut self, kind: Kind) {
        let window = self.window_s;
        match kind {
            Kind::LeakAlone => {
                let rate = self.random.scale(1.0 / 600.0, 10.0);
                self.leak(0.0, rate, |_| 1.0);
            }
            Kind::LeakInChurn(share) => {
                let rate = self.random.scale(1.0 / 600.0, 1.0);
                self.leak(0.0, rate, |_| 1.0);
                let life_s = self.random.scale(0.000_1, 1.0);
                self.churn = Some(Churn { per_s: rate / share, life_s });
            }
            Kind::LeakNowAndThen => {
                let pause_s = self.random.scale(2.0, 600.0);
                let mut at_s = self.random.exponential(pause_s);
                while at_s < window && (self.blocks.len() as f64) < MOST_BLOCKS {
                    let count = 1 + (self.random.uniform() * 20.0) as usize;
                    self.blocks.extend(vec![Block::new(at_s, f64::INFINITY); count]);
                    at_s += self.random.exponential(pause_s.max(window / 200.0));
                }
                self.all_leaked();
            }
            Kind::LeakInSawtooth => {
                let rate = self.random.scale(1.0 / 60.0, 1.0);
                self.leak(0.0, rate, |_| 1.0);
                let period = self.random.scale(1.0, window / 4.0);
                self.sawtooth(period, rate * 5.0);
            }
            Kind::LeakBesidePool => {
                let rate = self.random.scale(1.0 / 60.0, 1.0);
                self.leak(0.0, rate, |_| 1.0);
                let count = self.random.scale(10.0, 3_000.0) as usize;
                let most_s = (window / 30.0).min(5.0);
                for _ in 0..count {
                    let at_s = self.random.uniform() * most_s;
                    self.blocks.push(Block::new(at_s, f64::INFINITY));
                }
            }
            Kind::LeakByDay => {
                let rate = self.random.scale(1.0 / 60.0, 2.0);
                let phase = self.random.uniform();
                self.leak(0.0, rate, |s| 0.6 + 0.4 * (TAU * (s / 86_400.0 + phase)).sin());
            }
            Kind::LeakAmongDelayedFrees => {
                let rate = self.random.scale(1.0 / 60.0, 1.0);
                self.leak(0.0, rate, |_| 1.0);
                let life_s = self.random.scale(1.0, (window / 10.0).clamp(1.1, 60.0));
                let more = self.random.scale(3.0, 100.0);
                self.in_use((rate * more).min(10_000.0 / window), life_s, |_| 1.0);
            }
            Kind::LeakThatStartsLate => {
                let rate = self.random.scale(1.0 / 60.0, 1.0);
                let from_s = self.random.uniform() * window / 2.0;
                self.leak(from_s, rate, |_| 1.0);
            }
            Kind::Cache | Kind::CacheInChurn => {
                let fill_s = self.random.scale(5.0, 10_800.0);
                let rate = self.rate(0.5, 50.0, fill_s);
                let age_s = self.age(fill_s * 10.0);
                let life = |random: &mut Random| {
                    let _ = random;
                    fill_s
                };
                self.stream(-age_s, rate, |_| 1.0, life);
                if kind == Kind::CacheInChurn {
                    let per_s = rate * self.random.scale(1.0, 1_000.0);
                    let life_s = self.random.scale(0.000_1, 1.0);
                    self.churn = Some(Churn { per_s, life_s });
                }
            }
            Kind::CacheThatSlows => {
                let scale_s = self.random.scale(5.0, 10_800.0);
                let rate = self.rate(0.5, 50.0, scale_s);
                let age_s = self.age(scale_s * 10.0);
                // Once it is full, any block may be evicted for the next one.
                let miss = |s: f64| 0.1 + 0.9 * (-(s + age_s) / scale_s).exp();
                let life = |random: &mut Random| scale_s + random.exponential(scale_s * 10.0);
                self.stream(-age_s, rate, miss, life);
            }
            Kind::Pool => {
                let count = self.random.scale(3.0, 3_000.0) as usize;
                let most_s = self.random.scale(0.1, window / 10.0);
                for _ in 0..count {
                    let at_s = self.random.uniform() * most_s;
                    self.blocks.push(Block::new(at_s, f64::INFINITY));
                }
                self.churn_beside();
            }
            Kind::WarmUp => {
                let scale_s = self.random.scale(2.0, 120.0);
                let rate = self.rate(1.0, 100.0, scale_s);
                let age_s = self.age(scale_s * 10.0);
                let load = |s: f64| (-(s + age_s) / scale_s).exp();
                self.stream(-age_s, rate, load, |_| f64::INFINITY);
                self.churn_beside();
            }
            Kind::Sawtooth => {
                let period = self.random.scale(1.0, 1_800.0);
                let rate = self.rate(1.0, 100.0, period);
                self.sawtooth(period, rate);
            }
            Kind::DelayedFrees => {
                let life_s = self.random.scale(0.1, 3_600.0);
                let rate = self.rate(1.0, 100.0, life_s);
                if self.random.uniform() < 0.5 {
                    self.in_use(rate, life_s, |_| 1.0);
                } else {
                    let age_s = self.age(life_s * 10.0);
                    self.stream(-age_s, rate, |_| 1.0, |_| life_s);
                }
            }
            Kind::LoadByDay => {
                let life_s = self.random.scale(0.1, 60.0);
                let rate = self.rate(1.0, 100.0, life_s);
                let phase = self.random.uniform();
                self.in_use(rate, life_s, |s| 0.55 + 0.45 * (TAU * (s / 86_400.0 + phase)).sin());
            }
            Kind::Ramp => {
                let life_s = self.random.scale(0.1, (window / 5.0).min(120.0));
                let rate = self.rate(1.0, 100.0, life_s);
                self.in_use(rate, life_s, |s| (0.1 + 0.9 * s / window).max(0.0));
            }
            Kind::Bursts => {
                let pause_s = self.random.scale(2.0, 600.0);
                let life_s = self.random.scale(1.0, 600.0);
                let mut at_s = -life_s * 3.0;
                while at_s < window && (self.blocks.len() as f64) < MOST_BLOCKS {
                    let count = 1 + (self.random.uniform() * 20.0) as usize;
                    let end_s = at_s + self.random.exponential(life_s);
                    self.blocks.extend(vec![Block::new(at_s, end_s); count]);
                    at_s += self.random.exponential(pause_s.max(window / 200.0));
                }
            }
            Kind::Churn => self.churn_beside(),
        }
    }

    /// How long the program had run when tracing began: one in four programs is traced from its
    /// start on.
    fn age(&mut self, most_s: f64) -> f64 {
        if self.random.uniform() < 0.25 { 0.0 } else { self.random.uniform() * most_s }
    }

    /// A rate that makes neither too few nor too many blocks.
    fn rate(&mut self, low: f64, high: f64, span_s: f64) -> f64 {
        let rate = self.random.scale(low, high);
        rate.min(MOST_BLOCKS / span_s.max(self.window_s).max(1.0)).max(20.0 / span_s.max(1.0))
    }

    fn churn_beside(&mut self) {
        let per_s = self.random.scale(1.0, 10_000.0);
        let life_s = self.random.scale(0.000_1, 1.0);
        self.churn = Some(Churn { per_s, life_s });
    }

    fn leak(&mut self, from_s: f64, rate: f64, load: impl Fn(f64) -> f64) {
        let rate = rate.min(MOST_BLOCKS / self.window_s);
        self.stream(from_s, rate, load, |_| f64::INFINITY);
        self.all_leaked();
    }

    fn all_leaked(&mut self) {
        self.blocks.iter_mut().for_each(|block| block.is_leaked = true);
    }

    /// Blocks that live for some time, in a program that has run for long.
    fn in_use(&mut self, rate: f64, life_s: f64, load: impl Fn(f64) -> f64) {
        self.stream(-life_s * 4.0, rate, load, |random| random.exponential(life_s));
    }

    fn sawtooth(&mut self, period_s: f64, rate: f64) {
        let phase_s = self.random.uniform() * period_s;
        let from = self.blocks.len();
        let rate = rate.min(MOST_BLOCKS / self.window_s.max(period_s));
        self.stream(-phase_s, rate, |_| 1.0, |_| 0.0);
        for block in self.blocks.iter_mut().skip(from) {
            let batch = ((block.born_s + phase_s) / period_s).floor();
            block.freed_s = (batch + 1.0) * period_s - phase_s;
        }
    }

    /// Blocks at random times, `rate` times `load` a second.
    fn stream(
        &mut self,
        from_s: f64,
        rate: f64,
        load: impl Fn(f64) -> f64,
        mut life: impl FnMut(&mut Random) -> f64,
    ) {
        let mut at_s = from_s;
        while self.blocks.len() < 20_000 {
            at_s += self.random.exponential(1.0 / rate);
            if at_s >= self.window_s {
                break;
            }
            if self.random.uniform() < load(at_s) {
                let life_s = life(self.random);
                self.blocks.push(Block::new(at_s, at_s + life_s));
            }
        }
    }
}

impl Block {
    fn new(born_s: f64, freed_s: f64) -> Self {
        Self { born_s, freed_s, is_leaked: false }
    }
}

/// What leaktrace records of it: counters at some moments, with gaps; in some sessions by sampling,
/// in some without the times of single blocks.
fn observe(
    blocks: &[Block],
    churn: Option<Churn>,
    window_s: f64,
    random: &mut Random,
) -> Simulated {
    let weight = if random.uniform() < 0.15 { 4u32 } else { 1 };
    let size = 8 + (random.uniform() * 500.0) as u64;
    let spacing_s = (window_s / POINTS).max(1.0);
    let gap = (random.uniform() < 0.2).then(|| random.uniform() * window_s * 0.8);
    let mut times: Vec<f64> = vec![0.0];
    let mut at_s = spacing_s;
    while at_s < window_s {
        if gap.is_none_or(|gap| at_s < gap || at_s > gap + window_s * 0.15) {
            times.push(at_s);
        }
        at_s += spacing_s * (0.95 + 0.1 * random.uniform());
    }
    times.push(window_s);
    let slot = |s: f64| times.partition_point(|time| *time < s);
    let mut allocated = vec![0u64; times.len()];
    let mut freed = vec![0u64; times.len()];
    let mut born = [0u64; GENERATIONS];
    let mut lifetimes = [0u64; LIFETIME_BUCKETS];
    let generation = |s: f64| ((s / window_s * GENERATIONS as f64) as usize).min(GENERATIONS - 1);
    let (mut untracked_late, mut leaked) = (0, 0);
    for block in blocks {
        if block.born_s < 0.0 {
            untracked_late += u64::from((window_s / 2.0..window_s).contains(&block.freed_s));
            continue;
        }
        if weight > 1 && random.uniform() * f64::from(weight) >= 1.0 {
            continue;
        }
        leaked += usize::from(block.is_leaked);
        allocated[slot(block.born_s)] += u64::from(weight);
        if block.freed_s < window_s {
            freed[slot(block.freed_s)] += u64::from(weight);
            let life_ns = (block.freed_s - block.born_s) * 1e9;
            lifetimes[lifetime_bucket(life_ns as u64)] += 1;
        } else {
            born[generation(block.born_s)] += 1;
        }
    }
    let mut points = Vec::new();
    let mut sums = (0, 0, 0.0f64);
    let mut in_flight = 0;
    for (index, time) in times.iter().enumerate() {
        sums.0 += allocated[index];
        sums.1 += freed[index];
        if let Some(churn) = churn {
            let span = if index == 0 { 0.0 } else { time - times[index - 1] };
            sums.2 += random.about(churn.per_s * span);
            in_flight = random.about(churn.per_s * churn.life_s.min(*time)).min(sums.2) as u64;
        }
        let of = |count: u64| Amount { count, bytes: count * size };
        let done = (sums.2 as u64).saturating_sub(in_flight);
        points.push(Point {
            ms: (time * 1000.0) as u64,
            allocated: of(sums.0 + sums.2 as u64),
            freed: of(sums.1 + done),
        });
    }
    if let Some(churn) = churn {
        for _ in 0..in_flight.min(2_000) {
            born[generation((window_s - random.exponential(churn.life_s)).max(0.0))] += 1;
        }
        let mut before = 0.0;
        for (bucket, count) in lifetimes.iter_mut().enumerate() {
            let end_s = 2f64.powi(bucket as i32 + 1) / 1e6;
            let share = 1.0 - (-end_s / churn.life_s).exp();
            *count += ((share - before) * sums.2) as u64;
            before = share;
        }
    }
    let half = points.iter().find(|point| point.ms as f64 >= window_s * 500.0).unwrap();
    let now = points.last().unwrap();
    let growth = now.outstanding().count.saturating_sub(half.outstanding().count);
    Simulated {
        is_replacement: is_replacement(growth, growth, untracked_late),
        born: (random.uniform() < 0.85).then_some(born),
        lifetimes,
        is_too_rare: leaked < FEWEST_LEAKED,
        points,
    }
}
