//! Probes: where leaktrace puts them, how it attaches them, and what it could not hook.
//!
//! This module knows nothing of the maps' contents.

pub mod allocator;
pub mod exits;
pub mod kernel;
pub mod kernel_pairs;
pub mod pairs;
pub mod placement;
mod price;
pub mod trial;
pub mod user;
