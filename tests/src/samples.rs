//! Compares leaktrace's stacks with gdb's backtraces of the same malloc calls, one by one.
//!
//! gdb stops a process at malloc's first instruction, before leaktrace's probe, and takes its
//! backtrace; lets the probe run; and waits. Then leaktrace's map of calls under way has this
//! call, which is looked at: neither need another call have the same stack, nor be the block of
//! this one outstanding in a report.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    sync::atomic::{AtomicBool, Ordering},
};

use leaktrace_common::{AllocFunction, FrameMark, InFlight, MAX_FRAMES, StackEnd, StackRecord};
use serde_json::Value;

use crate::{
    maps::CallMaps,
    oracle::{Oracle, Sampling, malloc_in},
    report::number,
    traced::Traced,
};

/// Number of calls that are compared.
pub const SAMPLES: usize = 1000;

/// Differences that are shown whole.
const SHOWN: usize = 3;

/// What came out.
#[derive(Debug, Default)]
pub struct Tally {
    /// Calls whose every return address is the same on both sides, and whose end is right.
    pub equal: usize,
    /// Calls with another stack.
    pub different: usize,
    /// Calls that leaktrace did not see, or lost the stack of.
    pub absent: usize,
    /// Calls out of an allocator function that leaktrace follows already; not compared.
    pub nested: u64,
    /// Stacks by gdb, and what is in all of them.
    stacks: BTreeSet<Vec<u64>>,
    addresses: usize,
    deepest: usize,
    differences: String,
}

/// Sets the flag when dropped, so that a failure ends the other thread too.
struct WhenDropped<'a>(&'a AtomicBool);

impl Drop for WhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Samples one of `every` malloc calls of a process whose malloc is that of the object named.
///
/// `drive` keeps the process busy, in a thread of its own, until the flag is true.
///
/// # Panics
///
/// When one of the two tracers fails.
pub fn compare(
    pid: u32,
    object_name: &str,
    every: usize,
    drive: impl FnOnce(&AtomicBool) + Send,
) -> Tally {
    let traced = Traced::start(&["user", "-p", &pid.to_string(), "--interval", "1h"]);
    let maps = CallMaps::of_process(traced.pid());
    let sampling = Sampling { samples: SAMPLES, every };
    let mut oracle = Oracle::attach(pid, malloc_in(pid, object_name), Some(sampling));
    let mut tally = Tally::default();
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let guard = WhenDropped(&enough);
        scope.spawn(|| drive(&enough));
        oracle.go_on();
        for _ in 0..SAMPLES {
            let call = oracle.next_line();
            tally.add(&call, traced_stack(&maps, pid, &call));
            oracle.go_on();
        }
        tally.nested = number(&oracle.next_line(), "nested");
        drop(guard);
    });
    oracle.into_lines();
    traced.interrupt().final_report().assert_complete();
    tally
}

/// leaktrace's stack of a call that gdb tells of; none if it is not the thread's last one.
fn traced_stack(maps: &CallMaps, pid: u32, told: &Value) -> Option<StackRecord> {
    let thread = u32::try_from(number(told, "thread")).unwrap_or_default();
    let InFlight { stack_pointer, size_bytes, function, stack, .. } =
        maps.last_call(pid, thread)?;
    let same = stack_pointer == number(told, "rsp")
        && size_bytes == number(told, "size")
        && AllocFunction::of_cookie(function.into()) == AllocFunction::of_symbol("malloc");
    same.then(|| maps.stack(stack)).flatten()
}

impl Tally {
    fn add(&mut self, call: &Value, record: Option<StackRecord>) {
        let frames = call["frames"].as_array().map(Vec::as_slice).unwrap_or_default();
        let expected: Vec<u64> = frames.iter().map(hex).collect();
        let part = &expected[..expected.len().min(MAX_FRAMES)];
        let end = if expected.len() > MAX_FRAMES { StackEnd::TooDeep } else { StackEnd::Complete };
        match record {
            None => self.absent += 1,
            Some(got) if frames_of(&got) == part && got.end == end as u32 => self.equal += 1,
            Some(got) => {
                self.different += 1;
                if self.different <= SHOWN {
                    self.differences += &show(part, &got);
                }
            }
        }
        self.addresses += part.len();
        self.deepest = self.deepest.max(expected.len());
        self.stacks.insert(expected);
    }

