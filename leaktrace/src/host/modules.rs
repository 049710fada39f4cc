//! Kernel modules: which are loaded, and where their code lies.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
};

use leaktrace_common::MODULE_NAME_BYTES;

use crate::error::Error;

/// Most bytes of the last function of a module: kallsyms tells where functions begin and not where
/// they end.
const LAST_FUNCTION_BYTES: u64 = 64 << 10;

/// Whether a module is loaded now; `name` is the kernel's spelling.
pub fn is_loaded(name: &str) -> bool {
    // A kernel without loadable modules has no such file.
    let loaded = fs::read_to_string("/proc/modules").unwrap_or_default();
    loaded.lines().any(|line| line.split(' ').next() == Some(name))
}

/// Refuses a name that no module can have, or that of code that is always there; `flag` is where
/// it was named.
///
/// # Errors
///
/// [`Error::Usage`], with how to mend it.
pub fn check_name(flag: &str, name: &str) -> Result<(), Error> {
    let is_name = !name.is_empty()
        && name.len() < MODULE_NAME_BYTES
        && !name.contains(|letter: char| matches!(letter, '/' | '.') || letter.is_control());
    if !is_name {
        return Err(Error::Usage(format!(
            "{flag} {name}: no module has such a name (see /proc/modules, and modinfo)"
        )));
    }
    if !is_loaded(name) && Path::new("/sys/module").join(name).exists() {
        return Err(Error::Usage(format!(
            "{flag} {name}: it is built into this kernel, where its code cannot be told from the \
             rest: leave {flag} out"
        )));
    }
    Ok(())
}

/// Start and end of the ranges in which the functions of these modules lie; names in the kernel's
/// spelling.
///
/// # Errors
///
/// [`Error::Host`] when the kernel hides the addresses.
pub fn text(names: &[String]) -> Result<Vec<(u64, u64)>, Error> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let file = fs::File::open("/proc/kallsyms")
        .map_err(|error| Error::Host(format!("--module needs /proc/kallsyms: {error}")))?;
    let ranges = ranges(BufReader::new(file).lines().map_while(Result::ok), names);
    if ranges.is_empty() {
        return Err(Error::Host(
            "--module: /proc/kallsyms does not tell where the module's code lies (it hides \
             addresses while kernel.kptr_restrict is 2: set it to 1)"
                .into(),
        ));
    }
    Ok(ranges)
}

/// Runs of adjacent functions that belong to one of the modules.
fn ranges(kallsyms: impl Iterator<Item = String>, names: &[String]) -> Vec<(u64, u64)> {
    let mut functions: Vec<(u64, bool)> = kallsyms
        .filter_map(|line| {
            let mut parts = line.split_ascii_whitespace();
            let address = u64::from_str_radix(parts.next()?, 16).ok()?;
            let is_text = matches!(parts.next()?, "t" | "T" | "w" | "W");
            let module = parts.nth(1).map(|module| module.trim_matches(['[', ']']));
            let wanted = module.is_some_and(|module| names.iter().any(|name| name == module));
            (is_text && address != 0).then_some((address, wanted))
        })
        .collect();
    functions.sort_unstable();
    let mut ranges = Vec::new();
    let is_one_run = |(one, mine): &(u64, bool), (next, its): &(u64, bool)| {
        mine == its && next - one <= LAST_FUNCTION_BYTES
    };
    for run in functions.chunk_by(is_one_run) {
        let (Some((start, true)), Some((last, _))) = (run.first(), run.last()) else { continue };
        let next = functions.partition_point(|(address, _)| address <= last);
        let next = functions.get(next).map_or(u64::MAX, |(address, _)| *address);
        ranges.push((*start, next.min(last.saturating_add(LAST_FUNCTION_BYTES))));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_has_its_functions_and_no_others() {
        let kallsyms = "ffffffff81000000 T first\n\
                        ffffffffc0100000 t drv_open\t[drv]\n\
                        ffffffffc0100040 t drv_close\t[drv]\n\
                        ffffffffc0100800 d drv_data\t[drv]\n\
                        ffffffffc0101000 t other_open\t[other]\n\
                        ffffffffc0300000 t drv_init\t[drv]\n";
        let lines = || kallsyms.lines().map(str::to_owned);
        let drv = ranges(lines(), &["drv".to_owned()]);
        assert_eq!(
            drv,
            [
                (0xffff_ffff_c010_0000, 0xffff_ffff_c010_1000),
                (0xffff_ffff_c030_0000, 0xffff_ffff_c031_0000)
            ]
        );
        assert_eq!(ranges(lines(), &["none".to_owned()]), []);
    }

    #[test]
    fn a_name_that_no_module_has_is_refused() {
        assert!(check_name("--module", "no_such_module").is_ok());
        for name in ["", "../kernel", "a\nb", &"x".repeat(56)] {
            let error = check_name("--module", name).unwrap_err().to_string();
            assert!(error.contains("no module has such a name"), "{error}");
        }
    }
}
