//! Rust's standard library: a map that churns, and the ways to forget.
//!
//! Stages: ready, (byte: run) and then until it is killed.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    hint::black_box,
    io::{Read, Write},
    rc::Rc,
    time::{Duration, Instant},
};

struct Work {
    map: HashMap<u64, Vec<u8>>,
    queue: VecDeque<String>,
    random: u64,
}

impl Work {
    fn random_below(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % limit
    }

    /// Fifty times a second.
    #[inline(never)]
    fn change_map(&mut self) {
        for _ in 0..2 {
            let key = self.random_below(600);
            if self.random_below(2) == 0 {
                let size = 30 + self.random_below(300);
                self.map.insert(key, vec![1; size as usize]);
            } else {
                self.map.remove(&key);
            }
            self.queue.push_back(format!("entry {key} of the queue"));
            if self.queue.len() > 200 {
                self.queue.pop_front();
            }
        }
    }
}

#[inline(never)]
fn forget_box(number: u64) {
    std::mem::forget(black_box(Box::new([number; 12])));
}

struct Node {
    other: RefCell<Option<Rc<Node>>>,
    rest: [u64; 10],
}

#[inline(never)]
fn make_cycle(number: u64) {
    let one = Rc::new(Node { other: RefCell::new(None), rest: [number; 10] });
    let two = Rc::new(Node { other: RefCell::new(Some(one.clone())), rest: [number; 10] });
    black_box(one.rest);
    *one.other.borrow_mut() = Some(two);
}

fn main() {
    let name = std::env::args().nth(1).unwrap_or_default();
    let pid = std::process::id();
    let mut out = std::io::stdout();
    writeln!(out, "{{\"stage\":\"ready\",\"pid\":{pid}}}").unwrap();
    assert_eq!(std::io::stdin().read(&mut [0; 1]).unwrap(), 1, "the test closed stdin");

    let mut work = Work { map: HashMap::new(), queue: VecDeque::new(), random: 1 };
    let start = Instant::now();
    for turn in 0_u64.. {
        work.change_map();
        match name.as_str() {
            "churn" => {}
            "forget" if turn % 5 == 0 => forget_box(turn),
            "cycle" if turn % 10 == 0 => make_cycle(turn),
            "forget" | "cycle" => {}
            _ => panic!("no such case"),
        }
        let next = start + Duration::from_millis((turn + 1) * 20);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}
