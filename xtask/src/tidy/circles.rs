//! No circles: files of a crate that use each other, directly or through others, can only be
//! understood together.
//!
//! A module is made of its children: that it names them counts as little as `mod` does, and they may
//! use what it defines.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
};

use super::{
    Finding, Source,
    arrows::module_path,
    rust_tokens::{self, Token},
};

/// A file of a crate.
struct File<'a> {
    source: &'a Source,
    /// Which files it uses, and the first line where it does.
    uses: BTreeMap<usize, usize>,
}

/// Finds circles of files, in each crate.
pub(super) fn check(sources: &[Source], findings: &mut Vec<Finding>) {
    let is_root = |path: &&Path| path.ends_with("lib.rs") || path.ends_with("main.rs");
    let roots = sources.iter().map(|source| source.path.as_path()).filter(is_root);
    let crates: BTreeSet<&Path> = roots.filter_map(Path::parent).collect();
    for root in crates {
        let files = files_of(root, sources);
        let name = |at: &usize| {
            let path = &files[*at].source.path;
            path.strip_prefix(root).unwrap_or(path).display().to_string()
        };
        // One circle through each file is enough.
        let mut found = BTreeSet::new();
        for start in 0..files.len() {
            if found.contains(&start) {
                continue;
            }
            let Some(circle) = circle_from(start, &files) else { continue };
            let names: Vec<_> = circle.iter().chain(circle.first()).map(name).collect();
            let rule = format!("a circle of `use`: {}", names.join(" -> "));
            let line = circle.get(1).and_then(|next| files[start].uses.get(next));
            let line = line.copied().unwrap_or(1);
            findings.push(Finding::new(&files[start].source.path, line, rule));
            found.extend(circle);
        }
    }
}

/// The files of a crate with what they use of each other.
fn files_of<'a>(root: &Path, sources: &'a [Source]) -> Vec<File<'a>> {
    let below = |source: &'a Source| {
        let path = source.path.strip_prefix(root).ok()?;
        source.has_extension(&["rs"]).then(|| (module_path(path), source))
    };
    let mut modules: Vec<(Vec<&str>, &Source)> = sources.iter().filter_map(below).collect();
    // A program beside a library has a crate of its own, which is this file alone.
    if modules.iter().any(|(path, _)| *path == ["lib"]) {
        modules.retain(|(path, _)| *path != ["main"]);
    }
    for (path, _) in &mut modules {
        if [["lib"], ["main"]].iter().any(|root| path == root) {
            path.clear();
        }
    }
    let by_path: BTreeMap<&[&str], usize> =
        modules.iter().enumerate().map(|(at, (path, _))| (path.as_slice(), at)).collect();
    let file = |(module, source): &(Vec<&'a str>, &'a Source)| {
        let tokens = Token::scan(&source.text);
        let mut uses = BTreeMap::new();
        for named in rust_tokens::crate_paths(&tokens, module) {
            // The file of a path is that of its longest part that is one.
            let parts = (0..=named.path.len()).rev().filter_map(|end| named.path.get(..end));
            let used = parts.filter_map(|part| by_path.get_key_value(part)).next();
            if let Some((path, used)) = used
                && !path.starts_with(module)
            {
                uses.entry(*used).or_insert(named.line);
            }
        }
        File { source, uses }
    };
    modules.iter().map(file).collect()
}

/// The shortest circle through a file, from it on.
fn circle_from(start: usize, files: &[File<'_>]) -> Option<Vec<usize>> {
    let mut before: BTreeMap<usize, usize> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for next in files[at].uses.keys() {
            if *next == start {
                let mut circle = vec![at];
                while let Some(earlier) = before.get(&circle[circle.len() - 1]) {
                    circle.push(*earlier);
                }
                circle.reverse();
                return Some(circle);
            }
            if !before.contains_key(next) {
                before.insert(*next, at);
                queue.push_back(*next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Finding, Source, check};

    fn check_all(files: &[(&str, &str)], expected: &[&str]) {
        let source =
            |(path, text): &(&str, &str)| Source { path: path.into(), text: (*text).to_owned() };
        let sources: Vec<_> = files.iter().map(source).collect();
        let mut findings = Vec::new();
        check(&sources, &mut findings);
        let found: Vec<_> = findings.iter().map(Finding::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn two_files_that_use_each_other_are_a_circle() {
        check_all(
            &[
                ("xtask/src/main.rs", "mod a; mod b;"),
                ("xtask/src/a.rs", "//! A.\nuse crate::b::B;\n"),
                ("xtask/src/b.rs", "use super::a;"),
            ],
            &["xtask/src/a.rs:2: a circle of `use`: a.rs -> b.rs -> a.rs"],
        );
    }

    #[test]
    fn the_way_round_is_told_once() {
        check_all(
            &[
                ("leaktrace-ebpf/src/main.rs", "mod a; mod b; mod c;"),
                ("leaktrace-ebpf/src/a.rs", "use crate::b;"),
                ("leaktrace-ebpf/src/b/mod.rs", "fn f() { super::c::g() }"),
                ("leaktrace-ebpf/src/c.rs", "use crate::a::X;"),
            ],
            &["leaktrace-ebpf/src/a.rs:1: a circle of `use`: a.rs -> b/mod.rs -> c.rs -> a.rs"],
        );
    }

    #[test]
    fn a_module_and_its_children_are_no_circle() {
        check_all(
            &[
                ("xtask/src/main.rs", "mod vm;"),
                ("xtask/src/vm/mod.rs", "mod machine; struct Kernel; use self::machine::boot;"),
                ("xtask/src/vm/machine.rs", "use super::Kernel;"),
            ],
            &[],
        );
        // But it may not be used by what it uses.
        check_all(
            &[
                ("xtask/src/main.rs", "mod test; mod vm;"),
                ("xtask/src/vm/mod.rs", "mod machine; use crate::test;"),
                ("xtask/src/test.rs", "use crate::vm::machine::boot;"),
                ("xtask/src/vm/machine.rs", "use super::Kernel;"),
            ],
            &[
                "xtask/src/vm/mod.rs:1: a circle of `use`: vm/mod.rs -> test.rs -> vm/machine.rs -> \
               vm/mod.rs",
            ],
        );
    }

    #[test]
    fn one_direction_is_no_circle() {
        check_all(
            &[
                ("tests/src/lib.rs", "pub mod a; pub mod b;"),
                ("tests/src/a.rs", "use crate::b::B; mod tests { use super::*; }"),
                ("tests/src/b.rs", "//! Used by [`crate::a`]."),
                // Another crate's files of these names.
                ("xtask/src/main.rs", "mod a; mod b;"),
                ("xtask/src/a.rs", ""),
                ("xtask/src/b.rs", "use crate::a;"),
            ],
            &[],
        );
    }
}
