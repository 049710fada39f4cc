//! User allocations: the malloc family, and what happens to traced processes.

mod malloc;
mod process;
pub(crate) mod walk;
