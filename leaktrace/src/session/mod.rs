//! The loop of a tracing session; owns every handle.

pub mod spec;
