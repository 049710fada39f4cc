//! Makes one row of all sites with equal symbolized stacks.

use std::collections::HashMap;

use leaktrace_common::{AllocFunction, Kind, LIFETIME_BUCKETS, StackEnd};

use super::{Doubt, FreedFrom, Keeper, Owner, Reach, Totals, freed, kept, owner, reach};
use crate::snapshot::{
    Block, Found, Frame, FreedAt, GENERATIONS, Holder, Mapping, Names, Pair, Place, Process,
    Reclaimable, Resolved, Site, Snapshot, StackRef, Unknown,
};

/// One call site with one stack.
#[derive(Clone, Debug)]
pub struct Row {
    /// The smallest ID of the merged sites.
    pub id: u64,
    /// The IDs of all merged sites.
    pub ids: Vec<u64>,
    /// The kind of allocation.
    pub kind: Kind,
    /// The slab cache, if known.
    pub cache: Option<String>,
    /// The other names of that slab cache.
    pub cache_aliases: Vec<String>,
    /// The module of the innermost frame that lies in a module.
    pub module: Option<String>,
    /// The owner of kernel memory, if known.
    pub owner: Option<Owner>,
    /// The unloaded module that had a part in these blocks, if there is one.
    pub unloaded: Option<Unloaded>,
    /// The allocator or library that keeps the memory for itself, if one does.
    pub keeper: Option<Keeper>,
    /// Whether some blocks may have been freed unseen: the slab cache is one whose objects are
    /// freed in bulk, and this kernel does not let leaktrace see that.
    pub is_upper_bound: bool,
    /// Whether the kernel takes unused objects of the slab cache back under pressure.
    pub is_reclaimable: bool,
    /// Set where the slab cache has grown by less than its outstanding blocks.
    pub doubt: Option<Doubt>,
    /// The allocator function that was called, for user memory.
    pub function: Option<AllocFunction>,
    /// The pair of functions, for [`Kind::Pair`].
    pub pair: Option<Pair>,
    /// How the memory was mapped and what for, for [`Kind::Mmap`].
    pub mapping: Option<Mapping>,
    /// The process, for user memory.
    pub process: Option<Process>,
    /// The figures since the start.
    pub totals: Totals,
    /// Age of the oldest outstanding block, if known.
    pub oldest_ms: Option<u64>,
    /// Largest single allocation, in bytes.
    pub largest_bytes: u64,
    /// Where its freed blocks were freed, as far as that was noted.
    pub(super) freed: Vec<FreedFrom>,
    /// About how many frees there were whose place might have been noted.
    pub(super) frees: u64,
    /// Freed blocks by age, see [`crate::snapshot::Site::lifetimes`].
    pub lifetimes: [u64; LIFETIME_BUCKETS],
    /// The outstanding blocks by when they were allocated, see [`crate::snapshot::Site::born`].
    pub born: Option<[u64; GENERATIONS]>,
    /// The frames, innermost first, with inlined functions as frames of their own; never empty.
    pub stack: Vec<FrameView>,
    /// Why the stack is cut short.
    pub truncated: Option<&'static str>,
    /// False where leaktrace took no stack on purpose: `stack` is the call alone.
    pub stack_taken: bool,
    /// Outstanding kernel memory by process.
    pub holders: Vec<Holder>,
    /// The outstanding blocks, if the user asked for them.
    pub blocks: Vec<Block>,
    /// What scans said of the outstanding blocks, if there were any.
    pub reach: Option<Reach>,
    pub(super) space: u32,
    call_site: Vec<FrameIdentity>,
}

/// A module that has been unloaded, and the part that it had in outstanding blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unloaded {
    /// The module's name.
    pub module: String,
    /// The module's part.
    pub part: Part,
}

/// The part that a module had in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The module has made the blocks' slab cache: nobody else knows what lies there.
    MadeTheirCache,
    /// The module's own code has allocated the blocks.
    AllocatedThem,
    /// The kernel has allocated the blocks when the module had called it: other code may still need
    /// them.
    CalledFor,
}

/// What rows of one call site have in common.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct CallSite {
    kind: Kind,
    space: u32,
    cache: Option<String>,
    mapping: Option<Mapping>,
    frames: Vec<FrameIdentity>,
}

