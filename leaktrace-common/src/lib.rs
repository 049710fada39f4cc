//! What crosses the boundary between leaktrace's BPF programs and its loader.
//!
//! | map | key -> value | written by | read by |
//! |---|---|---|---|
//! | `BLOCKS` | [`Bucket`]s of [`Outstanding`] | BPF ledger | collector, when single blocks matter |
//! | `OVERFLOW` | [`BlockWord`] -> [`Outstanding`] | BPF ledger | the same |
//! | `SITE_INDEX` | [`SiteKey`] -> `u32` | BPF ledger; the loader deletes | nobody else |
//! | `SITES` | index -> [`SiteRecord`] | BPF ledger and counters; the loader sets [`SiteRecord::suspect`], and wipes | collector, by mmap |
//! | `FREE_SITES` | wiped slots of `SITES` | loader | BPF ledger |
//! | `STACKS` | [`StackId`] -> [`StackRecord`] | BPF stack module | collector, once for each new id |
//! | `RECENT_STACKS` | ids lately found in `STACKS` | BPF stack module; the loader wipes | BPF stack module |
//! | `LOSS` | [`LossReason`] -> `u64` | BPF programs | collector |
//! | `HEALED` | a [`Pair`] -> `u64` | BPF second programs | tracer |
//! | `CACHES` | address of a `struct kmem_cache` -> [`CacheName`] | BPF ledger, once a cache | collector |
//! | `PAGE_REGIONS` | region of pages -> [`PageRegion`] | BPF programs of pages | nobody else |
//! | `TARGETS` | tgid -> [`Target`] | loader, BPF process programs | BPF user programs |
//! | `RECENT_TARGETS` | processes lately found in `TARGETS` | BPF user and process programs; the loader wipes | BPF user programs |
//! | `FREE_SPACES` | spaces of forgotten images | loader | loader, BPF process programs |
//! | `SAMPLING` | the sampling interval in bytes, 0 for all | loader | BPF user programs |
//! | `CALLS` | a [`Call`] -> hits of probes | BPF user programs | tracer, for `--max-overhead` |
//! | `HANDLED` | a [`Pair`] -> the event handled last on a CPU | BPF first programs | BPF second programs |
//! | `PAIR_CALLS` | tid -> [`PairCalls`] | BPF user programs | nobody else |
//! | `PAIR_AGAIN` | [`AgainKey`] -> [`Outstanding`] | BPF programs of pairs; the loader deletes | collector, when single blocks matter |
//! | `PAIR_LEVELS` | [`BlockWord`] -> how often it is in `PAIR_AGAIN` | BPF programs of pairs | nobody else |
//! | `KERNEL_PAIR_CALLS` | stack pointer -> [`KernelPairCall`] | BPF kernel programs | nobody else |
//! | `PAIR_FUNCTIONS` | address of a kernel function -> [`PairCookie`] | loader | BPF kernel programs |
//! | `IN_FLIGHT` | tid -> [`InFlight`] | BPF user programs | nobody else |
//! | `ROWS` | index -> [`UnwindRow`], packed | loader, by mmap | BPF walk |
//! | `PAGES` | index -> first and last row of a text page | loader, by mmap | BPF walk |
//! | `MAPPINGS` | index -> [`TextMapping`] | loader, by mmap | BPF walk |
//! | `OBJECTS` | [`FileKey`] -> [`TextObject`] | loader | BPF walk |
//! | `TEXT_MAPS` | space -> [`TextMap`] | loader, by mmap, and BPF fork program; BPF marks what it has told | BPF walk |
//! | `MODULE_TEXT` | [`TextRange`]s of the modules asked for | loader: 0; BPF module programs: 1 | BPF filters |
//! | `ENDED` | ring of [`EndedProcess`] | BPF program of ends, in kernel mode | collector, by mmap |
//! | `EVENTS` | ring of [`Event`] | BPF process programs and walk | tracer |
//! | `MAP_EVENTS` | ring of [`MapEvent`] | BPF mapping programs | collector |
//!
//! Every type is `repr(C)` without implicit padding, so that both sides agree on each byte.
#![no_std]

mod alloc;
mod by_name;
mod config;
mod freed;
mod functions;
mod loss;
mod mapping;
mod modules;
mod pages;
mod pair;
pub mod sampling;
mod site;
mod stack;
mod unwind;
mod user;

