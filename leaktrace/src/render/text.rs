//! Text for people: first what leaks, then its stack, then how far to trust the report.

use std::io::{self, Write};

use leaktrace_common::Kind;

use super::{TextStyle, escape::escape, reach, table};
use crate::{
    report::{FrameView, Group, Keeper, Owner, Part, Report, Row, Totals, Unloaded},
    snapshot::{Amount, Mode, Role, Sampled},
    units::{format_bytes, format_count, format_ms, format_ppm},
};

/// Most processes that the first line names; more are counted.
const PROCESSES_SHOWN: usize = 4;

/// Most stacks shown of one call site, where only some allocations have one.
const STACKS_SHOWN: usize = 3;
/// Most other names shown of a cache.
const ALIASES_SHOWN: usize = 4;
/// Most holders named of one call site.
const HOLDERS_SHOWN: usize = 3;
/// Most blocks listed of one call site.
const BLOCKS_SHOWN: usize = 20;
/// Column of the source location behind a function's name.
const PLACE_COLUMN: usize = 46;

/// Writes one report.
pub(super) fn write(report: &Report, out: &mut dyn Write, style: &TextStyle) -> io::Result<()> {
    header(report, out, style)?;
    let shown: Vec<&Group> =
        report.groups.iter().filter(|group| group.totals.outstanding.count > 0).collect();
    if shown.is_empty() {
        let older = older(report);
        writeln!(out, "\nNothing is outstanding{older}.")?;
    }
    match &report.table {
        Some(sums) => table::write(sums, out, style)?,
        None => groups(report, &shown, out, style)?,
    }
    held(report, out)?;
    kept(report, out)?;
    writeln!(out)?;
    reach::scans(report, out)?;
    trust(report, out, style)?;
    writeln!(out)
}

fn groups(
    report: &Report,
    shown: &[&Group],
    out: &mut dyn Write,
    style: &TextStyle,
) -> io::Result<()> {
    for (index, group) in shown.iter().enumerate() {
        writeln!(out)?;
        write_group(report, index + 1, group, out, style)?;
    }
    if shown.len() < report.groups_total {
        writeln!(
            out,
            "\nshowing {} of {} call sites (--top shows more)",
            shown.len(),
            format_count(report.groups_total as u64)
        )?;
    }
    Ok(())
}

fn header(report: &Report, out: &mut dyn Write, style: &TextStyle) -> io::Result<()> {
    let bold = style.paint("\x1b[1m");
    let reset = style.paint("\x1b[0m");
    let mode = match report.mode {
        Mode::Kernel => "kernel",
        Mode::User => "user",
        Mode::Run => "run",
    };
    write!(out, "{bold}leaktrace {mode}{reset}: ")?;
    if report.mode == Mode::Kernel {
        write!(out, "allocations on {}", escape(&report.host))?;
    }
    match report.processes.len() {
        0 if report.mode != Mode::Kernel => write!(out, "no process")?,
        many if many > PROCESSES_SHOWN => write!(out, "{} processes", format_count(many as u64))?,
        _ => processes(report, out)?,
    }
    writeln!(out, ", traced for {}", format_ms(report.elapsed_ms))?;
    let totals = &report.totals;
    writeln!(
        out,
        "outstanding{}: {}; allocated {}; freed {}",
        older(report),
        figure(totals, totals.outstanding),
        figure(totals, totals.allocated),
        figure(totals, totals.freed)
    )
}

fn processes(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    for (index, process) in report.processes.iter().enumerate() {
        let comma = if index > 0 { "; " } else { "" };
        let ended = if process.exited { ", ended" } else { "" };
        write!(
            out,
            "{comma}process {} {} ({}{ended}), allocator {}",
            process.pid,
            escape(&process.comm),
            escape(&process.exe),
            escape(&process.allocator)
        )?;
    }
    Ok(())
}

fn older(report: &Report) -> String {
    match report.older_ms {
        0 => String::new(),
        age => format!(" for at least {}", format_ms(age)),
    }
}

