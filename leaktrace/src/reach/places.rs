//! What a root is: the variable, the thread or the mapping that an address of memory belongs to.

use std::{
    collections::{HashMap, HashSet},
    fs,
    ops::Range,
};

use super::{
    graph::{Origin, Rank},
    mappings::Mappings,
    memory::Memory,
    objects::Objects,
    stacks::{self, FrameSpan, Standing, Walker},
    view::View,
};
use crate::snapshot::reach::Root;

/// Where glibc keeps the thread's ID in `struct pthread` (nptl/descr.h, 2.17 to 2.41), and musl in
/// its own (src/internal/pthread_impl.h, 1.2: `tid` behind six words). Both begin with the address of
/// themselves.
const THREAD_IDS_AT: [u64; 2] = [720, 48];
/// Bytes of glibc's `struct pthread`, with the first values of `pthread_setspecific`.
const CONTROL_BLOCK_BYTES: u64 = 2304;
/// Most threads whose memory is told apart.
const MAX_THREADS: usize = 10_000;

/// The memory of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Thread {
    tid: u32,
    /// Address of the thread's control block.
    control: u64,
    thread_local: Range<u64>,
    stack: Range<u64>,
}

/// Tells what the memory of a process is.
pub struct Places<'a> {
    memory: &'a Memory,
    mappings: &'a Mappings,
    objects: &'a Objects,
    view: &'a View,
    threads: Vec<Thread>,
    /// Addresses of threads, sorted: whose they are, and whether they are thread-local memory.
    ranges: Vec<(Range<u64>, usize, bool)>,
    frames: HashMap<u32, Vec<FrameSpan>>,
    walker: Walker,
}

impl<'a> Places<'a> {
    /// Tells what the memory of a process is. `own_addresses` are words that hold their own address:
    /// thread control blocks begin so.
    pub fn new(
        memory: &'a Memory,
        mappings: &'a Mappings,
        objects: &'a Objects,
        view: &'a View,
        own_addresses: &[u64],
    ) -> Self {
        let tids: HashSet<u32> = tids(view.pid).into_iter().collect();
        let by_base: HashMap<u64, u32> =
            view.threads.iter().map(|thread| (thread.fs_base, thread.tid)).collect();
        let bytes = objects.thread_local_bytes();
        let mut threads: Vec<Thread> = Vec::new();
        let mut known: HashSet<u32> = HashSet::new();
        for control in own_addresses.iter().take(MAX_THREADS * 4) {
            let told = || {
                THREAD_IDS_AT.iter().find_map(|offset| {
                    let tid = memory.word(control + offset)? as u32;
                    tids.contains(&tid).then_some(tid)
                })
            };
            let Some(tid) = by_base.get(control).copied().or_else(told) else { continue };
            let Some(mapped) = mappings.find(*control).filter(|mapped| !mapped.has_file) else {
                continue;
            };
            if threads.len() < MAX_THREADS && known.insert(tid) {
                let from = control.saturating_sub(bytes).max(mapped.start);
                let to = control.saturating_add(CONTROL_BLOCK_BYTES).min(mapped.end);
                // The stack of a thread and its control block share a mapping; that of the first
                // thread has one of its own.
                let is_first = tid == view.pid;
                let stack = if is_first { 0..0 } else { mapped.start..from };
                threads.push(Thread { tid, control: *control, thread_local: from..to, stack });
            }
        }
        if let Some(stack) = mappings.read.iter().find(|mapped| mapped.name == "[stack]") {
            match threads.iter_mut().find(|thread| thread.tid == view.pid) {
                Some(first) => first.stack = stack.start..stack.end,
                None => threads.push(Thread {
                    tid: view.pid,
                    control: 0,
                    thread_local: 0..0,
                    stack: stack.start..stack.end,
                }),
            }
        }
        let mut ranges: Vec<(Range<u64>, usize, bool)> = Vec::new();
        for (at, thread) in threads.iter().enumerate() {
            ranges.push((thread.thread_local.clone(), at, true));
            ranges.push((thread.stack.clone(), at, false));
        }
        ranges.retain(|(range, ..)| range.start < range.end);
        ranges.sort_by_key(|(range, ..)| range.start);
        Self {
            memory,
            mappings,
            objects,
            view,
            threads,
            ranges,
            frames: HashMap::new(),
            walker: Walker::default(),
        }
    }

