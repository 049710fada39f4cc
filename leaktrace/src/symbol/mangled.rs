//! Turns names that a compiler has mangled into names as people write them.
//!
//! Only a name with the prefix of a mangling scheme is decoded, as a demangler takes any text: it
//! turns the C functions `w`, `i` and `St` into `wchar_t`, `int` and `std`, by the table of types
//! of the Itanium C++ ABI.

use std::borrow::Cow;

/// The name as the source has it; a name that is not mangled stays as it is.
pub(super) fn demangle(name: &str) -> Cow<'_, str> {
    // Rust first: its older scheme has the prefix of C++, and a hash at its end.
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return Cow::Owned(format!("{rust:#}"));
    }
    if !is_cpp(name) {
        return Cow::Borrowed(name);
    }
    let decoded = cpp_demangle::Symbol::new(name).ok().and_then(|symbol| symbol.demangle().ok());
    decoded.map_or(Cow::Borrowed(name), Cow::Owned)
}

/// Whether a name begins as mangled C++ does: with `_Z`, or with up to three more underscores where
/// an object format or a block of code adds them.
fn is_cpp(name: &str) -> bool {
    let rest = name.trim_start_matches('_');
    (1..=4).contains(&(name.len() - rest.len())) && rest.starts_with('Z')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cases: &[(&str, &str)]) {
        for (name, expected) in cases {
            assert_eq!(demangle(name), *expected, "{name}");
        }
    }

    /// To a demangler, each of these names is a type or a name of the standard library.
    #[test]
    fn names_of_c_stay_what_they_are() {
        let names = [
            "w",
            "i",
            "v",
            "f",
            "x",
            "b",
            "c",
            "a",
            "h",
            "s",
            "t",
            "j",
            "l",
            "m",
            "y",
            "n",
            "o",
            "d",
            "e",
            "g",
            "z",
            "St",
            "Sa",
            "Ss",
            "Pc",
            "PKc",
            "Dn",
            "main",
            "_start",
            "Z1fv",
            "_",
            "",
            "_R",
            "_D",
            "__D",
            "_Z",
            "R1f",
            "?f@@YAXXZ",
            "_____Z1fv",
            "__libc_start_main",
        ];
        for name in names {
            assert_eq!(demangle(name), name);
        }
    }

    #[test]
    fn mangled_names_are_decoded() {
        check(&[
            ("_Z1wi", "w(int)"),
            ("__Z1wi", "w(int)"),
            ("_ZN3foo3barEv", "foo::bar()"),
            (
                "_ZNSt6vectorIiSaIiEE9push_backEOi",
                "std::vector<int, std::allocator<int> >::push_back(int&&)",
            ),
            ("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE", "core::fmt::Write::write_fmt"),
            ("_RNvC6_123foo3bar", "123foo::bar"),
        ]);
    }
}
