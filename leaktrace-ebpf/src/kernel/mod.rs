//! Kernel allocations.

mod bulk;
mod by_stack;
pub(crate) mod module;
mod pages;
mod percpu;
mod rcu;
mod slab;
mod vmalloc;
