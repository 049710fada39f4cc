//! User allocations: the malloc family, mappings, and what happens to traced processes.

mod malloc;
mod mapping;
mod own_stack;
mod process;
mod rule;
mod sampling;
mod vma;
pub(crate) mod walk;
