//! Kernel allocations.

mod bulk;
mod percpu;
mod rcu;
mod slab;
mod vmalloc;
