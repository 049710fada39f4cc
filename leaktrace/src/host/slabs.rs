//! Names of slab caches. The kernel merges caches of one size (find_mergeable, mm/slab_common.c),
//! and the merged cache has the name of the first. /sys/kernel/slab has all names; those of one
//! cache are links to one directory (mm/slub.c).

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
};

use super::slabinfo;

/// The directory with an entry for each name of a cache.
const FOLDER: &str = "/sys/kernel/slab";

/// The names of this kernel's slab caches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheNames {
    /// The names that blocks are counted under.
    caches: BTreeSet<String>,
    /// Each other name, with the name that its blocks are counted under.
    aliases: BTreeMap<String, String>,
}

impl CacheNames {
    /// Reads the names; empty where the kernel does not show them.
    pub fn read() -> Self {
        let caches = slabinfo::usage().unwrap_or_default().into_keys().collect();
        Self::of(caches, links())
    }

    fn of(caches: BTreeSet<String>, links: Vec<(String, OsString)>) -> Self {
        let mut shared: BTreeMap<OsString, Vec<String>> = BTreeMap::new();
        for (name, target) in links {
            shared.entry(target).or_default().push(name);
        }
        let mut aliases = BTreeMap::new();
        for names in shared.into_values() {
            let known = |name: &&String| caches.contains(*name);
            if let Some(own) = names.iter().find(known).cloned() {
                // A name that has a cache of its own by now is none of an older one.
                let others = names.into_iter().filter(|name| !caches.contains(name));
                aliases.extend(others.map(|name| (name, own.clone())));
            }
        }
        Self { caches, aliases }
    }

    /// The name that the blocks of this cache are counted under; `None` if there is no such cache.
    /// Where the kernel shows no names, every name is taken to exist.
    pub fn known_as<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        if self.caches.is_empty() || self.caches.contains(name) {
            return Some(name);
        }
        self.aliases.get(name).map(String::as_str)
    }

    /// The other names of each cache, for caches that have some.
    pub fn others(&self) -> BTreeMap<String, Vec<String>> {
        let mut others: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (alias, cache) in &self.aliases {
            others.entry(cache.clone()).or_default().push(alias.clone());
        }
        others
    }

    /// The names that blocks are counted under.
    pub fn caches(&self) -> impl Iterator<Item = &str> {
        self.caches.iter().map(String::as_str)
    }

    /// Every name.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        self.caches.iter().chain(self.aliases.keys()).map(String::as_str)
    }
}

/// The other names of each slab cache, for caches that have some.
pub fn aliases() -> BTreeMap<String, Vec<String>> {
    CacheNames::read().others()
}

/// Names that are links, with the targets of the links.
fn links() -> Vec<(String, OsString)> {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().into_string().ok()?, target.into_os_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_the_cache_that_it_shares() {
        let caches = ["signal_cache", "dentry", "again"].map(str::to_owned).into();
        let links = [
            ("UNIX", ":A-0001152"),
            ("signal_cache", ":A-0001152"),
            ("UNIX-STREAM", ":A-0001152"),
            ("again", ":A-0001152"),
            ("gone", ":0000024"),
        ]
        .map(|(name, target)| (name.to_owned(), target.into()));
        let names = CacheNames::of(caches, links.to_vec());
        // Of two caches that have been found in one folder, either one: none has both names.
        assert!(matches!(names.known_as("UNIX"), Some("signal_cache" | "again")));
        assert_eq!(names.known_as("dentry"), Some("dentry"));
        assert_eq!(names.known_as("again"), Some("again"));
        assert_eq!(names.known_as("gone"), None);
        assert_eq!(CacheNames::default().known_as("anything"), Some("anything"));
    }
}
