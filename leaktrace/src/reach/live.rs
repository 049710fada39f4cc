//! Looks at running processes again and again: nobody is stopped. An address that moves may be
//! missed by one look, but hardly by several; a block counts as lost if none has seen an address of
//! it.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::{
    blocks::Block,
    look::{Look, Refusal, Rules, Target, look},
    memory::Memory,
    objects::Objects,
    view::View,
};
use crate::{
    bpf::blocks::BlockReader,
    collect::monotonic_ns,
    snapshot::reach::{Reached, Scan, Way},
};

/// Looks that are made if any block is lost, and most looks.
const LOOKS: std::ops::RangeInclusive<u32> = 3..=6;
/// Time between the end of a look and the beginning of the next.
const PAUSE: Duration = Duration::from_secs(1);
/// Age that a block has at the first look, at least, to have a verdict. kmemleak waits as long
/// (mm/kmemleak.c, `MSECS_MIN_AGE`).
pub const MIN_AGE: Duration = Duration::from_secs(5);
/// How often a pause asks whether it is to go on.
const TICK: Duration = Duration::from_millis(20);

/// One process under way.
struct Process<'a> {
    target: &'a Target,
    memory: Option<Memory>,
    objects: Option<Objects>,
    /// Blocks that no look has found an address of, with a digest of their contents.
    candidates: HashMap<(u64, u64), u64>,
    looks: u32,
    first: Instant,
    last: Instant,
    bytes: u64,
    limits: Vec<String>,
    result: Option<Result<HashMap<u32, Reached>, Refusal>>,
}

/// What was found of one process: how it was looked at, and its call sites by index.
pub type Found = (Scan, HashMap<u32, Reached>);

/// Looks at running processes. After `until`, no further look begins if there were enough.
pub fn run(
    targets: &[Target],
    reader: &BlockReader,
    until: Option<Instant>,
    cancel: &AtomicBool,
) -> Vec<Found> {
    let now = monotonic_ns();
    let rules = Rules {
        youngest_ns: now.saturating_sub(MIN_AGE.as_nanos() as u64),
        counts_older_heap: true,
    };
    let mut all: Vec<Process<'_>> =
        targets.iter().map(|target| Process::new(target, reader, rules)).collect();
    for number in 1..=*LOOKS.end() {
        for process in all.iter_mut().filter(|process| process.result.is_none()) {
            let is_late = until.is_some_and(|until| Instant::now() + PAUSE >= until);
            let is_last = number == *LOOKS.end() || (is_late && number >= *LOOKS.start());
            if let Err(refusal) = process.look(reader, rules, is_last, cancel) {
                process.result = Some(Err(refusal));
            }
        }
        if all.iter().all(|process| process.result.is_some()) {
            break;
        }
        pause(cancel);
    }
    all.into_iter().map(Process::done).collect()
}

fn pause(cancel: &AtomicBool) {
    let end = Instant::now() + PAUSE;
    while Instant::now() < end && !cancel.load(Ordering::Relaxed) {
        std::thread::sleep(TICK);
    }
}

impl<'a> Process<'a> {
    fn new(target: &'a Target, reader: &BlockReader, rules: Rules) -> Self {
        let now = Instant::now();
        let memory = Memory::open(target.pid);
        let mut has_old = false;
        let read = reader
            .read(target.space, |_, block| has_old |= block.timestamp_ns <= rules.youngest_ns);
        let result = match (&memory, read) {
            (Err(_), _) => Some(Err(Refusal::Gone)),
            (_, Err(error)) => Some(Err(Refusal::Because(error.to_string()))),
            _ if !has_old => {
                let age = MIN_AGE.as_secs();
                Some(Err(Refusal::Because(format!("none of its blocks is older than {age} s"))))
            }
            _ => None,
        };
        Self {
            target,
            memory: memory.ok(),
            objects: None,
            candidates: HashMap::new(),
            looks: 0,
            first: now,
            last: now,
            bytes: 0,
            limits: Vec::new(),
            result,
        }
    }

    fn look(
        &mut self,
        reader: &BlockReader,
        rules: Rules,
        is_last: bool,
        cancel: &AtomicBool,
    ) -> Result<(), Refusal> {
        if cancel.load(Ordering::Relaxed) {
            return Err(Refusal::Skipped);
        }
        let view = View::live(self.target.pid);
        let started = Instant::now();
        if self.looks == 0 {
            self.first = started;
        }
        self.looks += 1;
        let (looks, candidates) = (self.looks, std::mem::take(&mut self.candidates));
        let is_candidate =
            |block: &Block| looks == 1 || candidates.contains_key(&(block.start, block.birth));
        let (target, objects) = (self.target, &mut self.objects);
        let memory = self.memory.as_mut().ok_or(Refusal::Gone)?;
        (memory.read_bytes, memory.unread_bytes) = (0, 0);
        let then = |found: &mut Look<'_>| {
            let (lost, is_steady) = settle(found, &candidates, looks);
            let is_enough = lost.is_empty() || is_last || (looks >= *LOOKS.start() && is_steady);
            (lost, is_enough.then(|| (found.by_site(), found.limits())))
        };
        let (lost, done) =
            look(reader, target, &view, memory, objects, rules, &is_candidate, cancel, then)?;
        self.bytes = self.memory.as_ref().map_or(0, |memory| memory.read_bytes);
        self.last = Instant::now();
        self.candidates = lost;
        if let Some((sites, limits)) = done {
            self.limits = limits;
            self.result = Some(Ok(sites));
        }
        Ok(())
    }

    fn done(self) -> Found {
        let way =
            Way::Live { scans: self.looks, time_ms: (self.last - self.first).as_millis() as u64 };
        let (sites, refused) = match self.result {
            Some(Ok(sites)) => (sites, None),
            Some(Err(Refusal::Because(reason))) => (HashMap::new(), Some(reason)),
            Some(Err(Refusal::Gone)) => {
                (HashMap::new(), Some("it ended, or executed another file, meanwhile".into()))
            }
            Some(Err(Refusal::Skipped)) | None => {
                (HashMap::new(), Some("the scan was skipped".into()))
            }
        };
        let (pid, space) = (self.target.pid, self.target.space);
        (
            Scan { pid, space, way, bytes: self.bytes, threads: 0, refused, limits: self.limits },
            sites,
        )
    }
}

/// Takes those out of the lost blocks whose contents have changed since an earlier look: somebody
/// uses them. Returns the lost blocks with their digests, and whether they are as many as before.
fn settle(
    found: &mut Look<'_>,
    before: &HashMap<(u64, u64), u64>,
    looks: u32,
) -> (HashMap<(u64, u64), u64>, bool) {
    let lost = found.all_lost();
    let digests = found.digests(&lost);
    let mut changed = Vec::new();
    let mut now = HashMap::new();
    for (at, digest) in lost.iter().zip(digests) {
        let Some(block) = found.blocks.get(*at) else { continue };
        let key = (block.start, block.birth);
        match digest {
            Some(digest) if looks == 1 || before.get(&key) == Some(&digest) => {
                now.insert(key, digest);
            }
            _ => changed.push(*at),
        }
    }
    if !changed.is_empty() {
        found.lost = found.graph.doubt(&changed);
        let still: Vec<(u64, u64)> = found
            .all_lost()
            .iter()
            .filter_map(|at| found.blocks.get(*at).map(|block| (block.start, block.birth)))
            .collect();
        now = still.into_iter().filter_map(|key| Some((key, *now.get(&key)?))).collect();
    }
    let is_steady = now.len() == before.len();
    (now, is_steady)
}
