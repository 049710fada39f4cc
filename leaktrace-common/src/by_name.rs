//! Pairs of functions that are traced by their names (`--pair`): one acquires something, the other
//! releases it.

/// Pairs that can be traced at once.
pub const PAIRS_MOST: usize = 1 << crate::BlockWord::PAIR_BITS;
/// Acquiring functions of all pairs together.
pub const ACQUIRERS_MOST: usize = 1 << INDEX_BITS;
/// Arguments that a function can be asked for: those in registers.
pub const ARGUMENTS_MOST: u8 = 6;

/// What a pair's objects are known by, at one of its functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PairKey {
    /// What the function returns.
    Result,
    /// One of its arguments, from 1 on.
    Argument(u8),
    /// What it writes to where this argument points.
    Out(u8),
}

/// By what result a function says that it has acquired something.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Success {
    /// By any.
    Any = 0,
    /// By 0, as an `int`.
    Zero = 1,
    /// By anything but 0, as an `int`.
    NonZero = 2,
    /// By true, as a `bool`, of which the lowest byte alone is defined.
    True = 3,
    /// By 0 or more, as an `int`.
    NonNegative = 4,
}

/// What the programs know a probe of a pair by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PairCookie(pub u32);

const INDEX_BITS: u32 = 6;
const KEY_SHIFT: u32 = INDEX_BITS;
const SUCCESS_SHIFT: u32 = KEY_SHIFT + 4;
const SIZE_SHIFT: u32 = SUCCESS_SHIFT + 3;
const COUNT_SHIFT: u32 = SIZE_SHIFT + 3;
const PAIR_SHIFT: u32 = COUNT_SHIFT + 3;
const STAYS_SHIFT: u32 = PAIR_SHIFT + crate::BlockWord::PAIR_BITS;
const NUMBER_SHIFT: u32 = STAYS_SHIFT + 1;
const NESTS_SHIFT: u32 = NUMBER_SHIFT + 1;
/// Set with an argument's number where the key lies behind it.
const OUT: u32 = 8;

impl PairCookie {
    /// A function of the pair with this number, and what its objects are known by there.
    pub const fn new(pair: u32, key: PairKey) -> Self {
        let key = match key {
            PairKey::Result => 0,
            PairKey::Argument(number) => number as u32,
            PairKey::Out(number) => OUT | number as u32,
        };
        Self(pair << PAIR_SHIFT | key << KEY_SHIFT)
    }

    /// The same with the number of an acquiring function, and how it says that it has succeeded.
    #[must_use]
    pub const fn acquiring(self, index: u32, success: Success) -> Self {
        Self(self.0 | index | (success as u32) << SUCCESS_SHIFT)
    }

    /// The same where one argument is the size in bytes, or two are its factors; 0 for none.
    #[must_use]
    pub const fn sized(self, size: u8, count: u8) -> Self {
        Self(self.0 | (size as u32) << SIZE_SHIFT | (count as u32) << COUNT_SHIFT)
    }

    /// The same where the return address has to stay what it is, as exceptions may pass: the return
    /// instructions have probes instead.
    #[must_use]
    pub const fn staying(self) -> Self {
        Self(self.0 | 1 << STAYS_SHIFT)
    }

    /// The same where keys are numbers, of which 32 bits are defined and 0 is one.
    #[must_use]
    pub const fn numbered(self) -> Self {
        Self(self.0 | 1 << NUMBER_SHIFT)
    }

    /// The same with the number of one of several releasing functions of a pair: a call of another one
    /// within it is part of it.
    #[must_use]
    pub const fn nesting(self, index: u32) -> Self {
        Self(self.0 | 1 << NESTS_SHIFT | index)
    }

    /// Which acquiring function of all pairs it is, or which releasing one of its pair.
    pub const fn index(self) -> u32 {
        self.0 & ((1 << INDEX_BITS) - 1)
    }

    /// Which pair it is.
    pub const fn pair(self) -> u32 {
        self.0 >> PAIR_SHIFT & ((1 << crate::BlockWord::PAIR_BITS) - 1)
    }

