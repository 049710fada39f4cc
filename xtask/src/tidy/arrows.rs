//! Which module of leaktrace may use which: data flows in one direction, and so do the names.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path},
};

use super::{
    Finding, Source,
    rust_tokens::{self, Token},
};

/// A module, and what it may use beside itself and [`FOR_ALL`]. A name stands for what is below it
/// too, except that `session::spec` (what the user wants) is a module of its own.
const ARROWS: [(&str, &[&str]); 21] = [
    ("error", &[]),
    ("units", &[]),
    ("snapshot", &[]),
    ("session::spec", &[]),
    ("cli", &["session::spec"]),
    ("host", &[]),
    ("bpf", &["host"]),
    ("attach", &["host", "bpf", "session::spec", "snapshot"]),
    ("unwind", &["host", "bpf", "session::spec"]),
    ("collect", &["host", "bpf", "snapshot", "unwind"]),
    ("reach", &["host", "bpf", "collect", "unwind", "snapshot", "session::spec"]),
    (
        "tracer",
        &["host", "bpf", "attach", "unwind", "collect", "reach", "snapshot", "session::spec"],
    ),
    ("session", &["host", "tracer", "snapshot", "session::spec"]),
    ("symbol", &["host", "snapshot"]),
    ("recording", &["snapshot"]),
    ("history", &["snapshot"]),
    ("analyze", &["history", "snapshot"]),
    ("report", &["snapshot", "history", "analyze", "session::spec"]),
    ("render", &["report", "snapshot", "session::spec"]),
    (
        "pipeline",
        &[
            "session",
            "session::spec",
            "recording",
            "symbol",
            "history",
            "analyze",
            "report",
            "render",
            "snapshot",
        ],
    ),
    ("watch", &["pipeline", "session::spec"]),
];

/// What every module may use.
const FOR_ALL: [&str; 2] = ["error", "units"];

/// Libraries that belong to some modules only; `main` is the binary.
const LIBRARIES: [(&str, &[&str]); 6] = [
    ("anyhow", &["main"]),
    ("clap", &["cli"]),
    ("aya", &["host", "bpf", "attach", "unwind", "collect", "tracer"]),
    ("aya_obj", &["host", "bpf", "attach", "unwind", "collect", "tracer"]),
    ("blazesym", &["symbol"]),
    ("perf_event", &["host"]),
];

/// Files that join the modules and may use all of them.
const JOINTS: [&str; 2] = ["main.rs", "lib.rs"];

/// Compares what a file of leaktrace names with the table.
pub(super) fn check(source: &Source, findings: &mut Vec<Finding>) {
    let Ok(below_src) = source.path.strip_prefix("leaktrace/src") else { return };
    if JOINTS.iter().any(|joint| below_src == Path::new(joint)) || !source.has_extension(&["rs"]) {
        return;
    }
    let path = module_path(below_src);
    let module = module_of(&path);
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
        let rule = format!("module `{module}` is in no table: add it to xtask/src/tidy/arrows.rs");
        findings.push(Finding::new(&source.path, 1, rule));
        return;
    };

    let tokens = Token::scan(&source.text);
    for named in rust_tokens::crate_paths(&tokens, &path) {
        let target = module_of(&named.path);
        // What is no module is something that lib.rs or main.rs defines, such as a macro.
        let may = target == module || FOR_ALL.contains(&target) || allowed.contains(&target);
        if (is_module(target) && !may) || target == "*" {
            let rule = format!("`{module}` may not use `{target}`: {}", list(allowed));
            findings.push(Finding::new(&source.path, named.line, rule));
        }
    }
    for (index, token) in tokens.iter().enumerate() {
        let starts_path = (index == 0 || tokens[index - 1].text != "::")
            && tokens.get(index + 1).is_some_and(|next| next.text == "::");
        let owners = LIBRARIES.iter().find(|(library, _)| *library == token.text);
        if let Some((library, owners)) = owners
            && starts_path
            && !owners.contains(&module)
        {
            let rule =
                format!("`{module}` may not use {library}, which is for {}", owners.join(", "));
            findings.push(Finding::new(&source.path, token.line, rule));
        }
    }
}

