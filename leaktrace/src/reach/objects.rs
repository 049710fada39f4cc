//! The objects that a process has loaded: where their data lies, and whether they hide addresses.

use std::{
    fs::{self, File, Metadata},
    ops::Range,
    os::unix::fs::MetadataExt as _,
    sync::Arc,
};

use crate::host::variables::{Data, Part};

/// An executable mapping of an object, as the tracer knows it.
#[derive(Clone, Debug)]
pub struct LoadedAt {
    /// Index of the object in the snapshot.
    pub object: u32,
    /// Path of the object, as the process sees it.
    pub path: String,
    /// The object's file; `None` if it could not be opened.
    pub file: Option<Arc<File>>,
    /// First address.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// Offset in the file of the first address.
    pub file_offset: u64,
}

/// An object of a process.
#[derive(Debug)]
pub struct Object {
    /// Index of the object in the snapshot.
    pub object: u32,
    /// Its file.
    pub file: Arc<File>,
    /// What to add to an address of the object to get that in the process.
    pub bias: u64,
    /// Its segments and variables.
    pub data: Data,
    /// Its executable mappings, each with its offset in the file.
    pub text: Vec<(Range<u64>, u64)>,
}

/// The objects of a process.
#[derive(Debug, Default)]
pub struct Objects {
    all: Vec<Object>,
    /// Addresses of writable segments, with the object's index; sorted.
    writable: Vec<(Range<u64>, usize)>,
    /// Index of the program itself.
    program: Option<usize>,
}

impl Objects {
    /// Reads the objects behind executable mappings of a process.
    pub fn read(pid: u32, loaded: &[LoadedAt]) -> Self {
        let mut all: Vec<Object> = Vec::new();
        for at in loaded {
            let Some(file) = &at.file else { continue };
            let text = (at.start..at.end, at.file_offset);
            // One file may be loaded twice (dlmopen): its mappings are then far apart.
            let known = all.iter_mut().find(|known| {
                known.object == at.object
                    && known.address_of(at.file_offset).is_some_and(|address| address == at.start)
            });
            if let Some(known) = known {
                known.text.push(text);
                continue;
            }
            let Ok(data) = Data::read(file) else { continue };
            let mut object = Object {
                object: at.object,
                file: Arc::clone(file),
                bias: 0,
                data,
                text: vec![text],
            };
            let Some(unbiased) = object.address_of(at.file_offset) else { continue };
            object.bias = at.start.wrapping_sub(unbiased);
            all.push(object);
        }
        let mut writable: Vec<(Range<u64>, usize)> = Vec::new();
        for (index, object) in all.iter().enumerate() {
            for load in object.data.loads.iter().filter(|load| load.is_writable) {
                let start = object.bias.wrapping_add(load.address);
                writable.push((start..start.saturating_add(load.bytes), index));
            }
        }
        writable.sort_by_key(|(range, _)| range.start);
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let exe = fs::metadata(format!("/proc/{pid}/exe")).map(identity).ok();
        let is_it =
            |object: &Object| exe.is_some() && object.file.metadata().map(identity).ok() == exe;
        let program = all.iter().position(is_it);
        Self { all, writable, program }
    }

    /// All objects.
    pub fn all(&self) -> &[Object] {
        &self.all
    }

    /// The addresses of the objects' writable segments, sorted.
    pub fn writable(&self) -> impl Iterator<Item = &Range<u64>> {
        self.writable.iter().map(|(range, _)| range)
    }

    /// The object whose data an address lies in, with the address in the object.
    pub fn data_at(&self, address: u64) -> Option<(&Object, u64)> {
        let after = self.writable.partition_point(|(range, _)| range.start <= address);
        let (range, index) = self.writable.get(after.checked_sub(1)?)?;
        let object = self.all.get(*index).filter(|_| range.contains(&address))?;
        Some((object, address.wrapping_sub(object.bias)))
    }

    /// The object whose text an address lies in, with its offset in the file.
    pub fn text_at(&self, address: u64) -> Option<(&Object, u64)> {
        self.all.iter().find_map(|object| {
            let (range, file_offset) =
                object.text.iter().find(|(range, _)| range.contains(&address))?;
            Some((object, address - range.start + file_offset))
        })
    }

    /// The program itself.
    pub fn program(&self) -> Option<&Object> {
        self.all.get(self.program?)
    }

