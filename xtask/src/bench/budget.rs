//! What `--max-overhead 2%` does to a loop that nothing can make cheap, and to a server at several
//! loads.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;

use super::{
    tracer::Tracer,
    workload::{FRAMES, Running, WORKLOADS, compile},
};

/// How long the loop runs: the time until the probes are gone is in it.
const LOOP_SECONDS: &str = "8";
/// Requests a second of the server's one client.
const LOADS: [u32; 4] = [300, 600, 1000, 2000];
/// Reports, one a second, after which what was done counts.
const REPORTS: usize = 8;
/// Requests come in bursts, so many a second.
const BURSTS_PER_S: u32 = 100;

/// Measures both and prints them.
pub(super) fn bench(leaktrace: &Path) -> Result<()> {
    let program = compile("hotloop", &[FRAMES])?;
    let rate = |words: Option<&[&str]>| -> Result<f64> {
        let mut program = Running::program(&program, &[LOOP_SECONDS])?;
        let tracer =
            words.map(|words| Tracer::leaktrace(leaktrace, words, program.pid())).transpose()?;
        let rate = program.rate()?;
        tracer.map_or(Ok(()), Tracer::end)?;
        program.end()?;
        Ok(rate)
    };
    let words = ["user", "-p", "PID", "--max-overhead", "2%"];
    let (untraced, traced) = (rate(None)?, rate(Some(&words))?);
    println!("\n--max-overhead 2%:\n");
    println!(
        "- malloc/free loop, {LOOP_SECONDS} s: {:.2} of its speed untraced",
        traced / untraced
    );
    for load in LOADS {
        let report = server_at(leaktrace, load)?;
        let budget = &report["budget"];
        let cost = budget["overhead_percent"].as_f64().context("no cost in the report")?;
        let steps = budget["steps"].as_array().context("no steps in the report")?;
        let state = match steps.last() {
            None => "all recorded".to_owned(),
            Some(step) => match step["sample_bytes"].as_u64() {
                Some(bytes) => format!("one block in every {bytes} bytes recorded"),
                None => format!("{} left", step["action"].as_str().unwrap_or_default()),
            },
        };
        println!(
            "- redis-server at {load} requests a second: {cost:.2} % of a CPU, {state} (steps: {})",
            steps.len()
        );
    }
    Ok(())
}

/// The last report of a server at this load.
fn server_at(leaktrace: &Path, requests_per_s: u32) -> Result<Value> {
    let redis = WORKLOADS.iter().find(|workload| workload.name == "redis");
    let server = redis.context("there is no server")?.start(&[])?;
    let socket = server.socket().context("the server has no socket")?.to_owned();
    let is_over = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        let client = scope.spawn(|| ask(&socket, requests_per_s, &is_over));
        let report = last_report(leaktrace, server.pid());
        is_over.store(true, Ordering::Relaxed);
        client.join().map_err(|_| anyhow!("the client failed"))??;
        report
    })?;
    server.end()?;
    Ok(report)
}

fn last_report(leaktrace: &Path, pid: u32) -> Result<Value> {
    let words = ["user", "-p", "PID", "--max-overhead", "2%", "-i", "1s", "-f", "json"];
    let (tracer, output) = Tracer::leaktrace_with_output(leaktrace, &words, pid)?;
    let mut reports = BufReader::new(output).lines();
    let last = reports.nth(REPORTS - 1).context("leaktrace ended")??;
    thread::spawn(move || reports.for_each(drop));
    tracer.end()?;
    Ok(serde_json::from_str(&last)?)
}

/// Sets keys until the flag is true.
fn ask(socket: &Path, requests_per_s: u32, is_over: &AtomicBool) -> Result<()> {
    let mut server = UnixStream::connect(socket)?;
    let mut next = Instant::now();
    let mut number = 0_u32;
    while !is_over.load(Ordering::Relaxed) {
        for _ in 0..requests_per_s / BURSTS_PER_S {
            number += 1;
            write!(server, "SET key:{} {number:032}\r\n", number % 100_000)?;
            let mut answer = [0; 5];
            server.read_exact(&mut answer)?;
        }
        next += Duration::from_secs(1) / BURSTS_PER_S;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}
