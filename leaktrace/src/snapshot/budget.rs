//! What `--max-overhead` allows, and what was done to keep to it.

/// The budget of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The share of one CPU's time that probes may cost, in millionths.
    pub max_ppm: u32,
    /// What they cost lately, by as many hits as were counted and the price of each; unknown in
    /// the first moments.
    pub cost_ppm: Option<u64>,
    /// What was done about it, oldest first.
    pub steps: Vec<BudgetStep>,
}

/// Something that was done to keep to a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetStep {
    /// When, from the start of tracing.
    pub elapsed_ms: u64,
    /// What the probes cost then.
    pub cost_ppm: u64,
    /// What was done.
    pub action: BudgetAction,
}

/// What can be done to keep to a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetAction {
    /// Record one block in every so many bytes asked for.
    SampleBy(u32),
    /// Take the probes of allocating functions away; frees of what is outstanding are still seen.
    FreesOnly,
    /// Take all probes away.
    Nothing,
}

impl BudgetAction {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SampleBy(_) => "sample",
            Self::FreesOnly => "frees_only",
            Self::Nothing => "nothing",
        }
    }
}
