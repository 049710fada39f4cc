//! gdb on a process, with a breakpoint at its malloc: `tests/programs/oracle.py`.
//!
//! The breakpoint is one of the processor's: one in memory would meet leaktrace's own trap. It
//! stops a call before that trap, so that both see the very same stack.

use std::{fs::File, process::Command};

use object::{Object as _, ObjectSymbol as _, ReadCache};
use serde_json::Value;

use crate::{LATE, binary::workspace, child::Child};

/// Which calls are taken, where not all of some sizes are.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Number of samples.
    pub samples: usize,
    /// Of how many calls one is taken, in the mean.
    pub every: usize,
}

/// gdb; killed when dropped.
#[derive(Debug)]
pub struct Oracle(Child);

impl Oracle {
    /// Attaches to a process whose malloc begins at an address; the process goes on at once, or,
    /// with samples, with [`Oracle::go_on`].
    ///
    /// # Panics
    ///
    /// When gdb does not come so far.
    pub fn attach(pid: u32, malloc: u64, sampling: Option<Sampling>) -> Self {
        let mut command = Command::new("gdb");
        command.args(["-nx", "-batch", "-p", &pid.to_string(), "-x"]);
        command.arg(workspace().join("tests/programs/oracle.py"));
        command.env("ORACLE_MALLOC", format!("{malloc:#x}"));
        if let Some(Sampling { samples, every }) = sampling {
            command.env("ORACLE_SAMPLES", samples.to_string());
            command.env("ORACLE_EVERY", every.to_string());
        }
        let mut oracle = Self(Child::start(&mut command));
        assert_eq!(oracle.next_line()["ready"], true, "what gdb says first");
        oracle
    }

    /// The next thing that it says.
    ///
    /// # Panics
    ///
    /// When it says nothing more.
    pub fn next_line(&mut self) -> Value {
        loop {
            let line = self.0.next_line(LATE);
            if let Some(value) = parse(&line) {
                return value;
            }
        }
    }

    /// Lets it and its process go on.
    pub fn go_on(&mut self) {
        self.0.send("x");
    }

    /// Waits for its end, as its process has ended or all samples are taken; all that it said.
    ///
    /// # Panics
    ///
    /// When it does not end well.
    pub fn into_lines(mut self) -> Vec<Value> {
        let code = self.0.wait(LATE);
        let (stdout, stderr) = self.0.into_output();
        assert_eq!(code, 0, "exit code of gdb\n{stdout}\n{stderr}");
        stdout.lines().filter_map(parse).collect()
    }
}

fn parse(line: &str) -> Option<Value> {
    let json = line.strip_prefix("oracle ")?;
    Some(serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {line:?}")))
}

/// Where malloc begins in a process, by the symbols of the object whose file name begins so. (The
/// process itself may only know a stub for it.)
///
/// # Panics
///
/// When the process maps no such object, or it has no malloc.
pub fn malloc_in(pid: u32, object_name: &str) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))
        .unwrap_or_else(|error| panic!("mappings of {pid}: {error}"));
    let found = maps.lines().find_map(|line| {
        let path = line.split_whitespace().nth(5)?;
        let start = u64::from_str_radix(line.split('-').next()?, 16).ok()?;
        path.rsplit('/').next()?.starts_with(object_name).then_some((start, path))
    });
    let Some((start, path)) = found else { panic!("{pid} maps no {object_name}:\n{maps}") };
    let file = File::open(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let cache = ReadCache::new(file);
    let elf = object::File::parse(&cache).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut symbols = elf.dynamic_symbols().filter(|symbol| symbol.is_definition());
    match symbols.find(|symbol| symbol.name() == Ok("malloc")) {
        Some(malloc) => start + malloc.address(),
        None => panic!("{path} has no malloc"),
    }
}
