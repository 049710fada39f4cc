//! `cargo xtask bench`: what tracing costs, as ratios within one run.
//!
//! Each workload runs untraced, under leaktrace and under the other tools that the machine has, in
//! turns; the medians count. Absolute figures mean little on a shared machine.

#![allow(clippy::print_stdout, reason = "the tables are this task's result")]

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, Profile},
    setup::{self, Need},
};

mod budget;
mod figures;
mod peers;
mod reach;
mod stacks;
mod table;
mod tracer;
mod workload;

use table::{Row, Table};
use workload::{WORKLOADS, Workload};

/// What is measured apart from workloads.
const FIGURES: [&str; 6] = ["reports", "latency", "beside", "stacks", "budget", "reach"];
/// Left out unless they are named: each takes a minute or more by itself.
const ONLY_BY_NAME: [&str; 3] = ["stacks", "budget", "reach"];

/// The task's arguments.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these: hotloop, threadloop, liveloop, redis, churn, inserts, pipeloop, sockloop,
    /// fileloop; reports, latency, beside; stacks, budget and reach (never without their names).
    only: Vec<String>,
    /// Beside the same probes with empty programs, in the place of other tools: user workloads only.
    #[arg(long)]
    limits: bool,
    /// Beside this leaktrace, in the place of other tools: workloads only.
    #[arg(long, conflicts_with = "limits")]
    beside: Option<PathBuf>,
    /// Rounds of which the medians count.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Write the figures to this file as well, as one JSON object.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        match self.only.as_slice() {
            [] => !ONLY_BY_NAME.contains(&name),
            only => only.iter().any(|wanted| wanted == name),
        }
    }

    fn check_names(&self) -> Result<()> {
        let names: Vec<&str> =
            WORKLOADS.iter().map(|workload| workload.name).chain(FIGURES).collect();
        for name in &self.only {
            if !names.contains(&name.as_str()) {
                bail!("there is no bench `{name}`; there are: {}", names.join(", "));
            }
        }
        Ok(())
    }
}

/// Measures what is wanted, and prints it as it comes.
pub(crate) fn bench(options: &Options) -> Result<()> {
    options.check_names()?;
    let rounds = usize::from(options.rounds);
    setup::ensure(Need::Tests)?;
    if let Err(error) = setup::ensure(Need::Bench) {
        eprintln!("xtask: {error:#}; what is missing cannot be compared");
    }
    crate::bpf::build()?;
    let leaktrace = build::leaktrace(Profile::Release)?;

    println!("{rounds} rounds in turns, medians; `slower` is beside the first row");
    let mut tables = Vec::new();
    for workload in &WORKLOADS {
        let is_limited = workload.side == workload::Side::User;
        if options.wants(workload.name) && (is_limited || !options.limits) {
            tables.push(measure(workload, options, &leaktrace)?);
        }
    }
    let mut figures = Vec::new();
    if !options.limits && options.beside.is_none() {
        if options.wants("latency") {
            figures.extend(figures::latency(&leaktrace, rounds)?);
        }
        if options.wants("beside") {
            figures.extend(figures::beside(&leaktrace, rounds)?);
        }
        if options.wants("reports") {
            figures.push(figures::reports(&leaktrace)?);
        }
    }
    if !figures.is_empty() {
        table::print_figures(&figures);
    }
    if options.wants("stacks") {
        stacks::bench(&leaktrace, rounds)?;
    }
    if options.wants("reach") {
        reach::bench(&leaktrace, rounds)?;
    }
    if options.wants("budget") {
        budget::bench(&leaktrace)?;
    }
    if let Some(path) = &options.json {
        let text = format!("{:#}\n", table::json(rounds, &tables, &figures)?);
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// One workload in all its ways, in turns.
fn measure(workload: &Workload, options: &Options, leaktrace: &std::path::Path) -> Result<Table> {
    workload.prepare()?;
    let ways = match options.beside {
        Some(_) => tracer::beside(workload.side),
        None => tracer::ways(workload.side, options.limits),
    };
    let mut rows: Vec<Row> =
        ways.iter().map(|way| Row { way: *way, rates: Vec::new(), refusal: None }).collect();
    for _ in 0..options.rounds {
        for row in rows.iter_mut().filter(|row| row.refusal.is_none()) {
            let binary = match (row.way, &options.beside) {
                (tracer::Way::Other(_), Some(other)) => other,
                _ => leaktrace,
            };
            match row.way.rate(workload, binary) {
                Ok(rate) => row.rates.push(rate),
                // That is leaktrace's own failure, or the bench's.
                Err(error) if !row.way.is_peer() => return Err(error),
                Err(error) => row.refusal = Some(format!("{error:#}")),
            }
        }
    }
    let Workload { name, title, unit, .. } = *workload;
    let table = Table { name, title, unit, rows };
    table.print();
    Ok(table)
}
