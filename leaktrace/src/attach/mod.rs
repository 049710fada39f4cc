//! Probes: where they go, how they are put on, and what could not be hooked.
//!
//! Knows nothing of the maps' contents.

pub mod allocator;
pub mod exits;
pub mod kernel;
pub mod kernel_pairs;
pub mod pairs;
pub mod placement;
mod price;
pub mod trial;
pub mod user;
