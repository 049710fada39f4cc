//! Turns the filters of kernel allocations into what they mean on this kernel: constants and map
//! entries.

use std::path::PathBuf;

use leaktrace_common::{
    CGROUPS, CgroupTest, Choice, Config, GFP_TESTS, GfpTest, TEXT_RANGES, TextRange,
};

use crate::{
    bpf::Maps,
    collect::kmalloc::KmallocNames,
    error::Error,
    host::{cgroup, layout, modules, slabs::CacheNames},
    session::spec::{KernelFilters, gfp},
};

/// The constants, with the filters added.
pub(super) fn constants(filters: &KernelFilters, config: Config) -> Result<Config, Error> {
    Ok(Config {
        filter_tgids: u32::from(!filters.pids.is_empty()),
        filter_comms: u32::from(!filters.comms.is_empty()),
        filter_caches: choice(
            &filters.caches,
            filters.unreclaimable || !filters.not_caches.is_empty(),
        ),
        filter_modules: choice(&filters.modules, !filters.not_modules.is_empty()),
        filter_gfp: u32::from(!filters.gfp.is_empty()),
        gfp: gfp_tests(&filters.gfp)?,
        filter_cgroups: u32::from(!filters.cgroups.is_empty()),
        cgroups: cgroup_tests(&filters.cgroups)?,
        ..config
    })
}

/// What a filter that wants `named`, if there are any, does in the programs; `leaves_out` says that
/// there is something else to leave out.
fn choice(named: &[String], leaves_out: bool) -> u32 {
    match (named.is_empty(), leaves_out) {
        (false, _) => Choice::ONLY,
        (true, true) => Choice::ALL_BUT,
        (true, false) => Choice::ALL,
    }
}

fn gfp_tests(names: &[gfp::GfpName]) -> Result<[GfpTest; GFP_TESTS], Error> {
    let mut tests = [GfpTest::NEVER; GFP_TESTS];
    if names.is_empty() {
        return Ok(tests);
    }
    let values = layout::gfp_values(&gfp::FLAGS)?;
    let bits_of = |flags: &[&'static str]| {
        flags.iter().try_fold(0, |bits, flag| {
            let at = gfp::FLAGS.iter().position(|(name, _)| name == flag);
            match at.and_then(|at| values.get(at)) {
                Some(Some(value)) => Ok(bits | value),
                _ => Err(Error::Usage(format!(
                    "--gfp: this kernel tells of no flag __GFP_{flag}: leave it out"
                ))),
            }
        })
    };
    for (test, name) in tests.iter_mut().zip(names) {
        let value = bits_of(name.set)?;
        *test = GfpTest { mask: value | bits_of(name.clear)?, value };
    }
    Ok(tests)
}

pub(super) fn cgroup_tests(paths: &[PathBuf]) -> Result<[CgroupTest; CGROUPS], Error> {
    let mut tests = [CgroupTest::NONE; CGROUPS];
    for (test, path) in tests.iter_mut().zip(paths) {
        *test = cgroup::find(path)?;
    }
    Ok(tests)
}

/// Tells the programs which slab caches the user asked for, by the names that their blocks have;
/// returns the caches that are not there yet.
pub(super) fn watch_caches(
    filters: &KernelFilters,
    maps: &mut Maps,
    kmalloc: &KmallocNames,
    note: &mut dyn FnMut(&str),
) -> Result<Vec<String>, Error> {
    if filters.caches.is_empty() {
        return Ok(Vec::new());
    }
    let names = CacheNames::read();
    let (mut known, mut awaited) = (Vec::new(), Vec::new());
    for cache in &filters.caches {
        match names.known_as(cache) {
            Some(same) if same == cache => {}
            Some(other) => {
                note(&format!(
                    "the kernel has made slab cache {cache} one with {other}: blocks of both are \
                     traced"
                ));
                known.push(other.to_owned());
                continue;
            }
            None => {
                awaited.push(cache.clone());
                // Which module will make it is not known.
                match filters.modules.iter().find(|name| !modules::is_loaded(name)) {
                    Some(module) => note(&format!(
                        "no slab cache has the name {cache} now: module {module} may make it"
                    )),
                    None => return Err(no_cache(cache, &names)),
                }
            }
        }
        known.push(cache.clone());
    }
    maps.set_cache_filters(&known, &kmalloc.details(&known))?;
    Ok(awaited)
}