    /// Prints the account, and panics unless 99 % of the calls are equal and enough of their
    /// stacks are distinct.
    ///
    /// # Panics
    ///
    /// As said; the message holds some of the differences.
    pub fn check(&self, name: &str, distinct: usize) {
        let Self { equal, different, absent, nested, stacks, addresses, deepest, .. } = self;
        let account = format!(
            "{name}: {equal} equal, {different} different, {absent} absent; {} distinct stacks, \
             {addresses} return addresses, deepest {deepest}; {nested} nested calls left out",
            stacks.len()
        );
        eprintln!("{account}");
        let differences = &self.differences;
        assert!(equal + different + absent >= SAMPLES, "too few samples: {account}");
        assert!(equal * 100 >= SAMPLES * 99, "{account}\n{differences}");
        assert!(stacks.len() >= distinct, "fewer than {distinct} distinct stacks: {account}");
    }
}

fn hex(value: &Value) -> u64 {
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x")).unwrap_or_default();
    u64::from_str_radix(digits, 16).unwrap_or_else(|error| panic!("{value}: {error}"))
}

/// As gdb has them: without [`FrameMark`]s.
fn frames_of(record: &StackRecord) -> Vec<u64> {
    let frames = &record.frames[..MAX_FRAMES.min(record.count as usize)];
    frames.iter().map(|frame| frame & !FrameMark::ALL).collect()
}

/// Both sides' frames of a stack, in two columns.
fn show(expected: &[u64], got: &StackRecord) -> String {
    let frames = frames_of(got);
    let end = StackEnd::from_u32(got.end);
    let mut text = format!("leaktrace's stack ends {end:?}; gdb, leaktrace:\n");
    for index in 0..frames.len().max(expected.len()) {
        let column = |frames: &[u64]| frames.get(index).map(|frame| format!("{frame:#x}"));
        let (left, right) = (column(expected), column(&frames));
        let mark = if left == right { ' ' } else { '!' };
        let (left, right) = (left.unwrap_or_default(), right.unwrap_or_default());
        let _ = writeln!(text, "{mark} {index:3} {left:>18} {right:>18}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(frames: &[u64], end: StackEnd) -> StackRecord {
        let mut all = [0; MAX_FRAMES];
        all[..frames.len()].copy_from_slice(frames);
        StackRecord { count: frames.len() as u32, end: end as u32, frames: all, generation: 0 }
    }

    #[test]
    fn each_call_is_counted_once() {
        let call = serde_json::json!({"frames": ["0x10", "0x20"]});
        let mut tally = Tally::default();
        tally.add(&call, Some(record(&[0x10, 0x20], StackEnd::Complete)));
        tally.add(&call, Some(record(&[0x10, 0x21], StackEnd::Complete)));
        // Right as far as it goes, but cut short.
        tally.add(&call, Some(record(&[0x10], StackEnd::NoRow)));
        tally.add(&call, Some(record(&[0x10, 0x20], StackEnd::NoRow)));
        tally.add(&call, None);
        assert_eq!((tally.equal, tally.different, tally.absent), (1, 3, 1));
        assert_eq!((tally.stacks.len(), tally.addresses, tally.deepest), (1, 10, 2));
    }

    #[test]
    fn a_deep_stack_is_compared_up_to_the_limit_and_has_to_say_so() {
        let frames: Vec<u64> = (1..=150).collect();
        let told: Vec<String> = frames.iter().map(|frame| format!("{frame:#x}")).collect();
        let call = serde_json::json!({"frames": told});
        let mut tally = Tally::default();
        tally.add(&call, Some(record(&frames[..MAX_FRAMES], StackEnd::TooDeep)));
        tally.add(&call, Some(record(&frames[..MAX_FRAMES], StackEnd::Complete)));
        assert_eq!((tally.equal, tally.different), (1, 1));
    }

    #[test]
    #[should_panic(expected = "989 equal, 11 different")]
    fn less_than_99_percent_is_a_failure() {
        Tally { equal: 989, different: 11, ..Tally::default() }.check("it", 0);
    }
}
