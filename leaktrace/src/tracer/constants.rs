//! Turns the options of tracing into constants of the BPF object.

use leaktrace_common::Config;

use super::log;
use crate::{collect::PairNames, session::spec::TraceOptions};

/// The constants that all tracers share.
pub(super) fn constants(trace: &TraceOptions) -> Config {
    Config {
        min_size_bytes: trace.min_size_bytes,
        max_size_bytes: trace.max_size_bytes,
        stack_mode: trace.stacks as u32,
        max_frames: trace.max_depth,
        own_tgid: std::process::id(),
        sampling: u32::from(trace.is_sampled()),
        count_calls: u32::from(trace.max_overhead_ppm.is_some()),
        pairs: u32::from(!trace.pairs.is_empty()),
        log: u32::from(log::is_on(trace)),
        ..Config::default()
    }
}

/// The names of the pairs and of their functions.
pub(super) fn pair_names(trace: &TraceOptions) -> Vec<PairNames> {
    let names = trace.pairs.iter().map(|pair| {
        let functions = pair.acquire.iter().map(|function| function.name.clone());
        PairNames { pair: pair.name.clone(), functions: functions.collect() }
    });
    names.collect()
}
