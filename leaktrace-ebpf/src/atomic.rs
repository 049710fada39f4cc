//! Atomic additions and exchanges; the methods of `AtomicU64` do not exist for the BPF target.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_or, atomic_xadd};

/// Adds to a counter in a map value.
///
/// # Safety
///
/// `counter` points into a live map value and is aligned.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, amount) };
}

/// Adds to a counter in a map value; returns the value that the counter had before.
///
/// The operation is sequentially consistent: LLVM 22 compiles a relaxed addition to an instruction
/// that does not fetch, even where its result is used.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn fetch_add(counter: *mut u64, amount: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(counter, amount) }
}

/// Replaces a word if it equals `old`; returns whether it did.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn exchange_if(word: *mut u64, old: u64, new: u64) -> bool {
    const ORDER: AtomicOrdering = AtomicOrdering::SeqCst;
    // SAFETY: the caller's promise.
    unsafe { atomic_cxchg::<u64, ORDER, ORDER>(word, old, new) }.0 == old
}

/// Sets bits of a word.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn set(word: *mut u64, bits: u64) {
    // SAFETY: the caller's promise.
    unsafe { atomic_or::<u64, u64, { AtomicOrdering::Relaxed }>(word, bits) };
}
