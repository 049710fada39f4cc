//! Where blocks are freed: the return addresses of calls that free, for some of the frees of each
//! call site.

/// A place that frees blocks of a call site.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FreePlace {
    /// Index of the record of the call site that allocated the blocks.
    pub site: u32,
    /// As [`crate::SiteKey::generation`], of `address`.
    pub generation: u32,
    /// Return address of the call that freed them.
    pub address: u64,
}

/// Frees of a call site that have their place noted before only some have.
const FIRST_FREES: u64 = 64;
/// After those, one free in so many has its place noted; a power of two.
const FREES_PER_NOTE: u64 = 64;

/// How many frees the `number`th free of a call site stands for; 0 if its place is not noted.
///
/// Without a branch, as the verifier would follow both ways after each way that led here.
#[inline(always)]
pub const fn frees_noted(number: u32) -> u32 {
    let number = number as u64;
    // The highest bit of a difference of small numbers is that of its sign.
    let is_first = number.wrapping_sub(FIRST_FREES) >> 63;
    let is_due = (number & (FREES_PER_NOTE - 1)).wrapping_sub(1) >> 63;
    (is_first | (is_due & (is_first ^ 1)) << FREES_PER_NOTE.trailing_zeros()) as u32
}

const _: () = assert!(size_of::<FreePlace>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_stand_for_all_frees() {
        let noted: u32 = (0..64 * 1024).map(frees_noted).sum();
        assert_eq!(noted, 64 * 1024);
        assert_eq!((0..FIRST_FREES as u32).map(frees_noted).max(), Some(1));
    }
}
