//! Every map: key -> value, who writes it, what bounds it.
//!
//! All hash maps are preallocated: `BPF_F_NO_PREALLOC` allocates inside kmalloc tracepoints,
//! where single runs took 10 ms. Sizes given here are placeholders where the loader sets them.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, Queue, RingBuf},
};
use leaktrace_common::{
    ACQUIRERS_MOST, AgainKey, AreaLayout, Bucket, CGROUPS, CacheName, CgroupTest, Config,
    EndedProcess, FileKey, FreePlace, GFP_TESTS, GfpTest, InFlight, KernelPairCall, LossReason,
    MAX_PROCESSES, MODULE_NAME_BYTES, ModuleLayout, Outstanding, PAGE_OWNERS, PAGE_REGIONS_COUNT,
    PARTS, PageRegion, Pair, PairCalls, RcuLayout, SiteKey, SiteRecord, StackRecord, TEXT_RANGES,
    TRACED_TWICE, Target, TextMap, TextMapping, TextObject, TextRange, VmallocCall,
};

use crate::user::state::{CachedRule, Walk};

/// Constants that the loader sets before it loads the object; read with [`config`].
#[unsafe(no_mangle)]
pub(crate) static CONFIG: Config = Config {
    min_size_bytes: 0,
    max_size_bytes: u64::MAX,
    irq_start: 0,
    irq_end: 0,
    softirq_start: 0,
    softirq_end: 0,
    stack_mode: 0,
    max_frames: 127,
    max_sites: 0,
    own_tgid: 0,
    filter_tgids: 0,
    filter_comms: 0,
    filter_caches: 0,
    filter_modules: 0,
    filter_cgroups: 0,
    filter_gfp: 0,
    kmalloc_size_arg: 0,
    cache_arg: 0,
    cache_size_arg: 0,
    cache_name_offset: 0,
    cache_object_size_offset: 0,
    gfp_cache_mask: 0,
    buckets: 1,
    spaces: 1,
    pairs: 0,
    rcu_call_offset: 0,
    percpu_size_arg: 0,
    possible_cpus: 1,
    task_tgid_offset: 0,
    task_mm_offset: 0,
    all_pages: 0,
    gfp_movable: 0,
    page_struct_shift: 6,
    follow: 0,
    task_leader_offset: 0,
    task_comm_offset: 0,
    task_start_offset: 0,
    task_signal_offset: 0,
    signal_live_offset: 0,
    signal_flags_offset: 0,
    signal_exec_offset: 0,
    sampling: 0,
    count_calls: 0,
    preemptible: 0,
    tail_calls: 0,
    log: 0,
    areas: AreaLayout {
        start: 0,
        end: 0,
        file_offset: 0,
        flags: 0,
        file: 0,
        mode: 0,
        inode: 0,
        user_entry: 0,
        entry_inode: 0,
        number: 0,
        super_block: 0,
        device: 0,
        without_file: 0,
        unknown_file: 0,
    },
    skb_cache_at: 0,
    rcu: RcuLayout {
        work_function: 0,
        monitor_function: 0,
        func_offset: 0,
        work_list_offset: 0,
        monitor_offset: 0,
        monitor_list_offset: 0,
        count_offset: 0,
        records_offset: 0,
    },
    kernel_text: TextRange::EMPTY,
    module: ModuleLayout {
        name: 0,
        text_base: 0,
        text_bytes: 0,
        init_base: 0,
        init_bytes: 0,
        is_known: 0,
    },
    gfp: [GfpTest::NEVER; GFP_TESTS],
    cgroups: [CgroupTest::NONE; CGROUPS],
    page_owners: [TextRange::EMPTY; PAGE_OWNERS],
    traced_twice: [TextRange::EMPTY; TRACED_TWICE],
};

/// Reads one field of [`CONFIG`] such that the compiler does not fold the placeholder.
macro_rules! config {
    ($($field:ident).+) => {{
        #[allow(unused_unsafe, reason = "also used inside unsafe blocks")]
        // SAFETY: CONFIG is a live static; volatile, as the loader patches it.
        let value = unsafe { core::ptr::read_volatile(&raw const $crate::maps::CONFIG.$($field).+) };
        value
    }};
}
pub(crate) use config;

