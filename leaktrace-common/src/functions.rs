//! The functions of allocators that leaktrace knows, and how they take their arguments.

/// What a function takes as arguments, and what it does with them.
///
/// `a`, `b` and `c` stand for consecutive arguments, from [`Shape::first`] on.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// A size in `a`.
    Size = 1,
    /// A number of elements in `a`, the size of each in `b`.
    CountSize = 2,
    /// An old block in `a`, its new size in `b`; on failure the old block stays.
    Resize = 3,
    /// As [`Self::Resize`], but on failure the old block is freed.
    ResizeOrFree = 4,
    /// An old block in `a`, a number of elements in `b`, the size of each in `c`.
    ResizeArray = 5,
    /// A block in `a`, its new size in `b`. The function leaves the block where it is and returns
    /// the size that the block then has.
    ResizeInPlace = 6,
    /// The address to write the result to in `a`, the size in `c`; the function returns an error
    /// number.
    Out = 7,
    /// A block in `a`, which the function frees.
    Free = 8,
}

impl Takes {
    /// Which of `a`, `b` and `c` the function reads, as offsets from [`Shape::first`].
    pub const fn arguments(self) -> &'static [u8] {
        match self {
            Self::Size | Self::Free => &[0],
            Self::CountSize | Self::Resize | Self::ResizeOrFree | Self::ResizeInPlace => &[0, 1],
            Self::ResizeArray => &[0, 1, 2],
            Self::Out => &[0, 2],
        }
    }
}

/// How a function's arguments lie in registers at the address of its probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What the function takes.
    pub takes: Takes,
    /// Number of the register that holds `a`: 0 is rdi, 1 is rsi; the others follow in the order of
    /// the ABI.
    pub first: u8,
    /// Whether the stack pointer has moved there, so that it does not point to the return address.
    pub has_moved: bool,
}

/// A function of an allocator, as its row in the list of known functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocFunction(u16);

impl AllocFunction {
    /// All known functions.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..ROWS.len() as u16).map(Self)
    }

    /// The function with this symbol, if it is known.
    pub fn of_symbol(symbol: &str) -> Option<Self> {
        Self::all().find(|function| function.symbol() == symbol)
    }

    /// The function's symbol, without the prefix of a prefixed build.
    pub fn symbol(self) -> &'static str {
        self.row().0
    }

    /// The function's name in reports, as source code writes it.
    pub fn name(self) -> &'static str {
        match self.symbol() {
            operator if operator.starts_with("_Zna") => "operator new[]",
            operator if operator.starts_with("_Znw") => "operator new",
            operator if operator.starts_with("_Zd") => "operator delete",
            symbol => symbol,
        }
    }

    /// How the function takes its arguments at its entry.
    pub fn shape(self) -> Shape {
        let (_, takes, first) = self.row();
        Shape { takes, first, has_moved: false }
    }

    /// Whether the function is a mangled C++ operator; no build prefixes those.
    pub fn is_operator(self) -> bool {
        self.symbol().starts_with("_Z")
    }

    /// Whether the function throws an exception where it fails.
    pub fn throws(self) -> bool {
        let symbol = self.symbol();
        let is_new = ["_Znw", "_Zna", "mi_new", "mi_heap_alloc_new"];
        is_new.into_iter().any(|new| symbol.starts_with(new)) && !symbol.contains("nothrow")
    }

    /// The attach cookie of a probe: it tells the BPF programs the function and how its arguments
    /// lie at the probe's address.
    pub fn cookie(self, shape: Shape) -> u32 {
        let throws = u32::from(self.throws()) << THROWS_SHIFT;
        let moved = u32::from(shape.has_moved) << MOVED_SHIFT;
        let arguments = (shape.takes as u32) << 16 | u32::from(shape.first) << 24;
        u32::from(self.0) | arguments | throws | moved
    }

    /// The function in a [`Self::cookie`].
    pub fn of_cookie(cookie: u64) -> Option<Self> {
        let index = cookie as u16;
        (usize::from(index) < ROWS.len()).then_some(Self(index))
    }

    fn row(self) -> (&'static str, Takes, u8) {
        ROWS.get(usize::from(self.0)).copied().unwrap_or(("", Takes::Free, 0))
    }
}

