//! User allocations: the malloc family, mappings, and what happens to traced processes.

mod malloc;
mod mapping;
mod process;
pub(crate) mod walk;
