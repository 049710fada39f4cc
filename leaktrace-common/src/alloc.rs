//! One live allocation: its identity and what is remembered of it.

/// The [`AllocKey::space`] of kernel memory; processes count from 1.
pub const KERNEL_SPACE: u32 = 0;
/// The [`AllocKey::space`] of percpu memory, whose pointers are no addresses.
pub const PERCPU_SPACE: u32 = u32::MAX;

/// Identity of a live allocation.
///
/// The space keeps apart what may share an address: the kernel, and each process image (a
/// process gets a new space when it execs).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocKey {
    /// Address of the block.
    pub address: u64,
    /// [`KERNEL_SPACE`], or the space of a traced process image.
    pub space: u32,
    /// Always zero.
    pub zero: u32,
}

impl AllocKey {
    /// The key of the block at `address` in `space`.
    #[inline(always)]
    pub const fn new(space: u32, address: u64) -> Self {
        Self { address, space, zero: 0 }
    }
}

/// What is remembered of a live allocation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// Bytes that were asked for.
    pub size_bytes: u64,
    /// `CLOCK_MONOTONIC` at the allocation.
    pub timestamp_ns: u64,
    /// Index into `SITES`.
    pub site: u32,
    /// Kernel memory: the process that was running. Memory of a process: the sampling interval in
    /// force, see [`crate::sampling`]; 0 if every allocation was recorded.
    pub detail: u32,
}

/// A `vmalloc` call that has not returned yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmallocCall {
    /// The block that the call asks for, and when it did; the site is [`Self::NOT_WANTED`] if a
    /// filter leaves the call out.
    pub block: Outstanding,
    /// Address of the return address on the stack, by which the return probe finds the call.
    pub stack_pointer: u64,
    /// The caller that the kernel function was given as its argument.
    pub caller: u64,
}

impl VmallocCall {
    /// The site of a call that a filter leaves out. leaktrace follows that call all the same, as
    /// the call may itself call vmalloc.
    pub const NOT_WANTED: u32 = u32::MAX;
    /// The [`crate::SiteKey::detail`] of an array of page pointers: vmalloc allocates one from
    /// itself for an area of more than 512 pages (`__vmalloc_area_node`, mm/vmalloc.c, 5.15 to
    /// 6.18). No caller asked for the array.
    pub const PAGE_ARRAY: u64 = 1;
    /// Most nested calls that leaktrace tells apart: an array of page pointers has an array of its
    /// own from 1 GiB on, and that one has another from 512 GiB on.
    pub const MAX_DEPTH: u32 = 4;

    /// Whether a call made inside this one allocates the array of page pointers of this one's area:
    /// 8 bytes for each page. The kernel may have rounded the area up to huge pages
    /// (`VM_ALLOW_HUGE_VMAP`).
    #[inline(always)]
    pub const fn is_for(&self, inner_bytes: u64, caller: u64, stack_pointer: u64) -> bool {
        const PAGE: u64 = 4096;
        const HUGE_PAGE: u64 = 2 << 20;
        let area_bytes = inner_bytes / 8 * PAGE;
        let asked = self.block.size_bytes;
        stack_pointer < self.stack_pointer
            && caller == self.caller
            && (area_bytes == rounded(asked, PAGE) || area_bytes == rounded(asked, HUGE_PAGE))
    }
}

/// Rounds `bytes` up to a multiple of `to`, a power of two.
#[inline(always)]
const fn rounded(bytes: u64, to: u64) -> u64 {
    bytes.wrapping_add(to - 1) & !(to - 1)
}

/// Blocks in one [`Bucket`].
pub const BUCKET_SLOTS: u32 = 8;

/// A bucket of the table of outstanding blocks.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// The [`BlockWord`] of each slot. The words fill one cache line, and most look-ups read no
    /// other.
    pub keys: [u64; BUCKET_SLOTS as usize],
    /// The block of each slot.
    pub blocks: [Outstanding; BUCKET_SLOTS as usize],
}

/// An [`AllocKey`] in one word, as it stands in a [`Bucket`].
pub struct BlockWord;