    /// Whether the result is the key.
    pub const fn is_result(self) -> bool {
        self.key() == 0
    }

    /// Whether the key lies where an argument points.
    pub const fn is_out(self) -> bool {
        self.key() & OUT != 0
    }

    /// The argument that is the key, or points to it; 0 if the result is.
    pub const fn key_argument(self) -> u32 {
        self.key() & (OUT - 1)
    }

    /// A [`Success`].
    pub const fn success(self) -> u32 {
        self.0 >> SUCCESS_SHIFT & 7
    }

    /// The argument that is the size; 0 if none is.
    pub const fn size_argument(self) -> u32 {
        self.0 >> SIZE_SHIFT & 7
    }

    /// The argument that the size is to be multiplied by; 0 if there is none.
    pub const fn count_argument(self) -> u32 {
        self.0 >> COUNT_SHIFT & 7
    }

    /// Whether the return address stays what it is.
    pub const fn stays(self) -> bool {
        self.0 >> STAYS_SHIFT & 1 != 0
    }

    /// Whether keys are numbers.
    pub const fn is_number(self) -> bool {
        self.0 >> NUMBER_SHIFT & 1 != 0
    }

    /// Whether other releasing functions of the pair may be called within this one.
    pub const fn nests(self) -> bool {
        self.0 >> NESTS_SHIFT & 1 != 0
    }

    const fn key(self) -> u32 {
        self.0 >> KEY_SHIFT & 15
    }

    /// Whether something of this key has been acquired: NULL and -1 are no pointers, nor are the
    /// last 4095 addresses (`IS_ERR`, include/linux/err.h).
    #[inline(always)]
    pub const fn is_key(self, key: u64) -> bool {
        const ERRORS: u64 = 4095;
        if self.is_number() {
            return true;
        }
        // -1 of an `int` may come without its upper half.
        key != 0 && key != u32::MAX as u64 && key < ERRORS.wrapping_neg()
    }

    /// The key as it is compared.
    #[inline(always)]
    pub const fn defined(self, key: u64) -> u64 {
        if self.is_number() { key as u32 as u64 } else { key }
    }

    /// Whether a result says that something has been acquired.
    #[inline(always)]
    pub const fn has_succeeded(self, result: u64) -> bool {
        match self.success() {
            success if success == Success::Zero as u32 => result as u32 == 0,
            success if success == Success::NonZero as u32 => result as u32 != 0,
            success if success == Success::True as u32 => result as u8 != 0,
            success if success == Success::NonNegative as u32 => result as i32 >= 0,
            _ => true,
        }
    }
}

/// Acquiring calls inside each other that are followed in one thread; a power of two.
pub const PAIR_DEPTH: usize = 16;

/// A call of an acquiring function that has not returned yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairCall {
    /// Stack pointer at the function's entry.
    pub stack_pointer: u64,
    /// Return address of the call; 0 if it has not been read.
    pub caller: u64,
    /// Size in bytes, 0 where none is asked for.
    pub size_bytes: u64,
    /// A [`crate::StackId`] or one of its special values.
    pub stack: u64,
    /// The argument that is the key, or points to it.
    pub argument: u64,
    /// What a call of the same pair within this one has given last; 0 if none has.
    pub given: u64,
    /// A [`PairCookie`].
    pub cookie: u32,
    /// Always zero.
    pub zero: u32,
}

/// A call of a releasing function within which others of its pair may be called.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairRelease {
    /// Stack pointer at the function's entry; 0 if there is none.
    pub stack_pointer: u64,
    /// Return address of the call.
    pub caller: u64,
    /// The key that it releases.
    pub key: u64,
    /// A [`PairCookie`].
    pub cookie: u32,
    /// Space of the process image that made the call.
    pub space: u32,
}

/// The calls of a thread that have not returned, the outermost first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairCalls {
    /// How many there are.
    pub depth: u32,
    /// Space of the process image that made them.
    pub space: u32,
    /// The releasing call.
    pub release: PairRelease,
    /// Those of acquiring functions.
    pub calls: [PairCall; PAIR_DEPTH],
}

