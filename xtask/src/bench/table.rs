//! What was measured: medians and ratios, as a table and as JSON.

#![allow(clippy::print_stdout, reason = "the tables are the task's result")]

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::tracer::Way;

/// The rates of one workload, traced in one way.
pub(super) struct Row {
    pub(super) way: Way,
    pub(super) rates: Vec<f64>,
    /// Why this way cannot run here.
    pub(super) refusal: Option<String>,
}

/// One workload in all ways; the first is what the others are compared with.
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    pub(super) rows: Vec<Row>,
}

/// Something else that was measured, and the bar that it is to stay below.
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) values: Vec<f64>,
    pub(super) bar: f64,
}

/// Least, median and most.
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        Some(Self { least, median: *sorted.get(sorted.len() / 2)?, most })
    }

    fn json(&self) -> Value {
        json!({"median": self.median, "min": self.least, "max": self.most})
    }
}

/// The one in the middle.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    Spread::of(values).map(|spread| spread.median)
}

impl Row {
    fn spread(&self) -> Option<Spread> {
        // A way that failed in one round is no measurement.
        self.refusal.is_none().then(|| Spread::of(&self.rates)).flatten()
    }
}

impl Table {
    /// The median of a way.
    fn rate(&self, wanted: Way) -> Option<f64> {
        self.rows.iter().find(|row| row.way == wanted)?.spread().map(|spread| spread.median)
    }

    /// Times that another way goes as fast as this one, by their medians.
    fn ratio(&self, other: Way, way: Way) -> Option<f64> {
        Some(self.rate(other)? / self.rate(way)?)
    }

