//! Where the workspace, its target directory and its binary are.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::source_hash;

/// The variable that tells tests and tidy where the binary is.
pub(crate) const BINARY_VARIABLE: &str = "LEAKTRACE_BIN";

/// The folder of the root Cargo.toml.
pub(crate) fn root() -> Result<PathBuf> {
    // Cargo says at run time where xtask lies now, which may not be where it was compiled.
    let xtask = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().map(Path::to_path_buf).context("xtask lies in no workspace")
}

/// Cargo's target directory, absolute.
pub(crate) fn target_dir() -> Result<PathBuf> {
    Ok(source_hash::target_dir(&root()?))
}