/// Where the modules are drawn: the block that begins behind this line.
const DRAWING: (&str, &str) = ("docs/architecture.md", "### leaktrace: the command");

/// Compares the drawing of leaktrace's modules with what their files name.
pub(super) fn check_drawing(sources: &[Source], findings: &mut Vec<Finding>) {
    let (file, heading) = DRAWING;
    let Some(page) = sources.iter().find(|source| source.path == Path::new(file)) else { return };
    let lines = || page.text.lines().enumerate();
    let start =
        lines().skip_while(|(_, line)| *line != heading).find(|(_, line)| *line == "```text");
    let Some((start, _)) = start else {
        let rule = format!("no drawing of the modules behind `{heading}`");
        findings.push(Finding::new(&page.path, 1, rule));
        return;
    };
    let drawn = lines().skip(start + 1).take_while(|(_, line)| *line != "```");
    let mut uses = uses(sources);
    for (index, line) in drawn {
        let module = line.split_whitespace().next().unwrap_or_default();
        let rule = match uses.remove(module) {
            Some(used) if line == draw(module, &used) => continue,
            Some(used) => format!("not what the files name: `{}`", draw(module, &used)),
            None => format!("`{module}` is no module that has not been drawn yet"),
        };
        findings.push(Finding::new(&page.path, index + 1, rule));
    }
    for (module, used) in uses {
        let rule = format!("a module is not drawn: `{}`", draw(module, &used));
        findings.push(Finding::new(&page.path, start + 1, rule));
    }
}

fn draw(module: &str, used: &BTreeSet<&str>) -> String {
    // In the order of the table, which is that of the flow.
    let used: Vec<&str> =
        ARROWS.iter().map(|(name, _)| *name).filter(|name| used.contains(name)).collect();
    format!("{module:<13} -> {}", used.join(", ")).trim_end_matches(" -> ").trim_end().to_owned()
}

/// What each module of leaktrace uses of the others, but what all may.
fn uses(sources: &[Source]) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for source in sources {
        let Ok(below_src) = source.path.strip_prefix("leaktrace/src") else { continue };
        let path = module_path(below_src);
        let module = module_of(&path);
        if !source.has_extension(&["rs"]) || FOR_ALL.contains(&module) || !is_module(module) {
            continue;
        }
        let used = uses.entry(module).or_default();
        for named in rust_tokens::crate_paths(&Token::scan(&source.text), &path) {
            let target = module_of(&named.path);
            if target != module && !FOR_ALL.contains(&target) && is_module(target) {
                used.insert(target);
            }
        }
    }
    uses
}

fn is_module(name: &str) -> bool {
    ARROWS.iter().any(|(module, _)| *module == name)
}

fn list(allowed: &[&str]) -> String {
    let all: Vec<_> = allowed.iter().chain(&FOR_ALL).copied().collect();
    format!("only {}", all.join(", "))
}

/// `attach/plan.rs` is attach::plan, `attach/mod.rs` is attach.
pub(super) fn module_path(below_src: &Path) -> Vec<&str> {
    let mut path: Vec<&str> = below_src
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .map(|name| name.strip_suffix(".rs").unwrap_or(name))
        .collect();
    if path.last() == Some(&"mod") {
        path.pop();
    }
    path
}

/// The module of the table that a path belongs to.
fn module_of<'a>(path: &[&'a str]) -> &'a str {
    match path {
        ["session", "spec", ..] => "session::spec",
        [first, ..] => first,
        [] => "*",
    }
}

#[cfg(test)]
mod tests {
    use super::{Finding, Source, check, check_drawing};

