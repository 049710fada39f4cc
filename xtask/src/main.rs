//! leaktrace's build, test and check tasks.
fn main() {}
