//! What it costs to look through a gibibyte of blocks for addresses of each other.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    figures::cpu_s,
    tracer::Tracer,
    workload::{FRAMES, Running, compile},
};

const MIB: &str = "1024";
const BLOCKS: &str = "1000000";
/// Time from the last allocation to the scan: younger blocks have no verdict.
const AGE: Duration = Duration::from_secs(6);
/// Bars: CPU time and memory of one scan.
const BAR_S: f64 = 3.0;
const BAR_MIB: f64 = 150.0;

/// Measures and prints.
pub(super) fn bench(leaktrace: &Path, rounds: usize) -> Result<()> {
    let program = compile("heap", &[FRAMES])?;
    println!("\nscan for addresses, {MIB} MiB in {BLOCKS} blocks, every fourth word an address:\n");
    for _ in 0..rounds {
        let mut program = Running::program(&program, &[MIB, BLOCKS])?;
        let (once, off) = (cost(leaktrace, &mut program, "live")?, {
            program.end()?;
            let mut program = Running::program(&compile("heap", &[FRAMES])?, &[MIB, BLOCKS])?;
            let off = cost(leaktrace, &mut program, "off")?;
            program.end()?;
            off
        });
        println!(
            "- {:.2} s of a core (bar {BAR_S} s) and {:.0} MiB (bar {BAR_MIB} MiB) beyond a report \
             without it; {} scan of {:.0} MiB in {:.2} s",
            once.cpu_s - off.cpu_s,
            once.peak_mib - off.peak_mib,
            once.scans,
            once.read_mib,
            once.time_s
        );
    }
    Ok(())
}

/// What a final report took.
struct Cost {
    cpu_s: f64,
    peak_mib: f64,
    scans: u64,
    read_mib: f64,
    time_s: f64,
}

fn cost(leaktrace: &Path, program: &mut Running, way: &str) -> Result<Cost> {
    let words = [
        "user",
        "-p",
        "PID",
        "-i",
        "1h",
        "--max-outstanding",
        "1100000",
        "--reachability",
        way,
        "-f",
        "json",
    ];
    let (tracer, output) = Tracer::leaktrace_with_output(leaktrace, &words, program.pid())?;
    program.advance()?;
    std::thread::sleep(AGE);
    let pid = tracer.pid();
    let before = cpu_s(&pid)?;
    // The report comes while the tracer ends.
    let reader = std::thread::spawn(move || BufReader::new(output).lines().collect::<Vec<_>>());
    interrupt(&pid)?;
    let (mut cpu, mut peak_mib) = (before, 0.0_f64);
    let deadline = Instant::now() + Duration::from_secs(120);
    // Until it is a zombie, and has let go of its memory.
    while let Some(mib) = anonymous_mib(&pid) {
        peak_mib = peak_mib.max(mib);
        cpu = cpu_s(&pid).unwrap_or(cpu).max(cpu);
        ensure!(Instant::now() < deadline, "the scan did not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    let lines = reader.join().map_err(|_| anyhow::anyhow!("the reader failed"))?;
    let last = lines.into_iter().next_back().context("no report")??;
    let report: serde_json::Value = serde_json::from_str(&last)?;
    let scan = &report["scans"][0];
    ensure!(way == "off" || scan["refused"].is_null(), "refused: {scan}");
    let number = |key: &str| scan[key].as_u64().unwrap_or(0);
    drop(tracer);
    Ok(Cost {
        cpu_s: cpu - before,
        peak_mib,
        scans: number("scans"),
        read_mib: number("bytes") as f64 / f64::from(1 << 20),
        time_s: number("time_ms") as f64 / 1000.0,
    })
}

fn interrupt(pid: &str) -> Result<()> {
    crate::command::run(std::process::Command::new("kill").args(["-INT", pid]))
}

/// Anonymous memory of a process; `None` once it has none.
fn anonymous_mib(pid: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib / 1024.0)
}