    /// Bytes of static thread-local memory before a thread's control block, at most: the segments of
    /// all objects, and what glibc leaves free for libraries that come later (`TLS_STATIC_SURPLUS`
    /// and `rtld.optional_static_tls`, elf/dl-tls.c, 2.36: some 2 KiB).
    pub fn thread_local_bytes(&self) -> u64 {
        let segments = self.all.iter().filter_map(|object| object.data.thread_local);
        let bytes: u64 = segments.map(|(bytes, align)| bytes.saturating_add(align.min(4096))).sum();
        bytes.min(64 << 20) + 2048
    }
}

impl Object {
    /// The address in the process, or before `bias` is known in the object, at which the page of
    /// the file with this offset is mapped as text.
    fn address_of(&self, file_offset: u64) -> Option<u64> {
        let page = |value: u64| value & !0xfff;
        let has = |load: &&Part| {
            // Only the part that is in the file; the rest of a segment is zeroes.
            (page(load.file_offset)..load.file_offset.saturating_add(load.bytes))
                .contains(&file_offset)
                && !load.is_writable
        };
        // As `unwind::object::CompiledObject::address_of`: the last segment that has the page.
        let load = self.data.loads.iter().filter(has).max_by_key(|load| page(load.file_offset))?;
        Some(
            page(load.address)
                .wrapping_add(file_offset - page(load.file_offset))
                .wrapping_add(self.bias),
        )
    }
}

/// Why no verdict is possible on a process that maps these files, if that is so: its runtime keeps
/// addresses in another form than they are.
pub fn hides_addresses(files: &[String]) -> Option<&'static str> {
    files.iter().find_map(|file| {
        let name = file.trim_end_matches(" (deleted)").rsplit('/').next().unwrap_or_default();
        let starts = |with: &[&str]| with.iter().any(|prefix| name.starts_with(prefix));
        if starts(&["libjvm.so"]) {
            return Some("a JVM compresses addresses");
        }
        if starts(&["libnode.so", "libv8.so", "libv8_", "libmozjs"])
            || matches!(name, "node" | "nodejs" | "deno" | "chrome" | "chromium" | "electron")
        {
            return Some("its JavaScript engine compresses or tags addresses");
        }
        if starts(&["libluajit", "luajit"]) {
            return Some("LuaJIT keeps addresses in parts of a word");
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_that_hide_addresses_are_known_by_their_files() {
        let check = |file: &str, hides: bool| {
            assert_eq!(
                hides_addresses(&["/usr/bin/x".into(), file.into()]).is_some(),
                hides,
                "{file}"
            );
        };
        check("/usr/lib/jvm/lib/server/libjvm.so", true);
        check("/usr/bin/node (deleted)", true);
        check("/usr/lib/libluajit-5.1.so.2.1", true);
        check("/usr/lib/libnode.so.108", true);
        check("/usr/bin/python3.11", false);
        check("/usr/bin/nodename", false);
    }

    /// A variable of this test is found by its address alone.
    #[test]
    fn an_address_of_data_is_that_of_its_variable() {
        static IN_DATA: std::sync::Mutex<u64> = std::sync::Mutex::new(7);
        *IN_DATA.lock().unwrap() += 1;
        let file = Arc::new(File::open("/proc/self/exe").unwrap());
        let path = std::fs::read_link("/proc/self/exe").unwrap().display().to_string();
        let loaded: Vec<LoadedAt> = crate::host::proc::mappings(std::process::id())
            .unwrap()
            .into_iter()
            .filter(|mapping| mapping.executable && mapping.path.as_ref() == Some(&path))
            .map(|mapping| LoadedAt {
                object: 3,
                path: path.clone(),
                file: Some(Arc::clone(&file)),
                start: mapping.start,
                end: mapping.end,
                file_offset: mapping.file_offset,
            })
            .collect();
        let objects = Objects::read(std::process::id(), &loaded);
        let (object, address) = objects.data_at((&raw const IN_DATA) as u64).unwrap();
        assert_eq!((object.object, objects.program().map(|program| program.object)), (3, Some(3)));
        let variable = object.data.variable(address).unwrap();
        assert!(variable.name.contains("IN_DATA"), "{variable:?}");
        let code = hides_addresses as fn(&[String]) -> Option<&'static str> as usize as u64;
        assert!(objects.text_at(code).is_some());
    }
}
