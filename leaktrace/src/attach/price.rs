//! Measures what a trap costs on this machine, on functions of leaktrace's own with the real
//! programs.

use std::{hint::black_box, time::Instant};

use crate::{error::Error, host::proc};

/// Nanoseconds that a hit of a probe costs, without the run time of its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prices {
    /// A hit on an instruction that the kernel emulates.
    pub emulated_ns: u64,
    /// A hit on an instruction that the kernel single-steps.
    pub stepped_ns: u64,
    /// A hit at the return of a function.
    pub return_ns: u64,
}

/// Where the probes of the measurement go: a file and two offsets in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ground {
    pub(super) path: &'static str,
    pub(super) pid: u32,
    pub(super) emulated: u64,
    pub(super) stepped: u64,
}

// Two functions that are nothing but the instruction that is probed.
std::arch::global_asm!(
    ".pushsection .text.leaktrace_price, \"ax\", @progbits",
    ".globl leaktrace_price_emulated",
    ".hidden leaktrace_price_emulated",
    ".type leaktrace_price_emulated, @function",
    "leaktrace_price_emulated:",
    "nop",
    "ret",
    ".size leaktrace_price_emulated, . - leaktrace_price_emulated",
    ".globl leaktrace_price_stepped",
    ".hidden leaktrace_price_stepped",
    ".type leaktrace_price_stepped, @function",
    "leaktrace_price_stepped:",
    "test rdi, rdi",
    "ret",
    ".size leaktrace_price_stepped, . - leaktrace_price_stepped",
    ".popsection",
);

unsafe extern "C" {
    fn leaktrace_price_emulated();
    fn leaktrace_price_stepped();
}

impl Ground {
    /// Finds the functions in the running program.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when /proc does not tell where the program is mapped.
    pub(super) fn here() -> Result<Self, Error> {
        let offset = |function: unsafe extern "C" fn()| {
            proc::own_offset(function as usize as u64)
                .ok_or_else(|| Error::kernel("cannot find leaktrace's own code", "in /proc"))
        };
        Ok(Self {
            path: "/proc/self/exe",
            pid: std::process::id(),
            emulated: offset(leaktrace_price_emulated)?,
            stepped: offset(leaktrace_price_stepped)?,
        })
    }
}

/// Nanoseconds of one call of the function on an emulated instruction.
pub(super) fn emulated_ns() -> u64 {
    call_ns(leaktrace_price_emulated)
}

/// Nanoseconds of one call of the function on a single-stepped instruction.
pub(super) fn stepped_ns() -> u64 {
    call_ns(leaktrace_price_stepped)
}

/// The least time of some batches: anything in between makes a call dearer, never cheaper.
fn call_ns(function: unsafe extern "C" fn()) -> u64 {
    const BATCHES: u32 = 8;
    const CALLS: u32 = 100;
    let batch = || {
        let start = Instant::now();
        for _ in 0..CALLS {
            // SAFETY: it takes nothing, changes nothing but flags, and returns.
            unsafe { black_box(function)() };
        }
        start.elapsed().as_nanos() as u64 / u64::from(CALLS)
    };
    (0..BATCHES).map(|_| batch()).min().unwrap_or(0)
}
