//! The table of outstanding blocks: an array of buckets that the BPF programs and the loader share.
//!
//! The kernel's hash map costs 230 to 290 ns for an insert or a delete, and 88 bytes a block. In
//! this table an insert or a delete costs a few cache lines, and userspace reads all blocks without
//! a system call. A block has two buckets: it goes to the first one, or to the emptier one where
//! the first is crowded. The few blocks that find both full go to a hash map. A program claims a
//! slot by an atomic exchange, so there is no lock that it could be refused.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use leaktrace_common::{AllocKey, BUCKET_SLOTS, BlockWord, LossReason, Outstanding};

use crate::{
    atomic, counters, loss,
    maps::{BLOCKS, CURSORS, DISPLACED, EEXIST, OVERFLOW, config},
};

/// `-E2BIG`: a hash map is full.
const E2BIG: i32 = -7;
/// Index in [`CURSORS`] of the number of blocks in `OVERFLOW`.
const OVERFLOW_CURSOR: u32 = 2;
/// How often another CPU may win the slot before the block goes to `OVERFLOW`.
const CLAIMS: u32 = 2;

/// A bucket is crowded if its first free slot is this one or a later one. In a simulation with
/// random buckets and five slots in eight used, none of 250,000 blocks found both buckets full.
const CROWDED: u32 = 6;

/// Whether a block with this first bucket may lie in its second bucket.
#[inline(always)]
fn is_displaced(first: u32) -> bool {
    let Some(word) = DISPLACED.get_ptr(first / 64) else { return true };
    // SAFETY: a live map value; volatile, as other CPUs write it.
    unsafe { word.read_volatile() >> (first % 64) & 1 != 0 }
}

/// Notes that a block with this first bucket lies in its second bucket, or will.
#[inline(always)]
fn mark_displaced(first: u32) {
    if let Some(word) = DISPLACED.get_ptr_mut(first / 64) {
        // SAFETY: a live map value, aligned.
        unsafe { atomic::set(word, 1 << (first % 64)) };
    }
}

/// Adds a block. If a block is at that address already, a program has missed its free: the missed
/// free is counted and the old record replaced.
#[inline(always)]
pub(crate) fn insert(key: AllocKey, block: &Outstanding) -> Result<(), u32> {
    insert_word(BlockWord::of(key), block)
}

/// As [`insert`], by a [`BlockWord`].
#[inline(always)]
pub(crate) fn insert_word(word: u64, block: &Outstanding) -> Result<(), u32> {
    let who = u64::from(block.site) | u64::from(block.detail) << 32;
    match leaktrace_insert(word, block.size_bytes, block.timestamp_ns, who) {
        INSERTED => Ok(()),
        reason => Err(reason),
    }
}

/// The answer of [`leaktrace_insert`] when it had room; any other answer is a [`LossReason`].
const INSERTED: u32 = u32::MAX;

/// As [`insert`]; `who` holds the site in the low half and the process in the high half. Global and
/// not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_insert(word: u64, size_bytes: u64, timestamp_ns: u64, who: u64) -> u32 {
    let block =
        Outstanding { size_bytes, timestamp_ns, site: who as u32, detail: (who >> 32) as u32 };
    let (first, second) = BlockWord::buckets(word, config!(buckets));
    let mut in_first = Slots(leaktrace_find_slots(first, word));
    let mut in_second = Slots::NONE;
    if in_first.found() >= BUCKET_SLOTS && (in_first.free() >= CROWDED || is_displaced(first)) {
        in_second = Slots(leaktrace_find_slots(second, word));
    }
    let (bucket, slot) = if in_first.found() < BUCKET_SLOTS {
        (first, in_first.found())
    } else {
        (second, in_second.found())
    };
    if slot < BUCKET_SLOTS
        && let Some(found) = BLOCKS.get_ptr_mut(bucket)
    {
        // SAFETY: a live map value; the slot is below the number of slots.
        unsafe {
            let at = (&raw mut (*found).blocks).cast::<Outstanding>().add(slot as usize);
            let old = at.read_volatile();
            at.write_volatile(block);
            counters::count_missed_free(&old, timestamp_ns);
        }
        return INSERTED;
    }
    for claim in 0..CLAIMS {
        if claim > 0 {
            in_first = Slots(leaktrace_find_slots(first, word));
            in_second = Slots(leaktrace_find_slots(second, word));
        }
        // Slots are taken in order: the lower free one is in the emptier bucket.
        let (bucket, slot) = if in_first.free() < CROWDED || in_first.free() <= in_second.free() {
            (first, in_first.free())
        } else {
            // Before anybody can look for the block.
            mark_displaced(first);
            (second, in_second.free())
        };
        if slot >= BUCKET_SLOTS {
            break;
        }
        let Some(found) = BLOCKS.get_ptr_mut(bucket) else { break };
        // SAFETY: a live map value; the slot is below the number of slots, and this run's alone
        // once it is claimed. The key comes last: until then nobody finds the block.
        unsafe {
            let key = (&raw mut (*found).keys).cast::<u64>().add(bounded(slot));
            if atomic::exchange_if(key, BlockWord::FREE, BlockWord::CLAIMED) {
                let at = (&raw mut (*found).blocks).cast::<Outstanding>().add(bounded(slot));
                at.write_volatile(block);
                key.write_volatile(word);
                return INSERTED;
            }
        }
    }
    overflow(word, &block)
}

