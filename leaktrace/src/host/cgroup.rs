//! Control groups of the unified hierarchy (Documentation/admin-guide/cgroup-v2.rst).

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use leaktrace_common::CgroupTest;

use crate::error::Error;

/// Finds a group, by its directory or by its path below the root as in /proc/PID/cgroup.
///
/// # Errors
///
/// [`Error::Usage`] when there is no such group, [`Error::Host`] where the unified hierarchy is
/// not mounted.
pub fn find(path: &Path) -> Result<CgroupTest, Error> {
    locate(path).map(|(test, _)| test)
}

/// The path of a group as in /proc/PID/cgroup.
///
/// # Errors
///
/// As for [`find`].
pub fn path(path: &Path) -> Result<PathBuf, Error> {
    locate(path).map(|(_, path)| path)
}

fn locate(path: &Path) -> Result<(CgroupTest, PathBuf), Error> {
    let root = fs::read_to_string("/proc/self/mounts")
        .ok()
        .and_then(|mounts| mount_point(&mounts))
        .ok_or_else(|| {
            Error::Host(
                "--cgroup needs the unified hierarchy of control groups (cgroup2): it is not \
                 mounted"
                    .into(),
            )
        })?;
    let shown = path.display();
    let below = path.strip_prefix(&root).or_else(|_| path.strip_prefix("/")).unwrap_or(path);
    let folder = root.join(below);
    let refused = |cause: String| {
        Error::Usage(format!(
            "--cgroup {shown}: {cause}: give a folder below {}, or the path that /proc/PID/cgroup \
             shows after `0::`",
            root.display()
        ))
    };
    let folder = folder.canonicalize().map_err(|error| refused(error.to_string()))?;
    let below = folder.strip_prefix(&root).map_err(|_| refused("is no control group".into()))?;
    let found = fs::metadata(&folder).map_err(|error| refused(error.to_string()))?;
    if !found.is_dir() {
        return Err(refused("is no control group".into()));
    }
    let level = below.components().count() as u32;
    Ok((CgroupTest { id: found.ino(), level, zero: 0 }, Path::new("/").join(below)))
}

/// Where the unified hierarchy is mounted.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    let mut lines = mounts.lines().map(|line| line.split(' '));
    lines.find_map(|mut parts| {
        let (_, point, kind) = (parts.next()?, parts.next()?, parts.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_among_the_older_ones() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_point(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_point("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn what_is_no_group_has_a_mend() {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        if mount_point(&mounts).is_some() {
            assert_eq!(find(Path::new("/")).unwrap().level, 0);
            assert_eq!(super::path(Path::new("/")).unwrap(), Path::new("/"));
            let error = find(Path::new("/no/such/group")).unwrap_err().to_string();
            assert!(error.contains("/proc/PID/cgroup"), "{error}");
            let outside = find(Path::new("/../../../etc")).unwrap_err().to_string();
            assert!(outside.contains("--cgroup"), "{outside}");
        }
    }
}
