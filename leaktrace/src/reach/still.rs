//! Looks once at memory that does not change: of a process that is stopped, of its fork, or of a
//! command at its exit.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use super::{
    hold,
    live::{self, Found},
    look::{Refusal, Rules, Target, look},
    memory::Memory,
    objects::Objects,
    other_threads,
    view::{ThreadState, View},
};
use crate::{
    bpf::blocks::BlockReader,
    collect::monotonic_ns,
    session::spec::Reachability,
    snapshot::reach::{Scan, Way},
};

/// Looks at processes that are stopped for it, or at forks of them, one after the other. One that
/// cannot be held is looked at while it runs, and the report says why.
pub fn run(
    way: Reachability,
    targets: &[Target],
    reader: &BlockReader,
    until: Option<Instant>,
    cancel: &AtomicBool,
) -> Vec<Found> {
    let (mut found, mut running, mut reasons) = (Vec::new(), Vec::new(), HashMap::new());
    for target in targets {
        // A block that comes later may lie where there was none in the copy.
        let youngest_ns = monotonic_ns();
        if cancel.load(Ordering::Relaxed) {
            running.push(target.clone());
            continue;
        }
        // In a thread of its own: with its end, the kernel lets go of what could not be let go.
        let looked = hold::in_thread(|| {
            let begin = Instant::now();
            let view = match way {
                Reachability::Stop => hold::stop(target.pid, hold::LONGEST_STOP),
                _ => hold::snapshot(target.pid),
            }?;
            let rules = Rules { youngest_ns, counts_older_heap: true };
            let mut one = once(target, reader, view, rules, cancel, Way::Snapshot);
            if way == Reachability::Stop {
                // It has been let go by now.
                let time_ms = begin.elapsed().as_millis() as u64;
                one.0.way = Way::Stopped { time_ms };
            }
            Ok::<_, hold::Refusal>(one)
        });
        match looked {
            Ok(one) => found.push(one),
            Err(refusal) => {
                reasons.insert(target.pid, refusal.to_string());
                running.push(target.clone());
            }
        }
    }
    let what = if way == Reachability::Stop { "not stopped" } else { "no snapshot" };
    let mut live = live::run(&running, reader, until, cancel);
    for (scan, _) in &mut live {
        if let Some(reason) = reasons.get(&scan.pid) {
            scan.limits.push(format!("{what}, but looked at while it ran: {reason}"));
        }
    }
    found.append(&mut live);
    found
}

/// Looks at a command that waits at its exit, where its other threads have ended. `is_whole`: every
/// allocation since its start is tracked, so that the rest of its heap is free, or the allocator's
/// own, and no root.
pub fn at_exit(
    target: &Target,
    reader: &BlockReader,
    thread: ThreadState,
    is_whole: bool,
    cancel: &AtomicBool,
) -> Found {
    let view = View { threads: vec![thread], is_consistent: true, ..View::live(target.pid) };
    let rules = Rules { youngest_ns: u64::MAX, counts_older_heap: !is_whole };
    let (mut scan, mut sites) = once(target, reader, view, rules, cancel, Way::AtExit);
    let has_lost = sites
        .values()
        .any(|reached| reached.definitely_lost.count + reached.indirectly_lost.count > 0);
    // What is not lost is not lost whatever they held.
    let refused = match has_lost.then(|| others(target)) {
        None | Some(Some(0)) => None,
        Some(Some(others)) => Some(format!(
            "{others} more threads ended with it, and what they held in registers is not known"
        )),
        Some(None) => Some(
            "its C library does not tell whether other threads ended with it, and what they held \
             in registers is not known"
                .to_owned(),
        ),
    };
    if refused.is_some() {
        scan.refused = refused;
        sites.clear();
    }
    (scan, sites)
}

/// How many threads besides the first were alive in a command that is at its exit, if that is known.
fn others(target: &Target) -> Option<u32> {
    let memory = Memory::open(target.pid).ok()?;
    let objects = Objects::read(target.pid, &target.loaded);
    Some(other_threads::count(&objects, &memory)?.saturating_sub(1))
}

fn once(
    target: &Target,
    reader: &BlockReader,
    view: View,
    rules: Rules,
    cancel: &AtomicBool,
    way: Way,
) -> Found {
    let threads = view.threads.len() as u64;
    let mut bytes = 0;
    let result = match Memory::open(view.memory_pid) {
        Err(_) => Err(Refusal::Gone),
        Ok(mut memory) => {
            let all = |_: &_| true;
            let then = |found: &mut super::look::Look<'_>| (found.by_site(), found.limits());
            let memory_read = &mut memory;
            let result =
                look(reader, target, &view, memory_read, &mut None, rules, &all, cancel, then);
            bytes = memory.read_bytes;
            result
        }
    };
    let (sites, limits, refused) = match result {
        Ok((sites, limits)) => (sites, limits, None),
        Err(Refusal::Because(reason)) => (HashMap::new(), Vec::new(), Some(reason)),
        Err(Refusal::Gone) => {
            let reason = "it ended, or executed another file, meanwhile";
            (HashMap::new(), Vec::new(), Some(reason.into()))
        }
        Err(Refusal::Skipped) => (HashMap::new(), Vec::new(), Some("the scan was skipped".into())),
    };
    let (pid, space) = (target.pid, target.space);
    (Scan { pid, space, way, bytes, threads, refused, limits }, sites)
}
