//! Random ways through Rust code of the release profile: trait objects, closures, iterators,
//! collections, recursion, threads, and panics that are caught. Stages: see maze.h.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{c_char, c_int, c_void},
    fmt::Write as _,
    hint::black_box,
    io::{Read as _, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
};

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: i16,
    revents: i16,
}

unsafe extern "C" {
    fn poll(fds: *mut PollFd, count: u64, timeout: c_int) -> c_int;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// How a way goes on: `left` is the number of functions still to enter.
struct Maze {
    seed: u64,
    left: u32,
}

impl Maze {
    /// Below `bound`: xorshift, of which the high half is taken.
    fn random(&mut self, bound: usize) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 32) as usize % bound
    }
}

trait Room {
    fn enter(&self, maze: &mut Maze) -> usize;
}

struct Hall(Vec<u8>);
struct Vault<const N: usize>([u64; N]);

impl Room for Hall {
    #[inline(never)]
    fn enter(&self, maze: &mut Maze) -> usize {
        step(maze) + self.0.clone().len()
    }
}

impl<const N: usize> Room for Vault<N> {
    #[inline(never)]
    fn enter(&self, maze: &mut Maze) -> usize {
        let copy = black_box(self.0);
        step(maze) + copy.len()
    }
}

fn trait_object(maze: &mut Maze) -> usize {
    let room: Box<dyn Room> = match maze.random(3) {
        0 => Box::new(Hall(vec![1; 40])),
        1 => Box::new(Vault([2; 9])),
        _ => Box::new(Vault([3; 600])),
    };
    room.enter(maze)
}

fn closure(maze: &mut Maze) -> usize {
    let captured = vec![5_u32; maze.random(100)];
    let function: Box<dyn FnOnce(&mut Maze) -> usize> =
        Box::new(move |maze| step(maze) + captured.len());
    black_box(function)(maze)
}

fn iterators(maze: &mut Maze) -> usize {
    let length = maze.random(8) + 1;
    let texts: Vec<String> = (0..length)
        .filter(|number| number % 3 != 2)
        .flat_map(|number| [number, number * 7])
        .map(|number| {
            let deeper = if number == 0 { step(maze) } else { 0 };
            format!("{number} and {deeper}")
        })
        .collect();
    texts.iter().rev().cloned().reduce(|all, text| all + &text).unwrap_or_default().len()
}

fn sorting(maze: &mut Maze) -> usize {
    let mut texts: Vec<String> = (0..40).map(|_| maze.random(1000).to_string()).collect();
    let mut once = true;
    texts.sort_by(|a, b| {
        if std::mem::replace(&mut once, false) {
            step(maze);
        }
        a.cmp(b)
    });
    texts.sort_by_cached_key(|text| text.chars().rev().collect::<String>());
    texts.concat().len()
}

fn collections(maze: &mut Maze) -> usize {
    let mut tree = BTreeMap::new();
    let mut table: HashMap<String, Vec<usize>> = HashMap::new();
    for _ in 0..maze.random(40) + 1 {
        let key = maze.random(500);
        tree.insert(key, "x".repeat(key));
        table.entry(format!("key {}", key % 50)).or_default().push(key);
    }
    let mut text = String::new();
    for (key, value) in &tree {
        let _ = write!(text, "{key:>5}: {:?}", value.get(..5));
    }
    step(maze) + text.len() + table.len()
}

fn recursion(maze: &mut Maze) -> usize {
    fn down(maze: &mut Maze, depth: usize, path: &str) -> usize {
        let path = format!("{path}/{depth}");
        if depth == 0 { step(maze) } else { down(maze, depth - 1, &path) + path.len() }
    }
    let depth = maze.random(8);
    down(maze, depth, "")
}

/// Allocates while a panic passes, and goes on.
struct Guard<'a>(&'a mut Maze);

impl Drop for Guard<'_> {
    #[inline(never)]
    fn drop(&mut self) {
        black_box(vec![0_u8; 1 + self.0.random(900)]);
        if self.0.random(3) == 0 {
            step(self.0);
        }
    }
}

fn panics(maze: &mut Maze) -> usize {
    #[inline(never)]
    fn down(maze: &mut Maze, depth: usize) -> usize {
        let guard = Guard(maze);
        if depth == 0 { panic!("expected in {}", black_box(depth)) }
        down(guard.0, depth - 1) + 1
    }
    let depth = maze.random(5);
    let result = catch_unwind(AssertUnwindSafe(|| down(maze, depth)));
    let text = result.err().and_then(|error| error.downcast::<String>().ok());
    step(maze) + text.map_or(0, |text| text.len())
}

fn threads(maze: &mut Maze) -> usize {
    std::thread::scope(|scope| scope.spawn(|| step(maze)).join().unwrap_or_default())
}

#[inline(never)]
fn step(maze: &mut Maze) -> usize {
    const WAYS: [fn(&mut Maze) -> usize; 7] =
        [trait_object, closure, iterators, sorting, collections, recursion, panics];
    if maze.left == 0 {
        return black_box(vec![1_u8; 1 + maze.random(3000)]).len();
    }
    maze.left -= 1;
    if maze.random(100) == 0 {
        return threads(maze) + 1;
    }
    let way = maze.random(WAYS.len());
    WAYS[way](maze) + 1
}

/// A line that tells a stage and where malloc begins.
fn say(stage: &str) {
    // SAFETY: a null handle is the default one; the name ends with a zero byte.
    let malloc = unsafe { dlsym(std::ptr::null_mut(), c"malloc".as_ptr()) } as usize;
    let pid = std::process::id();
    println!(r#"{{"stage":"{stage}","pid":{pid},"malloc":"{malloc:#x}"}}"#);
    std::io::stdout().flush().expect("stdout");
}

fn wait_for_byte() {
    std::io::stdin().read_exact(&mut [0]).expect("the test closed stdin");
}

fn input_waits() -> bool {
    let mut input = PollFd { fd: 0, events: 1, revents: 0 };
    // SAFETY: one live entry.
    unsafe { poll(&mut input, 1, 0) > 0 }
}

fn main() {
    std::panic::set_hook(Box::new(|info| {
        black_box(info.to_string());
    }));
    let mut maze = Maze { seed: 88172645463325252, left: 0 };
    say("ready");
    wait_for_byte();
    say("running");
    for round in 0_u64.. {
        if input_waits() {
            break;
        }
        let deepest = if round % 64 == 63 { 60 } else { 15 };
        maze.left = maze.random(deepest) as u32;
        black_box(step(&mut maze));
    }
    wait_for_byte();
    say("done");
    wait_for_byte();
}
