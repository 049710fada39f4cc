//! The files that traced processes map; each is held open once.
//!
//! A held descriptor still works after the file was deleted or replaced, in other mount namespaces,
//! and after the process is gone. Device and inode tell objects apart.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    sync::Arc,
};

use libc::{major, minor};

use super::proc::Mapping;

/// Index of an object; stable for the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub u32);

/// A held file.
#[derive(Clone, Debug)]
pub struct HeldObject {
    /// The file's path, as the first process that was seen to map it sees the path.
    pub path: String,
    /// The open file, or why it could not be opened.
    pub file: Result<Arc<File>, String>,
}

impl HeldObject {
    /// A path at which the contents can be read while the descriptor is held; empty if the file
    /// could not be opened.
    pub fn readable_at(&self) -> String {
        match &self.file {
            Ok(file) => format!("/proc/self/fd/{}", file.as_raw_fd()),
            Err(_) => String::new(),
        }
    }
}

/// All objects seen so far.
#[derive(Debug, Default)]
pub struct ObjectTable {
    objects: Vec<HeldObject>,
    by_inode: HashMap<(u64, u64), ObjectId>,
    by_name: HashMap<String, ObjectId>,
    /// Objects by the device and inode that the kernel shows with mappings.
    by_mapping: HashMap<((u32, u32), u64), ObjectId>,
}

impl ObjectTable {
    /// The object behind a mapping of process `pid`, opened if it is new; `None` for memory that no
    /// file backs. `[vdso]` is an object without a file.
    pub fn intern(&mut self, pid: u32, mapping: &Mapping) -> Option<ObjectId> {
        let path = mapping.path.as_deref()?;
        if path == "[vdso]" {
            return Some(self.intern_name(path));
        }
        if mapping.inode == 0 || !path.starts_with('/') {
            return None;
        }
        let opened = open(pid, mapping, path);
        let key = (mapping.device, mapping.inode);
        if let (Err(_), Some(known)) = (&opened, self.held(mapping, path)) {
            return Some(known);
        }
        let is_open = opened.is_ok();
        let id = self.intern_opened(path, mapping, opened);
        if is_open {
            self.by_mapping.insert(key, id);
        }
        Some(id)
    }

    /// The object behind a mapping of a process that has ended: an object that another process has
    /// mapped, or the file at the mapping's path if it is the same file.
    pub fn intern_gone(&mut self, mapping: &Mapping) -> Option<ObjectId> {
        let path = mapping.path.as_deref()?;
        if path == "[vdso]" {
            return Some(self.intern_name(path));
        }
        if let Some(known) = self.held(mapping, path) {
            return Some(known);
        }
        let opened = open_regular(path).and_then(|file| {
            let metadata = file.metadata()?;
            let device = (major(metadata.dev()), minor(metadata.dev()));
            if (device, metadata.ino()) != (mapping.device, mapping.inode) {
                return Err(io::Error::other("its process has ended, and another file is there"));
            }
            Ok((file, (metadata.dev(), metadata.ino())))
        });
        Some(self.intern_opened(path, mapping, opened))
    }

    /// The held file with the same device and inode numbers as this mapping. No other file can have
    /// the numbers while the file is held. But the subvolumes of a btrfs share one device and
    /// number their inodes separately, so the path has to be the same as well.
    fn held(&self, mapping: &Mapping, path: &str) -> Option<ObjectId> {
        let known = *self.by_mapping.get(&(mapping.device, mapping.inode))?;
        let object = self.get(known)?;
        (object.path == path.trim_end_matches(" (deleted)")).then_some(known)
    }

    fn intern_opened(
        &mut self,
        path: &str,
        mapping: &Mapping,
        opened: io::Result<(File, (u64, u64))>,
    ) -> ObjectId {
        let identity = match &opened {
            Ok((_, identity)) => *identity,
            // Cannot be opened: the numbers of the maps line still tell objects apart.
            Err(_) => {
                let (major, minor) = mapping.device;
                (!(u64::from(major) << 32 | u64::from(minor)), mapping.inode)
            }
        };
        if let Some(known) = self.by_inode.get(&identity) {
            return *known;
        }
        let id = self.push(HeldObject {
            path: path.trim_end_matches(" (deleted)").to_owned(),
            file: opened.map(|(file, _)| Arc::new(file)).map_err(|error| error.to_string()),
        });
        self.by_inode.insert(identity, id);
        id
    }