fn write_group(
    report: &Report,
    number: usize,
    group: &Group,
    out: &mut dyn Write,
    style: &TextStyle,
) -> io::Result<()> {
    let Some(first) = group.rows.first() else { return Ok(()) };
    let (bold, reset) = (style.paint("\x1b[1;31m"), style.paint("\x1b[0m"));
    let share = match report.totals.outstanding.bytes {
        0 => String::new(),
        all => {
            let share = group.totals.outstanding.bytes as f64 * 100.0 / all as f64;
            format!(" ({share:.1} %)")
        }
    };
    write!(
        out,
        "#{number}  {bold}{}{reset}{share}  {}",
        figure(&group.totals, group.totals.outstanding),
        what(first)
    )?;
    if let Some(symbol) = owner(group).and_then(|owner| owner.symbol.as_deref()) {
        write!(out, ", for {}", escape(symbol))?;
    }
    if report.processes.len() > 1
        && let Some(process) = &first.process
    {
        write!(out, "  in process {} {}", process.pid, escape(&process.comm))?;
    }
    if let Some(age) = group.oldest_ms {
        write!(out, "  oldest {}", format_ms(age))?;
    }
    if let Some(sampled) = group.totals.sampled {
        let error = error(&group.totals);
        write!(out, "  (estimated from {} sampled{error})", format_count(sampled.count))?;
    }
    writeln!(out)?;
    let common = common_module(group);
    if let Some(unloaded) = common {
        writeln!(out, "      {}", left_by(unloaded))?;
    }
    if let (true, Some(cache)) = (first.is_upper_bound, &first.cache) {
        let cache = escape(cache);
        writeln!(
            out,
            "      upper bound: objects of {cache} that are freed in bulk still count, as this kernel \
             does not let that be seen"
        )?;
    }
    if let (Some(doubt), Some(cache)) = (first.doubt, &first.cache) {
        let grown = match doubt.growth {
            ..=0 => "did not grow".to_owned(),
            more => format!("grew by {} objects only", format_count(more.unsigned_abs())),
        };
        let (all, cache) = (format_count(doubt.outstanding), escape(cache));
        writeln!(
            out,
            "      perhaps no leak: {all} blocks of cache {cache} look outstanding, but it {grown}"
        )?;
    }
    let with_stack: Vec<&Row> = group.rows.iter().filter(|row| row.stack_taken).collect();
    if group.rows.len() == 1 {
        stack(first, out)?;
    } else {
        split(group, &with_stack, common.is_none(), out)?;
    }
    lifetimes(group, out)?;
    reach::lines(report, group, out)?;
    holders(group, out)?;
    blocks(group, out)
}

/// The part that an unloaded module had in the outstanding blocks of a call site, if it is the same
/// for all of the site's rows.
fn common_module(group: &Group) -> Option<&Unloaded> {
    let mut outstanding = group.rows.iter().filter(|row| row.totals.outstanding.count > 0);
    let first = outstanding.next()?.left_by()?;
    outstanding.all(|row| row.left_by() == Some(first)).then_some(first)
}

/// The part that an unloaded module had in blocks, in words.
fn left_by(unloaded: &Unloaded) -> String {
    let module = escape(&unloaded.module);
    match unloaded.part {
        Part::MadeTheirCache => format!(
            "certain leak: module {module} made their cache, and was unloaded with these outstanding"
        ),
        Part::AllocatedThem => {
            format!("left behind: module {module} allocated these itself, and was unloaded")
        }
        Part::CalledFor => format!(
            "outstanding when module {module} was unloaded: it had the kernel allocate these, and \
             they may be in use"
        ),
    }
}