/// Puts a block into `OVERFLOW`; returns the same answers as [`leaktrace_insert`].
#[inline(always)]
fn overflow(word: u64, block: &Outstanding) -> u32 {
    let Some(count) = CURSORS.get_ptr_mut(OVERFLOW_CURSOR) else { return INSERTED };
    match OVERFLOW.insert(word, block, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            // SAFETY: a live map value.
            unsafe { atomic::add(count, 1) };
            INSERTED
        }
        Err(EEXIST) => {
            // SAFETY: copied at once.
            if let Some(old) = unsafe { OVERFLOW.get(word) }.copied() {
                counters::count_missed_free(&old, block.timestamp_ns);
            }
            match OVERFLOW.insert(word, block, u64::from(BPF_ANY)) {
                Ok(()) => INSERTED,
                Err(error) => refused(error),
            }
        }
        Err(E2BIG) => LossReason::OutstandingFull as u32,
        Err(error) => refused(error),
    }
}

/// The answer of [`leaktrace_insert`] where `OVERFLOW` refuses a block for another reason than its
/// size.
#[inline(always)]
fn refused(error: i32) -> u32 {
    loss::tell(LossReason::OutstandingRefused as u32, error.into());
    LossReason::OutstandingRefused as u32
}

/// Takes a block out of the table.
#[inline(always)]
pub(crate) fn take(key: AllocKey) -> Option<Outstanding> {
    take_word(BlockWord::of(key))
}

/// As [`take`], by a [`BlockWord`].
#[inline(always)]
pub(crate) fn take_word(word: u64) -> Option<Outstanding> {
    let (bucket, slot) = locate(word);
    if slot < BUCKET_SLOTS {
        let found = BLOCKS.get_ptr_mut(bucket)?;
        // SAFETY: a live map value; the slot is below the number of slots. The block is read
        // before its slot is let go, and only one run can let it go.
        unsafe {
            let at = (&raw mut (*found).blocks).cast::<Outstanding>().add(slot as usize);
            let block = at.read_volatile();
            let key = (&raw mut (*found).keys).cast::<u64>().add(slot as usize);
            return if atomic::exchange_if(key, word, BlockWord::FREE) {
                Some(block)
            } else {
                None
            };
        }
    }
    let count = CURSORS.get_ptr_mut(OVERFLOW_CURSOR)?;
    // SAFETY: a live map value; the record is copied before it is deleted.
    unsafe {
        if *count == 0 {
            return None;
        }
        let block = OVERFLOW.get(word).copied()?;
        if let Err(error) = OVERFLOW.remove(word) {
            loss::count_refusal(LossReason::DeleteRefused, error.into());
            return None;
        }
        atomic::add(count, u64::MAX);
        Some(block)
    }
}

/// Whether the table holds a block with this [`BlockWord`].
#[inline(always)]
pub(crate) fn has_word(word: u64) -> bool {
    if locate(word).1 < BUCKET_SLOTS {
        return true;
    }
    // SAFETY: live map values.
    unsafe {
        match CURSORS.get_ptr(OVERFLOW_CURSOR) {
            Some(count) if *count != 0 => OVERFLOW.get(word).is_some(),
            _ => false,
        }
    }
}

