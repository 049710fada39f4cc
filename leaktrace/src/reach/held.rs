//! Who holds the reachable blocks of each call site: the root that their way begins at.

use std::collections::HashMap;

use super::{
    graph::{Graph, Origin, State},
    places::Places,
};
use crate::snapshot::{
    Amount,
    reach::{HeldBy, Root},
};

/// Most roots that are told of one call site.
const MAX_ROOTS: usize = 64;

/// No way is known.
const NOBODY: u32 = u32::MAX;

/// The holders of the reachable blocks, by the index of the call site.
pub fn by_site(
    graph: &Graph<'_>,
    count: u32,
    places: &mut Places<'_>,
) -> HashMap<u32, Vec<HeldBy>> {
    let mut roots = Roots::default();
    let ways = ways(graph, count, |origin| roots.number(origin, places));
    let mut sums: HashMap<(u32, u32), (Amount, HashMap<u32, u64>)> = HashMap::new();
    for (block, (root, depth)) in ways.iter().enumerate() {
        let block = block as u32;
        let Some(about) = graph.block(block).filter(|_| *root != NOBODY) else { continue };
        let (sum, depths) = sums.entry((about.site, *root)).or_default();
        *sum = sum.plus(Amount { count: 1, bytes: about.size });
        *depths.entry((*depth).min(HeldBy::LONG)).or_default() += 1;
    }
    let mut sites: HashMap<u32, Vec<HeldBy>> = HashMap::new();
    for ((site, root), (held, depths)) in sums {
        let most = depths.into_iter().max_by_key(|(depth, count)| (*count, *depth));
        let through = most.map_or(0, |(depth, _)| depth);
        if let Some(root) = roots.all.get(root as usize).cloned() {
            sites.entry(site).or_default().push(HeldBy { root, held, through });
        }
    }
    for held in sites.values_mut() {
        held.sort_by(|a, b| {
            (b.held.bytes, b.held.count)
                .cmp(&(a.held.bytes, a.held.count))
                .then_with(|| a.root.cmp(&b.root))
        });
        held.truncate(MAX_ROOTS);
    }
    sites
}

/// For each block the number of the root that its way begins at, and how many blocks lie between.
fn ways(
    graph: &Graph<'_>,
    count: u32,
    mut number: impl FnMut(Origin) -> Option<u32>,
) -> Vec<(u32, u32)> {
    let unseen = (NOBODY, u32::MAX);
    let mut ways = vec![unseen; count as usize];
    let mut path = Vec::new();
    for start in 0..count {
        if graph.state(start) != State::Reachable {
            continue;
        }
        let mut block = start;
        // Up to a root, or to a block whose way is known.
        let (root, mut depth) = loop {
            match ways.get(block as usize) {
                Some(known) if *known != unseen => break (known.0, known.1.saturating_add(1)),
                None => break (NOBODY, 0),
                Some(_) => {}
            }
            path.push(block);
            let origin = graph.origin(block);
            match origin.as_block() {
                // Ways never go round: each block was reached from one that was reached before.
                Some(before) if path.len() <= count as usize => block = before,
                _ => break (number(origin).unwrap_or(NOBODY), 0),
            }
        };
        while let Some(block) = path.pop() {
            if let Some(way) = ways.get_mut(block as usize) {
                *way = (root, depth);
            }
            depth = depth.saturating_add(1);
        }
    }
    ways
}

/// Roots, each with a number.
#[derive(Default)]
struct Roots {
    all: Vec<Root>,
    numbers: HashMap<Root, u32>,
    by_origin: HashMap<Origin, u32>,
}

impl Roots {
    fn number(&mut self, origin: Origin, places: &mut Places<'_>) -> Option<u32> {
        if let Some(number) = self.by_origin.get(&origin) {
            return Some(*number);
        }
        let root = places.root(origin)?;
        let number = *self.numbers.entry(root.clone()).or_insert_with(|| {
            self.all.push(root);
            self.all.len() as u32 - 1
        });
        self.by_origin.insert(origin, number);
        Some(number)
    }
}
