//! What `--max-overhead` allows, and what leaktrace did to keep to it.

/// The budget of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The share of one CPU's time that the probes may cost, in millionths.
    pub max_ppm: u32,
    /// The recent cost of the probes in millionths of one CPU's time, from the counted hits and the
    /// price of each; `None` in the first moments.
    pub cost_ppm: Option<u64>,
    /// The steps that leaktrace took, oldest first.
    pub steps: Vec<BudgetStep>,
}

/// A step that leaktrace took to keep to the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetStep {
    /// Time of the step, from the start of tracing.
    pub elapsed_ms: u64,
    /// Cost of the probes at that time, in millionths of one CPU's time.
    pub cost_ppm: u64,
    /// The action taken.
    pub action: BudgetAction,
}

/// An action to keep to a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetAction {
    /// Record one block in every so many bytes.
    SampleBy(u32),
    /// Remove the probes of allocating functions; the probes still see frees of outstanding blocks.
    FreesOnly,
    /// Remove all probes.
    Nothing,
}

impl BudgetAction {
    /// The action's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SampleBy(_) => "sample",
            Self::FreesOnly => "frees_only",
            Self::Nothing => "nothing",
        }
    }
}
