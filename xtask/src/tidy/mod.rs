//! The project's rules as code: each breach is one line, `file:line: rule`.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::workspace::{self, BINARY_VARIABLE};

mod arrows;
mod circles;
mod readme;
mod rust_tokens;
mod text;

/// A breach of a rule.
struct Finding {
    file: PathBuf,
    line: usize,
    rule: String,
}

impl Finding {
    fn new(file: &Path, line: usize, rule: impl Into<String>) -> Self {
        Self { file: file.to_path_buf(), line, rule: rule.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.rule)
    }
}

/// A file of the project: its path from the root, and what is in it.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn has_extension(&self, extensions: &[&str]) -> bool {
        self.path
            .extension()
            .is_some_and(|own| extensions.iter().any(|extension| own == *extension))
    }
}

/// The task, with the binary that was built last.
pub(crate) fn tidy() -> Result<()> {
    check(find_binary()?.as_deref())
}

/// All rules; the README is compared with this binary's help.
pub(crate) fn check(binary: Option<&Path>) -> Result<()> {
    let root = workspace::root()?;
    let mut sources = Vec::new();
    collect(&root, Path::new(""), &mut sources)?;
    sources.sort_by(|a, b| a.path.cmp(&b.path));

    let mut findings = Vec::new();
    for source in &sources {
        text::check(source, &mut findings);
        arrows::check(source, &mut findings);
    }
    arrows::check_drawing(&sources, &mut findings);
    circles::check(&sources, &mut findings);
    text::check_lint_inheritance(&sources, &mut findings);
    readme::check(&sources, binary, &mut findings)?;

    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} found", findings.len());
    }
    Ok(())
}

/// Every text file that people write; what is built, hidden or generated is left out.
fn collect(root: &Path, folder: &Path, sources: &mut Vec<Source>) -> Result<()> {
    const WRITTEN: [&str; 9] = ["rs", "toml", "md", "c", "cpp", "h", "py", "sh", "yml"];
    let full = root.join(folder);
    for entry in fs::read_dir(&full).with_context(|| format!("cannot read {}", full.display()))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if hidden || entry.file_name() == "target" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(root, &path, sources)?;
        } else if path.extension().is_some_and(|own| WRITTEN.iter().any(|written| own == *written))
        {
            let text = fs::read_to_string(root.join(&path))
                .with_context(|| format!("cannot read {}", path.display()))?;
            sources.push(Source { path, text });
        }
    }
    Ok(())
}

/// The binary named by the environment, else the newest one in the target directory.
fn find_binary() -> Result<Option<PathBuf>> {
    if let Some(binary) = env::var_os(BINARY_VARIABLE) {
        return Ok(Some(binary.into()));
    }
    let target_dir = workspace::target_dir()?;
    let built = |profile: &str| {
        let binary = target_dir.join(profile).join("leaktrace");
        let time = fs::metadata(&binary).and_then(|metadata| metadata.modified()).ok()?;
        Some((time, binary))
    };
    Ok(["debug", "release"].into_iter().filter_map(built).max().map(|(_, binary)| binary))
}
