//! The hash that tells whether the BPF object was built from the sources beside it.
//!
//! xtask records it next to the object; leaktrace's build script compares it. Both compile this
//! file, so that they cannot disagree.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// The BPF object, below the target directory.
pub(crate) const OBJECT: &str = "bpf/leaktrace.o";
/// The hash of the sources it was built from, below the target directory.
pub(crate) const RECORDED: &str = "bpf/leaktrace.o.sha256";

/// What the object is made of: files and folders. The recipe (compiler flags) counts as a source.
pub(crate) const SOURCES: [&str; 6] = [
    "leaktrace-common/Cargo.toml",
    "leaktrace-common/src",
    "leaktrace-ebpf/Cargo.lock",
    "leaktrace-ebpf/Cargo.toml",
    "leaktrace-ebpf/src",
    "xtask/src/bpf.rs",
];

/// Cargo's target directory; a relative `CARGO_TARGET_DIR` counts from the workspace root.
pub(crate) fn target_dir(root: &Path) -> PathBuf {
    root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The sources of the BPF object that exist: paths relative to the root, sorted.
fn sources(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(root, Path::new(source), &mut files)?;
    }
    files.sort();
    Ok(files)
}

/// The hash of all of them, names included, in hexadecimal.
pub(crate) fn of_sources(root: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    for file in sources(root)? {
        let content = fs::read(root.join(&file))?;
        // Lengths keep the end of one field from passing for the start of the next.
        for field in [file.as_os_str().as_encoded_bytes(), &content] {
            hasher.update((field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Adds a file, or each file below a folder; what does not exist adds nothing.
fn collect(root: &Path, path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let full = root.join(path);
    if full.is_dir() {
        for entry in fs::read_dir(full)? {
            collect(root, &path.join(entry?.file_name()), files)?;
        }
    } else if full.is_file() {
        files.push(path.to_path_buf());
    }
    Ok(())
}
