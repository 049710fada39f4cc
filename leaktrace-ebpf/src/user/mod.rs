//! User allocations: the malloc family, mappings, and what happens to traced processes.

mod events;
mod in_flight;
mod malloc;
mod mapping;
mod own_stack;
mod pair_calls;
pub(crate) mod pairs;
mod process;
mod rule;
mod sampling;
pub(crate) mod state;
mod targets;
mod vma;
mod walk;
