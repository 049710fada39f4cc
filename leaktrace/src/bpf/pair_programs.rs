//! The programs for the kernel functions that `--pair` names.

use aya::programs::KProbe;

use super::{Loaded, object::root_cause, refusal};
use crate::error::Error;

/// A program for the kernel's functions of pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairProgram {
    /// Runs at the entry of an acquiring function.
    Acquire,
    /// Runs at the return of an acquiring function.
    Acquired,
    /// Runs at the entry of a releasing function.
    Release,
}

impl PairProgram {
    const fn name(self) -> &'static str {
        match self {
            Self::Acquire => "lt_pair_get",
            Self::Acquired => "lt_pair_got",
            Self::Release => "lt_pair_put",
        }
    }
}

impl Loaded {
    /// Loads a program of pairs unless it is loaded, and attaches it to a function by kprobe until
    /// `self` is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when the kernel does not load the program, [`Error::Host`] when the
    /// kernel permits no probe on the function.
    pub fn attach_pair(&mut self, program: PairProgram, function: &str) -> Result<(), Error> {
        let name = program.name();
        let fail = |error| refusal::of_aya(name, "cannot load a BPF program", error);
        let probe: &mut KProbe = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| Error::kernel(format!("program {name}"), "is not in the BPF object"))?
            .try_into()
            .map_err(fail)?;
        if probe.fd().is_err() {
            probe.load().map_err(fail)?;
        }
        probe.attach(function, 0).map_err(|error| {
            Error::Host(format!(
                "--pair {function}: the kernel permits no kprobe there ({}): name another function, \
                 that it calls or that calls it, or see `leaktrace doctor`",
                root_cause(&error)
            ))
        })?;
        Ok(())
    }
}
