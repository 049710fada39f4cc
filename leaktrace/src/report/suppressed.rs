//! Call sites that the user's rules leave out (`--suppressions`).

use std::collections::BTreeMap;

use leaktrace_common::Kind;

use super::{Row, Totals};
use crate::session::spec::suppressions::{Frame, Rule, Suppressions};

/// What one rule has left out; it is in no other figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Suppressed {
    /// The rule.
    pub rule: Rule,
    /// The figures of all its call sites; all zero if there are none.
    pub totals: Totals,
    /// Whether it has matched a call site with outstanding blocks.
    pub is_used: bool,
}

/// Takes out the rows that a rule suppresses; returns all rules with what they have left out.
pub(super) fn set_aside(
    rows: Vec<Row>,
    suppressions: &Suppressions,
) -> (Vec<Suppressed>, Vec<Row>) {
    if suppressions.rules.is_empty() {
        return (Vec::new(), rows);
    }
    let mut sums: BTreeMap<usize, (Totals, bool)> = BTreeMap::new();
    let mut others = Vec::new();
    for row in rows {
        let is_memory_of_process = row.kind.is_of_process() || row.kind == Kind::Pair;
        let found = match is_memory_of_process && row.process.is_some() {
            true => suppressions.find(&row.views()),
            false => None,
        };
        match found {
            Some(rule) => {
                let (totals, is_used) = sums.entry(rule).or_default();
                totals.add(&row.totals);
                *is_used |= row.totals.outstanding.count > 0;
            }
            None => others.push(row),
        }
    }
    let all = suppressions.rules.iter().enumerate().map(|(index, rule)| {
        let (totals, is_used) = sums.get(&index).copied().unwrap_or_default();
        Suppressed { rule: rule.clone(), totals, is_used }
    });
    (all.collect(), others)
}

/// `operator new` by the linker's name, and what jumps to it: name and linker's name of
/// `operator new[]`. The last one stays what it is.
const ARRAYS: [(&str, (&str, &str)); 3] = [
    ("_Znwm", ("operator new[](unsigned long)", "_Znam")),
    (
        "_ZnwmRKSt9nothrow_t",
        ("operator new[](unsigned long, std::nothrow_t const&)", "_ZnamRKSt9nothrow_t"),
    ),
    ("", ("", "")),
];

impl Row {
    /// The stack as LeakSanitizer and Valgrind would have it, whose stacks begin in the allocator's
    /// function: as it is, and, where `operator new` calls malloc, from that operator on, as both
    /// replace it. The last one is what they see; where that may be `operator new[]` as well, there
    /// are some before it that have that.
    pub fn views(&self) -> Vec<Vec<Frame<'_>>> {
        let frames: Vec<Frame<'_>> = self
            .stack
            .iter()
            .map(|frame| Frame {
                name: frame.symbol.as_deref().unwrap_or_default(),
                linkage: frame.linkage.as_deref().unwrap_or_default(),
                object: frame.object.as_deref().unwrap_or_default(),
                file: frame.file.as_deref().unwrap_or_default(),
                line: frame.line.unwrap_or(0),
                is_allocator: false,
            })
            .collect();
        let is_operator = |frame: &Frame<'_>| {
            let is_its = |name: &str| ["_Znw", "_Zna"].iter().any(|new| name.starts_with(new));
            is_its(frame.linkage) || is_its(frame.name) || frame.name.starts_with("operator new")
        };
        let operators = frames.iter().take_while(|frame| is_operator(frame)).count();
        let from_operator = operators.checked_sub(1).and_then(|last| frames.get(last..));
        // `operator new[]` of libstdc++ jumps to `operator new` and leaves no frame (new_opv.cc).
        let from_operator = from_operator.map(|frames| {
            ARRAYS.map(|(one, array)| {
                let mut frames = frames.to_vec();
                if let Some(operator) = frames.first_mut() {
                    operator.is_allocator = true;
                    if !one.is_empty() && operator.linkage == one {
                        (operator.name, operator.linkage) = (array.0, array.1);
                    }
                }
                frames
            })
        });
        let function = self.function.map(|function| Frame {
            name: function.name(),
            linkage: function.symbol(),
            is_allocator: true,
            ..Frame::default()
        });
        let whole = function.into_iter().chain(frames).collect();
        std::iter::once(whole).chain(from_operator.into_iter().flatten()).collect()
    }
}
