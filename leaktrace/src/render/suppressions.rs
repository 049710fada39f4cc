//! What rules have left out, and rules for what is shown.

use std::io::{self, Write};

use serde::Serialize;

use super::escape::escape;
use crate::{
    report::{Report, Row, Suppressed},
    session::spec::suppressions::{Frame, LINES_MOST},
    units::{format_bytes, format_count},
};

/// Most rules shown that have matched nothing; more are counted.
const UNUSED_SHOWN: usize = 10;

/// Writes a line for each rule that has left out something, and the rules that have not.
pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let used = report.suppressed.iter().filter(|one| one.is_used);
    for (index, one) in used.enumerate() {
        if index == 0 {
            writeln!(out, "\nsuppressed, and in no figure above:")?;
        }
        let (bytes, count) = (one.totals.outstanding.bytes, one.totals.outstanding.count);
        let blocks = if count == 1 { "block" } else { "blocks" };
        let (bytes, count) = (format_bytes(bytes), format_count(count));
        writeln!(out, "  {bytes} in {count} {blocks} by {}", place(one))?;
    }
    let unused: Vec<&Suppressed> = report.suppressed.iter().filter(|one| !one.is_used).collect();
    if !unused.is_empty() && report.is_final {
        writeln!(out, "\nrules of --suppressions that nothing outstanding matches:")?;
        for one in unused.iter().take(UNUSED_SHOWN) {
            writeln!(out, "  {}", place(one))?;
        }
        if let more @ 1.. = unused.len().saturating_sub(UNUSED_SHOWN) {
            writeln!(out, "  and {} more", format_count(more as u64))?;
        }
    }
    Ok(())
}

fn place(one: &Suppressed) -> String {
    let rule = &one.rule;
    format!("`{}` ({}:{})", escape(&rule.name), escape(&rule.file), rule.line)
}

/// Writes a block of Valgrind's for each call site shown that has outstanding blocks.
pub(super) fn write_blocks(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let rows = report.groups.iter().flat_map(|group| &group.rows);
    let shown = rows.filter(|row| row.totals.outstanding.count > 0 && row.process.is_some());
    for row in shown {
        block(row, out)?;
    }
    Ok(())
}

fn block(row: &Row, out: &mut dyn Write) -> io::Result<()> {
    // As Valgrind sees the stack, so that it takes the block as well.
    let views = row.views();
    let frames = views.last().map(Vec::as_slice).unwrap_or_default();
    if !frames.iter().any(|frame| !frame.name.is_empty() || !frame.object.is_empty()) {
        return Ok(());
    }
    writeln!(out, "{{\n   <insert_a_suppression_name_here>\n   Memcheck:Leak")?;
    // Valgrind's stacks end there (--show-below-main), and a block with more lines matches none.
    let main = frames.iter().rposition(|frame| frame.name == "main");
    let shown = main.map_or(frames.len(), |at| at + 1);
    for frame in frames.iter().take(shown.min(LINES_MOST)) {
        writeln!(out, "   {}", location(frame))?;
    }
    writeln!(out, "}}")
}

fn location(frame: &Frame<'_>) -> String {
    let Frame { name, linkage, object, .. } = *frame;
    match (linkage, name, object) {
        ("", "", "") => "obj:*".to_owned(),
        ("", "", object) => format!("obj:{}", literal(object)),
        ("", name, _) => format!("fun:{}", literal(name)),
        // Valgrind tells `operator new[]`, which may be what was called, from that.
        (linkage, ..) => format!("fun:{}", literal(linkage).replacen("_Znw", "_Zn?", 1)),
    }
}

/// A pattern for a name: what is special in a pattern, or breaks the line, is any letter.
fn literal(name: &str) -> String {
    let is_special = |letter: char| letter == '*' || letter == '\\' || letter.is_control();
    name.trim().chars().map(|letter| if is_special(letter) { '?' } else { letter }).collect()
}

/// One element of `suppressed` in JSON.
#[derive(Serialize)]
pub(super) struct WireSuppressed<'a> {
    rule: &'a str,
    file: &'a str,
    line: usize,
    used: bool,
    outstanding_bytes: u64,
    outstanding_count: u64,
}

impl<'a> WireSuppressed<'a> {
    pub(super) fn of(one: &'a Suppressed) -> Self {
        Self {
            rule: &one.rule.name,
            file: &one.rule.file,
            line: one.rule.line,
            used: one.is_used,
            outstanding_bytes: one.totals.outstanding.bytes,
            outstanding_count: one.totals.outstanding.count,
        }
    }
}
