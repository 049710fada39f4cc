//! Questions to a report of schema 1.

use std::ops::Add;

use serde_json::Value;

use crate::schema;

/// The six figures of a call site, or a sum of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Blocks allocated and not freed.
    pub outstanding_count: u64,
    /// Bytes in them, as asked for.
    pub outstanding_bytes: u64,
    /// Blocks allocated.
    pub allocated_count: u64,
    /// Bytes in them.
    pub allocated_bytes: u64,
    /// Blocks freed.
    pub freed_count: u64,
    /// Bytes in them.
    pub freed_bytes: u64,
}

impl Amounts {
    /// Read from an object that has all six.
    ///
    /// # Panics
    ///
    /// When one is missing or no whole number.
    pub fn of(value: &Value) -> Self {
        Self {
            outstanding_count: number(value, "outstanding_count"),
            outstanding_bytes: number(value, "outstanding_bytes"),
            allocated_count: number(value, "allocated_count"),
            allocated_bytes: number(value, "allocated_bytes"),
            freed_count: number(value, "freed_count"),
            freed_bytes: number(value, "freed_bytes"),
        }
    }
}

impl Add for Amounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            outstanding_count: self.outstanding_count + other.outstanding_count,
            outstanding_bytes: self.outstanding_bytes + other.outstanding_bytes,
            allocated_count: self.allocated_count + other.allocated_count,
            allocated_bytes: self.allocated_bytes + other.allocated_bytes,
            freed_count: self.freed_count + other.freed_count,
            freed_bytes: self.freed_bytes + other.freed_bytes,
        }
    }
}

/// A whole number in an object.
///
/// # Panics
///
/// When it is missing or no whole number.
pub fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no whole number {key:?} in {value}"))
}

/// One report.
#[derive(Clone, Debug)]
pub struct Report {
    /// The whole object.
    pub value: Value,
}

impl Report {
    /// From a line of output.
    ///
    /// # Panics
    ///
    /// When it is no report of schema 1, as docs/schema.json has it.
    pub fn parse(line: &str) -> Self {
        let value: Value = serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("a report is one JSON object a line: {error}: {line}"));
        assert_eq!(value["schema"], 1, "schema of {line}");
        schema::assert_kept(&value);
        Self { value }
    }

    /// Its call sites.
    ///
    /// # Panics
    ///
    /// When it has no list of them.
    pub fn sites(&self) -> Vec<Site<'_>> {
        let Some(sites) = self.value["sites"].as_array() else { panic!("no sites in {self:?}") };
        sites.iter().map(|value| Site { value }).collect()
    }

    /// The sum of the call sites that `wanted` accepts; all zero if there are none.
    pub fn sum(&self, wanted: impl Fn(&Site<'_>) -> bool) -> Amounts {
        let wanted = self.sites().into_iter().filter(wanted);
        wanted.map(|site| Amounts::of(site.value)).fold(Amounts::default(), Add::add)
    }

    /// The sum of the call sites of a process that have `function` in their stack.
    pub fn sum_in(&self, pid: u32, function: &str) -> Amounts {
        self.sum(|site| site.pid() == Some(pid) && site.has_frame(function))
    }

    /// The sum of the call sites in a kernel module that have `function` in their stack.
    pub fn sum_in_module(&self, module: &str, function: &str) -> Amounts {
        self.sum(|site| site.module() == module && site.has_frame(function))
    }

    /// Panics unless each function of a process has exactly the figures that the program counted.
    ///
    /// # Panics
    ///
    /// When one differs; the message holds every one that does, and the report's outline.
    pub fn assert_sites(&self, pid: u32, expected: &[(String, Amounts)]) {
        assert!(!expected.is_empty(), "the program counted nothing");
        let mut differences = String::new();
        for (function, expected) in expected {
            let got = self.sum_in(pid, function);
            if got != *expected {
                differences +=
                    &format!("{function}\n  expected {expected:?}\n  got      {got:?}\n");
            }
        }
        assert!(differences.is_empty(), "pid {pid}:\n{differences}{}", self.outline());
    }

    /// What a library keeps for itself; all zero if it keeps nothing.
    pub fn kept(&self, keeper: &str) -> Amounts {
        let all = self.value["kept"].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().find(|kept| kept["keeper"] == keeper).map(Amounts::of).unwrap_or_default()
    }

    /// Whether it is the last one of its session.
    pub fn is_final(&self) -> bool {
        self.value["final"] == true
    }

    /// A count from its account of losses.
    ///
    /// # Panics
    ///
    /// When there is no such count.
    pub fn loss(&self, key: &str) -> u64 {
        number(&self.value["loss"], key)
    }

    /// Panics unless nothing was missed.
    ///
    /// # Panics
    ///
    /// When something was; the message holds the whole account of losses.
    pub fn assert_complete(&self) {
        assert_eq!(self.value["loss"]["complete"], true, "loss: {}", self.value["loss"]);
    }

    /// The report as lines to read in a failure: a call site a line.
    pub fn outline(&self) -> String {
        self.outline_of(|_| true)
    }

    /// The outline of the call sites that `wanted` accepts.
    pub fn outline_of(&self, wanted: impl Fn(&Site<'_>) -> bool) -> String {
        let mut outline = format!("loss: {}\n", self.value["loss"]);
        for site in self.sites().into_iter().filter(wanted) {
            outline += &format!(
                "{} {} pid {:?} outstanding {} ({} B) of {}: {} held by {}\n",
                site.kind(),
                site.cache(),
                site.pid(),
                site.value["outstanding_count"],
                site.value["outstanding_bytes"],
                site.value["allocated_count"],
                site.symbols().join(" < "),
                site.value["holders"],
            );
        }
        outline
    }
}

/// One call site of a report.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The whole object.
    pub value: &'a Value,
}

