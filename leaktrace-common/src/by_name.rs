//! Pairs of functions that are traced by their names (`--pair`): one acquires something, the other
//! releases it.

/// Most pairs that one session can trace.
pub const PAIRS_MOST: usize = 1 << crate::BlockWord::PAIR_BITS;
/// Most acquiring functions, over all pairs.
pub const ACQUIRERS_MOST: usize = 1 << INDEX_BITS;
/// Highest argument number that a pair can name: the calling convention passes six in registers.
pub const ARGUMENTS_MOST: u8 = 6;

/// The value that identifies a pair's object at one of the pair's functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PairKey {
    /// The value that the function returns.
    Result,
    /// One of its arguments, from 1 on.
    Argument(u8),
    /// The value that the function writes to the address in this argument.
    Out(u8),
}

/// The results by which a function says that it has acquired something.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Success {
    /// Every result means success.
    Any = 0,
    /// 0 means success; the result is an `int`.
    Zero = 1,
    /// Everything but 0 means success; the result is an `int`.
    NonZero = 2,
    /// True means success; the result is a `bool`, of which only the lowest byte is defined.
    True = 3,
    /// 0 or more means success; the result is an `int`.
    NonNegative = 4,
}

/// The attach cookie of a pair's probe: it tells the BPF programs what the probed function does.
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
const THROWS_SHIFT: u32 = NESTS_SHIFT + 1;
/// Set above an argument's number where the argument points to the key.
const OUT: u32 = 8;

impl PairCookie {
    /// The cookie of a function of pair number `pair`, whose objects are identified by `key`.
    pub const fn new(pair: u32, key: PairKey) -> Self {
        let key = match key {
            PairKey::Result => 0,
            PairKey::Argument(number) => number as u32,
            PairKey::Out(number) => OUT | number as u32,
        };
        Self(pair << PAIR_SHIFT | key << KEY_SHIFT)
    }

    /// Adds the index of an acquiring function, and the results by which it reports success.
    #[must_use]
    pub const fn acquiring(self, index: u32, success: Success) -> Self {
        Self(self.0 | index | (success as u32) << SUCCESS_SHIFT)
    }

    /// Adds the arguments that give the size: `size` holds bytes, or `size` and `count` are the
    /// factors of a product. 0 stands for no argument.
    #[must_use]
    pub const fn sized(self, size: u8, count: u8) -> Self {
        Self(self.0 | (size as u32) << SIZE_SHIFT | (count as u32) << COUNT_SHIFT)
    }

    /// Marks a function whose return address stays in place. leaktrace probes the function's return
    /// instructions instead, which hinder neither exceptions nor changes of the stack.
    #[must_use]
    pub const fn staying(self) -> Self {
        Self(self.0 | 1 << STAYS_SHIFT)
    }

    /// Marks a function that exceptions leave: a call that does not return has thrown, and has failed.
    #[must_use]
    pub const fn throwing(self) -> Self {
        Self(self.0 | 1 << THROWS_SHIFT)
    }

    /// Marks a function whose keys are numbers: 32 bits of a key are defined, and 0 is a valid key.
    #[must_use]
    pub const fn numbered(self) -> Self {
        Self(self.0 | 1 << NUMBER_SHIFT)
    }

    /// Adds the index of a releasing function of a pair that has several. When one such function
    /// calls another, both calls are one release.
    #[must_use]
    pub const fn nesting(self, index: u32) -> Self {
        Self(self.0 | 1 << NESTS_SHIFT | index)
    }

    /// The index of an acquiring function among all pairs', or of a releasing function in its pair.
    pub const fn index(self) -> u32 {
        self.0 & ((1 << INDEX_BITS) - 1)
    }

    /// The pair's number.
    pub const fn pair(self) -> u32 {
        self.0 >> PAIR_SHIFT & ((1 << crate::BlockWord::PAIR_BITS) - 1)
    }

    /// Whether it is as another one, but for its number.
    pub const fn is_as(self, other: Self) -> bool {
        (self.0 ^ other.0) >> INDEX_BITS == 0
    }

    /// Whether the function's result is the key.
    pub const fn is_result(self) -> bool {
        self.key() == 0
    }

    /// Whether an argument points to the key.
    pub const fn is_out(self) -> bool {
        self.key() & OUT != 0
    }

