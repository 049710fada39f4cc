//! Unwind tables: turns an object's call frame information into rows in the BPF maps.
//!
//! An object is compiled once, and all processes that map it share its table. Memory is bounded: if
//! the rows of an object find no room, walks stop at the object, and its stacks say so.

pub mod eh_frame;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod large;
pub mod object;
pub mod tables;
