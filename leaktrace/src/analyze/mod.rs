//! From figures to judgements: what leaks, of what class, and how sure that is.
//!
//! This module is pure. It sees plain data, names no function and prints nothing.
//!
//! - `generations`: of the blocks that were allocated in each part of the time, how many are left.
//! - `trend`: how fast outstanding memory grows.
//! - `judge`: all facts together.
//!
//! The constants come from `simulation`, which docs/verdicts.md describes.

mod generations;
mod judge;
mod survivors;
mod trend;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use judge::{Facts, is_replacement, judge};

/// How the memory of a call site behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// It leaks whenever its path runs.
    Steady,
    /// It leaks only sometimes.
    Sporadic,
    /// It leaked once, or a bounded number of times.
    OneTime,
    /// It grows, and is freed in bulk or at the end.
    Hoarding,
    /// It grew and has stopped growing: a cache that fills.
    Saturating,
    /// It is in use: it does not grow.
    InUse,
    /// It cannot be told yet.
    UnknownYet,
}

/// How sure a verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Confidence {
    /// It is a leak: nothing can free these blocks any more.
    Certain,
    /// It is most probably a leak.
    Likely,
    /// It may be one.
    Unknown,
    /// It is none, as far as one can see.
    Healthy,
}

/// The judgement on one call site.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// How its memory behaves.
    pub class: Class,
    /// How sure it is.
    pub confidence: Confidence,
    /// Why, in one sentence.
    pub evidence: String,
    /// The trend of its outstanding bytes, where there is one to tell.
    pub growth_bytes_per_s: Option<f64>,
    /// The bytes that leaked so far, where it is a leak.
    pub leaked_bytes: u64,
    /// Where it cannot be told yet: after which further time it can, if that is known.
    pub ask_again_ms: Option<u64>,
    /// Where it cannot be told yet: whether it looks like a leak in all but that it is early.
    pub only_time_is_missing: bool,
}

impl Default for Verdict {
    fn default() -> Self {
        Self {
            class: Class::UnknownYet,
            confidence: Confidence::Unknown,
            evidence: String::new(),
            growth_bytes_per_s: None,
            leaked_bytes: 0,
            ask_again_ms: None,
            only_time_is_missing: false,
        }
    }
}

impl Verdict {
    /// Whether it cannot be told yet, and more than time is missing.
    pub fn is_in_doubt(&self) -> bool {
        self.confidence == Confidence::Unknown && !self.only_time_is_missing
    }

    /// Whether it is a leak, certainly or most probably.
    pub fn is_leak(&self) -> bool {
        matches!(self.confidence, Confidence::Certain | Confidence::Likely)
    }
}

impl Class {
    /// The class's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Sporadic => "sporadic",
            Self::OneTime => "one-time",
            Self::Hoarding => "hoarding",
            Self::Saturating => "saturating",
            Self::InUse => "in use",
            Self::UnknownYet => "unknown yet",
        }
    }
}

impl Confidence {
    /// The name of the confidence.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Certain => "certain",
            Self::Likely => "likely",
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
        }
    }
}
