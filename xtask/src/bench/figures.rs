//! What tracing costs apart from the traced program: reports, attaching, other processes.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    table::Figure,
    tracer::Tracer,
    workload::{FRAMES, Running, WORKLOADS, Workload, compile},
};

/// The kernel's unit of CPU time in /proc/PID/stat (USER_HZ, the same on all machines).
const TICKS_PER_S: f64 = 100.0;

/// Reports whose cost is measured, one each five seconds.
const REPORTS: usize = 6;

/// CPU time for a report each five seconds, with 1,000,000 live blocks of 1,000 call sites.
pub(super) fn reports(leaktrace: &Path) -> Result<Figure> {
    let mut program = Running::program(&compile("thousand", &[FRAMES])?, &[])?;
    let words = ["user", "-p", "PID", "-i", "5s", "-f", "json"];
    let (tracer, output) = Tracer::leaktrace_with_output(leaktrace, &words, program.pid())?;
    program.advance()?;
    let mut reports = BufReader::new(output).lines();
    // The first one learns all names; the blocks may not all be there.
    let mut report = reports.next().context("leaktrace ended")??;
    let (mut values, mut last) = (Vec::new(), (Instant::now(), cpu_s(&tracer.pid())?));
    for _ in 0..REPORTS {
        report = reports.next().context("leaktrace ended")??;
        let now = (Instant::now(), cpu_s(&tracer.pid())?);
        values.push(100.0 * (now.1 - last.1) / (now.0 - last.0).as_secs_f64());
        last = now;
    }
    let report: serde_json::Value = serde_json::from_str(&report)?;
    let outstanding = report["totals"]["outstanding_count"].as_u64();
    ensure!(outstanding >= Some(1_000_000), "leaktrace saw {outstanding:?} blocks");
    let sites = report["sites_total"].as_u64();
    ensure!(sites >= Some(1000), "leaktrace saw {sites:?} call sites");
    // Rather read the rest than have it fail at its last report.
    std::thread::spawn(move || reports.for_each(drop));
    tracer.end()?;
    program.end()?;
    let name = "CPU for a report each 5 s: 1,000,000 blocks, 1,000 sites";
    Ok(Figure { name, unit: "% of a core", values, bar: 1.0 })
}

/// User and system time of a process.
pub(super) fn cpu_s(pid: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command may hold anything but ends with the last bracket; utime is the 12th after it.
    let (_, rest) = text.rsplit_once(')').context("no command in stat")?;
    let ticks = |at: usize| -> Result<f64> {
        Ok(rest.split_whitespace().nth(at).context("no time in stat")?.parse()?)
    };
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_S)
}

/// From the start to probes attached, and from Ctrl-C to the end, for python3.
pub(super) fn latency(leaktrace: &Path, rounds: usize) -> Result<[Figure; 2]> {
    let python = WORKLOADS.iter().find(|workload| workload.name == "churn");
    let program = python.context("there is no python3 workload")?.start(&[])?;
    let (mut attach, mut detach) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        let tracer = Tracer::leaktrace(leaktrace, &["user", "-p", "PID"], program.pid())?;
        attach.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        tracer.end()?;
        detach.push(start.elapsed().as_secs_f64());
    }
    program.end()?;
    let figure = |name, values, bar| Figure { name, unit: "s", values, bar };
    Ok([
        figure("from Enter to probes attached (python3)", attach, 1.0),
        figure("from Ctrl-C to the end (python3)", detach, 0.5),
    ])
}

/// How much slower an untraced loop is while another process with the same libraries is traced,
/// which waits, or which runs the same loop.
pub(super) fn beside(leaktrace: &Path, rounds: usize) -> Result<[Figure; 2]> {
    let hot = WORKLOADS.iter().find(|workload| workload.name == "hotloop");
    let hot = hot.context("there is no loop")?;
    hot.prepare()?;
    let mut values = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (runs, values) in [false, true].into_iter().zip(&mut values) {
            let untraced = rate_beside(hot, None, runs)?;
            values.push(untraced / rate_beside(hot, Some(leaktrace), runs)?);
        }
    }
    let [waits, runs] = values;
    let figure = |name, values| Figure { name, unit: "x slower", values, bar: 1.0 };
    Ok([
        figure("an untraced loop beside a traced process that waits", waits),
        figure("an untraced loop beside a traced process that runs", runs),
    ])
}

/// The rate of an untraced loop on its CPU, beside another one, which leaktrace traces if given.
fn rate_beside(hot: &Workload, leaktrace: Option<&Path>, runs: bool) -> Result<f64> {
    let mut other = hot.start(&[])?;
    let mut measured = hot.start(&[])?;
    let words = ["user", "-p", "PID"];
    let tracer =
        leaktrace.map(|leaktrace| Tracer::leaktrace(leaktrace, &words, other.pid())).transpose()?;
    // Both at once, for the same second.
    let other = std::thread::spawn(move || {
        if runs {
            other.rate()?;
        }
        anyhow::Ok(other)
    });
    let rate = measured.rate_on_cpu()?;
    let other = other.join().map_err(|_| anyhow::anyhow!("the other loop failed"))??;
    tracer.map_or(Ok(()), Tracer::end)?;
    measured.end()?;
    other.end()?;
    Ok(rate)
}
