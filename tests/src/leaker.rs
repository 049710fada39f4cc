//! A test program, led through its stages.

use std::process::Command;

use serde_json::Value;

use crate::{
    LATE, SOON,
    child::Child,
    program::build_program,
    report::{Amounts, number},
};

/// The account that a program prints at a stage.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The whole line.
    pub line: Value,
}

impl Stage {
    /// From a line of output.
    ///
    /// # Panics
    ///
    /// When it is no JSON object with a stage.
    pub fn parse(line: &str) -> Self {
        let value: Value = serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("a stage is one JSON object: {error}: {line:?}"));
        assert!(value["stage"].is_string(), "no stage in {line:?}");
        Self { line: value }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.line["stage"].as_str().unwrap_or_default()
    }

    /// What each call site allocated and freed, by the program's own count.
    ///
    /// # Panics
    ///
    /// When the stage has no such account.
    pub fn sites(&self) -> Vec<(String, Amounts)> {
        sites_of(&self.line)
    }

    /// The account of one call site.
    ///
    /// # Panics
    ///
    /// When it has none.
    pub fn site(&self, name: &str) -> Amounts {
        let found = self.sites().into_iter().find(|(site, _)| site == name);
        found.unwrap_or_else(|| panic!("no site {name:?} in {}", self.line)).1
    }
}

/// The `sites` of a stage, or of a child in it.
///
/// # Panics
///
/// When there are none.
pub fn sites_of(value: &Value) -> Vec<(String, Amounts)> {
    let Some(sites) = value["sites"].as_array() else { panic!("no sites in {value}") };
    let name = |site: &Value| site["name"].as_str().unwrap_or_default().to_owned();
    sites.iter().map(|site| (name(site), Amounts::of(site))).collect()
}

/// The PID and the account of each of the `children` of a stage.
///
/// # Panics
///
/// When there are none.
pub fn children_of(value: &Value) -> Vec<(u32, Vec<(String, Amounts)>)> {
    let Some(children) = value["children"].as_array() else { panic!("no children in {value}") };
    let pid = |child: &Value| u32::try_from(number(child, "pid")).unwrap_or_default();
    children.iter().map(|child| (pid(child), sites_of(child))).collect()
}

/// A running test program; killed when dropped.
#[derive(Debug)]
pub struct Leaker {
    child: Child,
    stage: Stage,
}

impl Leaker {
    /// Starts a program and waits for its first stage, `ready`.
    ///
    /// # Panics
    ///
    /// When it cannot be built or started, or has another first stage.
    pub fn start(name: &str, args: &[&str]) -> Self {
        Self::launch(Command::new(build_program(name)).args(args))
    }

