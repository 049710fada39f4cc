//! Pairs of functions of the kernel and its modules, by kprobe and kretprobe.

use std::collections::{BTreeSet, HashMap};

use leaktrace_common::PairCookie;

use super::pairs::nearest;
use crate::{
    bpf::{Loaded, pair_programs::PairProgram},
    error::Error,
    host::kallsyms,
    session::spec::pairs::PairFunction,
};

/// Functions of pairs in the running kernel.
#[derive(Debug)]
pub struct Found {
    /// Their addresses, each with its attach cookie.
    pub addresses: Vec<(u64, PairCookie)>,
    /// The modules that some of them are of.
    pub modules: BTreeSet<String>,
}

/// Finds the functions in the kernel and its modules.
///
/// # Errors
///
/// [`Error::Usage`] for a name that no function or several functions have, [`Error::Host`] where
/// the kernel hides the addresses of its functions.
pub fn find(functions: &[PairFunction]) -> Result<Found, Error> {
    let names: Vec<&str> = functions.iter().map(|function| function.name.as_str()).collect();
    let found = kallsyms::functions(&names);
    let mut all = Found { addresses: Vec::new(), modules: BTreeSet::new() };
    // The compiler makes functions with the same code one, and probes know them by their addresses.
    let mut by_address: HashMap<u64, &str> = HashMap::new();
    for (function, found) in functions.iter().zip(found) {
        let name = &function.name;
        match found.as_slice() {
            [kallsyms::Function { address: 0, .. }, ..] => {
                return Err(Error::Host(
                    "--pair: /proc/kallsyms hides where the kernel's functions lie \
                     (kernel.kptr_restrict is 2: set it to 1)"
                        .into(),
                ));
            }
            [found] => {
                if let Some(other) = by_address.insert(found.address, name) {
                    return Err(Error::Usage(format!(
                        "--pair: {other} and {name} are one function in this kernel, which can \
                         be in one pair alone: name it once"
                    )));
                }
                all.addresses.push((found.address, function.cookie));
                all.modules.extend(found.module.clone());
            }
            [] => {
                let names = kallsyms::names(name);
                let made = names.iter().find(|other| other.starts_with(&format!("{name}.")));
                if let Some(made) = made {
                    return Err(Error::Usage(format!(
                        "--pair: the compiler has made {made} of the kernel's function {name}, and \
                         may have left arguments out: name that one, and look at its code"
                    )));
                }
                let near = nearest(names.into_iter(), name);
                let mend = match near.is_empty() {
                    false => format!("did you mean {}?", near.join(", ")),
                    true => "see /proc/kallsyms, and load the module that has it first".into(),
                };
                return Err(Error::Usage(format!(
                    "--pair: the kernel has no function {name}: {mend}"
                )));
            }
            many => {
                return Err(Error::Usage(format!(
                    "--pair: {} functions of the kernel are called {name}: name another one, that \
                     it calls or that calls it",
                    many.len()
                )));
            }
        }
    }
    Ok(all)
}

/// Attaches to functions whose addresses the programs know already; the probes stay while `loaded`
/// lives.
///
/// # Errors
///
/// [`Error::Refused`] or [`Error::Host`], which names the function that the kernel permits no probe
/// on.
pub fn attach(loaded: &mut Loaded, functions: &[PairFunction]) -> Result<(), Error> {
    use PairProgram::{Acquire, Acquired, Release};
    // Releases first, and returns before entries.
    for program in [Release, Acquired, Acquire] {
        for function in functions.iter().filter(|one| one.acquires == (program != Release)) {
            loaded.attach_pair(program, &function.name)?;
        }
    }
    Ok(())
}