/// `-EEXIST`: the error of an insert with `BPF_NOEXIST` whose key is there already.
pub(crate) const EEXIST: i32 = -17;

/// Live blocks. Only `table` writes them, but the loader wipes those of images that it forgets;
/// bounded by `--max-outstanding`.
#[map]
pub(crate) static BLOCKS: Array<Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Live blocks that found both their buckets full, by [`leaktrace_common::BlockWord`]; written as
/// `BLOCKS`. When the map is full, allocations count as missed.
#[map]
pub(crate) static OVERFLOW: HashMap<u64, Outstanding> = HashMap::with_max_entries(1, 0);

/// A bit for each bucket of [`BLOCKS`]: whether blocks whose first bucket it is lie in their second
/// one. Most buckets have no such blocks, which saves a look at the second bucket.
#[map]
pub(crate) static DISPLACED: Array<u64> = Array::with_max_entries(1, 0);

/// The index of each call site in [`SITES`]; written by the ledger; as many entries as `SITES` has.
#[map]
pub(crate) static SITE_INDEX: HashMap<SiteKey, u32> = HashMap::with_max_entries(1, 0);

/// Number of slots in [`RECENT_SITES`]; a power of two.
pub(crate) const RECENT_SLOTS: u32 = 4096;

/// Recently used indices in [`SITES`], by a hash of the key; written by the ledger. A slot is one
/// word, and a reader compares the site that it leads to with the key.
#[map]
pub(crate) static RECENT_SITES: Array<u64> = Array::with_max_entries(RECENT_SLOTS, 0);

/// Call sites and their counters. The ledger and `counters` write them; the loader reads them by
/// mmap and wipes those of images that it forgets.
#[map]
pub(crate) static SITES: Array<SiteRecord> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// How many frees each place has made of the blocks of each call site, as far as places were noted
/// ([`leaktrace_common::frees_noted`]). `counters` writes it; the loader deletes the entries of call
/// sites that it wipes. When the map is full, further places are not noted.
#[map]
pub(crate) static FREE_PLACES: HashMap<FreePlace, u64> = HashMap::with_max_entries(1, 0);

/// Slots of [`SITES`] that the loader has wiped; as many entries as `SITES` has.
#[map]
pub(crate) static FREE_SITES: Queue<u32> = Queue::with_max_entries(1, 0);

/// Spaces of images that the loader has forgotten.
#[map]
pub(crate) static FREE_SPACES: Queue<u32> = Queue::with_max_entries(1, 0);

/// Frames by stack ID; written by the stack modules. When the map is full, stacks count as lost.
#[map]
pub(crate) static STACKS: HashMap<u64, StackRecord> = HashMap::with_max_entries(1, 0);

/// Number of slots in [`RECENT_STACKS`]; a power of two.
pub(crate) const RECENT_STACK_SLOTS: u32 = 4096;

/// IDs recently found in [`STACKS`], by the ID's low bits. The stack modules write them; the loader
/// wipes them after it has taken stacks out. A slot is one word; a writer looks the ID up in
/// `STACKS` once more after it has written.
#[map]
pub(crate) static RECENT_STACKS: Array<u64> =
    Array::with_max_entries(RECENT_STACK_SLOTS, BPF_F_MMAPABLE);

/// [`LossReason`] -> count. All programs write it, by atomic additions, as a program can be
/// interrupted and preempted.
#[map]
pub(crate) static LOSS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(LossReason::COUNT as u32, 0);

/// [`Pair`] -> the latest event that the pair's first program has handled on this CPU, or 0; see
/// [`crate::pair`].
#[map]
pub(crate) static HANDLED: PerCpuArray<u64> = PerCpuArray::with_max_entries(Pair::COUNT as u32, 0);

/// [`Pair`] -> number of events that the pair's second program has recorded; written by second
/// programs.
#[map]
pub(crate) static HEALED: Array<u64> = Array::with_max_entries(Pair::COUNT as u32, 0);

