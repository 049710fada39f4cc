//! Where the freed blocks of a call site were freed: the path that forgets is another one.

use super::{FrameView, Group, Row};

/// A place that frees blocks of a call site.
#[derive(Clone, Debug)]
pub struct FreedFrom {
    /// The call that freed them.
    pub frame: FrameView,
    /// About how many blocks it has freed: only some frees have their place noted.
    pub count: u64,
}

/// Adds a place to those of the same call.
pub(super) fn add(places: &mut Vec<FreedFrom>, more: &FreedFrom) {
    let is_same = |known: &FreedFrom| {
        let (known, more) = (&known.frame, &more.frame);
        (&known.symbol, known.offset, &known.object, known.load)
            == (&more.symbol, more.offset, &more.object, more.load)
            && (known.symbol.is_some() || known.address == more.address)
    };
    match places.iter_mut().find(|known| is_same(known)) {
        Some(known) => known.count += more.count,
        None => places.push(more.clone()),
    }
}

impl Group {
    /// Where the freed blocks of all rows were freed, most frees first, each with its share of the
    /// frees whose place might have been noted.
    pub fn freed_at(&self) -> Vec<(FreedFrom, f64)> {
        shares(self.rows.iter())
    }
}

impl Row {
    /// As [`Group::freed_at`], of this row alone.
    pub fn freed_at(&self) -> Vec<(FreedFrom, f64)> {
        shares(std::iter::once(self))
    }
}

/// The places with their shares of all frees whose place might have been noted.
fn shares<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<(FreedFrom, f64)> {
    let (mut places, mut all) = (Vec::new(), 0);
    for row in rows {
        row.freed.iter().for_each(|place| add(&mut places, place));
        all += row.frees;
    }
    places.sort_by_key(|place| (std::cmp::Reverse(place.count), place.frame.address));
    let share = |count: u64| if all == 0 { 0.0 } else { (count as f64 / all as f64).min(1.0) };
    places.into_iter().map(|place| (place.clone(), share(place.count))).collect()
}
