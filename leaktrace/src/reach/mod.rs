//! Which outstanding blocks of a process an address in its memory still leads to.

pub mod hold;
pub mod view;