/// One frame, with everything that is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FrameView {
    /// Return address.
    pub address: u64,
    /// Function, if known.
    pub symbol: Option<String>,
    /// The linker's name of the function, where it is another one.
    pub linkage: Option<String>,
    /// Offset of the call in the function.
    pub offset: u64,
    /// The object: `vmlinux`, `[module]` or a path; if known.
    pub object: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line in the source file.
    pub line: Option<u32>,
    /// Whether the compiler inlined the function into that of the next frame.
    pub inlined: bool,
    /// Whether the frame was found by frame pointer: callers may be missing before it.
    pub by_frame_pointer: bool,
    /// Whether the frame is unnamed code made at run time.
    pub made_at_run_time: bool,
    /// Why the frame has no symbol.
    pub unknown: Option<String>,
    /// The load of the kernel module that the frame lies in, see [`Snapshot::modules`].
    pub load: Option<u32>,
}

/// Two sites with equal identities are the same row.
#[derive(PartialEq, Eq, Hash)]
struct Identity {
    kind: Kind,
    space: u32,
    cache: Option<String>,
    function: Option<AllocFunction>,
    pair: Option<Pair>,
    mapping: Option<Mapping>,
    stack: Vec<FrameIdentity>,
    end: Option<StackEnd>,
    stack_taken: bool,
    keeper: Option<Keeper>,
}

/// A frame, without its address where it has a name: several instructions may belong to the same
/// line of code.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum FrameIdentity {
    Named {
        symbol: String,
        object: Option<String>,
        file: Option<String>,
        line: Option<u32>,
        offset: u64,
        load: Option<u32>,
    },
    Address(u64, Option<u32>),
    /// Unnamed code made at run time. Its address is different in each run, and for each function
    /// that does the same.
    MadeAtRunTime,
}

impl Row {
    /// The identity of the call site. It uses the same names as the identity of rows, and never the
    /// order of sites.
    pub(super) fn call_site(&self) -> CallSite {
        CallSite {
            kind: self.kind,
            space: self.space,
            cache: self.cache.clone(),
            mapping: self.mapping,
            frames: self.call_site.clone(),
        }
    }

    /// The part that an unloaded module had in the outstanding blocks.
    pub fn left_by(&self) -> Option<&Unloaded> {
        self.unloaded.as_ref().filter(|_| self.totals.outstanding.count > 0)
    }

    fn merge(&mut self, other: Self) {
        self.id = self.id.min(other.id);
        self.ids.extend(other.ids);
        self.born = self.born.zip(other.born).map(|(mut born, more)| {
            born.iter_mut().zip(more).for_each(|(sum, count)| *sum += count);
            born
        });
        self.totals.add(&other.totals);
        self.oldest_ms = self.oldest_ms.max(other.oldest_ms);
        self.largest_bytes = self.largest_bytes.max(other.largest_bytes);
        other.freed.iter().for_each(|place| freed::add(&mut self.freed, place));
        self.frees += other.frees;
        for (sum, more) in self.lifetimes.iter_mut().zip(other.lifetimes) {
            *sum += more;
        }
        let holders = std::mem::take(&mut self.holders);
        self.holders = Holder::merged(holders.into_iter().chain(other.holders));
        if let Some(other) = other.reach {
            self.reach.get_or_insert_default().merge(other);
        }
        self.blocks.extend(other.blocks);
        self.blocks.sort_by_key(|block| (std::cmp::Reverse(block.age_ms), block.address));
    }
}

/// The rows of a snapshot, in the order of their first sites.
pub(super) fn rows(snapshot: &Snapshot, names: &Names) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut index: HashMap<Identity, usize> = HashMap::new();
    for site in &snapshot.sites {
        let (row, identity) = row(site, snapshot, names);
        match index.get(&identity).and_then(|at| rows.get_mut(*at)) {
            Some(known) => known.merge(row),
            None => {
                index.insert(identity, rows.len());
                rows.push(row);
            }
        }
    }
    rows
}

