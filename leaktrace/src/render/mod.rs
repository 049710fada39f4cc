//! Report -> bytes. Escaping and units live here and nowhere else, for standard error as well.

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

impl TextStyle {
    /// An escape sequence, where colours are welcome.
    fn paint(self, code: &str) -> &str {
        if self.color { code } else { "" }
    }
}

/// A line for standard error, or of a text that is no report, made safe for a terminal: names of
/// processes, files and arguments that it quotes may hold anything.
pub fn line(text: &str) -> String {
    escape::escape(text)
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