    /// Starts another command that goes through stages, and waits for its first one, `ready`.
    ///
    /// # Panics
    ///
    /// When it cannot be started, or has another first stage.
    pub fn launch(command: &mut Command) -> Self {
        let mut child = Child::start(command);
        let stage = Stage::parse(&child.next_line(SOON));
        assert_eq!(stage.name(), "ready", "first stage of {command:?}");
        Self { child, stage }
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Its process ID as an argument.
    pub fn pid_arg(&self) -> String {
        self.pid().to_string()
    }

    /// The stage it is in.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Lets it go on, and waits until it says that it has reached the stage `name`.
    ///
    /// # Panics
    ///
    /// When it reaches another one, or none.
    pub fn advance(&mut self, name: &str) -> &Stage {
        self.child.send("x");
        self.stage = Stage::parse(&self.child.next_line(LATE));
        assert_eq!(self.stage.name(), name, "next stage");
        &self.stage
    }

    /// Lets it go on, and does not wait for its next stage.
    pub fn go_on(&mut self) {
        self.child.send("x");
    }

    /// Lets it go on through one more stage to its end.
    ///
    /// # Panics
    ///
    /// As [`Leaker::advance`] and [`Leaker::end`].
    pub fn end_after(mut self, name: &str) {
        self.advance(name);
        self.end();
    }

    /// Lets it go on from its last stage to its end.
    ///
    /// # Panics
    ///
    /// When it does not end well.
    pub fn end(mut self) {
        self.child.send("x");
        let code = self.child.wait(SOON);
        assert_eq!(code, 0, "exit code of the test program; stderr: {}", self.child.stderr_text());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::build_library;

    /// Every program goes through its stages alone, without a tracer.
    #[test]
    fn every_program_runs_to_its_end() {
        let library = build_library("chainlib.so").display().to_string();
        let plugin = build_library("chainplug.so").display().to_string();
        let leaklib = build_library("leaklib.so").display().to_string();
        let runs: [(&str, &[&str], &[&str]); 64] = [
            ("allocators", &[], &["holding"]),
            ("allocators-jemalloc", &[], &["holding"]),
            ("allocators-jemalloc-static", &[], &["holding"]),
            ("allocators-mimalloc", &["new-never-fails"], &["holding"]),
            ("allocators-musl", &[], &["holding"]),
            ("allocators-musl-static", &[], &["holding"]),
            ("allocators-rust", &[], &["holding"]),
            ("allocators-static", &[], &["holding"]),
            ("allocators-static-pie", &[], &["holding"]),
            ("allocators-tcmalloc", &[], &["holding"]),
            ("allocators-tcmalloc-static", &[], &["holding"]),
            ("chain", &[&library, &plugin], &["opened", "traced", "opened", "checked"]),
            ("children", &[], &["made", "holding"]),
            ("coroutines", &[], &["traced", "checked"]),
            ("cpp", &[], &["traced", "checked"]),
            ("crowd", &["8", "100", "one-cpu"], &["holding"]),
            ("deep", &["300"], &["holding"]),
            ("exact", &[], &["holding", "freed"]),
            ("execer", &[], &["before", "after"]),
            ("execer-static", &[], &["before", "after"]),
            ("family", &["2"], &["round", "round", "holding"]),
            ("forker", &[], &["holding"]),
            ("freed", &[], &["holding"]),
            ("grower", &["1000", "1", "1", "1", "1"], &["holding"]),
            ("handles", &[], &["holding"]),
            ("held", &["compute"], &["done"]),
            ("heap", &["1", "1000"], &["holding"]),
            ("hoards", &[], &["holding"]),
            ("hotloop", &["0.05"], &["done"]),
            ("kmaps", &["/mnt"], &["holding", "closed"]),
            ("kobjects", &["one-cpu"], &["holding", "closed"]),
            ("longjmp", &[], &["holding"]),
            ("many", &[], &["holding"]),
            ("many-bare", &[], &["holding"]),
            ("many-static", &[], &["holding"]),
            ("mappings", &[], &["holding"]),
            ("maze-c", &[&library], &["running", "done"]),
            ("maze-cpp", &[], &["running", "done"]),
            ("maze-rust", &[], &["running", "done"]),
            ("paced", &["10"], &["running"]),
            ("pairs", &["jump"], &["holding"]),
            ("pairs-cpp", &["leave"], &["holding"]),
            ("pairs-hidden", &["jump"], &["holding"]),
            ("pairs-jumping", &[], &["holding"]),
            ("pairs-static", &[], &["holding"]),
            ("pairs-switching", &[], &["holding"]),
            ("paths", &[], &["holding"]),
            ("pipeloop", &["0.05"], &["done"]),
            ("plugged", &[&leaklib], &["opened", "opened", "holding"]),
            ("pool", &[], &["holding"]),
            ("pool-static", &[], &["holding"]),
            ("quitter", &["stay"], &["holding"]),
            ("reach", &[], &["holding"]),
            ("reach-jemalloc", &[], &["holding"]),
            ("reach-mimalloc", &[], &["holding"]),
            ("reach-musl", &[], &["holding"]),
            ("reach-tcmalloc", &[], &["holding"]),
            ("renamed", &[], &["holding"]),
            ("reused", &[], &["holding"]),
            ("sampling", &["16", "2"], &["holding", "freed", "holding", "freed"]),
            ("semantics", &[], &["holding"]),
            ("short", &[], &["holding"]),
            ("uring", &[], &["holding", "closed"]),
            ("verdicts", &[], &["running"]),
        ];
        let names: Vec<&str> = runs.iter().map(|(name, ..)| *name).collect();
        // Those that leaktrace runs have no stages.
        let is_run =
            |name: &&str| ["keeps", "lost", "neverfrees-musl-static", "newleaks"].contains(name);
        let led = crate::program::names().filter(|name| !is_run(name));
        assert_eq!(names, led.collect::<Vec<_>>());
        for (name, args, stages) in runs {
            let mut leaker = Leaker::start(name, args);
            for stage in stages {
                leaker.advance(stage);
            }
            leaker.end();
        }
    }

    #[test]
    fn a_stage_holds_the_account_of_each_site() {
        let mut leaker = Leaker::start("many", &[]);
        assert_eq!(leaker.stage().site("site_many"), crate::report::Amounts::default());
        let held = leaker.advance("holding").site("site_many");
        assert_eq!((held.outstanding_count, held.outstanding_bytes), (10_000, 1_130_000));
        leaker.end();
    }
}