impl BlockWord {
    /// No block is in the slot.
    pub const FREE: u64 = 0;
    /// A block is being written to the slot.
    pub const CLAIMED: u64 = 1;
    /// Bits of a user address. The kernel gives a process addresses with more bits only if the
    /// process asks for them (Documentation/arch/x86/x86_64/5level-paging.rst).
    const ADDRESS_BITS: u32 = 47;
    /// The bit that is set in the word of every kernel block, and in no word of a process' block.
    /// A kernel address is its own word.
    const KERNEL: u64 = 1 << 63;
    /// The bit that is clear in the word of a percpu block, whose pointer may look like any other
    /// kernel address or be a small number. Every kernel address has the bit set, with 4 levels of
    /// page tables or 5.
    const NO_PERCPU: u64 = 1 << 62;
    /// Every space of a process image is below this number.
    pub const SPACES: u32 = 1 << (63 - Self::ADDRESS_BITS);

    /// Bits of the number of a pair of functions, see [`crate::PairCookie`].
    pub const PAIR_BITS: u32 = 3;
    /// Every space of a process image is below this number where leaktrace traces pairs of
    /// functions.
    pub const SPACES_OF_PAIRS: u32 = Self::SPACES >> Self::PAIR_BITS;
    /// Lowest bit of the pair's number in the word of a pair's key in the kernel.
    const KERNEL_PAIR_SHIFT: u32 = 59;

    /// The word of a key that a pair's function has given in a space. No block of the same session
    /// has this word: in a session that traces processes, the words of blocks have the highest bit
    /// clear; in one that traces the kernel, they have the bit set.
    #[inline(always)]
    pub const fn of_pair(key: AllocKey, pair: u32) -> u64 {
        if key.space == KERNEL_SPACE {
            let address = key.address & ((1 << Self::KERNEL_PAIR_SHIFT) - 1);
            return Self::NO_PERCPU | (pair as u64) << Self::KERNEL_PAIR_SHIFT | address;
        }
        let place = (key.space << Self::PAIR_BITS | pair) as u64;
        let address = key.address & ((1 << Self::ADDRESS_BITS) - 1);
        Self::KERNEL | place << Self::ADDRESS_BITS | address
    }

    /// The key of a word. `is_kernel` says whether the session traces the kernel or processes; the
    /// word may be a block's or a pair's.
    #[inline(always)]
    pub const fn key_in(word: u64, is_kernel: bool) -> AllocKey {
        match (word & Self::KERNEL != 0, is_kernel) {
            (true, false) => {
                let place = (word & !Self::KERNEL) >> Self::ADDRESS_BITS;
                let address = word & ((1 << Self::ADDRESS_BITS) - 1);
                AllocKey::new((place >> Self::PAIR_BITS) as u32, address)
            }
            (false, true) => {
                // As the address of a kernel is: its highest bit that is left, all above it.
                let unused = u64::BITS - Self::KERNEL_PAIR_SHIFT;
                AllocKey::new(KERNEL_SPACE, ((word << unused) as i64 >> unused) as u64)
            }
            _ => Self::key(word),
        }
    }

    /// The word of a block's key.
    #[inline(always)]
    pub const fn of(key: AllocKey) -> u64 {
        match key.space {
            PERCPU_SPACE => (key.address | Self::KERNEL) & !Self::NO_PERCPU,
            space => key.address ^ ((space as u64) << Self::ADDRESS_BITS),
        }
    }

    /// The key of a block's word.
    #[inline(always)]
    pub const fn key(word: u64) -> AllocKey {
        if word & Self::KERNEL == 0 {
            let space = (word >> Self::ADDRESS_BITS) as u32;
            return AllocKey::new(space, word & ((1 << Self::ADDRESS_BITS) - 1));
        }
        if word & Self::NO_PERCPU != 0 {
            return AllocKey::new(KERNEL_SPACE, word);
        }
        // A small number has no other high bit.
        let is_small = word & (Self::NO_PERCPU >> 1) == 0;
        let address = if is_small { word & !Self::KERNEL } else { word | Self::NO_PERCPU };
        AllocKey::new(PERCPU_SPACE, address)
    }

