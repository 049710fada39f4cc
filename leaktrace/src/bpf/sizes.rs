//! The sizes of the maps.

use leaktrace_common::{BlockWord, ENDED_SLOTS, WALKS_PER_CPU};

/// The sizes of the maps, in entries unless a field says bytes; fixed when the object is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Outstanding blocks.
    pub outstanding: u32,
    /// Call sites.
    pub sites: u32,
    /// Places that free blocks, over all call sites.
    pub free_places: u32,
    /// Distinct stacks.
    pub stacks: u32,
    /// Threads that may be inside an allocator at once; 1 where no process is traced.
    pub threads: u32,
    /// Slots for user stack walks; 1 where no process is traced.
    pub walks: u32,
    /// Objects with unwind rows; 1 where no process is traced.
    pub objects: u32,
    /// Process images that leaktrace can forget; 1 where no process is traced.
    pub spaces: u32,
    /// Ended processes that the map remembers; 1 where processes are traced.
    pub ended: u32,
    /// Bytes in the ring of rare events; one page where no process is traced.
    pub event_ring_bytes: u32,
    /// Unwind rows; 1 where no process is traced.
    pub unwind_rows: u32,
    /// Bytes in the ring of mappings; one page where none are traced.
    pub map_ring_bytes: u32,
    /// Acquisitions of keys that are held already; 1 where no pair is traced.
    pub again: u32,
    /// Threads that may be inside functions of pairs at once; 1 where no pair of a process is
    /// traced.
    pub pair_threads: u32,
    /// Unfinished calls of the kernel's functions of pairs; 1 where no such pair is traced.
    pub kernel_pair_calls: u32,
    /// Bytes in the ring of modules; one page where the kernel is not traced.
    pub module_ring_bytes: u32,
}

impl Sizes {
    /// Sizes for a session with room for `max_outstanding` blocks.
    pub fn new(max_outstanding: u32, traces_processes: bool, traces_mappings: bool) -> Self {
        let cpus = possible_cpus();
        Self {
            outstanding: max_outstanding,
            sites: 32 * 1024,
            // 1.4 MB.
            free_places: 16 * 1024,
            stacks: 16 * 1024,
            // An LRU map keeps up to 128 free entries for each CPU (LOCAL_FREE_TARGET,
            // kernel/bpf/bpf_lru_list.c, 6.1 and 6.18): room on top, so that none is evicted
            // early.
            threads: if traces_processes { 16 * 1024 + 128 * cpus } else { 1 },
            walks: if traces_processes { WALKS_PER_CPU * cpus } else { 1 },
            // Half a MiB; a host has some thousand libraries and programs.
            objects: if traces_processes { 4096 } else { 1 },
            spaces: if traces_processes { BlockWord::SPACES } else { 1 },
            ended: if traces_processes { 1 } else { ENDED_SLOTS },
            // Some 40,000 forks, execs and ends of processes.
            event_ring_bytes: if traces_processes { 1 << 20 } else { 4096 },
            // 32 MiB: python3 takes 0.1 million rows, the largest compilers 2.
            unwind_rows: if traces_processes { 4 << 20 } else { 1 },
            // Some 40,000 calls.
            map_ring_bytes: if traces_mappings { 4 << 20 } else { 4096 },
            again: 1,
            pair_threads: 1,
            kernel_pair_calls: 1,
            // Some 600 modules that come or go.
            module_ring_bytes: if traces_processes { 4096 } else { 1 << 16 },
        }
    }

    /// The same sizes, with room for pairs of functions.
    #[must_use]
    pub fn with_pairs(self) -> Self {
        let cpus = possible_cpus();
        let is_kernel = self.spaces == 1;
        Self {
            // As many as there are other blocks, up to 22 MB.
            again: self.outstanding.min(256 * 1024),
            // As for `threads`.
            pair_threads: if is_kernel { 1 } else { 4 * 1024 + 128 * cpus },
            kernel_pair_calls: if is_kernel { 16 * 1024 + 128 * cpus } else { 1 },
            // Their numbers take some bits of those of spaces.
            spaces: self.spaces.min(BlockWord::SPACES_OF_PAIRS),
            ..self
        }
    }

    /// The smallest sizes, for programs that are loaded and never run.
    pub fn least() -> Self {
        Self {
            outstanding: 1,
            sites: 1,
            free_places: 1,
            stacks: 1,
            threads: 1,
            walks: 1,
            objects: 1,
            spaces: 1,
            ended: 1,
            event_ring_bytes: 4096,
            unwind_rows: 1,
            map_ring_bytes: 4096,
            again: 1,
            pair_threads: 1,
            kernel_pair_calls: 1,
            module_ring_bytes: 4096,
        }
    }
}

/// Number of CPUs that can ever be present.
pub fn possible_cpus() -> u32 {
    aya::util::nr_cpus().map_or(1, |count| count as u32)
}