fn row(site: &Site, snapshot: &Snapshot, names: &Names) -> (Row, Identity) {
    let known = match site.stack {
        StackRef::Known(id) => snapshot.stacks.get(&id),
        StackRef::NotTaken | StackRef::Lost => None,
    };
    let frames: &[Frame] = match known {
        Some(stack) if !stack.frames.is_empty() => &stack.frames,
        _ => std::slice::from_ref(&site.call_site),
    };
    let mut stack: Vec<FrameView> = frames.iter().flat_map(|frame| resolve(frame, names)).collect();
    if site.call_site.address == 0 {
        // The stack begins in the tracing program itself.
        let own = stack.iter().take_while(|frame| is_tracing(frame)).count();
        if own < stack.len() {
            stack.drain(..own);
        }
    }
    let is_of_process = site.is_of_process();
    if !is_of_process && !stack.iter().all(is_trampoline) {
        stack.retain(|frame| !is_trampoline(frame));
    }
    let owner = if is_of_process { None } else { owner::find(&stack) };
    let blind = snapshot.loss.blind;
    let keeper =
        kept::keeper(site.kind, site.is_page_array, &stack, owner.as_ref(), !blind.skb_cache);
    if site.kind == Kind::Vmalloc {
        // The caller is the call site, whatever probes told of it.
        let own = stack.iter().take_while(|frame| owner::is_allocator(frame)).count();
        if own < stack.len() {
            stack.drain(..own);
        }
    }
    let stack_taken = site.stack != StackRef::NotTaken;
    let truncated = match known {
        Some(stack) => stack.end.reason(),
        None if stack_taken => Some("the stack was lost"),
        None => None,
    };
    let identified: Vec<FrameIdentity> = stack.iter().map(identify).collect();
    let identity = Identity {
        kind: site.kind,
        space: site.space,
        cache: site.cache.clone(),
        function: site.function,
        pair: site.pair.clone(),
        mapping: site.mapping,
        stack: identified.clone(),
        end: known.map(|stack| stack.end),
        stack_taken,
        keeper,
    };
    let module = stack
        .iter()
        .find_map(|frame| {
            frame.object.as_deref()?.strip_prefix('[')?.strip_suffix(']').map(str::to_owned)
        })
        .filter(|_| !is_of_process);
    let of_inodes = || {
        let call = stack.first().and_then(|frame| frame.symbol.as_deref());
        call.is_some_and(|call| Reclaimable::OF_INODES.contains(&call))
    };
    let reclaimable = &snapshot.reclaimable;
    let is_reclaimable = site.cache.as_ref().is_some_and(|cache| {
        reclaimable.caches.contains(cache) || (!reclaimable.are_left_out && of_inodes())
    });
    let row = Row {
        id: site.id,
        ids: vec![site.id],
        unloaded: unloaded(site, &stack, owner.as_ref(), snapshot, names),
        kind: site.kind,
        cache_aliases: site
            .cache
            .as_ref()
            .and_then(|cache| snapshot.cache_aliases.get(cache))
            .cloned()
            .unwrap_or_default(),
        cache: site.cache.clone(),
        owner,
        keeper,
        is_upper_bound: blind.bulk_frees
            && site.cache.as_deref().is_some_and(|cache| FREED_IN_BULK.contains(&cache)),
        is_reclaimable,
        doubt: None,
        module,
        function: site.function,
        pair: site.pair.clone(),
        mapping: site.mapping,
        process: snapshot.processes.get(&site.space).cloned(),
        totals: Totals {
            outstanding: site.outstanding,
            allocated: site.allocated,
            freed: site.freed,
            sampled: site.sampled,
        },
        oldest_ms: site.oldest_ms,
        largest_bytes: site.largest_bytes,
        freed: freed_from(&site.freed_at, names),
        frees: site.frees,
        lifetimes: site.lifetimes,
        born: site.born,
        stack,
        truncated,
        stack_taken,
        holders: site.holders.clone(),
        blocks: site.blocks.clone(),
        reach: site.reached.as_ref().map(|reached| reach::named(reached, names)),
        space: site.space,
        // Where the kernel does not tell the call, stacks tell call sites apart.
        call_site: match site.call_site.address {
            0 if site.kind == Kind::Vmalloc => identified.into_iter().take(1).collect(),
            0 => identified,
            _ => resolve(&site.call_site, names).iter().map(identify).collect(),
        },
    };
    (row, identity)
}

/// The places that freed the blocks of a site, with their names: the function that the code belongs
/// to, and not those that the compiler inlined into it.
fn freed_from(freed_at: &[FreedAt], names: &Names) -> Vec<FreedFrom> {
    let mut places = Vec::new();
    for place in freed_at {
        if let Some(frame) = resolve(&place.frame, names).pop() {
            freed::add(&mut places, &FreedFrom { frame, count: place.count });
        }
    }
    places
}

