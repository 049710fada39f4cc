//! From figures to judgements: what leaks, of what class, and how sure that is.
//!
//! This module is pure. It sees plain data, names no function and prints nothing.

mod cache_class;
pub mod explained;

pub use cache_class::{KMALLOC, cache_class};

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
