//! Debian's packages of any suite: downloaded and unpacked below the target folder, never
//! installed, by an apt-get whose sources and lists lie there as well.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::command;

/// What every suite's packages are signed with (package `debian-archive-keyring`, on any Debian).
/// That of bookworm knows the keys of the suites before and after it, and sid is signed with
/// those of the stable one.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A suite, in one of Debian's two archives.
#[derive(Clone, Copy)]
pub(super) enum Suite {
    Main(&'static str),
    Security(&'static str),
}

impl Suite {
    /// The archive's label in its release files, and the suite's name.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Main(name) => ("Debian", name),
            Self::Security(name) => ("Debian-Security", name),
        }
    }
}

/// A source of packages that this machine's own apt does not know.
pub(super) struct Source {
    folder: PathBuf,
}

impl Source {
    /// Reads the suites' package lists into the folder, from this machine's own mirrors.
    pub(super) fn update(folder: &Path, suites: &[Suite]) -> Result<Self> {
        let source = Self { folder: folder.to_owned() };
        for name in ["lists/partial", "cache/archives/partial", "packages"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let mut lines = String::new();
        for suite in suites {
            let (label, name) = suite.names();
            lines += &format!("deb [signed-by={KEYRING}] {} {name} main\n", mirror(label)?);
        }
        fs::write(source.list(), lines).context("cannot write the sources")?;
        command::run(source.apt("apt-get").arg("update"))?;
        Ok(source)
    }

    /// The packages that this one needs.
    pub(super) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let list = command::output(self.apt("apt-cache").args(["depends", package]))?;
        Ok(list
            .lines()
            .filter_map(|line| line.trim().trim_start_matches('|').strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    /// Downloads a package and what it needs of these kinds (starts of names), and unpacks them
    /// over one another into a folder that is not there yet.
    pub(super) fn unpack(&self, package: &str, kinds: &[&str], to: &Path) -> Result<()> {
        let mut packages = self.depends(package)?;
        packages.retain(|name| kinds.iter().any(|kind| name.starts_with(kind)));
        packages.push(package.to_owned());
        eprintln!("xtask: downloading {}", packages.join(", "));
        let folder = self.folder.join("packages");
        command::run(self.apt("apt-get").arg("download").args(&packages).current_dir(&folder))?;
        // Unpacked beside its place, so that a run that is cut short leaves nothing half done.
        let part = self.folder.join("part");
        let _ = fs::remove_dir_all(&part);
        for archive in entries(&folder)? {
            command::run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&part))?;
        }
        fs::rename(&part, to).with_context(|| format!("cannot make {}", to.display()))?;
        fs::remove_dir_all(&self.folder).context("cannot remove the packages")
    }

    fn list(&self) -> PathBuf {
        self.folder.join("sources.list")
    }

    /// An apt tool that knows nothing of what this machine has, or has access to.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-qq");
        let mut set = |name: &str, value: &Path| {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        };
        set("Dir::Etc::sourcelist", &self.list());
        set("Dir::Etc::sourceparts", Path::new("-"));
        set("Dir::State::Lists", &self.folder.join("lists"));
        set("Dir::State::status", Path::new("/dev/null"));
        set("Dir::Cache", &self.folder.join("cache"));
        // Files of root's below a folder that its sandbox user cannot enter.
        set("APT::Sandbox::User", Path::new("root"));
        set("Acquire::Languages", Path::new("none"));
        command
    }
}

/// The mirror from which this machine has the archive of that label.
fn mirror(label: &str) -> Result<String> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    let list = command::output(&mut targets)?;
    let found = list.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(' '));
    match found {
        Some(uri) => Ok(uri.to_owned()),
        None => bail!("no package source of this machine is labelled {label}: run apt-get update"),
    }
}

/// What lies in a folder.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    Ok(list.flatten().map(|entry| entry.path()).collect())
}
