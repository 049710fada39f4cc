//! Kernel allocations.

mod rcu;
mod slab;
