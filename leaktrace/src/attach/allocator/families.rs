//! Which symbols of an object make an allocator, and which one it is.
//!
//! `leaktrace_common` lists what the functions take; this module knows how builds name them.

use std::collections::{BTreeMap, HashMap};

use leaktrace_common::{AllocFunction, Takes};

/// Prefixes of builds that stand beside another malloc, and the allocators that they are builds of.
/// [`MARKS`] tell what the empty prefix is.
const PREFIXES: [(&str, &str); 5] =
    [("", ""), ("je_", "jemalloc"), ("_rjem_", "jemalloc"), ("tc_", "tcmalloc"), (MI, "mimalloc")];

/// The prefix of mimalloc. It has functions that no other family has; the list has them with this
/// prefix.
const MI: &str = "mi_";

/// Symbols that only one allocator defines, the most telling first: a static executable has a C
/// library's symbols beside those of another allocator.
const MARKS: [(&str, &str); 10] = [
    ("mallctl", "jemalloc"),
    ("tc_malloc", "tcmalloc"),
    ("TCMallocInternalMalloc", "tcmalloc"),
    ("mi_malloc", "mimalloc"),
    ("gnu_get_libc_version", GLIBC),
    ("_int_malloc", GLIBC),
    ("__libc_freeres", GLIBC),
    ("__libc_malloc_impl", MUSL),
    ("__malloc_donate", MUSL),
    // musl's shared library exports no name of its own.
    (C_LIBRARY, MUSL),
];
const GLIBC: &str = "glibc";
const MUSL: &str = "musl";
/// A symbol that only a C library defines.
const C_LIBRARY: &str = "__libc_start_main";

/// Longest name that is looked at; no wanted function has a longer one.
const LONGEST_NAME: usize = 64;

/// An allocator function of an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// The function.
    pub(super) function: AllocFunction,
    /// The function's virtual address.
    pub(super) address: u64,
    /// The function's size in bytes; 0 if its symbol does not tell.
    pub(super) size: u64,
}

/// The symbols of an object that decide which allocator it has.
#[derive(Debug)]
pub(super) struct Symbols {
    known: HashMap<&'static str, AllocFunction>,
    /// The functions of each family, by the family's prefix.
    families: BTreeMap<String, Vec<Candidate>>,
    marks: [bool; MARKS.len()],
}

impl Default for Symbols {
    fn default() -> Self {
        Self {
            known: AllocFunction::all().map(|function| (function.symbol(), function)).collect(),
            families: BTreeMap::new(),
            marks: [false; MARKS.len()],
        }
    }
}

/// The functions to probe.
#[derive(Debug)]
pub(super) struct Found {
    /// The allocator's name; empty if unknown.
    pub(super) name: String,
    /// The functions, one for each address.
    pub(super) candidates: Vec<Candidate>,
}

impl Symbols {
    /// Adds a function if it can belong to an allocator. With `is_named`, any prefix will do.
    pub(super) fn add(&mut self, name: &str, address: u64, size: u64, is_named: bool) {
        if name.len() > LONGEST_NAME {
            return;
        }
        for ((mark, _), seen) in MARKS.iter().zip(&mut self.marks) {
            *seen |= *mark == name;
        }
        let mut put = |prefix: &str, function| {
            let family = self.families.entry(prefix.to_owned()).or_default();
            if !family.iter().any(|known| known.function == function) {
                family.push(Candidate { function, address, size });
            }
        };
        if let Some(function) = self.known.get(name) {
            put(if name.starts_with(MI) { MI } else { "" }, *function);
        }
        for (prefix, _) in PREFIXES.iter().skip(1) {
            if let Some(function) = name.strip_prefix(prefix).and_then(|base| self.known.get(base))
                && !function.is_operator()
            {
                put(prefix, *function);
            }
        }
        if is_named {
            let ends = self.known.iter().filter(|(_, function)| !function.is_operator());
            let prefixed = ends.filter_map(|(base, function)| {
                name.strip_suffix(base).filter(|prefix| !is_known(prefix)).map(|p| (p, *function))
            });
            // `je_malloc_small` may end in several of them: the shortest prefix is right.
            if let Some((prefix, function)) = prefixed.min_by_key(|(prefix, _)| prefix.len()) {
                put(prefix, function);
            }
        }
    }

