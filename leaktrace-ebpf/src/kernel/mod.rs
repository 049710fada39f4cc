//! Kernel allocations.

mod bulk;
mod rcu;
mod slab;
