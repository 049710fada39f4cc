//! Control groups of a test's own.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A group of the unified hierarchy with one below it; both go when dropped.
#[derive(Debug)]
pub struct Groups(PathBuf);

impl Groups {
    /// Makes them.
    ///
    /// # Panics
    ///
    /// When the unified hierarchy is not mounted, or takes no groups.
    pub fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let root = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1).zip(line.split(' ').nth(2)))
            .find_map(|(point, kind)| (kind == "cgroup2").then_some(point))
            .unwrap_or_else(|| panic!("no unified hierarchy of control groups:\n{mounts}"));
        let outer = Path::new(root).join(format!("leaktrace-test-{}", std::process::id()));
        let groups = Self(outer);
        fs::create_dir_all(groups.inner()).unwrap_or_else(|error| panic!("{error}"));
        groups
    }

    /// The folder of the outer one.
    pub fn outer(&self) -> &Path {
        &self.0
    }

    fn inner(&self) -> PathBuf {
        self.0.join("inner")
    }

    /// Moves a process into the inner one.
    ///
    /// # Panics
    ///
    /// When it has ended.
    pub fn take(&self, pid: u32) {
        fs::write(self.inner().join("cgroup.procs"), pid.to_string())
            .unwrap_or_else(|error| panic!("cannot move {pid}: {error}"));
    }
}

impl Default for Groups {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for group in [self.inner(), self.0.clone()] {
            // One with a process in it stays, which a failed test has left behind.
            let _ = fs::remove_dir(group);
        }
    }
}