    /// The two buckets, out of `count`, in which a block may lie.
    #[inline(always)]
    pub const fn buckets(word: u64, count: u32) -> (u32, u32) {
        let first = crate::StackId::mix(0, word);
        let second = crate::StackId::mix(first, word);
        (Self::scaled(first, count), Self::scaled(second, count))
    }

    #[inline(always)]
    const fn scaled(hash: u64, count: u32) -> u32 {
        (((hash >> 32) * count as u64) >> 32) as u32
    }

    /// Number of buckets for `blocks` blocks. A full table uses five slots in eight; then some five
    /// blocks in a million find both their buckets full.
    pub const fn buckets_for(blocks: u32) -> u32 {
        (blocks as u64 * 8 / 5 / BUCKET_SLOTS as u64) as u32 + 2
    }

    /// Number of entries that `OVERFLOW` needs for the blocks that find both their buckets full.
    pub const fn overflow_for(blocks: u32) -> u32 {
        blocks / 64 + 16
    }
}

const _: () = assert!(size_of::<AllocKey>() == 16 && size_of::<Outstanding>() == 24);
const _: () = assert!(size_of::<Bucket>() == 256 && size_of::<VmallocCall>() == 40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_word() {
        for key in [
            AllocKey::new(KERNEL_SPACE, 0xffff_8880_0123_4560),
            AllocKey::new(KERNEL_SPACE, 0xff11_0000_0123_4560),
            AllocKey::new(PERCPU_SPACE, 0xffff_e8ff_0123_4560),
            AllocKey::new(PERCPU_SPACE, 0x0000_607f_8a01_2340),
            AllocKey::new(1, 0x7fff_ffff_f000),
            AllocKey::new(BlockWord::SPACES - 1, 16),
        ] {
            assert_eq!(BlockWord::key(BlockWord::of(key)), key);
        }
    }

    #[test]
    fn keys_of_pairs_survive_their_word() {
        let last = BlockWord::SPACES_OF_PAIRS - 1;
        for pair in 0..1 << BlockWord::PAIR_BITS {
            for key in [
                AllocKey::new(KERNEL_SPACE, 0xffff_8880_0123_4560),
                AllocKey::new(KERNEL_SPACE, 0xff11_0000_0123_4560),
                AllocKey::new(KERNEL_SPACE, 7),
                AllocKey::new(1, 0x7fff_ffff_f000),
                AllocKey::new(last, 0),
            ] {
                let is_kernel = key.space == KERNEL_SPACE;
                let word = BlockWord::of_pair(key, pair);
                assert_eq!(BlockWord::key_in(word, is_kernel), key, "{key:?} of {pair}");
                assert!(word > BlockWord::CLAIMED && word != BlockWord::of(key), "{key:?}");
            }
        }
        for key in [AllocKey::new(KERNEL_SPACE, 0xffff_8880_0123_4560), AllocKey::new(7, 16)] {
            let is_kernel = key.space == KERNEL_SPACE;
            assert_eq!(BlockWord::key_in(BlockWord::of(key), is_kernel), key);
        }
    }

    #[test]
    fn the_array_of_a_call_s_pages_is_known_by_its_size() {
        let block = Outstanding { size_bytes: 5 << 20, timestamp_ns: 0, site: 0, detail: 0 };
        let call = VmallocCall { block, stack_pointer: 800, caller: 7 };
        assert!(call.is_for(1280 * 8, 7, 400));
        // Huge pages: 6 MiB.
        assert!(call.is_for(1536 * 8, 7, 400));
        assert!(!call.is_for(1281 * 8, 7, 400));
        // Another caller's, and one that is made after a return that was not seen.
        assert!(!call.is_for(1280 * 8, 8, 400));
        assert!(!call.is_for(1280 * 8, 7, 800));
    }

    #[test]
    fn both_buckets_exist_and_differ_for_most() {
        let count = BlockWord::buckets_for(1000);
        let same = (0..1000_u64)
            .filter(|at| {
                let (first, second) = BlockWord::buckets(0xffff_8880_0000_0000 + at * 64, count);
                assert!(first < count && second < count);
                first == second
            })
            .count();
        assert!(same < 50, "{same} of 1000 have but one bucket of {count}");
    }
}