impl<'a> Site<'a> {
    /// `kmalloc`, `kmem_cache`, `malloc`, ...
    pub fn kind(self) -> &'a str {
        self.value["kind"].as_str().unwrap_or_default()
    }

    /// Its slab cache; empty if unknown.
    pub fn cache(self) -> &'a str {
        self.value["cache"].as_str().unwrap_or_default()
    }

    /// The kernel module of its innermost frame that lies in one; empty if none does.
    pub fn module(self) -> &'a str {
        self.value["module"].as_str().unwrap_or_default()
    }

    /// Its process (user modes).
    pub fn pid(self) -> Option<u32> {
        self.value["process"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
    }

    /// Names in its stack, innermost first, without the compiler's suffixes (`.isra.0`); a frame
    /// without a name is empty.
    pub fn symbols(self) -> Vec<&'a str> {
        let frames = self.value["stack"].as_array().map(Vec::as_slice).unwrap_or_default();
        let name = |frame: &'a Value| frame["symbol"].as_str().unwrap_or_default();
        frames.iter().map(|frame| name(frame).split('.').next().unwrap_or_default()).collect()
    }

    /// Whether `function` is in its stack.
    pub fn has_frame(self, function: &str) -> bool {
        self.symbols().contains(&function)
    }

    /// Blocks that a process holds of it (kernel mode).
    pub fn held_by(self, pid: u32) -> u64 {
        let holders = self.value["holders"].as_array().map(Vec::as_slice).unwrap_or_default();
        let its = holders.iter().filter(|holder| holder["pid"] == pid);
        its.map(|holder| number(holder, "outstanding_count")).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"schema":1,"final":true,"loss":{"complete":true,"missed_allocs":0},"sites":[
        {"kind":"malloc","process":{"pid":7},"stack":[{"address":"0x1"},{"symbol":"f.isra.0"},{"symbol":"main"}],
         "outstanding_count":2,"outstanding_bytes":30,"allocated_count":3,"allocated_bytes":40,"freed_count":1,"freed_bytes":10},
        {"kind":"malloc","process":{"pid":7},"stack":[{"symbol":"g"},{"symbol":"f"},{"symbol":"f"},{"symbol":"main"}],
         "outstanding_count":1,"outstanding_bytes":5,"allocated_count":1,"allocated_bytes":5,"freed_count":0,"freed_bytes":0},
        {"kind":"kmalloc","cache":"kmalloc-64","stack":[{"symbol":"f"}],
         "holders":[{"pid":7,"outstanding_count":4,"outstanding_bytes":256},{"pid":8,"outstanding_count":1,"outstanding_bytes":64}],
         "outstanding_count":5,"outstanding_bytes":320,"allocated_count":5,"allocated_bytes":320,"freed_count":0,"freed_bytes":0}]}"#;

    /// A report that has but what these tests ask for.
    fn partial() -> Report {
        Report { value: serde_json::from_str(LINE).unwrap() }
    }

    #[test]
    fn sites_are_summed_by_process_and_function() {
        let report = partial();
        let expected = Amounts {
            outstanding_count: 3,
            outstanding_bytes: 35,
            allocated_count: 4,
            allocated_bytes: 45,
            freed_count: 1,
            freed_bytes: 10,
        };
        assert_eq!(report.sum_in(7, "f"), expected);
        assert_eq!(report.sum_in(8, "f"), Amounts::default());
        assert_eq!(report.sum(|site| site.kind() == "kmalloc").outstanding_count, 5);
        report.assert_sites(7, &[("f".into(), expected), ("h".into(), Amounts::default())]);
        assert!(report.is_final());
        report.assert_complete();
    }

    #[test]
    fn a_process_holds_its_part_of_a_kernel_site() {
        let report = partial();
        let held = |pid| report.sites().iter().map(|site| site.held_by(pid)).sum::<u64>();
        assert_eq!((held(7), held(8), held(9)), (4, 1, 0));
    }

    #[test]
    #[should_panic(expected = "got      Amounts { outstanding_count: 1,")]
    fn a_wrong_figure_is_shown() {
        partial().assert_sites(7, &[("g".into(), Amounts::default())]);
    }
}
