//! Unwind tables: from an object's call frame information to rows in the BPF maps.
//!
//! An object is compiled once and shared by all processes that map it. Memory is bounded: an
//! object whose rows find no room is unwound no further, and its stacks say so.

pub mod eh_frame;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod large;
pub mod object;
pub mod tables;
