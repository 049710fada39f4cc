//! leaktrace: which call site is leaking memory, in the kernel or in any process.
//!
//! The modules stand in the order in which data flows through them; none calls back to an earlier
//! one.
//!
//! | module | does | root, handles |
//! |---|---|---|
//! | [`cli`] | arguments -> [`session::spec`] | no |
//! | [`host`] | what this machine is and allows | yes |
//! | [`bpf`] | loads the BPF object, typed access to its maps | yes |
//! | [`attach`] | probes | yes |
//! | [`unwind`] | tables for stacks without frame pointers | yes |
//! | [`collect`] | maps -> Snapshot | yes |
//! | [`reach`] | scans of processes for addresses of their blocks | yes |
//! | [`tracer`] | owns probes, maps and collector of what it traces | yes |
//! | [`session`] | the loop of one tracer: when its reports are due | yes |
//! | [`snapshot`] | plain data: one interval's raw state | no |
//! | [`symbol`] | names for frames | reads files |
//! | [`analyze`] | figures -> verdicts | no |
//! | [`report`] | Snapshot + names -> sorted, cut rows | no |
//! | [`render`] | Report -> text, JSON | no |
//! | [`pipeline`] | joins them | no |

pub mod analyze;
pub mod attach;
pub mod bpf;
pub mod cli;
pub mod collect;
pub mod error;
pub mod host;
pub mod pipeline;
pub mod reach;
pub mod render;
pub mod report;
pub mod session;
pub mod snapshot;
pub mod symbol;
pub mod tracer;
pub mod units;
pub mod unwind;