    /// Whether the object is, or holds, a C library.
    pub(super) fn is_c_library(&self) -> bool {
        self.has_mark(C_LIBRARY)
    }

    /// Chooses the functions of each family that allocates and frees. An object that `is_whole`, as
    /// a static program is, has no free if nothing in it frees: the linker leaves free out.
    pub(super) fn choose(mut self, is_named: bool, is_whole: bool) -> Found {
        let plain = self.plain_name();
        let never_frees = is_whole || self.is_c_library();
        // The C library's operators are libstdc++'s, which call malloc.
        if !is_named && (plain == GLIBC || plain == MUSL) {
            self.families.values_mut().for_each(|family| {
                family.retain(|candidate| !candidate.function.is_operator());
            });
        }
        let has =
            |family: &[Candidate], symbol| family.iter().any(|one| one.function.symbol() == symbol);
        let is_pair = |family: &[Candidate]| has(family, "malloc") && has(family, "free");
        let mut chosen: Vec<(&str, Vec<Candidate>)> = Vec::new();
        for (prefix, name) in PREFIXES {
            // Of a prefixed build only what is called may be linked: Rust never calls its free.
            let may_lack = is_named || !prefix.is_empty();
            if let Some(family) = self.families.remove(prefix)
                && (is_pair(&family)
                    || (may_lack && allocates_and_frees(&family))
                    || (prefix.is_empty() && never_frees && has(&family, "malloc")))
            {
                chosen.push((if prefix.is_empty() { plain } else { name }, family));
            }
        }
        if is_named {
            // The C library's insides have other arguments than their names tell.
            self.families.retain(|prefix, _| !prefix.starts_with("_int_"));
            let families = self.families.into_values().filter(|family| is_pair(family));
            chosen.extend(families.map(|family| ("", family)));
        }
        let mut name = String::new();
        let mut candidates: Vec<Candidate> = Vec::new();
        for (family, functions) in chosen {
            if !name.contains(family) {
                name = if name.is_empty() { family.into() } else { format!("{name} and {family}") };
            }
            candidates.extend(functions);
        }
        // Of the names of one address, the first in the list.
        candidates.sort_by_key(|candidate| (candidate.address, candidate.function));
        candidates.dedup_by_key(|candidate| candidate.address);
        candidates.sort_by_key(|candidate| (candidate.function, candidate.address));
        Found { name, candidates }
    }

    fn has_mark(&self, wanted: &str) -> bool {
        MARKS.iter().zip(self.marks).any(|((mark, _), seen)| seen && *mark == wanted)
    }

    /// The name of the allocator whose functions have no prefix.
    fn plain_name(&self) -> &'static str {
        let seen = MARKS.iter().zip(self.marks).find(|(_, seen)| *seen);
        seen.map(|((_, name), _)| *name).unwrap_or_default()
    }
}

fn is_known(prefix: &str) -> bool {
    PREFIXES.iter().any(|(known, _)| *known == prefix)
}

