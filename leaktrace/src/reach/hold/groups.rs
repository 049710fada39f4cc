//! The room that the control groups of a process leave for a copy of it, in either hierarchy.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A controller, with the names of its files for limit and usage.
#[derive(Clone, Copy, Debug)]
pub(super) enum Controller {
    /// Memory, in bytes.
    Memory,
    /// The number of processes and threads.
    Pids,
}

/// A group that leaves less room than is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tight {
    /// Its folder.
    pub(super) folder: PathBuf,
    /// How much room it leaves.
    pub(super) room: u64,
}

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }

    /// The files that limit, and the file with the usage; those of the unified hierarchy first.
    fn files(self) -> [(&'static [&'static str], &'static str); 2] {
        match self {
            // memory.high does not kill, but it stalls whoever allocates.
            Self::Memory => [
                (&["memory.max", "memory.high"], "memory.current"),
                (&["memory.limit_in_bytes"], "memory.usage_in_bytes"),
            ],
            Self::Pids => [(&["pids.max"], "pids.current"), (&[], "")],
        }
    }
}

/// The tightest group of a process, if it leaves less room than `wanted`.
///
/// # Errors
///
/// A sentence when the groups cannot be seen from here.
pub(super) fn tight(
    pid: u32,
    controller: Controller,
    wanted: u64,
) -> Result<Option<Tight>, String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut tightest: Option<Tight> = None;
    for (folder, top) in places(&groups, &mounts, controller.name())? {
        for level in folder.ancestors().take_while(|level| level.starts_with(&top)) {
            let Some(room) = room_in(level, controller) else { continue };
            if room < wanted && tightest.as_ref().is_none_or(|found| room < found.room) {
                tightest = Some(Tight { folder: level.to_owned(), room });
            }
        }
    }
    Ok(tightest)
}

/// The room in one group; none if it has no limit.
fn room_in(folder: &Path, controller: Controller) -> Option<u64> {
    // `max`, or a number beyond all memory, is no limit.
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
    };
    let rooms = controller.files().into_iter().filter_map(|(limits, usage)| {
        let limit = limits.iter().filter_map(|name| number(name)).min()?;
        Some(limit.saturating_sub(number(usage)?))
    });
    rooms.min()
}

/// The folders of a process' groups with a controller, each with the mount that it lies in.
fn places(groups: &str, mounts: &str, controller: &str) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let mut places = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) =
            (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let is_unified = number == "0" && controllers.is_empty();
        if !is_unified && !controllers.split(',').any(|name| name == controller) {
            continue;
        }
        let mount = mounts.lines().find_map(|line| mount_of(line, is_unified, controller));
        let Some((root, point)) = mount else {
            // An older hierarchy beside it, or nothing that limits.
            if is_unified {
                continue;
            }
            return Err(format!("the hierarchy of its control group {path} is not mounted here"));
        };
        let below = Path::new(path).strip_prefix(&root).unwrap_or(Path::new("/"));
        let folder = point.join(below.strip_prefix("/").unwrap_or(below));
        if below == Path::new("/") && path != "/" || path.contains("/..") || !folder.is_dir() {
            return Err(format!("its control group {path} cannot be seen from here"));
        }
        places.push((folder, point));
    }
    Ok(places)
}

/// Root and mount point of a line of /proc/self/mountinfo, if it is the hierarchy that is wanted.
fn mount_of(line: &str, is_unified: bool, controller: &str) -> Option<(PathBuf, PathBuf)> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, mount.next()?);
    let mut kind = kind.split(' ');
    let (name, options) = (kind.next()?, kind.nth(1)?);
    let is_it = match name {
        "cgroup2" => is_unified,
        "cgroup" => !is_unified && options.split(',').any(|option| option == controller),
        _ => false,
    };
    is_it.then(|| (root.into(), point.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_hierarchies_are_found() {
        let top = tempfile::tempdir().unwrap();
        let (old, new) = (top.path().join("memory"), top.path().join("unified"));
        fs::create_dir_all(old.join("a/b")).unwrap();
        fs::create_dir_all(new.join("s.slice")).unwrap();
        let mounts = format!(
            "30 20 0:30 / {} rw shared:1 - cgroup cgroup rw,memory\n\
             31 20 0:31 / {} rw - cgroup2 cgroup2 rw\n",
            old.display(),
            new.display()
        );
        let groups = "5:cpuset:/x\n4:memory:/a/b\n0::/s.slice\n";
        assert_eq!(
            places(groups, &mounts, "memory").unwrap(),
            [(old.join("a/b"), old.clone()), (new.join("s.slice"), new.clone())]
        );
        // One that is not below what is mounted here.
        for hidden in ["4:memory:/gone\n", "0::/../outside\n"] {
            assert!(places(hidden, &mounts, "memory").is_err(), "{hidden}");
        }

        fs::write(old.join("memory.limit_in_bytes"), "5000\n").unwrap();
        fs::write(old.join("memory.usage_in_bytes"), "2000\n").unwrap();
        assert_eq!(room_in(&old, Controller::Memory), Some(3000));
        fs::write(new.join("memory.max"), "max\n").unwrap();
        fs::write(new.join("memory.high"), "100\n").unwrap();
        fs::write(new.join("memory.current"), "99\n").unwrap();
        assert_eq!(room_in(&new, Controller::Memory), Some(1));
        assert_eq!(room_in(&new, Controller::Pids), None);
    }
}