    /// What an origin outside of all blocks is; `None` for one in a block. Words of one variable, and
    /// of one frame, are one root.
    pub fn root(&mut self, origin: Origin) -> Option<Root> {
        let (rank, address) = origin.as_root()?;
        Some(match rank {
            Rank::Register => Root::Register { thread: address as u32 },
            Rank::Kernel => Root::Kernel,
            Rank::Global | Rank::Thread | Rank::Mapping | Rank::Heap | Rank::Ignored => {
                self.memory_at(rank, address)
            }
        })
    }

    fn memory_at(&mut self, rank: Rank, address: u64) -> Root {
        if let Some((object, inside)) = self.objects.data_at(address) {
            let variable = object.data.variable(inside).map(|variable| variable.address);
            return Root::Global { object: object.object, address: variable.unwrap_or(inside) };
        }
        let after = self.ranges.partition_point(|(range, ..)| range.start <= address);
        let known = after.checked_sub(1).and_then(|at| self.ranges.get(at));
        if let Some((range, thread, is_local)) = known
            && range.contains(&address)
            && let Some(thread) = self.threads.get(*thread)
        {
            if *is_local {
                return self.thread_local(thread, address);
            }
            let tid = thread.tid;
            return Root::Stack { thread: tid, frame: self.frame(tid, address) };
        }
        if rank == Rank::Heap {
            return Root::OlderHeap;
        }
        let name =
            self.mappings.find(address).map(|mapped| mapped.name.clone()).unwrap_or_default();
        Root::Mapping { name }
    }

    /// Thread-local memory. The program's own lies right before the control block (variant II of the
    /// ELF ABI for thread-local storage); where that of a library lies is not known.
    fn thread_local(&self, thread: &Thread, address: u64) -> Root {
        let program = self.objects.program();
        let known = program.and_then(|program| {
            let (bytes, align) = program.data.thread_local?;
            let from = thread.control.checked_sub(bytes.checked_next_multiple_of(align)?)?;
            let offset = address.checked_sub(from).filter(|_| address < thread.control)?;
            let variable = program.data.thread_local(offset).map(|variable| variable.address);
            Some(Root::ThreadLocal {
                object: Some(program.object),
                offset: variable.unwrap_or(offset),
            })
        });
        known.unwrap_or(Root::ThreadLocal { object: None, offset: 0 })
    }

    /// The frame that an address of a thread's stack lies in, if that is certain.
    fn frame(&mut self, tid: u32, address: u64) -> Option<crate::snapshot::Frame> {
        let (view, memory, objects, walker) =
            (self.view, self.memory, self.objects, &mut self.walker);
        let frames = self.frames.entry(tid).or_insert_with(|| {
            let known = view.threads.iter().find(|thread| thread.tid == tid).map(Standing::from);
            if view.is_consistent {
                return known.map(|from| walker.walk(memory, objects, from)).unwrap_or_default();
            }
            // It must not have moved meanwhile.
            let Some(before) = stacks::waiting(view.pid, tid) else { return Vec::new() };
            let bp = known.filter(|known| (known.ip, known.sp) == (before.ip, before.sp));
            let from = Standing { bp: bp.and_then(|known| known.bp), ..before };
            let frames = walker.walk(memory, objects, from);
            if stacks::waiting(view.pid, tid) == Some(before) { frames } else { Vec::new() }
        });
        let found = frames.iter().find(|span| span.addresses.contains(&address));
        found.map(|span| span.frame)
    }
}

/// The threads of a process.
pub fn tids(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
