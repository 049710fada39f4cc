//! From a snapshot to a printed report on one screen: Snapshot + names + history -> Report -> bytes.

pub mod sink;

use std::io::Write;

use crate::{
    error::Error,
    history::History,
    render::{self, TextStyle},
    report::{self, Report},
    session::spec::Spec,
    snapshot::{Names, Snapshot},
};

/// Writes the report of a snapshot, as `spec` says.
///
/// # Errors
///
/// [`Error::Output`] with the error of writing to `out`.
pub fn show(
    snapshot: &Snapshot,
    names: &Names,
    history: &History,
    spec: &Spec,
    out: &mut dyn Write,
    style: &TextStyle,
) -> Result<Report, Error> {
    let report = report::build(snapshot, names, history, &spec.view, &spec.suppressions);
    render::render(&report, spec.output.format, out, style)?;
    Ok(report)
}
