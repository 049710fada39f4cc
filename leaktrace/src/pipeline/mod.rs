//! From a snapshot to a printed report on one screen: Snapshot + names + history -> Report -> bytes.

pub mod sink;

use std::io::Write;

use crate::{
    error::Error,
    history::History,
    render::{self, TextStyle},
    report::{self, Report},
    session::spec::{Format, View},
    snapshot::{Names, Snapshot},
};

/// Writes the report of a snapshot.
///
/// # Errors
///
/// [`Error::Output`] with the error of writing to `out`.
pub fn show(
    snapshot: &Snapshot,
    names: &Names,
    history: &History,
    view: &View,
    format: Format,
    out: &mut dyn Write,
    style: &TextStyle,
) -> Result<Report, Error> {
    let report = report::build(snapshot, names, history, view);
    render::render(&report, format, out, style)?;
    Ok(report)
}