/// A call site of which only some allocations have a stack.
fn split(
    group: &Group,
    with_stack: &[&Row],
    tells_modules: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    let shown = with_stack
        .iter()
        .filter(|row| row.totals.outstanding.count > 0)
        .take(STACKS_SHOWN)
        .copied()
        .collect::<Vec<_>>();
    // With nothing outstanding on a known stack, one of them still tells the way.
    let fallback = with_stack.first().copied().or_else(|| group.rows.first());
    if let Some(row) = fallback.filter(|_| shown.is_empty()) {
        writeln!(out, "      one of its stacks:")?;
        stack(row, out)?;
    }
    let mut rest = group.totals.outstanding;
    for row in &shown {
        rest = rest.minus(row.totals.outstanding);
        let part = figure(&row.totals, row.totals.outstanding);
        writeln!(out, "      {part} with this stack:")?;
        if let (true, Some(unloaded)) = (tells_modules, row.left_by()) {
            writeln!(out, "        {}", left_by(unloaded))?;
        }
        stack(row, out)?;
    }
    if shown.is_empty() {
        return Ok(());
    }
    let without = group
        .rows
        .iter()
        .filter(|row| !row.stack_taken)
        .fold(Amount::default(), |sum, row| sum.plus(row.totals.outstanding));
    for (amount_left, how) in
        [(rest.minus(without), "with other stacks"), (without, "without a stack")]
    {
        if amount_left.count > 0 {
            writeln!(out, "      {} {how}", figure(&group.totals, amount_left))?;
        }
    }
    Ok(())
}

fn what(row: &Row) -> String {
    let interface = match (row.kind, row.function) {
        (Kind::Pair, _) => row.pair.as_ref().map_or("pair", |pair| pair.function.as_str()),
        (Kind::Malloc, Some(function)) => function.name(),
        (Kind::Malloc, None) => "malloc",
        (Kind::Kmalloc, _) => "kmalloc",
        (Kind::KmemCache, _) => "kmem_cache_alloc",
        (Kind::Vmalloc, _) => "vmalloc",
        (Kind::Percpu, _) => "percpu",
        (Kind::Mmap, _) => row.mapping.map_or("mmap", |mapping| mapping.call.name()),
        (Kind::Pages, _) => "pages",
    };
    let mut text = interface.to_owned();
    if let Some(cache) = &row.cache {
        text.push_str(&format!(" from cache {}{}", escape(cache), aliases(&row.cache_aliases)));
    }
    if let Some(module) = &row.module {
        text.push_str(&format!(", module {}", escape(module)));
    }
    text
}