    fn check_one(path: &str, text: &str, expected: &[&str]) {
        let mut findings = Vec::new();
        check(&Source { path: path.into(), text: text.into() }, &mut findings);
        let found: Vec<_> = findings.iter().map(Finding::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_flow_is_allowed() {
        check_one("leaktrace/src/collect/mod.rs", "use crate::{bpf::Maps, snapshot::Site};", &[]);
        check_one("leaktrace/src/render/text.rs", "use crate::{error, report, units};", &[]);
        check_one(
            "leaktrace/src/cli/mod.rs",
            "use crate::session::spec::Spec; use clap::Args;",
            &[],
        );
        check_one("leaktrace/src/session/mod.rs", "pub mod spec; use self::spec::Spec;", &[]);
        check_one("leaktrace/src/lib.rs", "pub use crate::session::Session;", &[]);
        check_one("xtask/src/main.rs", "use crate::render;", &[]);
    }

    #[test]
    fn against_the_flow_is_found() {
        check_one(
            "leaktrace/src/attach/plan.rs",
            "use super::Attached;\nuse crate::{\n    host,\n    collect::Collector,\n};",
            &["leaktrace/src/attach/plan.rs:4: `attach` may not use `collect`: \
               only host, bpf, session::spec, snapshot, error, units"],
        );
        check_one(
            "leaktrace/src/snapshot/names.rs",
            "fn f(x: super::super::render::Style) {}",
            &["leaktrace/src/snapshot/names.rs:1: `snapshot` may not use `render`: \
               only error, units"],
        );
        check_one(
            "leaktrace/src/session/spec.rs",
            "use super::Session;",
            &["leaktrace/src/session/spec.rs:1: `session::spec` may not use `session`: \
               only error, units"],
        );
        check_one(
            "leaktrace/src/tracer/kernel.rs",
            "use crate::session::{Outcome, spec::Spec};",
            &["leaktrace/src/tracer/kernel.rs:1: `tracer` may not use `session`: \
               only host, bpf, attach, unwind, collect, reach, snapshot, session::spec, error, units"],
        );
        check_one(
            "leaktrace/src/cli/mod.rs",
            "use crate::session;",
            &["leaktrace/src/cli/mod.rs:1: `cli` may not use `session`: \
               only session::spec, error, units"],
        );
    }

    #[test]
    fn a_new_module_needs_its_row() {
        check_one(
            "leaktrace/src/helpers.rs",
            "//! X.\n",
            &["leaktrace/src/helpers.rs:1: module `helpers` is in no table: \
               add it to xtask/src/tidy/arrows.rs"],
        );
    }

    #[test]
    fn libraries_have_owners() {
        check_one(
            "leaktrace/src/session/spec.rs",
            "#[derive(clap::Args)] struct X;",
            &["leaktrace/src/session/spec.rs:1: `session::spec` may not use clap, \
               which is for cli"],
        );
    }

    #[test]
    fn the_drawing_is_compared_with_the_files() {
        let check = |drawing: &str, expected: &[&str]| {
            let page = format!("# A\n### leaktrace: the command\nIt:\n```text\n{drawing}```\n");
            let sources = [
                ("docs/architecture.md", page.as_str()),
                ("leaktrace/src/host/elf.rs", "use crate::error::Error;"),
                ("leaktrace/src/bpf/mod.rs", "use crate::host::elf;"),
                ("leaktrace/src/main.rs", "use leaktrace::bpf;"),
            ]
            .map(|(path, text)| Source { path: path.into(), text: text.to_owned() });
            let mut findings = Vec::new();
            check_drawing(&sources, &mut findings);
            let found: Vec<_> = findings.iter().map(Finding::to_string).collect();
            assert_eq!(found, expected);
        };
        check("host\nbpf           -> host\n", &[]);
        check(
            "host          -> bpf\nattach\n",
            &[
                "docs/architecture.md:5: not what the files name: `host`",
                "docs/architecture.md:6: `attach` is no module that has not been drawn yet",
                "docs/architecture.md:4: a module is not drawn: `bpf           -> host`",
            ],
        );
    }
}
