//! What scans said of a call site, with names: what is lost, and who holds the rest.

use crate::snapshot::{
    Amount, Frame, Names, Resolved, RootName,
    reach::{HeldBy, Reached, Root},
};

/// Most holders of a row.
const MAX_HOLDERS: usize = 16;

/// What was found of the outstanding blocks of a row; see [`Reached`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Blocks that no address leads to.
    pub definitely_lost: Amount,
    /// Blocks that only lost blocks lead to.
    pub indirectly_lost: Amount,
    /// Blocks that only addresses inside them lead to.
    pub possibly_lost: Amount,
    /// Blocks that can be reached.
    pub still_reachable: Amount,
    /// Blocks without verdict.
    pub not_judged: Amount,
    /// Blocks of any call site that only definitely lost ones of this one lead to.
    pub leads: Amount,
    /// Who holds the reachable blocks, most bytes first.
    pub held_by: Vec<Holding>,
}

/// Blocks and who holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The kind of root.
    pub kind: &'static str,
    /// The thread, for what belongs to one.
    pub thread: Option<u32>,
    /// The variable, the function whose frame it is, or the mapping's name.
    pub name: Option<String>,
    /// The object of the variable or the function.
    pub object: Option<String>,
    /// The section of the variable, with an offset where the variable has no name.
    pub section: Option<String>,
    /// The blocks.
    pub held: Amount,
    /// The most usual number of tracked blocks on the way to them.
    pub through: u32,
}

/// Gives names to what was found.
pub(super) fn named(reached: &Reached, names: &Names) -> Reach {
    let mut reach = Reach {
        definitely_lost: reached.definitely_lost,
        indirectly_lost: reached.indirectly_lost,
        possibly_lost: reached.possibly_lost,
        still_reachable: reached.still_reachable,
        not_judged: reached.not_judged,
        leads: reached.leads,
        held_by: Vec::new(),
    };
    for held in &reached.held_by {
        reach.hold(holding(held, names));
    }
    reach.sort();
    reach
}

fn holding(held: &HeldBy, names: &Names) -> Holding {
    let root = names.roots.get(&held.root);
    let RootName { mut name, mut object, section } = root.cloned().unwrap_or_default();
    let thread = match &held.root {
        Root::Stack { thread, frame } => {
            (name, object) = frame.as_ref().and_then(|frame| function(frame, names)).unzip();
            Some(*thread)
        }
        Root::Register { thread } => Some(*thread),
        Root::Mapping { name: of } => {
            name = (!of.is_empty()).then(|| of.clone());
            None
        }
        _ => None,
    };
    Holding {
        kind: held.root.kind(),
        thread,
        name,
        object,
        section,
        held: held.held,
        through: held.through,
    }
}

/// The function of a frame, not one that is inlined into it, and its object.
fn function(frame: &Frame, names: &Names) -> Option<(String, String)> {
    match names.frames.get(frame)? {
        Resolved::Known(symbols) => {
            symbols.last().map(|symbol| (symbol.name.clone(), symbol.object.clone()))
        }
        Resolved::Unknown(_) => None,
    }
}

impl Reach {
    /// Adds what was found of another row.
    pub(super) fn merge(&mut self, other: Self) {
        for (sum, more) in [
            (&mut self.definitely_lost, other.definitely_lost),
            (&mut self.indirectly_lost, other.indirectly_lost),
            (&mut self.possibly_lost, other.possibly_lost),
            (&mut self.still_reachable, other.still_reachable),
            (&mut self.not_judged, other.not_judged),
            (&mut self.leads, other.leads),
        ] {
            *sum = sum.plus(more);
        }
        other.held_by.into_iter().for_each(|holding| self.hold(holding));
        self.sort();
    }

    fn hold(&mut self, more: Holding) {
        let is_same = |known: &&mut Holding| {
            (known.kind, known.thread, &known.name, &known.object, &known.section)
                == (more.kind, more.thread, &more.name, &more.object, &more.section)
        };
        match self.held_by.iter_mut().find(is_same) {
            Some(known) => {
                if more.held.count > known.held.count {
                    known.through = more.through;
                }
                known.held = known.held.plus(more.held);
            }
            None => self.held_by.push(more),
        }
    }

    fn sort(&mut self) {
        self.held_by.sort_by(|a, b| {
            let key = |holding: &Holding| (holding.held.bytes, holding.held.count);
            key(b).cmp(&key(a)).then_with(|| (a.kind, &a.name).cmp(&(b.kind, &b.name)))
        });
        self.held_by.truncate(MAX_HOLDERS);
    }
}
