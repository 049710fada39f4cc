//! Report -> bytes. Escaping and units live here and nowhere else.

mod escape;
mod json;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::io::{self, Write};

use crate::{report::Report, session::spec::Format};

/// How text looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextStyle {
    /// Whether colours are welcome.
    pub color: bool,
}

/// Writes a report.
///
/// # Errors
///
/// What writing to `out` says.
pub fn render(
    report: &Report,
    format: Format,
    out: &mut dyn Write,
    style: &TextStyle,
) -> io::Result<()> {
    match format {
        Format::Text => text::write(report, out, style),
        Format::Json => json::write(report, out),
    }
}
