//! Tries whether the kernel loads the programs of each mode, against maps of the smallest size and
//! without attaching them. Also tries whether return probes are safe.

use leaktrace_common::Config;

use super::{
    kernel,
    user::{self, Way},
};
use crate::{
    bpf::{Loaded, Sizes},
    error::{self, Error},
    host::{
        answer::Answer,
        features::{HostFacts, Trials},
        layout::KernelLayout,
        seccomp,
    },
    session::spec::KernelKind,
};

/// Loads the programs of both modes, and tries a return probe on a child of leaktrace.
pub fn run(facts: &HostFacts) -> Trials {
    let answer = |result: Result<(), Error>| match result {
        Ok(()) => Answer::Yes,
        Err(error) => Answer::No(error::one_line(&error)),
    };
    Trials {
        kernel: answer(load_kernel()),
        user: answer(load_user(Way::best(facts))),
        return_probes: seccomp::return_probes(),
    }
}

fn load_kernel() -> Result<(), Error> {
    use KernelKind::{Pages, Percpu, Slab, Vmalloc};
    let layout = KernelLayout::of_running_kernel()?;
    let config = kernel::constants(&layout, Config::default());
    let mut loaded = Loaded::load(&config, Sizes::least())?;
    kernel::load(&mut loaded, &[Slab, Vmalloc, Percpu, Pages], &layout)
}

fn load_user(way: Way) -> Result<(), Error> {
    let mut loaded = Loaded::load(&Config::default(), Sizes::least())?;
    user::load(&mut loaded, way)
}