fn no_cache(cache: &str, names: &CacheNames) -> Error {
    Error::Usage(format!(
        "--cache {cache}: no slab cache has this name (see /sys/kernel/slab): write {}, ..., or name the \
         module as well that is yet to make it: --module",
        nearest_caches(cache, names)
    ))
}

/// The three names of caches that are nearest to this one.
pub(super) fn nearest_caches(cache: &str, names: &CacheNames) -> String {
    let mut near: Vec<&str> = names.all().collect();
    let lower = cache.to_lowercase();
    near.sort_by_cached_key(|name| (gfp::distance(&name.to_lowercase(), &lower), *name));
    near.truncate(3);
    near.join(", ")
}

/// Sentences about awaited caches whose blocks are not seen, as the kernel has merged the cache
/// with another one.
pub(super) fn merged_since(awaited: &[String]) -> Vec<String> {
    if awaited.is_empty() {
        return Vec::new();
    }
    let names = CacheNames::read();
    let others = awaited.iter().filter_map(|cache| {
        let other = names.known_as(cache).filter(|other| other != cache)?;
        Some(format!(
            "slab cache {cache}: the kernel has made it one with {other}, which was not asked for"
        ))
    });
    others.collect()
}

/// Tells the programs which modules the user named, whether loaded or not; returns what cannot be
/// seen of them. `follows` says why modules that are loaded later cannot be seen.
pub(super) fn watch_modules(
    filters: &KernelFilters,
    maps: &mut Maps,
    follows: &Result<(), String>,
    note: &mut dyn FnMut(&str),
) -> Result<Vec<String>, Error> {
    let is_wanted = !filters.modules.is_empty();
    let named = if is_wanted { &filters.modules } else { &filters.not_modules };
    if named.is_empty() {
        return Ok(Vec::new());
    }
    // First, so that none is missed that is loaded meanwhile.
    maps.set_module_names(named)?;
    let (there, awaited): (Vec<String>, Vec<String>) =
        named.iter().cloned().partition(|name| modules::is_loaded(name));
    maps.set_module_text(text_ranges(&there)?)?;
    if !is_wanted {
        // Those that cannot be followed are left out of snapshots alone.
        return Ok(Vec::new());
    }
    match (follows, awaited.first()) {
        (Ok(()), _) => {
            for name in &awaited {
                note(&format!("module {name} is not loaded: waiting for it"));
            }
            Ok(Vec::new())
        }
        (Err(cause), Some(name)) => Err(Error::Usage(format!(
            "--module {name}: no such module is loaded, and it cannot be waited for ({cause}): load \
             it first, or trace what loads it with --comm modprobe"
        ))),
        (Err(cause), None) => {
            Ok(vec![format!("modules of these names that are loaded again: {cause}")])
        }
    }
}

/// The ranges of text of these modules.
fn text_ranges(names: &[String]) -> Result<[TextRange; TEXT_RANGES], Error> {
    let mut ranges = [TextRange::EMPTY; TEXT_RANGES];
    let found = modules::text(names)?;
    if found.len() > TEXT_RANGES {
        return Err(Error::Usage(format!(
            "--module: the code of these modules lies in {} places, and at most {TEXT_RANGES} can \
             be looked for: name fewer modules",
            found.len()
        )));
    }
    for (range, (start, end)) in ranges.iter_mut().zip(found) {
        *range = TextRange { start, end };
    }
    Ok(ranges)
}
