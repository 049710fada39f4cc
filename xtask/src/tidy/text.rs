//! Rules on single files: heads, lengths, spaces, inherited lints, exits and prints.

use std::path::Path;

use super::{Finding, Source, rust_tokens::Token};

/// Most lines of a source file.
const MOST_LINES: usize = 600;

/// Files that may be longer, and why: a list is as long as what it lists.
const LONG_FILES: [(&str, &str); 0] = [];

/// The rules that need only the file.
pub(super) fn check(source: &Source, findings: &mut Vec<Finding>) {
    for (index, line) in source.text.lines().enumerate() {
        if line.ends_with([' ', '\t']) {
            findings.push(Finding::new(&source.path, index + 1, "space at the end of the line"));
        }
    }
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        let last = source.text.lines().count();
        findings.push(Finding::new(&source.path, last, "no line end at the end of the file"));
    }
    if source.has_extension(&["rs", "c", "cpp", "h"]) {
        check_length(source, findings);
    }
    if source.has_extension(&["rs"]) {
        if !source.text.starts_with("//!") {
            let rule = "a Rust file starts with `//!`: what it does, what it refuses to know";
            findings.push(Finding::new(&source.path, 1, rule));
        }
        check_exits_and_prints(source, findings);
    }
}

/// Every member of the workspace has to ask for the workspace's lints, else they bind nobody.
pub(super) fn check_lint_inheritance(sources: &[Source], findings: &mut Vec<Finding>) {
    for source in sources.iter().filter(|source| source.path.ends_with("Cargo.toml")) {
        // A file with a [workspace] of its own is a root: ours, or that of leaktrace-ebpf.
        if source.text.lines().any(|line| line.trim() == "[workspace]") {
            continue;
        }
        let mut section = "";
        let inherits = source.text.lines().map(str::trim).any(|line| {
            if line.starts_with('[') {
                section = line;
            }
            section == "[lints]" && line.replace(' ', "") == "workspace=true"
        });
        if !inherits {
            let rule = "a member of the workspace has `[lints] workspace = true`";
            findings.push(Finding::new(&source.path, source.text.lines().count(), rule));
        }
    }
}

fn check_length(source: &Source, findings: &mut Vec<Finding>) {
    let lines = source.text.lines().count();
    let is_list = LONG_FILES.iter().any(|(path, _reason)| source.path == Path::new(path));
    if lines > MOST_LINES && !is_list {
        let rule = format!("{lines} lines; a file has at most {MOST_LINES}: split it by subject");
        findings.push(Finding::new(&source.path, MOST_LINES + 1, rule));
    }
}

fn check_exits_and_prints(source: &Source, findings: &mut Vec<Finding>) {
    let is_main = source.path.ends_with("src/main.rs");
    if is_main || source.path.starts_with("tests") {
        return;
    }
    let may_print = !source.path.starts_with("leaktrace/src")
        || source.path.starts_with("leaktrace/src/render");
    let tokens = Token::scan(&source.text);
    for (index, token) in tokens.iter().enumerate() {
        let next = tokens.get(index + 1).map_or("", |token| token.text);
        let after = tokens.get(index + 2).map_or("", |token| token.text);
        if token.text == "process" && next == "::" && after == "exit" {
            let rule = "only main.rs exits: return an error";
            findings.push(Finding::new(&source.path, token.line, rule));
        }
        if !may_print && ["print", "println"].contains(&token.text) && next == "!" {
            let rule = "only main.rs and render print: write to a `Write`";
            findings.push(Finding::new(&source.path, token.line, rule));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Finding, Source, check, check_lint_inheritance};

    fn check_one(path: &str, text: &str, expected: &[&str]) {
        let source = Source { path: path.into(), text: text.into() };
        let mut findings = Vec::new();
        check(&source, &mut findings);
        check_lint_inheritance(&[source], &mut findings);
        let found: Vec<_> = findings.iter().map(Finding::to_string).collect();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found} does not start with {expected}");
        }
    }

    #[test]
    fn a_rust_file_starts_with_its_documentation() {
        check_one("leaktrace/src/units.rs", "//! Units.\n", &[]);
        check_one(
            "leaktrace/src/units.rs",
            "use std::io;\n",
            &["leaktrace/src/units.rs:1: a Rust"],
        );
    }

    #[test]
    fn spaces_and_line_ends() {
        check_one("README.md", "a\nb \nc", &["README.md:2: space", "README.md:3: no line end"]);
    }

    #[test]
    fn length() {
        check_one("tests/programs/x.c", &"\n".repeat(600), &[]);
        check_one("tests/programs/x.c", &"\n".repeat(601), &["tests/programs/x.c:601: 601 lines"]);
    }

    #[test]
    fn exits_and_prints() {
        let text = "//! X.\nfn f() {\n    println!();\n    std::process::exit(1)\n}\n";
        let exit = "leaktrace/src/host/mod.rs:4: only main.rs exits";
        let print = "leaktrace/src/host/mod.rs:3: only main.rs and render print";
        check_one("leaktrace/src/host/mod.rs", text, &[print, exit]);
        check_one("leaktrace/src/main.rs", text, &[]);
        check_one("leaktrace/src/host/mod.rs", "//! X.\n// println!(\"process::exit\")\n", &[]);
    }

    #[test]
    fn lints_are_inherited() {
        check_one("a/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n", &[]);
        check_one("a/Cargo.toml", "[workspace]\n", &[]);
        check_one("a/Cargo.toml", "[package]\nworkspace = true\n", &["a/Cargo.toml:2: a member"]);
    }
}