    /// How much faster than the peer, and how much slower than empty programs, a row is.
    fn ratios(&self, way: Way) -> [(&'static str, Option<f64>); 3] {
        let is_ours = matches!(way, Way::Leaktrace(_));
        let ours = |ratio: Option<f64>| ratio.filter(|_| is_ours);
        let slower = self.rows.first().and_then(|first| self.ratio(first.way, way));
        [
            ("slower", slower),
            ("faster_than_memleak", ours(self.ratio(way, Way::Memleak))),
            ("slower_than_empty", ours(self.ratio(Way::Empty { skip: false }, way))),
        ]
    }

    /// Prints the table, as docs/performance.md has it.
    pub(super) fn print(&self) {
        let Self { name, title, unit, rows } = self;
        let is_limits = rows.iter().any(|row| matches!(row.way, Way::Empty { .. }));
        let beside = if is_limits { "beside empty programs" } else { "beside memleak" };
        let unit = format!("{unit} a second");
        println!("\n{title} (`{name}`):\n");
        print_row(["traced by", &unit, "least", "most", "slower", beside]);
        println!("| --- | ---: | ---: | ---: | ---: | --- |");
        for row in rows {
            let way = row.way.name();
            let Some(Spread { least, median, most }) = row.spread() else {
                let refusal = row.refusal.as_deref().unwrap_or("it was not measured");
                let refusal = format!("cannot run here: {}", refusal.replace('|', "/"));
                print_row([&way, &refusal, "", "", "", ""]);
                continue;
            };
            let [(_, slower), (_, faster), (_, empty)] = self.ratios(row.way);
            let slower = slower.map_or_else(String::new, |slower| format!("{slower:.2}x"));
            let beside = match (faster, empty) {
                (Some(faster), _) => format!("{faster:.1}x faster"),
                (_, Some(empty)) => format!("{empty:.2}x slower"),
                (None, None) => String::new(),
            };
            let [least, median, most] = [least, median, most].map(|rate| format!("{rate:.0}"));
            print_row([&way, &median, &least, &most, &slower, &beside]);
        }
    }

    fn json(&self) -> Value {
        let ways: Vec<Value> = self.rows.iter().map(|row| self.row_json(row)).collect();
        json!({"name": self.name, "title": self.title, "unit": self.unit, "ways": ways})
    }

    fn row_json(&self, row: &Row) -> Value {
        let Some(spread) = row.spread() else {
            return json!({"way": row.way.name(), "cannot_run": row.refusal});
        };
        let mut value = spread.json();
        value["way"] = row.way.name().into();
        value["rates"] = json!(row.rates);
        for (name, ratio) in self.ratios(row.way) {
            if let Some(ratio) = ratio {
                value[name] = ratio.into();
            }
        }
        value
    }
}

impl Figure {
    fn json(&self) -> Value {
        let mut value = Spread::of(&self.values).map_or_else(|| json!({}), |spread| spread.json());
        value["name"] = self.name.into();
        value["unit"] = self.unit.into();
        value["bar"] = self.bar.into();
        value
    }
}

/// Prints figures as a table.
pub(super) fn print_figures(figures: &[Figure]) {
    println!("\nleaktrace itself:\n");
    println!("| what | median | least | most | bar |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    for Figure { name, unit, values, bar } in figures {
        let Some(Spread { least, median, most }) = Spread::of(values) else { continue };
        println!("| {name} | {median:.2} {unit} | {least:.2} | {most:.2} | {bar} {unit} |");
    }
}

fn print_row([first, second, third, fourth, fifth, sixth]: [&str; 6]) {
    println!("| {first:<35} | {second:>18} | {third:>9} | {fourth:>9} | {fifth:>8} | {sixth} |");
}

/// Everything as one object.
pub(super) fn json(rounds: usize, tables: &[Table], figures: &[Figure]) -> Result<Value> {
    let tables: Vec<Value> = tables.iter().map(Table::json).collect();
    let figures: Vec<Value> = figures.iter().map(Figure::json).collect();
    Ok(json!({
        "machine": machine()?,
        "rounds": rounds,
        "workloads": tables,
        "figures": figures,
    }))
}

/// What the figures depend on.
fn machine() -> Result<Value> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_owned());
    let cpus = read("/proc/cpuinfo")?;
    let field = |text: &str, name: &str| -> Option<String> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    Ok(json!({
        "kernel": read("/proc/sys/kernel/osrelease")?.trim(),
        "cpu": field(&cpus, "model name"),
        "cpus": cpus.lines().filter(|line| line.starts_with("processor")).count(),
        "memory": field(&read("/proc/meminfo")?, "MemTotal"),
        "is_virtual": field(&cpus, "flags").map(|flags| flags.contains("hypervisor")),
        "load": read("/proc/loadavg")?.trim(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(way: Way, rates: &[f64], refusal: Option<&str>) -> Row {
        Row { way, rates: rates.to_vec(), refusal: refusal.map(str::to_owned) }
    }

    #[test]
    fn ratios_are_of_medians() {
        let leaktrace = Way::Leaktrace(&["user", "-p", "PID"]);
        let table = Table {
            name: "loop",
            title: "a loop",
            unit: "pairs",
            rows: vec![
                row(Way::Untraced, &[900.0, 1000.0, 5.0], None),
                row(leaktrace, &[100.0, 90.0, 110.0], None),
                row(Way::Memleak, &[20.0, 30.0, 25.0], None),
                row(Way::Bpftrace, &[20.0], Some("it ended")),
            ],
        };
        let rows = table.json();
        assert_eq!(rows["ways"][0]["slower"], 1.0);
        assert_eq!(rows["ways"][1]["slower"], 9.0);
        assert_eq!(rows["ways"][1]["min"], 90.0);
        assert_eq!(rows["ways"][1]["faster_than_memleak"], 4.0);
        assert_eq!(rows["ways"][1].get("slower_than_empty"), None);
        assert_eq!(rows["ways"][2].get("faster_than_memleak"), None);
        assert_eq!(rows["ways"][3]["cannot_run"], "it ended");
        assert_eq!(rows["ways"][3].get("median"), None);
    }
}
