//! The BPF object: loads it, and gives typed access to its maps and programs.
//!
//! No other module spells the names of maps and programs.

pub mod blocks;
mod kernel_calls;
pub mod kprobe_misses;
mod log;
pub mod mapped;
pub mod maps;
pub mod multi;
pub mod object;
pub mod pair_programs;
mod pairs;
mod refusal;
pub mod sizes;
pub mod spaces;
mod sys;

pub use log::Log;
pub use maps::Maps;
pub use object::Loaded;
pub use sizes::Sizes;