fn allocates_and_frees(family: &[Candidate]) -> bool {
    let frees = |one: &Candidate| one.function.shape().takes == Takes::Free;
    family.iter().any(frees) && !family.iter().all(frees)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name and the symbols that are chosen out of these.
    fn choose(symbols: &[&str], is_named: bool) -> (String, Vec<&'static str>) {
        choose_of(symbols, is_named, false)
    }

    fn choose_of(symbols: &[&str], is_named: bool, is_whole: bool) -> (String, Vec<&'static str>) {
        let mut all = Symbols::default();
        for (index, symbol) in symbols.iter().enumerate() {
            all.add(symbol, 0x1000 + index as u64 * 16, 16, is_named);
        }
        let found = all.choose(is_named, is_whole);
        let functions = found.candidates.iter().map(|one| one.function.symbol()).collect();
        (found.name, functions)
    }

    #[test]
    fn a_family_needs_malloc_and_free() {
        assert_eq!(choose(&["malloc", "calloc", "main"], false).1, [""; 0]);
        assert_eq!(choose(&["free", "malloc", "main"], false).1, ["malloc", "free"]);
        // A library that replaces operator new over another's malloc is no allocator.
        assert_eq!(choose(&["_Znwm", "_ZdlPv"], false).1, [""; 0]);
        assert_eq!(choose(&["_Znwm", "_ZdlPv"], true).1, ["_Znwm", "_ZdlPv"]);
    }

    /// A program that never frees is linked without free: musl's malloc is in a file of its own.
    #[test]
    fn a_static_program_may_do_without_free() {
        let musl = ["__libc_malloc_impl", "__libc_start_main", "malloc"];
        assert_eq!(choose(&musl, false), ("musl".into(), vec!["malloc"]));
        assert_eq!(choose_of(&["_start", "malloc"], false, true).1, ["malloc"]);
        assert_eq!(choose_of(&["_start", "calloc"], false, true).1, [""; 0]);
    }

    #[test]
    fn prefixed_builds_are_found_beside_the_c_library() {
        let symbols = ["malloc", "free", "__libc_start_main", "_int_malloc", "_rjem_malloc"];
        let (name, found) =
            choose(&[&symbols[..], &["_rjem_sdallocx", "_rjem_free"]].concat(), false);
        assert_eq!(name, "glibc and jemalloc");
        assert_eq!(found, ["malloc", "malloc", "free", "free", "sdallocx"]);
        let (_, found) = choose(&["_rjem_mallocx", "_rjem_sdallocx", "_rjem_mallctl"], false);
        assert_eq!(found, ["mallocx", "sdallocx"]);
    }

    #[test]
    fn operators_belong_to_allocators_that_define_them() {
        let jemalloc = ["malloc", "free", "mallctl", "_Znwm"];
        assert_eq!(choose(&jemalloc, false), ("jemalloc".into(), vec!["malloc", "free", "_Znwm"]));
        let glibc = ["malloc", "free", "_int_malloc", "_Znwm"];
        assert_eq!(choose(&glibc, false), ("glibc".into(), vec!["malloc", "free"]));
    }

    #[test]
    fn mimallocs_own_functions_need_its_prefix() {
        let symbols = ["mi_malloc", "mi_free", "mi_zalloc", "zalloc", "new"];
        let (name, found) = choose(&symbols, false);
        assert_eq!((name.as_str(), found), ("mimalloc", vec!["malloc", "free", "mi_zalloc"]));
    }

    #[test]
    fn a_named_object_may_have_any_prefix() {
        let symbols = ["pool_malloc", "pool_calloc", "pool_free", "other_free", "_int_malloc"];
        let beside = [&symbols[..], &["malloc", "free", "_int_free", "__libc_start_main"]].concat();
        assert_eq!(choose(&beside, true).1, ["malloc", "malloc", "calloc", "free", "free"]);
        assert_eq!(choose(&symbols, true).1, ["malloc", "calloc", "free"]);
        assert_eq!(choose(&symbols, false).1, [""; 0]);
        assert_eq!(choose(&["pool_get", "pool_put"], true).1, [""; 0]);
    }

    #[test]
    fn one_address_has_one_probe() {
        let mut all = Symbols::default();
        for symbol in ["_ZdaPv", "tc_free", "free", "cfree", "malloc"] {
            all.add(symbol, if symbol == "malloc" { 16 } else { 32 }, 16, false);
        }
        let found = all.choose(false, false).candidates;
        let symbols: Vec<_> = found.iter().map(|one| one.function.symbol()).collect();
        assert_eq!(symbols, ["malloc", "free"]);
    }
}