/// Counters, by index. 0: slots of [`SITES`] that were ever given out; 1: the last space that was
/// given to a process image for the first time, also by the loader; 2: blocks in [`OVERFLOW`]; 3:
/// loads and unloads of modules; 4: processes that were ever in [`ENDED`]; 5: named modules that
/// were loaded; 6: entries of [`PAIR_AGAIN`].
#[map]
pub(crate) static CURSORS: Array<u64> = Array::with_max_entries(7, BPF_F_MMAPABLE);

/// The latest [`ENDED_SLOTS`](leaktrace_common::ENDED_SLOTS) processes that have ended; in kernel
/// mode, the program on the exit tracepoint writes them.
#[map]
pub(crate) static ENDED: Array<EndedProcess> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Names of slab caches, by address; the ledger writes a name when a call site is new.
#[map]
pub(crate) static CACHES: HashMap<u64, CacheName> = HashMap::with_max_entries(4096, 0);

/// Processes whose kernel allocations are tracked; written by the loader (`-p`).
#[map]
pub(crate) static FILTER_TGIDS: HashMap<u32, u32> = HashMap::with_max_entries(1024, 0);

/// Command names whose kernel allocations are tracked; written by the loader (`--comm`).
#[map]
pub(crate) static FILTER_COMMS: HashMap<[u8; 16], u32> = HashMap::with_max_entries(256, 0);

/// Text of the modules that the filter names (`--module`, or else `--not-module`); an empty range holds no address. Index 0: modules
/// that were loaded at the start, written by the loader. Index 1: modules loaded since, written by
/// the module programs. Those programs wipe ranges of both.
#[map]
pub(crate) static MODULE_TEXT: Array<[TextRange; TEXT_RANGES]> = Array::with_max_entries(2, 0);

/// Names of the modules whose text is in [`MODULE_TEXT`] while they are loaded; written by the
/// loader.
#[map]
pub(crate) static FILTER_MODULES: HashMap<[u8; MODULE_NAME_BYTES], u32> =
    HashMap::with_max_entries(64, 0);

/// Names of the slab caches that the filter names; written by the loader (`--cache`, or else
/// `--not-cache` and `--unreclaimable`).
#[map]
pub(crate) static FILTER_CACHES: HashMap<[u8; 32], u32> = HashMap::with_max_entries(256, 0);

/// kmalloc caches that the filter names, by [`SiteKey::detail`]; written by the loader, as
/// [`FILTER_CACHES`].
#[map]
pub(crate) static FILTER_KMALLOC: HashMap<u64, u32> = HashMap::with_max_entries(1024, 0);

/// For each region of pages, its number of tracked blocks of more than one page, and its lock;
/// written by the programs of pages.
#[map]
pub(crate) static PAGE_REGIONS: Array<PageRegion> = Array::with_max_entries(PAGE_REGIONS_COUNT, 0);

/// Unfinished calls of vmalloc, by thread and depth; written by vmalloc's entry and return
/// programs.
#[map]
pub(crate) static VMALLOC_IN_FLIGHT: HashMap<u64, VmallocCall> = HashMap::with_max_entries(4096, 0);

/// Number of programs that take kernel stacks; each has a scratch slot of its own.
const KERNEL_SLOTS: u32 = 16;

/// Scratch memory for kernel stacks: a slot for each program, as a program cannot run twice on a
/// CPU, see [`crate::stack::read_kernel`].
#[map]
pub(crate) static KERNEL_SCRATCH: PerCpuArray<StackRecord> =
    PerCpuArray::with_max_entries(KERNEL_SLOTS, 0);

/// Traced processes by tgid; written by the loader and by the programs of fork, exec and exit.
#[map]
pub(crate) static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(MAX_PROCESSES, 0);

/// Number of slots in [`RECENT_TARGETS`]; a power of two.
pub(crate) const RECENT_TARGET_SLOTS: u32 = 256;

/// Processes recently found in [`TARGETS`], with the tgid in the high half and the space in the low
/// half. The process programs write them; the loader wipes the slot of a process that it takes out.
/// A slot is one word; `targets::space_of` says why it is never stale.
#[map]
pub(crate) static RECENT_TARGETS: Array<u64> =
    Array::with_max_entries(RECENT_TARGET_SLOTS, BPF_F_MMAPABLE);

/// The sampling interval of processes in bytes, 0 if every allocation is recorded; written by the
/// loader.
#[map]
pub(crate) static SAMPLING: Array<u64> = Array::with_max_entries(1, 0);

