//! Report -> bytes. Escaping and units live in this module alone, also for standard error.

mod escape;
mod json;
mod reach;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::io::{self, Write};

use crate::{report::Report, session::spec::Format};

/// The style of text output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextStyle {
    /// Whether the text may have colours.
    pub color: bool,
}

impl TextStyle {
    /// An escape sequence; empty where the text may have no colours.
    fn paint(self, code: &str) -> &str {
        if self.color { code } else { "" }
    }
}

/// Makes a line safe for a terminal, for standard error or a text that is no report: the names of
/// processes, files and arguments that the line quotes may hold anything.
pub fn line(text: &str) -> String {
    escape::escape(text)
}

/// Writes a report.
///
/// # Errors
///
/// The error of writing to `out`.
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
