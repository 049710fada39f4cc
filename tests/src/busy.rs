//! Busy CPUs: what leaktrace does next comes late, as on a host under load.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

/// Ends the load also when a test fails.
struct WhenDropped<'a>(&'a AtomicBool);

impl Drop for WhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does something while each CPU has one thread more that never sleeps.
pub fn with_busy_cpus<T>(act: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    let spin = || {
        while !is_over.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    };
    thread::scope(|scope| {
        let _end = WhenDropped(&is_over);
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(spin);
        }
        act()
    })
}
