//! Kernel allocations.

mod bulk;
mod bulk_alloc;
mod by_stack;
mod pages;
mod percpu;
mod rcu;
mod slab;
mod vmalloc;
