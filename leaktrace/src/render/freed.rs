//! Where the freed blocks of a call site were freed.

use std::io::{self, Write};

use serde::Serialize;

use super::escape::escape;
use crate::report::{FreedFrom, Group, Row};

/// Most places named of one call site.
const SHOWN: usize = 3;

/// One line on the places that free a call site's blocks; nothing where none was noted.
pub(super) fn write(group: &Group, out: &mut dyn Write) -> io::Result<()> {
    let places = group.freed_at();
    if places.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = places
        .iter()
        .take(SHOWN)
        .map(|(place, share)| format!("{} ({})", name(place), percent(*share)))
        .collect();
    let more = match places.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    writeln!(out, "      freed at {}{more}", shown.join(", "))
}

fn name(place: &FreedFrom) -> String {
    let frame = &place.frame;
    match &frame.symbol {
        Some(symbol) => format!("{}+{:#x}", escape(symbol), frame.offset),
        None => {
            let object = frame.object.as_deref().map(|path| format!(" of {}", escape(path)));
            format!("{:#x}{}", frame.address, object.unwrap_or_default())
        }
    }
}

/// A share of a sample: more digits would say too much.
fn percent(share: f64) -> String {
    match share * 100.0 {
        share if share < 1.0 => "< 1 %".to_owned(),
        share if share > 99.0 && share < 100.0 => "> 99 %".to_owned(),
        share => format!("{share:.0} %"),
    }
}

/// A place in JSON.
#[derive(Serialize)]
pub(super) struct WireFreed {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    symbol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,
    /// Of the frees whose place was noted, from 0 to 1.
    share: f64,
}

/// The places of a row, most frees first.
pub(super) fn wire(row: &Row) -> Vec<WireFreed> {
    let of = |(place, share): (FreedFrom, f64)| WireFreed {
        address: format!("{:#x}", place.frame.address),
        offset: place.frame.symbol.as_ref().map(|_| place.frame.offset),
        symbol: place.frame.symbol,
        object: place.frame.object,
        share: (share * 1e4).round() / 1e4,
    };
    row.freed_at().into_iter().map(of).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_sample_are_rounded() {
        for (share, text) in
            [(1.0, "100 %"), (0.996, "> 99 %"), (0.98, "98 %"), (0.5, "50 %"), (0.002, "< 1 %")]
        {
            assert_eq!(percent(share), text);
        }
    }
}
