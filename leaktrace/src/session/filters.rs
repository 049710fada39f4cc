//! What the filters of kernel allocations mean on this kernel, as constants of the BPF object.

use std::path::PathBuf;

use leaktrace_common::{CGROUPS, CgroupTest, Config, GFP_TESTS, GfpTest, TEXT_RANGES, TextRange};

use super::spec::{KernelFilters, gfp};
use crate::{
    error::Error,
    host::{cgroup, layout, modules},
};

/// The constants with what is filtered for.
pub(super) fn constants(filters: &KernelFilters, config: Config) -> Result<Config, Error> {
    Ok(Config {
        filter_tgids: u32::from(!filters.pids.is_empty()),
        filter_comms: u32::from(!filters.comms.is_empty()),
        filter_caches: u32::from(!filters.caches.is_empty()),
        filter_modules: u32::from(!filters.modules.is_empty()),
        filter_gfp: u32::from(!filters.gfp.is_empty()),
        gfp: gfp_tests(&filters.gfp)?,
        text: text_ranges(&filters.modules)?,
        filter_cgroups: u32::from(!filters.cgroups.is_empty()),
        cgroups: cgroup_tests(&filters.cgroups)?,
        ..config
    })
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
