//! Addresses of kernel functions, from /proc/kallsyms.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead as _, BufReader},
};

/// The addresses of functions of the kernel proper, in the order of `names`. An address is `None`
/// where the function is not there, is not unique, or is hidden (kernel.kptr_restrict).
pub fn addresses(names: &[&str]) -> Vec<Option<u64>> {
    let mut found: Vec<Vec<u64>> = vec![Vec::new(); names.len()];
    let Ok(file) = File::open("/proc/kallsyms") else { return vec![None; names.len()] };
    for line in BufReader::new(file).lines().map_while(Result::ok) {
        let mut parts = line.split_ascii_whitespace();
        let (Some(address), Some(_), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        for (wanted, addresses) in names.iter().zip(&mut found) {
            if *wanted == name
                && let Ok(address) = u64::from_str_radix(address, 16)
            {
                addresses.push(address);
            }
        }
    }
    found
        .into_iter()
        .map(|addresses| match addresses.as_slice() {
            [address] if *address != 0 => Some(*address),
            _ => None,
        })
        .collect()
}

/// A function, by its name, of the kernel or a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it begins; 0 where the kernel hides it (kernel.kptr_restrict).
    pub address: u64,
    /// The module that it is of.
    pub module: Option<String>,
}

/// The functions of the kernel and its modules, in the order of `names`: each that has a name.
pub fn functions(names: &[&str]) -> Vec<Vec<Function>> {
    let mut found: Vec<Vec<Function>> = vec![Vec::new(); names.len()];
    for_each_function(|address, name, module| {
        for (wanted, functions) in names.iter().zip(&mut found) {
            if *wanted == name && functions.iter().all(|known| known.address != address) {
                functions.push(Function { address, module: module.map(str::to_owned) });
            }
        }
    });
    found
}

/// Names of functions of the kernel and its modules that are about as long as `like`, or that the
/// compiler has derived from it (`f.isra.0`).
pub fn names(like: &str) -> BTreeSet<String> {
    let clone = format!("{like}.");
    let mut names = BTreeSet::new();
    for_each_function(|_, name, _| {
        if name.len().abs_diff(like.len()) <= 2 || name.starts_with(&clone) {
            names.insert(name.to_owned());
        }
    });
    names
}

/// Address, name and module of each.
fn for_each_function(mut visit: impl FnMut(u64, &str, Option<&str>)) {
    let Ok(file) = File::open("/proc/kallsyms") else { return };
    for line in BufReader::new(file).lines().map_while(Result::ok) {
        let mut parts = line.split_ascii_whitespace();
        if let (Some(address), Some("t" | "T" | "w" | "W"), Some(name)) =
            (parts.next(), parts.next(), parts.next())
            && let Ok(address) = u64::from_str_radix(address, 16)
        {
            let module = parts.next().map(|module| module.trim_matches(['[', ']']));
            visit(address, name, module);
        }
    }
}

/// Start and end of functions of the kernel proper, whose names up to a dot are given: the compiler
/// makes `f.constprop.0` and `f.isra.0` of `f`. A function that is not there has no range.
pub fn ranges(names: &[&str]) -> Vec<(u64, u64)> {
    let Ok(file) = File::open("/proc/kallsyms") else { return Vec::new() };
    ranges_in(BufReader::new(file).lines().map_while(Result::ok), names)
}

fn ranges_in(kallsyms: impl Iterator<Item = String>, names: &[&str]) -> Vec<(u64, u64)> {
    let mut functions: Vec<(u64, bool)> = kallsyms
        .filter_map(|line| {
            let mut parts = line.split_ascii_whitespace();
            let address = u64::from_str_radix(parts.next()?, 16).ok()?;
            let is_text = matches!(parts.next()?, "t" | "T" | "w" | "W");
            let name = parts.next()?.split('.').next()?;
            let is_wanted = parts.next().is_none() && names.contains(&name);
            (is_text && address != 0).then_some((address, is_wanted))
        })
        .collect();
    functions.sort_unstable();
    let next = |start: u64| {
        let at = functions.partition_point(|(address, _)| *address <= start);
        functions.get(at).map(|(address, _)| *address)
    };
    let wanted = functions.iter().filter(|(_, is_wanted)| *is_wanted);
    wanted.filter_map(|(start, _)| Some((*start, next(*start)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_of_a_function_count_as_it() {
        let kallsyms = "ffffffff81000000 T new_slab_cache\n\
                        ffffffff81000100 t new_slab.isra.0\n\
                        ffffffff81000180 d new_slab_data\n\
                        ffffffff81000200 T behind\n\
                        ffffffffc0000000 t new_slab\t[other]\n";
        let found = ranges_in(kallsyms.lines().map(str::to_owned), &["new_slab"]);
        assert_eq!(found, [(0xffff_ffff_8100_0100, 0xffff_ffff_8100_0200)]);
    }
}