/// The other names of a cache, under which a caller may have asked for its blocks.
fn aliases(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let shown: Vec<String> = names.iter().take(ALIASES_SHOWN).map(|name| escape(name)).collect();
    let more = match names.len().saturating_sub(ALIASES_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(" (also {}{more})", shown.join(", "))
}

/// The owner, where all stacks have the same one and it is not their first line anyway.
fn owner(group: &Group) -> Option<&Owner> {
    let mut owners = group.rows.iter().filter_map(|row| row.owner.as_ref());
    let first = owners.next()?;
    let is_innermost =
        |row: &Row| row.stack.first().is_some_and(|frame| frame.symbol == first.symbol);
    (owners.all(|other| other == first) && !group.rows.iter().any(is_innermost)).then_some(first)
}

fn stack(row: &Row, out: &mut dyn Write) -> io::Result<()> {
    for view in &row.stack {
        writeln!(out, "        {}", frame(view, row))?;
    }
    if let Some(reason) = row.truncated {
        writeln!(out, "        (stack cut short: {reason})")?;
    }
    if !row.stack_taken {
        writeln!(out, "        (the call alone: no stack taken)")?;
    }
    Ok(())
}

fn frame(view: &FrameView, row: &Row) -> String {
    let Some(symbol) = &view.symbol else {
        let reason = view.unknown.as_deref().unwrap_or("no name");
        let object = view.object.as_deref().map(|path| format!("{}: ", escape(path)));
        let object = object.unwrap_or_default();
        return format!("{:#x}{} ({object}{})", view.address, mark(view), escape(reason));
    };
    let symbol = escape(symbol);
    let name = if view.inlined {
        format!("{symbol} [inlined]")
    } else {
        format!("{symbol}+{:#x}{}", view.offset, mark(view))
    };
    let own = row.process.as_ref().map(|process| process.exe.as_str()).unwrap_or("vmlinux");
    let object = view.object.as_deref().filter(|object| *object != own);
    let place = match (&view.file, view.line) {
        (Some(file), Some(line)) => format!("{}:{line}", escape(file)),
        (Some(file), None) => escape(file),
        (None, _) => object.map(|path| escape(base_name(path))).unwrap_or_default(),
    };
    if place.is_empty() { name } else { format!("{name:<PLACE_COLUMN$} {place}") }
}

/// The mark of a frame that is less sure than the others.
fn mark(view: &FrameView) -> &'static str {
    if view.by_frame_pointer { " [by frame pointer]" } else { "" }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// How old the freed blocks of this call site became: a leak on an error path shows here.
fn lifetimes(group: &Group, out: &mut dyn Write) -> io::Result<()> {
    let Amount { count: freed, .. } = group.totals.freed;
    let about = about(&group.totals);
    let is_pair = group.rows.first().is_some_and(|row| row.kind == Kind::Pair);
    let (got, given_back) = if is_pair { ("acquired", "released") } else { ("allocated", "freed") };
    if freed == 0 {
        let allocated = format!("{about}{}", format_count(group.totals.allocated.count));
        return writeln!(out, "      none of {allocated} {got} was {given_back}");
    }
    let buckets = group.rows.first().map_or(0, |row| row.lifetimes.len());
    let ended_in = |bucket| group.rows.iter().filter_map(|row| row.lifetimes.get(bucket)).sum();
    let counts: Vec<u64> = (0..buckets).map(ended_in).collect();
    // Not of `freed`: the counters are read while they change, and may not agree.
    let counted: u64 = counts.iter().sum();
    let mut left = counted.div_ceil(2);
    let mut median = 0;
    for (bucket, count) in counts.into_iter().enumerate() {
        median = bucket;
        if count >= left {
            break;
        }
        left -= count;
    }
    // The last bucket is open; the others have an upper end. Both in microseconds.
    let life = if counted == 0 {
        String::new()
    } else if median + 1 == buckets {
        format!(", half of them after more than {}", format_us(2u64.saturating_pow(median as u32)))
    } else {
        format!(", half of them within {}", format_us(2u64.saturating_pow(median as u32 + 1)))
    };
    writeln!(
        out,
        "      of {about}{} {got}, {given_back}: {about}{}{life}",
        format_count(group.totals.allocated.count),
        format_count(freed)
    )
}

/// The upper limit of a bucket, a power of two of microseconds: `512 us`, `1 ms` for 1,024 us.
fn format_us(us: u64) -> String {
    if us < 1_000 { format!("{us} us") } else { format_ms(us / 1_000) }
}

fn holders(group: &Group, out: &mut dyn Write) -> io::Result<()> {
    let mut all: Vec<(String, Amount)> = Vec::new();
    for holder in group.rows.iter().flat_map(|row| &row.holders) {
        let name = match (&holder.comm, holder.pid) {
            (Some(comm), _) if holder.exited => format!("{} (ended)", escape(comm)),
            (Some(comm), pid) => format!("{}[{pid}]", escape(comm)),
            (None, 0) => "idle[0]".to_owned(),
            (None, pid) => format!("ended[{pid}]"),
        };
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum = sum.plus(holder.outstanding),
            None => all.push((name, holder.outstanding)),
        }
    }
    if all.is_empty() {
        return Ok(());
    }
    all.sort_by_key(|(name, sum)| (std::cmp::Reverse(sum.bytes), name.clone()));
    let shown: Vec<String> = all
        .iter()
        .take(HOLDERS_SHOWN)
        .map(|(name, sum)| format!("{name} {}", format_count(sum.count)))
        .collect();
    let more = match all.len().saturating_sub(HOLDERS_SHOWN) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    writeln!(out, "      allocated while running: {}{more}", shown.join(", "))
}

fn blocks(group: &Group, out: &mut dyn Write) -> io::Result<()> {
    let mut all: Vec<_> = group.rows.iter().flat_map(|row| &row.blocks).collect();
    all.sort_by_key(|block| (std::cmp::Reverse(block.age_ms), block.address));
    for block in all.iter().take(BLOCKS_SHOWN) {
        writeln!(
            out,
            "      block {:#x}, {}, {} old",
            block.address,
            format_bytes(block.size_bytes),
            format_ms(block.age_ms)
        )?;
    }
    match all.len().saturating_sub(BLOCKS_SHOWN) {
        0 => Ok(()),
        more => writeln!(out, "      and {} more blocks", format_count(more as u64)),
    }
}