pub use alloc::{
    AllocKey, BUCKET_SLOTS, BlockWord, Bucket, KERNEL_SPACE, Outstanding, PERCPU_SPACE, VmallocCall,
};
pub use by_name::{
    ACQUIRERS_MOST, ARGUMENTS_MOST, AgainKey, KernelPairCall, PAIR_DEPTH, PAIRS_MOST, PairCall,
    PairCalls, PairCookie, PairKey, PairRelease, Success,
};
pub use config::{
    AreaLayout, CGROUPS, CgroupTest, Choice, Config, Follow, GFP_TESTS, GfpTest, MODULES_MOST,
    PAGE_OWNERS, RcuLayout, StackMode, TEXT_RANGES, TRACED_TWICE, TextRange,
};
pub use freed::{FreePlace, frees_noted};
pub use functions::{
    AllocFunction, Shape, Takes, cookie_first, cookie_has_moved, cookie_takes, cookie_throws,
};
pub use loss::LossReason;
pub use mapping::{MapCall, MapEvent, MapEventKind, MapSyscall};
pub use modules::{
    LAST_GENERATION, MODULE_NAME_BYTES, ModuleEvent, ModuleEventKind, ModuleLayout, PART_SHIFT,
    PARTS, PARTS_OF_MODULE,
};
pub use pages::{MAX_PAGE_ORDER, PAGE_REGIONS_COUNT, PageRegion};
pub use pair::{KernelCall, Pair};
pub use site::{
    CacheName, Kind, LIFETIME_BUCKETS, SiteKey, SiteRecord, SiteVerdict, Weights, lifetime_bucket,
};
pub use stack::{FrameMark, MAX_FRAMES, StackEnd, StackId, StackRecord, ends_with_call};
pub use unwind::{
    CfaRule, FileKey, MAX_MAPPINGS, MAX_ROWS_IN_PAGE, TEXT_PAGE_BYTES, TEXT_SEGMENTS, TextMap,
    TextMapping, TextObject, TextSegment, UnwindRow, Unwinding, WALKS_PER_CPU,
};
pub use user::{
    CALLS, Call, ENDED_SLOTS, EndedProcess, Event, EventKind, InFlight, MAX_PROCESSES, STEPPED,
    SkippedCall, Target,
};

/// Marks the shared types as plain bytes for aya's typed maps.
#[cfg(feature = "user")]
mod pod {
    use aya::Pod;

    use super::{
        AgainKey, AllocKey, Bucket, CacheName, Config, EndedProcess, FileKey, FreePlace, InFlight,
        KernelPairCall, Outstanding, SiteKey, SiteRecord, StackRecord, Target, TextMap,
        TextMapping, TextObject, TextRange, VmallocCall,
    };

    // SAFETY: each type is repr(C), made of integers only and without implicit padding (the
    // size assertions beside the types hold that), so every bit pattern is a valid value.
    unsafe impl Pod for AllocKey {}
    // SAFETY: as above.
    unsafe impl Pod for FreePlace {}
    // SAFETY: as above.
    unsafe impl Pod for AgainKey {}
    // SAFETY: as above.
    unsafe impl Pod for KernelPairCall {}
    // SAFETY: as above.
    unsafe impl Pod for EndedProcess {}
    // SAFETY: as above.
    unsafe impl Pod for TextRange {}
    // SAFETY: as above.
    unsafe impl Pod for Outstanding {}
    // SAFETY: as above.
    unsafe impl Pod for Bucket {}
    // SAFETY: as above.
    unsafe impl Pod for SiteKey {}
    // SAFETY: as above.
    unsafe impl Pod for SiteRecord {}
    // SAFETY: as above.
    unsafe impl Pod for StackRecord {}
    // SAFETY: as above.
    unsafe impl Pod for CacheName {}
    // SAFETY: as above.
    unsafe impl Pod for Target {}
    // SAFETY: as above.
    unsafe impl Pod for InFlight {}
    // SAFETY: as above.
    unsafe impl Pod for Config {}
    // SAFETY: as above.
    unsafe impl Pod for TextMap {}
    // SAFETY: as above.
    unsafe impl Pod for TextMapping {}
    // SAFETY: as above.
    unsafe impl Pod for VmallocCall {}
    // SAFETY: as above.
    unsafe impl Pod for FileKey {}
    // SAFETY: as above.
    unsafe impl Pod for TextObject {}
}
