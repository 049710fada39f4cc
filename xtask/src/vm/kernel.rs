//! Debian's kernels: downloaded and unpacked below the target folder, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{
    Flavour, folder,
    packages::{Source, Suite, entries},
};

/// An unpacked kernel.
pub(super) struct Kernel {
    /// Its release, such as `6.1.0-56-amd64`.
    pub(super) release: String,
    /// The bootable image.
    pub(super) image: PathBuf,
    /// The folder of its modules.
    pub(super) modules: PathBuf,
}

/// What modules are built with.
pub(super) struct Headers {
    /// The configured part, where Linux's build looks for its results.
    pub(super) output: PathBuf,
    /// The sources that kernels of this version share.
    pub(super) sources: PathBuf,
}

impl Flavour {
    /// Where its packages come from.
    fn suites(self) -> &'static [Suite] {
        const BOOKWORM: &[Suite] = &[Suite::Main("bookworm"), Suite::Security("bookworm-security")];
        match self {
            Self::Old => &[Suite::Main("bullseye")],
            Self::Stable | Self::RealTime | Self::Newer => BOOKWORM,
            Self::Newest => &[Suite::Main("sid")],
        }
    }

    /// What the names of its metapackages (`linux-image-...`) end in.
    fn suffix(self) -> &'static str {
        match self {
            Self::Old | Self::Stable | Self::Newest => "amd64",
            Self::RealTime => "rt-amd64",
            Self::Newer => "6.12-amd64",
        }
    }
}

/// The kernel that the flavour's package stood for when it was asked for first.
pub(super) fn find(flavour: Flavour) -> Result<Kernel> {
    let folder = folder(flavour)?;
    let root = folder.join("root");
    if !root.is_dir() {
        download(flavour, &folder, &root)?;
    }
    unpacked(&root).with_context(|| format!("remove {} and try again", folder.display()))
}

fn download(flavour: Flavour, folder: &Path, to: &Path) -> Result<()> {
    let source = Source::update(&folder.join("apt"), flavour.suites())?;
    let meta = format!("linux-image-{}", flavour.suffix());
    let image = source
        .depends(&meta)?
        .into_iter()
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{meta} stands for no kernel"))?;
    // sid's image package is an empty one that needs these.
    source.unpack(&image, &["linux-binary-", "linux-modules-"], to)
}

/// The headers of the kernel, from its own suite.
pub(super) fn headers(flavour: Flavour, kernel: &Kernel) -> Result<Headers> {
    let folder = folder(flavour)?;
    let root = folder.join("headers");
    let name = format!("linux-headers-{}", kernel.release);
    let output = root.join("usr/src").join(&name);
    if !root.is_dir() {
        Source::update(&folder.join("apt"), flavour.suites())?
            .unpack(&name, &["linux-headers-", "linux-kbuild-"], &root)
            .with_context(|| {
                format!("if Debian has a newer kernel: remove {} and try again", folder.display())
            })?;
    }
    // The types of the kernel, for those of modules: Linux's build needs a pahole as new as the
    // kernel for that, and leaves it when there are none.
    let types = output.join("vmlinux");
    if types.exists() {
        fs::remove_file(&types).with_context(|| format!("cannot remove {}", types.display()))?;
    }
    let sources = entries(&root.join("usr/src"))?
        .into_iter()
        .find(|path| path.to_string_lossy().contains("-common"))
        .with_context(|| format!("{} has no common headers", root.display()))?;
    Ok(Headers { output, sources })
}

/// The kernel below the folder.
fn unpacked(root: &Path) -> Result<Kernel> {
    // Merged with /usr in newer suites.
    let modules = ["lib/modules", "usr/lib/modules"].map(|path| root.join(path));
    let Some(modules) = modules.into_iter().find(|path| path.is_dir()) else {
        bail!("{} has no modules", root.display());
    };
    for path in entries(&modules)? {
        let release = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let images = [root.join("boot").join(format!("vmlinuz-{release}")), path.join("vmlinuz")];
        if let Some(image) = images.into_iter().find(|image| image.is_file()) {
            return Ok(Kernel { release, image, modules: path.join("kernel") });
        }
    }
    bail!("{} has no kernel", root.display())
}