/// Hits of probes, by [`leaktrace_common::Call`]; written by the user programs.
#[map]
pub(crate) static CALLS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(leaktrace_common::CALLS, 0);

/// The call in flight of each thread. A thread reuses its slot and never deletes it; LRU drops the
/// slots of threads that have ended.
#[map]
pub(crate) static IN_FLIGHT: LruHashMap<u64, InFlight> = LruHashMap::with_max_entries(1, 0);

/// Unfinished calls of pairs' functions, by thread; kept as [`IN_FLIGHT`] is.
#[map]
pub(crate) static PAIR_CALLS: LruHashMap<u64, PairCalls> = LruHashMap::with_max_entries(1, 0);

/// The initial value of a slot in [`PAIR_CALLS`]; never written.
#[map]
pub(crate) static NO_PAIR_CALLS: Array<PairCalls> = Array::with_max_entries(1, 0);

/// Acquisitions of a pair's key that was held already. The programs of pairs write them, but the
/// loader deletes those of images that it forgets. When the map is full, acquisitions count as
/// missed.
#[map]
pub(crate) static PAIR_AGAIN: HashMap<AgainKey, Outstanding> = HashMap::with_max_entries(1, 0);

/// About how many levels a key has in [`PAIR_AGAIN`]; written by the programs of pairs.
#[map]
pub(crate) static PAIR_LEVELS: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);

/// Unfinished calls of the kernel's acquiring functions, by stack pointer: no two unfinished calls
/// have the same one, in whatever thread or interrupt they run.
#[map]
pub(crate) static KERNEL_PAIR_CALLS: LruHashMap<u64, KernelPairCall> =
    LruHashMap::with_max_entries(1, 0);

/// The kernel's acquiring and releasing functions of pairs, by address; written by the loader.
#[map]
pub(crate) static PAIR_FUNCTIONS: HashMap<u64, u32> =
    HashMap::with_max_entries(2 * ACQUIRERS_MOST as u32, 0);

/// Scratch memory of user stack walks: [`leaktrace_common::WALKS_PER_CPU`] slots for each CPU. A
/// walk claims a slot, as a uprobe program can be preempted by itself.
#[map]
pub(crate) static WALKS: Array<Walk> = Array::with_max_entries(1, 0);

/// Unwind rows of all objects; written by the loader.
#[map]
pub(crate) static ROWS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// First and last row (low and high half) of each text page of all objects; written by the loader.
#[map]
pub(crate) static PAGES: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Executable mappings of all processes; written by the loader.
#[map]
pub(crate) static MAPPINGS: Array<TextMapping> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Each process image's part of [`MAPPINGS`], by space; written by the loader, and by the fork
/// program for a child. There is a slot for each space, as a look-up in a hash map takes longer.
#[map]
pub(crate) static TEXT_MAPS: Array<TextMap> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Objects with unwind rows, by file; written by the loader.
#[map]
pub(crate) static OBJECTS: HashMap<FileKey, TextObject> = HashMap::with_max_entries(1, 0);

/// Number of slots in [`RULE_CACHE`]; a power of two.
pub(crate) const RULE_CACHE_SLOTS: u32 = 16 * 1024;

/// Recently found rules, by address; written by user stack walks. Concurrent writers may tear an
/// entry; readers notice it, see [`CachedRule`].
#[map]
pub(crate) static RULE_CACHE: Array<CachedRule> = Array::with_max_entries(RULE_CACHE_SLOTS, 0);

/// Rare events for the session; the loader enlarges the ring where processes are many.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 16, 0);

/// System calls that map and unmap memory, for the collector.
#[map]
pub(crate) static MAP_EVENTS: RingBuf = RingBuf::with_byte_size(1 << 12, 0);

/// The latest load number of each part of the modules' address range; written by the module
/// programs.
#[map]
pub(crate) static GENERATIONS: Array<u32> = Array::with_max_entries(PARTS, 0);

/// Modules that come and go, for the session; the loader enlarges the ring in kernel mode.
#[map]
pub(crate) static MODULE_EVENTS: RingBuf = RingBuf::with_byte_size(1 << 12, 0);
