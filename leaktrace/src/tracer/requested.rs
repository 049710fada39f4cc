//! The objects that `-O` requests: their functions are probed whatever the object is.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{error::Error, host::objects::HeldObject};

/// The requested objects, and which of them a traced process maps.
pub(super) struct RequestedObjects(Vec<(PathBuf, bool)>);

impl RequestedObjects {
    pub(super) fn new(paths: &[PathBuf]) -> Self {
        Self(paths.iter().map(|path| (path.clone(), false)).collect())
    }

    /// Whether an object of a process is requested: by its path as the process sees it, or by
    /// another path of the same file.
    pub(super) fn has(&mut self, pid: u32, object: &HeldObject) -> bool {
        let identity = object.file.as_ref().ok().and_then(|file| file.metadata().ok());
        let mut found = false;
        for (path, is_mapped) in &mut self.0 {
            let same_file = || {
                let requested = fs::metadata(seen_by(pid, path)).ok()?;
                let mapped = identity.as_ref()?;
                Some((requested.dev(), requested.ino()) == (mapped.dev(), mapped.ino()))
            };
            if Path::new(&object.path) == path.as_path() || same_file() == Some(true) {
                *is_mapped = true;
                found = true;
            }
        }
        found
    }

    /// The requested objects that no traced process has mapped so far.
    pub(super) fn missing(&self) -> impl Iterator<Item = String> {
        let missing = self.0.iter().filter(|(_, is_mapped)| !is_mapped);
        missing.map(|(path, _)| format!("-O {}: no traced process maps it", path.display()))
    }
}

/// The error for a requested object that has no function to probe.
pub(super) fn without_functions(object: &HeldObject) -> Error {
    Error::Usage(format!(
        "-O {}: no symbol of it is an allocator function: looked for malloc and free with any \
         prefix (as in pool_malloc), and for operator new and delete; name an object that defines \
         them and is not stripped",
        object.path
    ))
}

/// The path under which leaktrace sees a path of a process.
fn seen_by(pid: u32, path: &Path) -> PathBuf {
    let mut seen = PathBuf::from(format!("/proc/{pid}"));
    match path.strip_prefix("/") {
        Ok(below_root) => seen.extend([Path::new("root"), below_root]),
        Err(_) => seen.extend([Path::new("cwd"), path]),
    }
    seen
}
