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

/// Blocks in one [`Bucket`].
pub const BUCKET_SLOTS: u32 = 8;

/// A bucket of the table of outstanding blocks.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// A [`BlockWord`] for each slot: one cache line, which most looks do not leave.
    pub keys: [u64; BUCKET_SLOTS as usize],
    /// The blocks.
    pub blocks: [Outstanding; BUCKET_SLOTS as usize],
}

/// An [`AllocKey`] in one word, as it stands in a [`Bucket`].
pub struct BlockWord;

impl BlockWord {
    /// No block is in the slot.
    pub const FREE: u64 = 0;
    /// A block is being written to the slot.
    pub const CLAIMED: u64 = 1;
    /// Bits of an address in a process; more are given only to a process that asks for them
    /// (Documentation/arch/x86/x86_64/5level-paging.rst).
    const ADDRESS_BITS: u32 = 47;
    /// Set in the word of every kernel address, and in no other: they are their own words.
    const KERNEL: u64 = 1 << 63;
    /// Not set in the word of a percpu block, whose pointer may look like any other kernel
    /// address or be a small number; set in every kernel address, with 4 levels of pages or 5.
    const NO_PERCPU: u64 = 1 << 62;
    /// Spaces are below this.
    pub const SPACES: u32 = 1 << (63 - Self::ADDRESS_BITS);

    /// The word of a key.
    #[inline(always)]
    pub const fn of(key: AllocKey) -> u64 {
        match key.space {
            PERCPU_SPACE => (key.address | Self::KERNEL) & !Self::NO_PERCPU,
            space => key.address ^ ((space as u64) << Self::ADDRESS_BITS),
        }
    }

    /// The key of a word.
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

    /// The two buckets, of so many, in which a block may lie.
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

    /// Buckets for so many blocks: five slots in eight are used when all are there, so that
    /// some five in a million find both their buckets full.
    pub const fn buckets_for(blocks: u32) -> u32 {
        (blocks as u64 * 8 / 5 / BUCKET_SLOTS as u64) as u32 + 2
    }

    /// Room for those that do.
    pub const fn overflow_for(blocks: u32) -> u32 {
        blocks / 64 + 16
    }
}

const _: () = assert!(size_of::<AllocKey>() == 16 && size_of::<Outstanding>() == 24);
const _: () = assert!(size_of::<Bucket>() == 256);

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
