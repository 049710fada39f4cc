//! Kernel allocations.

mod allocation;
mod arguments;
mod bulk;
mod bulk_alloc;
mod by_stack;
mod ended;
pub(crate) mod generation;
mod module;
mod module_text;
mod pages;
mod pairs;
mod percpu;
mod rcu;
mod slab;
mod vmalloc;
