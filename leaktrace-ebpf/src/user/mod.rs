//! User allocations: the malloc family, mappings, and what happens to traced processes.

mod malloc;
mod mapping;
mod own_stack;
mod process;
mod rule;
mod sampling;
pub(crate) mod walk;
