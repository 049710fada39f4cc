//! Files with debug information of the running kernel and of its modules.
//!
//! leaktrace trusts a file if its build ID is the one that the kernel shows, and ignores all
//! others.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
};

use object::{LittleEndian, Object as _, elf::FileHeader64, read::ReadCache};
use walkdir::WalkDir;

/// Where packages put debug information.
pub const DEBUG: &str = "/usr/lib/debug";

/// Notes of the running kernel.
pub const KERNEL_NOTES: &str = "/sys/kernel/notes";

/// The build ID in the notes of an object (`NT_GNU_BUILD_ID`).
pub fn build_id(notes: &[u8]) -> Option<Vec<u8>> {
    let notes =
        object::read::elf::NoteIterator::<FileHeader64<LittleEndian>>::new(LittleEndian, 4, notes);
    notes.ok()?.map_while(Result::ok).find_map(|note| {
        (note.name() == object::elf::ELF_NOTE_GNU
            && note.n_type(LittleEndian) == object::elf::NT_GNU_BUILD_ID)
            .then(|| note.desc().to_vec())
    })
}

/// Paths at which the debug information of an object may lie by its build ID: in these directories
/// and in that of packages.
pub fn by_id(folders: &[PathBuf], build_id: &[u8]) -> impl Iterator<Item = PathBuf> {
    let id: String = build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let (first, rest) = id.split_at_checked(2).unwrap_or_default();
    let file = format!(".build-id/{first}/{rest}.debug");
    folders.iter().map(PathBuf::as_path).chain([Path::new(DEBUG)]).map(move |dir| dir.join(&file))
}

/// The running kernel's file with debug information, if there is one; `notes` is the path of
/// [`KERNEL_NOTES`].
pub fn vmlinux(notes: &Path, folders: &[PathBuf], release: &str) -> Option<PathBuf> {
    let build_id = build_id(&fs::read(notes).ok()?)?;
    let debug = Path::new(DEBUG);
    // Debian and Ubuntu, SUSE, Fedora, Arch; and kernels built by hand.
    let usual = [
        debug.join(format!("boot/vmlinux-{release}")),
        debug.join(format!("boot/vmlinux-{release}.debug")),
        debug.join(format!("lib/modules/{release}/vmlinux")),
        format!("/boot/vmlinux-{release}").into(),
        format!("/lib/modules/{release}/vmlinux").into(),
        format!("/lib/modules/{release}/build/vmlinux").into(),
    ];
    let asked = folders.iter().map(|folder| folder.join("vmlinux"));
    asked.chain(by_id(folders, &build_id)).chain(usual).find(|path| is_of(path, &build_id))
}

/// Whether a file has the debug information of the object with this build ID.
fn is_of(path: &Path, build_id: &[u8]) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let cache = ReadCache::new(file);
    let Ok(file) = object::File::parse(&cache) else { return false };
    file.section_by_name(".debug_info").is_some()
        && file.build_id().is_ok_and(|found| found == Some(build_id))
}

/// Files that may hold the debug information of modules, by the modules' names.
pub fn modules(folders: &[PathBuf], release: &str) -> HashMap<String, Vec<PathBuf>> {
    let usual = [
        Path::new(DEBUG).join("lib/modules").join(release),
        Path::new("/lib/modules").join(release),
    ];
    let mut files: HashMap<String, Vec<PathBuf>> = HashMap::new();
    for folder in folders.iter().chain(&usual) {
        for file in WalkDir::new(folder).into_iter().flatten() {
            let name = file.path().file_name().and_then(OsStr::to_str).unwrap_or_default();
            let name = name.strip_suffix(".debug").unwrap_or(name);
            if let Some(name) = name.strip_suffix(".ko").filter(|_| file.file_type().is_file()) {
                files.entry(name.replace('-', "_")).or_default().push(file.into_path());
            }
        }
    }
    files
}