impl PairCalls {
    /// The slot of a thread that has made no call yet.
    pub const IDLE: Self = Self {
        depth: 0,
        space: 0,
        release: PairRelease { stack_pointer: 0, caller: 0, key: 0, cookie: 0, space: 0 },
        calls: [PairCall {
            stack_pointer: 0,
            caller: 0,
            size_bytes: 0,
            stack: 0,
            argument: 0,
            given: 0,
            cookie: 0,
            zero: 0,
        }; PAIR_DEPTH],
    };
}

/// Where a key that was acquired once more is kept.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AgainKey {
    /// A [`crate::BlockWord`].
    pub word: u64,
    /// How many times it was held before, less one.
    pub level: u32,
    /// Always zero.
    pub zero: u32,
}

/// A call of an acquiring function of the kernel that has not returned yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelPairCall {
    /// What it asks for, when, and where.
    pub block: crate::Outstanding,
    /// The argument that is the key, or points to it.
    pub argument: u64,
    /// A [`PairCookie`].
    pub cookie: u32,
    /// Always zero.
    pub zero: u32,
}

const _: () = assert!(size_of::<PairCall>() == 6 * 8 + 8 && size_of::<PairRelease>() == 32);
const _: () = assert!(size_of::<PairCalls>() == 8 + 32 + PAIR_DEPTH * size_of::<PairCall>());
const _: () = assert!(size_of::<AgainKey>() == 16 && size_of::<KernelPairCall>() == 40);
const _: () = assert!(NESTS_SHIFT < 32 && PAIR_DEPTH.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_survives_its_cookie() {
        let keys = [PairKey::Result, PairKey::Argument(6), PairKey::Out(2), PairKey::Argument(1)];
        for (pair, key) in (0..PAIRS_MOST as u32).zip(keys.into_iter().cycle()) {
            let cookie = PairCookie::new(pair, key).acquiring(63, Success::True).sized(6, 5);
            assert_eq!((cookie.pair(), cookie.index()), (pair, 63));
            assert_eq!((cookie.size_argument(), cookie.count_argument()), (6, 5));
            assert_eq!(cookie.success(), Success::True as u32);
            assert_eq!(cookie.is_result(), key == PairKey::Result);
            assert_eq!(cookie.is_out(), key == PairKey::Out(2));
            let flags = |cookie: PairCookie| (cookie.stays(), cookie.is_number(), cookie.nests());
            assert_eq!(flags(cookie), (false, false, false));
            assert_eq!(flags(cookie.staying()), (true, false, false));
            assert_eq!(flags(cookie.numbered()), (false, true, false));
            assert_eq!(flags(cookie.nesting(0)), (false, false, true));
        }
        assert_eq!(PairCookie::new(7, PairKey::Out(3)).key_argument(), 3);
    }

    #[test]
    fn null_and_errors_are_no_keys() {
        let pointer = PairCookie::new(0, PairKey::Result);
        for error in [0, u64::MAX, u64::from(u32::MAX), (-12_i64) as u64, (-4095_i64) as u64] {
            assert!(!pointer.is_key(error), "{error:#x}");
        }
        assert!(pointer.is_key(1) && pointer.is_key((-4096_i64) as u64));
        let number = pointer.numbered().acquiring(0, Success::NonNegative);
        assert!(number.is_key(0) && !number.has_succeeded(0xffff_ffff));
        assert_eq!(number.defined(0xff00_0000_0003), 3);
    }

    #[test]
    fn a_result_says_whether_a_call_has_succeeded() {
        let of = |success| PairCookie::new(1, PairKey::Argument(1)).acquiring(2, success);
        assert!(of(Success::Any).has_succeeded(u64::MAX));
        // The upper half of an `int` is not defined, nor are all but one byte of a `bool`.
        assert!(of(Success::Zero).has_succeeded(1 << 32) && !of(Success::Zero).has_succeeded(1));
        assert!(of(Success::NonZero).has_succeeded(256) && !of(Success::True).has_succeeded(256));
        assert!(!of(Success::NonNegative).has_succeeded(0x8000_0000));
    }
}
