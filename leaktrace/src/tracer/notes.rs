//! What leaktrace tells the person at the terminal when a tracer starts.

use super::processes::Processes;
use crate::{
    collect::Collector,
    session::spec::TraceOptions,
    units::{format_bytes, format_count},
};

/// Most processes named at the start; more are counted.
const PROCESSES_NAMED: usize = 8;

pub(super) fn note_memory(map_bytes: u64, trace: &TraceOptions, note: &mut dyn FnMut(&str)) {
    note(&format!(
        "maps take {} of kernel memory, with room for {} outstanding blocks",
        format_bytes(map_bytes),
        format_count(u64::from(trace.max_outstanding)),
    ));
}

pub(super) fn note_tables(processes: &Processes, note: &mut dyn FnMut(&str)) {
    let used = processes.table_use();
    note(&format!(
        "unwind tables: {} rows ({} of at most {}) for {} objects",
        format_count(used.rows),
        format_bytes(used.rows * 8),
        format_bytes(used.rows_max * 8),
        used.objects,
    ));
    for (path, rows) in processes.table_rows() {
        let (count, bytes) = (format_count(rows), rows * 8);
        let bytes = format_bytes(bytes);
        note(&format!("unwind table of {path}: {count} rows ({bytes})"));
    }
}

pub(super) fn note_probes(
    processes: &Processes,
    collector: &Collector,
    note: &mut dyn FnMut(&str),
) {
    for (path, emulated, dear) in processes.probe_costs(collector) {
        note(&format!(
            "probes of {path}: {emulated} on emulated instructions, {dear} single-stepped (dearer)"
        ));
    }
}

pub(super) fn describe(collector: &Collector) -> String {
    let count = collector.processes().count();
    if count > PROCESSES_NAMED {
        return format!("{} processes", format_count(count as u64));
    }
    let names: Vec<String> = collector
        .processes()
        .map(|process| format!("{} ({}) in {}", process.pid, process.comm, process.allocator))
        .collect();
    match count {
        0 => "no process yet".to_owned(),
        1 => format!("process {}", names.join(", ")),
        _ => format!("processes {}", names.join(", ")),
    }
}
