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

/// Groups that account for memory; they go when dropped.
#[derive(Debug)]
pub struct MemoryGroups(Vec<PathBuf>);

impl MemoryGroups {
    /// Makes so many.
    ///
    /// # Panics
    ///
    /// When no hierarchy has the controller of memory.
    pub fn new(count: usize) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let root = mounts
            .lines()
            .find_map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                let [_, point, kind, options, ..] = words[..] else { return None };
                let has_memory = match kind {
                    "cgroup" => options.split(',').any(|option| option == "memory"),
                    "cgroup2" => {
                        let all = Path::new(point).join("cgroup.controllers");
                        fs::read_to_string(all).is_ok_and(|all| all.split(' ').any(is_memory))
                            && fs::write(Path::new(point).join("cgroup.subtree_control"), "+memory")
                                .is_ok()
                    }
                    _ => false,
                };
                has_memory.then(|| PathBuf::from(point))
            })
            .unwrap_or_else(|| panic!("no hierarchy that accounts for memory:\n{mounts}"));
        let name = |index| format!("leaktrace-test-{}-{index}", std::process::id());
        let groups = Self((0..count).map(|index| root.join(name(index))).collect());
        for folder in &groups.0 {
            fs::create_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
        }
        groups
    }

    /// The files that take a process into each of them.
    pub fn files(&self) -> Vec<PathBuf> {
        self.0.iter().map(|folder| folder.join("cgroup.procs")).collect()
    }
}

fn is_memory(controller: &str) -> bool {
    controller.trim() == "memory"
}

impl Drop for MemoryGroups {
    fn drop(&mut self) {
        for folder in &self.0 {
            let _ = fs::remove_dir(folder);
        }
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
