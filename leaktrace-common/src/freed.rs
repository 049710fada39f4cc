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
const FIRST_FREES: u32 = 64;
/// After those, one free in so many has its place noted.
const FREES_PER_NOTE: u32 = 64;

/// How many frees the `number`th free of a call site stands for; 0 if its place is not noted.
#[inline(always)]
pub const fn frees_noted(number: u32) -> u32 {
    if number < FIRST_FREES {
        1
    } else if number.is_multiple_of(FREES_PER_NOTE) {
        FREES_PER_NOTE
    } else {
        0
    }
}

const _: () = assert!(size_of::<FreePlace>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_stand_for_all_frees() {
        let noted: u32 = (0..64 * 1024).map(frees_noted).sum();
        assert_eq!(noted, 64 * 1024);
        assert_eq!((0..FIRST_FREES).map(frees_noted).max(), Some(1));
    }
}
