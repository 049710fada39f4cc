//! Kernel allocations.

mod bulk;
mod bulk_alloc;
mod by_stack;
mod ended;
pub(crate) mod module;
mod module_text;
mod pages;
mod percpu;
mod rcu;
mod slab;
mod vmalloc;
