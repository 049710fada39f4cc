//! Sums by module, cache or process as aligned columns: `--by`.

use std::io::{self, Write};

use super::{TextStyle, escape::escape};
use crate::{
    report::{Line, Table},
    session::spec::By,
    snapshot::Amount,
    units::{format_bytes, format_count, format_ms},
};

/// Writes the lines with outstanding blocks, and says how many more there are.
pub(super) fn write(table: &Table, out: &mut dyn Write, style: &TextStyle) -> io::Result<()> {
    let shown: Vec<&Line> = table.lines.iter().filter(|line| line.outstanding.count > 0).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let mut rows = vec![heads(table.by).map(str::to_owned)];
    rows.extend(shown.iter().map(|line| cells(line, table.by)));
    let mut widths = [0; COLUMNS];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    // A column that is not known of anything is none; the name is always there.
    let blank: Vec<bool> = (0..COLUMNS)
        .map(|at| rows.iter().skip(1).all(|row| row.get(at).is_none_or(|cell| cell == UNKNOWN)))
        .collect();
    let (bold, reset) = (style.paint("\x1b[1m"), style.paint("\x1b[0m"));
    writeln!(out)?;
    for (number, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(widths).enumerate() {
            if at + 1 == COLUMNS {
                line.push_str("  ");
                line.push_str(cell);
            } else if blank.get(at) == Some(&false) {
                line.push_str(&format!("  {cell:>width$}"));
            }
        }
        let line = line.trim_end();
        if number == 0 {
            writeln!(out, "{bold}{line}{reset}")?;
        } else {
            writeln!(out, "{line}")?;
        }
    }
    if shown.len() < table.lines_total {
        writeln!(
            out,
            "\nshowing {} of {} {} (--top shows more)",
            shown.len(),
            format_count(table.lines_total as u64),
            plural(table.by)
        )?;
    }
    Ok(())
}

const COLUMNS: usize = 7;
const UNKNOWN: &str = "-";

fn heads(by: By) -> [&'static str; COLUMNS] {
    ["outstanding", "blocks", "allocated", "freed", "oldest", "sites", by.name()]
}

fn cells(line: &Line, by: By) -> [String; COLUMNS] {
    let about = if line.is_estimated { "~" } else { "" };
    let bytes = |amount: Amount| format!("{about}{}", format_bytes(amount.bytes));
    let known = |cell: Option<String>| cell.unwrap_or_else(|| UNKNOWN.to_owned());
    let name = match (&line.name, line.pid) {
        (Some(name), _) if line.exited => format!("{} (ended)", escape(name)),
        (Some(name), Some(pid)) => format!("{} {}", pid, escape(name)),
        (None, Some(0)) => "0 (idle)".to_owned(),
        (None, Some(pid)) => format!("{pid} (ended)"),
        (Some(name), None) => escape(name),
        (None, None) if by == By::Module => {
            "(not known: only a helper's call; --stacks all tells)".to_owned()
        }
        (None, None) => "(not known)".to_owned(),
    };
    [
        bytes(line.outstanding),
        format!("{about}{}", format_count(line.outstanding.count)),
        known(line.ended.map(|ended| bytes(ended.allocated))),
        known(line.ended.map(|ended| bytes(ended.freed))),
        known(line.oldest_ms.map(format_ms)),
        format_count(line.sites as u64),
        name,
    ]
}

fn plural(by: By) -> &'static str {
    match by {
        By::Site => "call sites",
        By::Module => "modules",
        By::Cache => "caches",
        By::Process => "processes",
    }
}