    fn intern_name(&mut self, name: &str) -> ObjectId {
        if let Some(known) = self.by_name.get(name) {
            return *known;
        }
        let file = Err("it is no file".to_owned());
        let id = self.push(HeldObject { path: name.to_owned(), file });
        self.by_name.insert(name.to_owned(), id);
        id
    }

    fn push(&mut self, object: HeldObject) -> ObjectId {
        let id = ObjectId(self.objects.len() as u32);
        self.objects.push(object);
        id
    }

    /// The object with this index.
    pub fn get(&self, id: ObjectId) -> Option<&HeldObject> {
        self.objects.get(id.0 as usize)
    }

    /// All objects, in the order of their indices.
    pub fn all(&self) -> &[HeldObject] {
        &self.objects
    }
}

/// Opens the very file that is mapped; returns it with its device and inode.
fn open(pid: u32, mapping: &Mapping, path: &str) -> io::Result<(File, (u64, u64))> {
    let exact = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
    let file = match open_regular(&exact) {
        Ok(file) => file,
        // Without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE: by the path, if that still is it.
        Err(refusal) => {
            let file = open_regular(&format!("/proc/{pid}/root{path}"))?;
            if file.metadata()?.ino() != mapping.inode {
                return Err(refusal);
            }
            file
        }
    };
    let metadata = file.metadata()?;
    Ok((file, (metadata.dev(), metadata.ino())))
}

/// Opens a regular file; anything else is only looked at. Opening a pipe waits for a writer, and
/// only a device's driver knows what opening the device does.
fn open_regular(path: &str) -> io::Result<File> {
    let seen = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    if !seen.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    // The very file that was looked at, whatever lies under its path by now.
    File::open(format!("/proc/self/fd/{}", seen.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::{super::proc, *};

    /// A process may end while its files are being opened, and its process ID is no longer valid.
    #[test]
    fn what_is_held_is_known_without_its_process() {
        let mappings = proc::mappings(std::process::id()).unwrap();
        let of_file = |mapping: &&Mapping| mapping.executable && mapping.inode != 0;
        let mapping = mappings.iter().find(of_file).unwrap();
        let mut table = ObjectTable::default();
        let gone = table.intern(u32::MAX, mapping).unwrap();
        assert!(table.get(gone).unwrap().file.is_err());
        let held = table.intern(std::process::id(), mapping).unwrap();
        assert!(table.get(held).unwrap().file.is_ok());
        assert_eq!(table.intern(u32::MAX, mapping), Some(held));
        assert_eq!(table.intern_gone(mapping), Some(held));
        // Under its path lies the very file.
        let mut fresh = ObjectTable::default();
        let found = fresh.intern_gone(mapping).unwrap();
        assert!(fresh.get(found).unwrap().file.is_ok());
    }

    /// Opening the pipe would wait for a writer.
    #[test]
    fn a_pipe_in_the_place_of_a_library_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("lib.so");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mapping = Mapping {
            start: 0x1000,
            end: 0x2000,
            executable: true,
            file_offset: 0,
            device: (0, 0),
            inode: std::fs::metadata(&pipe).unwrap().ino(),
            path: Some(pipe.display().to_string()),
        };
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut table = ObjectTable::default();
            let id = table.intern(std::process::id(), &mapping);
            let is_refused = id.and_then(|id| table.get(id)).map(|object| object.file.is_err());
            let _ = sender.send(is_refused);
        });
        let answer = receiver.recv_timeout(std::time::Duration::from_secs(10));
        assert_eq!(answer, Ok(Some(true)), "it hangs, or the pipe was taken for a library");
    }
}
