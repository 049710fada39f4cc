//! What the user does not want to see of the kernel (`--not-cache`, `--not-module`,
//! `--unreclaimable`).
//!
//! The programs leave out what they can tell at once: slab caches, and calls from a module's own
//! code. The rest needs the stack, or comes from caches that were made since, and is left out of
//! each snapshot: so it is in no figure either.

use std::collections::BTreeSet;

use super::filters;
use crate::{
    bpf::Maps,
    collect::kmalloc::KmallocNames,
    error::Error,
    host::{modules, reclaimable::Reclaimable, slabs::CacheNames},
    session::spec::KernelFilters,
    snapshot::{self, Frame, Place, Site, Snapshot, StackRef},
};

/// Most slab caches that the programs are told of; snapshots are without the others as well.
const CACHES_TOLD: usize = 200;

/// What is left out of snapshots.
pub(super) struct LeaveOut {
    /// Slab caches, by the names that their blocks have.
    caches: BTreeSet<String>,
    /// Modules, by the kernel's spelling.
    modules: Vec<String>,
    /// Whether to leave out every reclaimable cache.
    unreclaimable: bool,
    reclaimable: Reclaimable,
}

impl LeaveOut {
    /// Finds what the user's names mean on this kernel, and tells the programs.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for a cache that does not exist, or that is both wanted and unwanted; the
    /// kernel's error on the map updates.
    pub(super) fn start(
        filters: &KernelFilters,
        maps: &mut Maps,
        kmalloc: &KmallocNames,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        for module in filters.not_modules.iter().filter(|name| !modules::is_loaded(name)) {
            note(&format!(
                "module {module} is not loaded now: nothing of it is to be left out yet"
            ));
        }
        let mut reclaimable = Reclaimable::of_running_kernel();
        let mut caches = BTreeSet::new();
        if filters.unreclaimable || !filters.not_caches.is_empty() {
            let names = CacheNames::read();
            for cache in &filters.not_caches {
                let own = names.known_as(cache);
                caches.insert(own.ok_or_else(|| no_cache(cache, &names))?.to_owned());
            }
            for cache in &filters.caches {
                let own = names.known_as(cache).unwrap_or(cache);
                check_wanted(cache, own, &caches, filters.unreclaimable && reclaimable.has(own))?;
            }
            if filters.caches.is_empty() {
                let mut told: Vec<String> = caches.iter().cloned().collect();
                if filters.unreclaimable {
                    let own = names.caches().filter(|cache| reclaimable.has(cache));
                    told.extend(own.map(str::to_owned));
                }
                told.truncate(CACHES_TOLD);
                maps.set_cache_filters(&told, &kmalloc.details(&told))?;
            }
        }
        Ok(Self {
            caches,
            modules: filters.not_modules.clone(),
            unreclaimable: filters.unreclaimable,
            reclaimable,
        })
    }

    /// Leaves out what is not wanted, and says which of the other caches are reclaimable.
    pub(super) fn apply(&mut self, snapshot: &mut Snapshot) {
        let mut sites = std::mem::take(&mut snapshot.sites);
        let mut reclaimable = BTreeSet::new();
        sites.retain(|site| {
            let Some(cache) = &site.cache else { return true };
            if !self.caches.contains(cache) && self.reclaimable.has(cache) {
                reclaimable.insert(cache.clone());
                return !self.unreclaimable;
            }
            !self.caches.contains(cache)
        });
        if !self.modules.is_empty() {
            sites.retain(|site| !is_of_module(site, snapshot, &self.modules));
        }
        snapshot.sites = sites;
        snapshot.reclaimable = snapshot::Reclaimable {
            caches: if self.unreclaimable { BTreeSet::new() } else { reclaimable },
            is_listed: !self.reclaimable.is_told(),
            are_left_out: self.unreclaimable,
        };
    }
}

/// Refuses a cache of `--cache` that is to be left out as well.
fn check_wanted(
    cache: &str,
    own: &str,
    unwanted: &BTreeSet<String>,
    is_reclaimed: bool,
) -> Result<(), Error> {
    if unwanted.contains(own) {
        return Err(Error::Usage(format!(
            "--cache {cache} and --not-cache name one slab cache, {own}: leave one of them out"
        )));
    }
    if is_reclaimed {
        return Err(Error::Usage(format!(
            "--cache {cache} is reclaimable, which --unreclaimable leaves out: leave one of them out"
        )));
    }
    Ok(())
}

fn no_cache(cache: &str, names: &CacheNames) -> Error {
    Error::Usage(format!(
        "--not-cache {cache}: no slab cache has this name (see /sys/kernel/slab): write {}, ...",
        filters::nearest_caches(cache, names)
    ))
}

/// Whether the code of one of these modules is in the stack of a site, as far as it is known.
fn is_of_module(site: &Site, snapshot: &Snapshot, modules: &[String]) -> bool {
    let is_unwanted = |frame: &Frame| match frame.place {
        Place::Module { load } => {
            snapshot.modules.get(load as usize).is_some_and(|module| modules.contains(&module.name))
        }
        _ => false,
    };
    let stack = match site.stack {
        StackRef::Known(id) => snapshot.stacks.get(&id),
        StackRef::NotTaken | StackRef::Lost => None,
    };
    is_unwanted(&site.call_site) || stack.is_some_and(|stack| stack.frames.iter().any(is_unwanted))
}