/// The mappings that are no leaks of their own, a line for each role.
fn held(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let shown = report.held.iter().filter(|held| held.totals.outstanding.count > 0);
    for (index, held) in shown.enumerate() {
        if index == 0 {
            writeln!(out, "\nmapped, and in no figure above:")?;
        }
        let what = match held.role {
            Role::Program => "by the program",
            Role::Allocator => "by the allocator, which gives it out as blocks",
            Role::Stack => "as stacks of threads",
            Role::Loader => "by the dynamic loader",
            Role::Reserved => "without access, as reserved addresses",
            Role::Unknown => "by what could not be told before the process ended",
        };
        let Amount { count, bytes } = held.totals.outstanding;
        let noun = if count == 1 { "mapping" } else { "mappings" };
        let (bytes, count) = (format_bytes(bytes), format_count(count));
        writeln!(out, "  {bytes} in {count} {noun} {what}")?;
    }
    Ok(())
}

/// The memory that allocators and libraries keep for themselves, a line for each.
fn kept(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let shown = report.kept.iter().filter(|kept| kept.totals.outstanding.count > 0);
    for (index, kept) in shown.enumerate() {
        if index == 0 {
            let whose = match report.mode {
                Mode::Kernel => "kept by the kernel's allocators",
                Mode::User | Mode::Run => "no leaks of the program",
            };
            writeln!(out, "\n{whose}, and in no figure above:")?;
        }
        let what = match kept.keeper {
            Keeper::SlabMetadata => {
                "for slabs: whom each object is charged to, and lists of objects"
            }
            Keeper::ListLru => "for lists of control groups (list_lru)",
            Keeper::Vmalloc => "by vmalloc: areas that it frees later, and arrays of pages",
            Keeper::SkbCache => "as heads of packets that CPUs have at hand",
            Keeper::Percpu => "for chunks of percpu memory",
            Keeper::CLibrary => "kept by the C library",
            Keeper::CplusplusLibrary => "kept by the C++ library",
        };
        writeln!(out, "  {} {what}", figure(&kept.totals, kept.totals.outstanding))?;
    }
    Ok(())
}

fn trust(report: &Report, out: &mut dyn Write, style: &TextStyle) -> io::Result<()> {
    let trust = &report.trust;
    if trust.complete {
        write!(out, "complete: every allocation and free since the start is counted")?;
    } else {
        let (warn, reset) = (style.paint("\x1b[1;33m"), style.paint("\x1b[0m"));
        write!(out, "{warn}NOT COMPLETE{reset}:")?;
        for missed in &trust.missed {
            write!(out, "\n  {}", escape(missed))?;
        }
    }
    for note in &trust.notes {
        write!(out, "\n  note: {note}")?;
    }
    writeln!(out)
}

/// One amount of some totals, in words.
fn figure(totals: &Totals, amount: Amount) -> String {
    let (blocks, about) = (if amount.count == 1 { "block" } else { "blocks" }, about(totals));
    let Amount { count, bytes } = amount;
    if totals.allocated.bytes == 0 && totals.allocated.count > 0 {
        // No size was named for what functions give.
        let objects = if count == 1 { "object" } else { "objects" };
        return format!("{} {objects}", format_count(count));
    }
    format!("{about}{} in {about}{} {blocks}", format_bytes(bytes), format_count(count))
}

/// The mark before an estimate; empty before an exact figure.
fn about(totals: &Totals) -> &'static str {
    if totals.sampled.is_some() { "~" } else { "" }
}

/// How far an estimate of outstanding bytes may be off: its standard error, as a share.
fn error(totals: &Totals) -> String {
    match (totals.sampled.and_then(Sampled::bytes_error), totals.outstanding.bytes) {
        (None, _) | (_, 0) => String::new(),
        (Some(error), bytes) => {
            format!(", bytes ±{}", format_ppm((error as f64 * 1e6 / bytes as f64).round() as u64))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::format_us;

    #[test]
    fn the_ends_of_lifetimes_are_short() {
        for (us, text) in [(1, "1 us"), (512, "512 us"), (1 << 10, "1 ms"), (1 << 11, "2 ms")] {
            assert_eq!(format_us(us), text);
        }
        for (us, text) in [(1 << 12, "4 ms"), (1 << 19, "524 ms"), (1 << 20, "1.0 s")] {
            assert_eq!(format_us(us), text);
        }
    }
}