    /// The number of the argument that is the key or points to it; 0 if the result is the key.
    pub const fn key_argument(self) -> u32 {
        self.key() & (OUT - 1)
    }

    /// The [`Success`] of an acquiring function, as its number.
    pub const fn success(self) -> u32 {
        self.0 >> SUCCESS_SHIFT & 7
    }

    /// The number of the argument that gives the size; 0 if none does.
    pub const fn size_argument(self) -> u32 {
        self.0 >> SIZE_SHIFT & 7
    }

    /// The number of the argument by which the size is multiplied; 0 if there is none.
    pub const fn count_argument(self) -> u32 {
        self.0 >> COUNT_SHIFT & 7
    }

    /// Whether the function's return address must stay in place, see [`Self::staying`].
    pub const fn stays(self) -> bool {
        self.0 >> STAYS_SHIFT & 1 != 0
    }

    /// Whether exceptions leave the function, see [`Self::throwing`].
    pub const fn throws(self) -> bool {
        self.0 >> THROWS_SHIFT & 1 != 0
    }

    /// Whether the function's keys are numbers, see [`Self::numbered`].
    pub const fn is_number(self) -> bool {
        self.0 >> NUMBER_SHIFT & 1 != 0
    }

    /// Whether this releasing function may call other ones of its pair, see [`Self::nesting`].
    pub const fn nests(self) -> bool {
        self.0 >> NESTS_SHIFT & 1 != 0
    }

    const fn key(self) -> u32 {
        self.0 >> KEY_SHIFT & 15
    }

    /// Whether `key` can identify an acquired object. NULL, -1 and the last 4095 addresses
    /// (`IS_ERR`, include/linux/err.h) are no pointers.
    #[inline(always)]
    pub const fn is_key(self, key: u64) -> bool {
        const ERRORS: u64 = 4095;
        if self.is_number() {
            return true;
        }
        // -1 of an `int` may come without its upper half.
        key != 0 && key != u32::MAX as u64 && key < ERRORS.wrapping_neg()
    }

    /// The defined bits of `key`, by which keys are compared.
    #[inline(always)]
    pub const fn defined(self, key: u64) -> u64 {
        if self.is_number() { key as u32 as u64 } else { key }
    }

    /// Whether `result` says that the function has acquired something.
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

/// Most nested acquiring calls of one thread that leaktrace follows; a power of two.
pub const PAIR_DEPTH: usize = 16;

/// A call of an acquiring function that has not returned yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairCall {
    /// Stack pointer at the function's entry.
    pub stack_pointer: u64,
    /// Return address of the call; 0 if it has not been read.
    pub caller: u64,
    /// Size in bytes; 0 where the function takes no size.
    pub size_bytes: u64,
    /// A [`crate::StackId`] or one of its special values.
    pub stack: u64,
    /// The argument that is the key, or points to it.
    pub argument: u64,
    /// The key that the last call of the same pair inside this one has given; 0 if none has.
    pub given: u64,
    /// A [`PairCookie`].
    pub cookie: u32,
    /// Always zero.
    pub zero: u32,
}

/// A call of a releasing function that may call other releasing functions of its pair.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairRelease {
    /// Stack pointer at the function's entry; 0 if there is none.
    pub stack_pointer: u64,
    /// Return address of the call.
    pub caller: u64,
    /// The key that the call releases.
    pub key: u64,
    /// A [`PairCookie`].
    pub cookie: u32,
    /// Space of the process image that made the call.
    pub space: u32,
}

/// The unfinished calls of one thread, the outermost first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairCalls {
    /// Number of unfinished calls of acquiring functions.
    pub depth: u32,
    /// Space of the process image that made the calls.
    pub space: u32,
    /// The unfinished releasing call.
    pub release: PairRelease,
    /// The unfinished calls of acquiring functions.
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

/// Identifies a further acquisition of a key that was held already, in `PAIR_AGAIN`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AgainKey {
    /// The [`crate::BlockWord`] of the key.
    pub word: u64,
    /// Number of times that the key was held before this acquisition, less one.
    pub level: u32,
    /// Always zero.
    pub zero: u32,
}

/// A call of an acquiring function of the kernel that has not returned yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelPairCall {
    /// Size, time and site of the acquisition.
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
const _: () = assert!(THROWS_SHIFT < 32 && PAIR_DEPTH.is_power_of_two());

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
            assert!(cookie.staying().throwing().throws() && !cookie.staying().throws());
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