/// The part that an unloaded module had in the blocks of a site.
fn unloaded(
    site: &Site,
    stack: &[FrameView],
    owner: Option<&Owner>,
    snapshot: &Snapshot,
    names: &Names,
) -> Option<Unloaded> {
    let has_gone = |load: &u32| snapshot.gone_modules.contains(load);
    let gone: Vec<u32> = stack.iter().filter_map(|frame| frame.load).filter(has_gone).collect();
    let innermost = *gone.first()?;
    let maker = match site.cache_made {
        Some(StackRef::Known(id)) => snapshot.stacks.get(&id).and_then(|made| {
            let made: Vec<FrameView> =
                made.frames.iter().flat_map(|frame| resolve(frame, names)).collect();
            owner::find(&made)?.load
        }),
        _ => None,
    };
    let (load, part) = match (maker, owner.and_then(|owner| owner.load)) {
        (Some(maker), _) if gone.contains(&maker) => (maker, Part::MadeTheirCache),
        (_, Some(owner)) if has_gone(&owner) => (owner, Part::AllocatedThem),
        _ => (innermost, Part::CalledFor),
    };
    let module = snapshot.modules.get(load as usize)?;
    Some(Unloaded { module: module.name.clone(), part })
}

/// Whether a kernel frame belongs to a BPF program, or to the code that runs it at a tracepoint:
/// where the tracepoint has a second program, that code is a function of the tracepoint's own
/// (`__traceiter_*`, include/linux/tracepoint.h, 5.10 to 7.0).
fn is_tracing(frame: &FrameView) -> bool {
    starts_with_one(frame, &["bpf_prog_", "bpf_trace_run", "__bpf_trace_", "__traceiter_"])
}

/// Whether a kernel frame lies between a function and its caller because somebody's BPF program
/// watches the function (kernel/bpf/trampoline.c). Such a frame allocates nothing, and comes and
/// goes with the program.
fn is_trampoline(frame: &FrameView) -> bool {
    starts_with_one(frame, &["bpf_trampoline_"])
}

fn starts_with_one(frame: &FrameView, names: &[&str]) -> bool {
    let symbol = frame.symbol.as_deref();
    symbol.is_some_and(|symbol| names.iter().any(|name| symbol.starts_with(name)))
}

/// Slab caches whose objects are freed in bulk while they live on: lib/maple_tree.c (to 6.17),
/// net/core/skbuff.c, 5.15 to 6.18.
const FREED_IN_BULK: [&str; 4] =
    ["maple_node", "skbuff_head_cache", "skbuff_cache", "skbuff_fclone_cache"];

fn identify(frame: &FrameView) -> FrameIdentity {
    match &frame.symbol {
        Some(symbol) => FrameIdentity::Named {
            symbol: symbol.clone(),
            object: frame.object.clone(),
            file: frame.file.clone(),
            line: frame.line,
            // Without a line, the offset tells calls of one function apart.
            offset: if frame.line.is_some() { 0 } else { frame.offset },
            load: frame.load,
        },
        None if frame.made_at_run_time => FrameIdentity::MadeAtRunTime,
        None => FrameIdentity::Address(frame.address, frame.load),
    }
}

/// The functions at a frame, inlined ones first.
fn resolve(frame: &Frame, names: &Names) -> Vec<FrameView> {
    let load = match frame.place {
        Place::Module { load } => Some(load),
        _ => None,
    };
    let unknown = |unknown: &Unknown| FrameView {
        address: frame.address,
        symbol: None,
        linkage: None,
        offset: 0,
        object: unknown.object().map(str::to_owned),
        file: None,
        line: None,
        inlined: false,
        by_frame_pointer: frame.found == Found::FramePointer,
        made_at_run_time: matches!(unknown, Unknown::Anonymous { .. }),
        unknown: Some(unknown.reason()),
        load,
    };
    match names.frames.get(frame) {
        Some(Resolved::Known(symbols)) => symbols
            .iter()
            .map(|symbol| FrameView {
                address: frame.address,
                symbol: Some(symbol.name.clone()),
                linkage: symbol.linkage.clone(),
                offset: symbol.offset,
                object: Some(symbol.object.clone()),
                file: symbol.file.clone(),
                line: symbol.line,
                inlined: symbol.inlined,
                by_frame_pointer: frame.found == Found::FramePointer,
                made_at_run_time: false,
                unknown: None,
                load,
            })
            .collect(),
        Some(Resolved::Unknown(reason)) => vec![unknown(reason)],
        None => vec![unknown(&Unknown::Unmapped)],
    }
}