/// The [`Takes`] in a probe's [`AllocFunction::cookie`], as its number.
pub const fn cookie_takes(cookie: u64) -> u64 {
    cookie >> 16 & 0xff
}

/// The [`Shape::first`] in a probe's [`AllocFunction::cookie`].
pub const fn cookie_first(cookie: u64) -> u64 {
    cookie >> 24 & 0xf
}

/// The [`AllocFunction::throws`] in a probe's [`AllocFunction::cookie`].
pub const fn cookie_throws(cookie: u64) -> bool {
    cookie >> THROWS_SHIFT & 1 != 0
}

/// The [`Shape::has_moved`] in a probe's [`AllocFunction::cookie`].
pub const fn cookie_has_moved(cookie: u64) -> bool {
    cookie >> MOVED_SHIFT & 1 != 0
}

const THROWS_SHIFT: u32 = 28;
const MOVED_SHIFT: u32 = 29;

use Takes::{CountSize, Free, Out, Resize, ResizeArray, ResizeInPlace, ResizeOrFree, Size};

/// Each row: symbol, what the function takes, and [`Shape::first`]. Where a function has two names,
/// the first row counts.
const ROWS: &[(&str, Takes, u8)] = &[
    // C, POSIX and what C libraries add.
    ("malloc", Size, 0),
    ("calloc", CountSize, 0),
    ("realloc", Resize, 0),
    ("reallocarray", ResizeArray, 0),
    ("posix_memalign", Out, 0),
    ("aligned_alloc", Size, 1),
    ("memalign", Size, 1),
    ("valloc", Size, 0),
    ("pvalloc", Size, 0),
    ("reallocf", ResizeOrFree, 0),
    ("free", Free, 0),
    ("cfree", Free, 0),
    ("free_sized", Free, 0),
    ("free_aligned_sized", Free, 0),
    // C++: operator new and new[], plain, nothrow, aligned, both.
    ("_Znwm", Size, 0),
    ("_ZnwmRKSt9nothrow_t", Size, 0),
    ("_ZnwmSt11align_val_t", Size, 0),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t", Size, 0),
    ("_Znam", Size, 0),
    ("_ZnamRKSt9nothrow_t", Size, 0),
    ("_ZnamSt11align_val_t", Size, 0),
    ("_ZnamSt11align_val_tRKSt9nothrow_t", Size, 0),
    // operator delete and delete[]: plain, nothrow, sized, aligned, and mixtures of them.
    ("_ZdlPv", Free, 0),
    ("_ZdlPvRKSt9nothrow_t", Free, 0),
    ("_ZdlPvm", Free, 0),
    ("_ZdlPvSt11align_val_t", Free, 0),
    ("_ZdlPvSt11align_val_tRKSt9nothrow_t", Free, 0),
    ("_ZdlPvmSt11align_val_t", Free, 0),
    ("_ZdaPv", Free, 0),
    ("_ZdaPvRKSt9nothrow_t", Free, 0),
    ("_ZdaPvm", Free, 0),
    ("_ZdaPvSt11align_val_t", Free, 0),
    ("_ZdaPvSt11align_val_tRKSt9nothrow_t", Free, 0),
    ("_ZdaPvmSt11align_val_t", Free, 0),
    // jemalloc's own; the size that xallocx may reach beyond what is asked for is not counted.
    ("mallocx", Size, 0),
    ("rallocx", Resize, 0),
    ("xallocx", ResizeInPlace, 0),
    ("dallocx", Free, 0),
    ("sdallocx", Free, 0),
    // mimalloc's own, beside the family with its prefix.
    ("mi_malloc_small", Size, 0),
    ("mi_zalloc", Size, 0),
    ("mi_zalloc_small", Size, 0),
    ("mi_mallocn", CountSize, 0),
    ("mi_reallocn", ResizeArray, 0),
    ("mi_rezalloc", Resize, 0),
    ("mi_recalloc", ResizeArray, 0),
    ("mi_malloc_aligned", Size, 0),
    ("mi_malloc_aligned_at", Size, 0),
    ("mi_zalloc_aligned", Size, 0),
    ("mi_zalloc_aligned_at", Size, 0),
    ("mi_calloc_aligned", CountSize, 0),
    ("mi_calloc_aligned_at", CountSize, 0),
    ("mi_realloc_aligned", Resize, 0),
    ("mi_realloc_aligned_at", Resize, 0),
    ("mi_rezalloc_aligned", Resize, 0),
    ("mi_rezalloc_aligned_at", Resize, 0),
    ("mi_recalloc_aligned", ResizeArray, 0),
    ("mi_recalloc_aligned_at", ResizeArray, 0),
    ("mi_new", Size, 0),
    ("mi_new_nothrow", Size, 0),
    ("mi_new_aligned", Size, 0),
    ("mi_new_aligned_nothrow", Size, 0),
    ("mi_new_n", CountSize, 0),
    ("mi_new_realloc", Resize, 0),
    ("mi_new_reallocn", ResizeArray, 0),
    ("mi_free_size", Free, 0),
    ("mi_free_size_aligned", Free, 0),
    ("mi_free_aligned", Free, 0),
    // The same of a heap, which is their first argument.
    ("mi_heap_malloc", Size, 1),
    ("mi_heap_malloc_small", Size, 1),
    ("mi_heap_zalloc", Size, 1),
    ("mi_heap_calloc", CountSize, 1),
    ("mi_heap_mallocn", CountSize, 1),
    ("mi_heap_realloc", Resize, 1),
    ("mi_heap_reallocf", ResizeOrFree, 1),
    ("mi_heap_reallocn", ResizeArray, 1),
    ("mi_heap_rezalloc", Resize, 1),
    ("mi_heap_recalloc", ResizeArray, 1),
    ("mi_heap_malloc_aligned", Size, 1),
    ("mi_heap_malloc_aligned_at", Size, 1),
    ("mi_heap_zalloc_aligned", Size, 1),
    ("mi_heap_zalloc_aligned_at", Size, 1),
    ("mi_heap_calloc_aligned", CountSize, 1),
    ("mi_heap_calloc_aligned_at", CountSize, 1),
    ("mi_heap_realloc_aligned", Resize, 1),
    ("mi_heap_realloc_aligned_at", Resize, 1),
    ("mi_heap_rezalloc_aligned", Resize, 1),
    ("mi_heap_rezalloc_aligned_at", Resize, 1),
    ("mi_heap_recalloc_aligned", ResizeArray, 1),
    ("mi_heap_recalloc_aligned_at", ResizeArray, 1),
    ("mi_heap_alloc_new", Size, 1),
    ("mi_heap_alloc_new_n", CountSize, 1),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_survive_their_cookie() {
        for function in AllocFunction::all() {
            let shape = function.shape();
            let cookie = u64::from(function.cookie(shape));
            assert_eq!(AllocFunction::of_cookie(cookie), Some(function));
            assert_eq!(cookie_takes(cookie), shape.takes as u64);
            assert_eq!(cookie_first(cookie), u64::from(shape.first));
            assert_eq!(cookie_throws(cookie), function.throws());
            assert!(!cookie_has_moved(cookie));
            let moved = u64::from(function.cookie(Shape { has_moved: true, ..shape }));
            assert!(cookie_has_moved(moved));
            assert_eq!(cookie_throws(moved), function.throws());
        }
        assert_eq!(AllocFunction::of_cookie(0xffff), None);
    }

    #[test]
    fn each_symbol_is_listed_once() {
        for function in AllocFunction::all() {
            assert_eq!(AllocFunction::of_symbol(function.symbol()), Some(function));
        }
        assert_eq!(AllocFunction::of_symbol("main"), None);
    }

    #[test]
    fn operators_have_their_names_of_the_source() {
        let name = |symbol| AllocFunction::of_symbol(symbol).map(AllocFunction::name);
        assert_eq!(name("_ZnamSt11align_val_t"), Some("operator new[]"));
        assert_eq!(name("_ZnwmRKSt9nothrow_t"), Some("operator new"));
        assert_eq!(name("mallocx"), Some("mallocx"));
        let throws = |symbol| AllocFunction::of_symbol(symbol).map(AllocFunction::throws);
        assert_eq!(throws("_ZnamSt11align_val_t"), Some(true));
        assert_eq!(throws("_ZnwmRKSt9nothrow_t"), Some(false));
        assert_eq!(throws("malloc"), Some(false));
    }
}