/// Bytes of the block at an address; 0 if there is none.
#[inline(always)]
pub(crate) fn size_at(key: AllocKey) -> u64 {
    let word = BlockWord::of(key);
    let (bucket, slot) = locate(word);
    if slot < BUCKET_SLOTS {
        let Some(found) = BLOCKS.get_ptr(bucket) else { return 0 };
        // SAFETY: a live map value; the slot is below the number of slots.
        return unsafe {
            let at = (&raw const (*found).blocks).cast::<Outstanding>().add(slot as usize);
            (&raw const (*at).size_bytes).read_volatile()
        };
    }
    // SAFETY: live map values, copied at once.
    unsafe {
        match CURSORS.get_ptr(OVERFLOW_CURSOR) {
            Some(count) if *count != 0 => OVERFLOW.get(word).map_or(0, |block| block.size_bytes),
            _ => 0,
        }
    }
}

/// The bucket and the slot that hold `word`; if none does, the slot is [`BUCKET_SLOTS`] or more.
#[inline(always)]
fn locate(word: u64) -> (u32, u32) {
    let place = leaktrace_locate(word);
    ((place >> 32) as u32, place as u32)
}

/// As [`locate`], with the bucket in the upper half of the result. Global and not inlined, so that
/// the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_locate(word: u64) -> u64 {
    let (first, second) = BlockWord::buckets(word, config!(buckets));
    let slot = find_slot(first, word);
    if slot < BUCKET_SLOTS || !is_displaced(first) {
        return u64::from(first) << 32 | u64::from(slot);
    }
    u64::from(second) << 32 | u64::from(find_slot(second, word))
}

/// The slot of a bucket that holds `word`; [`BUCKET_SLOTS`] or more if none does.
#[inline(always)]
fn find_slot(bucket: u32, word: u64) -> u32 {
    let Some(found) = BLOCKS.get_ptr(bucket) else { return BUCKET_SLOTS };
    let mut slot = 0;
    while slot < BUCKET_SLOTS {
        // SAFETY: a live map value; the slot is below the number of slots. Volatile, as other
        // CPUs write it.
        let key =
            unsafe { (&raw const (*found).keys).cast::<u64>().add(slot as usize).read_volatile() };
        if key == word {
            break;
        }
        slot += 1;
    }
    slot
}

/// The same slot number, in a form whose bound the verifier sees: LLVM would optimise a mask away.
#[inline(always)]
fn bounded(slot: u32) -> usize {
    const { assert!(BUCKET_SLOTS == 8) };
    let mut bounded = u64::from(slot);
    // SAFETY: changes the register alone.
    unsafe {
        core::arch::asm!("{0} &= 7", inout(reg) bounded, options(pure, nomem, nostack));
    }
    bounded as usize
}

/// The result of [`leaktrace_find_slots`].
#[derive(Clone, Copy)]
struct Slots(u32);

impl Slots {
    /// Neither slot was found.
    const NONE: Self = Self(BUCKET_SLOTS | BUCKET_SLOTS << 8);

    /// The slot that holds the word; [`BUCKET_SLOTS`] or more if none does.
    #[inline(always)]
    fn found(self) -> u32 {
        self.0 & 0xff
    }

    /// The first free slot; [`BUCKET_SLOTS`] or more if there is none.
    #[inline(always)]
    fn free(self) -> u32 {
        self.0 >> 8
    }
}

/// Finds both the slot that holds `word` and the first free slot, as [`Slots`] encodes them: one
/// look at the keys instead of two. Global and not inlined, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaktrace_find_slots(bucket: u32, word: u64) -> u32 {
    let Some(found) = BLOCKS.get_ptr(bucket) else { return Slots::NONE.0 };
    // SAFETY: a live map value, of which only the address is taken.
    let keys = unsafe { &raw const (*found).keys }.cast::<u64>();
    let (mut at, mut free) = (BUCKET_SLOTS, BUCKET_SLOTS);
    // From the last to the first, so that the lowest stays; unrolled.
    macro_rules! look {
        ($($slot:literal)*) => {$(
            // SAFETY: as in `find_slot`.
            let key = unsafe { keys.add($slot).read_volatile() };
            if key == word {
                at = $slot;
            } else if key == BlockWord::FREE {
                free = $slot;
            }
        )*};
    }
    look!(7 6 5 4 3 2 1 0);
    at | free << 8
}
