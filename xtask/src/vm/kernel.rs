//! Debian's kernel: downloaded and unpacked below the target folder, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{Flavour, command, folder};

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// Its release, such as `6.1.0-56-amd64`.
    pub(crate) release: String,
    root: PathBuf,
}

impl Kernel {
    /// The bootable image.
    pub(crate) fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The folder of its modules.
    pub(crate) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release).join("kernel")
    }
}

/// The kernel that the flavour's package stands for today, or the one unpacked before where
/// there is no package source.
pub(crate) fn find(flavour: Flavour) -> Result<Kernel> {
    let folder = folder()?.join(flavour.name());
    if let Some(kernel) = unpacked(&folder, flavour)? {
        return Ok(kernel);
    }
    let package = match package(flavour) {
        Ok(package) => package,
        // The package lists may be old, or not there at all.
        Err(_) => {
            command::run(Command::new("apt-get").args(["-qq", "update"]))?;
            package(flavour)?
        }
    };
    eprintln!("xtask: downloading {package} (70 MB)");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let download = || {
        let mut apt_get = Command::new("apt-get");
        apt_get.args(["-qq", "download", &package]).current_dir(&folder);
        // A file of root's below a folder that its sandbox user cannot enter.
        apt_get.args(["-o", "APT::Sandbox::User=root"]);
        command::run(&mut apt_get)
    };
    if download().is_err() {
        // What the lists say may be gone from the mirror.
        command::run(Command::new("apt-get").args(["-qq", "update"]))?;
        download()?;
    }
    let archive = entries(&folder)?
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get left no package")?;
    // Unpacked beside its place, so that a run that is cut short leaves nothing half done.
    let part = folder.join("part");
    let _ = fs::remove_dir_all(&part);
    command::run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&part))?;
    fs::rename(&part, folder.join("root")).context("cannot move the unpacked kernel")?;
    fs::remove_file(&archive).context("cannot remove the package")?;
    unpacked(&folder, flavour)?.context("the package has no kernel")
}

/// The kernel in the folder, if it is whole.
fn unpacked(folder: &Path, flavour: Flavour) -> Result<Option<Kernel>> {
    let root = folder.join("root");
    if !root.is_dir() {
        return Ok(None);
    }
    for path in entries(&root.join("boot"))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            return Ok(Some(Kernel { release: release.to_owned(), root }));
        }
    }
    bail!("{} has no kernel: remove it and try again", folder.join(flavour.name()).display())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    Ok(list.flatten().map(|entry| entry.path()).collect())
}

/// The package that the flavour's metapackage stands for.
fn package(flavour: Flavour) -> Result<String> {
    let meta = format!("linux-image-{}", flavour.name());
    let depends = command::output(Command::new("apt-cache").args(["depends", &meta]))?;
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
        .with_context(|| format!("apt-cache does not know {meta}: run apt-get update"))
}
