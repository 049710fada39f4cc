//! Embeds the BPF object that `cargo xtask build` left in the target directory.
//!
//! Writes it to `OUT_DIR/leaktrace.o` and sets the cfg `bpf_object`. Without an object the file is
//! empty and the cfg unset: the crate then builds without a BPF toolchain, and its tracing commands
//! say what to do. An object that was built from other sources than those beside it fails the build.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

#[path = "../xtask/src/source_hash.rs"]
mod source_hash;

fn main() {
    // This instruction fails the build by itself, in one line; a failing exit code would add
    // everything that was printed before.
    if let Err(error) = embed() {
        println!("cargo::error={error}");
    }
}

fn embed() -> io::Result<()> {
    println!("cargo::rustc-check-cfg=cfg(bpf_object)");
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    println!("cargo::rerun-if-changed=build.rs");

    let root = variable("CARGO_MANIFEST_DIR")?.join("..");
    let target_dir = source_hash::target_dir(&root);
    let object = target_dir.join(source_hash::OBJECT);
    let embedded = variable("OUT_DIR")?.join("leaktrace.o");

    // Cargo would rerun this for ever for a file that does not exist. So the folder is watched,
    // and made where it is missing; if it cannot be made, rerunning is the worst that happens.
    if let Some(folder) = object.parent() {
        let _ = fs::create_dir_all(folder);
        println!("cargo::rerun-if-changed={}", folder.display());
    }
    if !object.exists() {
        return fs::write(embedded, []);
    }
    refuse_stale(&root, &target_dir)?;
    fs::copy(object, embedded)?;
    println!("cargo::rustc-cfg=bpf_object");
    Ok(())
}

fn refuse_stale(root: &Path, target_dir: &Path) -> io::Result<()> {
    // Cargo watches all that is below a folder.
    for source in source_hash::SOURCES.map(|source| root.join(source)) {
        if source.exists() {
            println!("cargo::rerun-if-changed={}", source.display());
        }
    }
    let recorded = fs::read_to_string(target_dir.join(source_hash::RECORDED)).unwrap_or_default();
    if recorded.trim() == source_hash::of_sources(root)? {
        return Ok(());
    }
    Err(io::Error::other("the BPF object is older than its sources: run `cargo xtask build`"))
}

fn variable(name: &str) -> io::Result<PathBuf> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::other(format!("cargo did not set {name}")))
}
