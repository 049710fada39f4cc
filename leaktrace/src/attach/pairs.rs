//! Pairs of functions by name: finds the functions in an object, and holds the links of their
//! probes.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
};

use object::{Object as _, ObjectSymbol as _, SymbolFlags, SymbolKind};

use super::{
    allocator::ElfCode,
    exits, placement,
    user::{Way, refused},
};
use crate::{
    bpf::{
        Loaded,
        multi::{ATTACH_MULTI, ATTACH_SESSION, Link, MultiProgram},
    },
    error::Error,
    host::elf::ElfBytes,
    session::spec::{ProbeAt, gfp::distance, pairs::PairFunction},
};

/// `STT_GNU_IFUNC`: a function that chooses another function and takes no arguments.
const CHOOSES: u8 = 10;
/// Most similar names that an error suggests for a missing one.
const NEAR: usize = 3;

/// The functions of pairs in one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairFunctions {
    /// Acquiring functions that get return probes.
    pub acquiring: Vec<PairProbe>,
    /// Acquiring functions that a return probe may harm (see [`is_harmed_by_return_probes`]): their
    /// return instructions have probes instead.
    pub staying: Vec<PairProbe>,
    /// The return instructions of those functions.
    pub exits: Vec<PairProbe>,
    /// Releasing functions.
    pub releasing: Vec<PairProbe>,
    /// Names of the functions that the object defines.
    pub found: Vec<String>,
    /// Functions without a probe, and why.
    pub unseen: Vec<String>,
}

/// A probe of a pair's function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairProbe {
    /// The probe's offset in the file.
    pub offset: u64,
    /// The probe's attach cookie, see [`leaktrace_common::PairCookie`].
    pub cookie: u32,
    /// Whether the kernel single-steps the instruction at that offset.
    pub single_steps: bool,
}

impl PairFunctions {
    /// All probes.
    pub fn probes(&self) -> impl Iterator<Item = &PairProbe> {
        [&self.acquiring, &self.staying, &self.exits, &self.releasing].into_iter().flatten()
    }
}

/// The functions of pairs that an object defines.
///
/// # Errors
///
/// Says why the file cannot be read as an ELF object.
pub fn find(
    file: &File,
    functions: &[PairFunction],
    probe_at: ProbeAt,
) -> Result<PairFunctions, object::Error> {
    let bytes = ElfBytes::new(file);
    let elf = object::File::parse(&bytes)?;
    let mut wanted: HashMap<&str, Vec<&PairFunction>> = HashMap::new();
    for function in functions {
        wanted.entry(function.name.as_str()).or_default().push(function);
    }
    let code = ElfCode::new(&elf, &bytes);
    let is_go = GO_SECTIONS.iter().any(|name| elf.section_by_name(name).is_some());
    let is_harmed = OnceCell::new();
    let object =
        Object { code, is_harmed: &|| *is_harmed.get_or_init(|| is_harmed_by_return_probes(&elf)) };
    let mut found = PairFunctions::default();
    let mut seen: HashSet<(u64, leaktrace_common::PairCookie)> = HashSet::new();
    // By address: a function may have several names, and a name several versions.
    let mut acquiring: HashMap<u64, &PairFunction> = HashMap::new();
    let mut releasing: HashMap<(u64, u32), &PairFunction> = HashMap::new();
    for symbol in elf.dynamic_symbols().chain(elf.symbols()) {
        let Some((name, address)) = definition(&symbol) else { continue };
        let Some(wanted) = wanted.get(name) else { continue };
        if is_go {
            found.note(name);
            found.unseen.push(format!(
                "{name}: the object is a Go program's, whose functions take their arguments and \
                 their stacks elsewhere"
            ));
            continue;
        }
        for function in wanted {
            let pair = function.cookie.pair();
            let known = match function.acquires {
                true => *acquiring.entry(address).or_insert(function),
                false => *releasing.entry((address, pair)).or_insert(function),
            };
            if std::ptr::eq(known, *function) && seen.insert((address, function.cookie)) {
                found.add(&object, function, (address, symbol.size()), probe_at);
                continue;
            }
            found.note(name);
            // A call cannot be told to be of one or of the other.
            let difference = match known.cookie.pair() == pair {
                false => "which is of another pair",
                true if known.cookie.is_as(function.cookie) => continue,
                true => "which has other options",
            };
            let known = &known.name;
            found.unseen.push(format!("{name}: it is the same function as {known}, {difference}"));
        }
    }
    // Functions may share their ends.
    found.exits.sort_unstable_by_key(|exit| exit.offset);
    found.exits.dedup();
    // A symbol may be in both tables.
    found.unseen.sort_unstable();
    found.unseen.dedup();
    Ok(found)
}

/// Name and address of the function that a symbol defines.
fn definition<'data>(symbol: &impl object::ObjectSymbol<'data>) -> Option<(&'data str, u64)> {
    if symbol.kind() != SymbolKind::Text || symbol.is_undefined() {
        return None;
    }
    if let SymbolFlags::Elf { st_info, .. } = symbol.flags()
        && st_info & 0xf == CHOOSES
    {
        return None;
    }
    let name = symbol.name().ok()?;
    // Versioned names of .symtab: `free@@GLIBC_2.2.5`.
    Some((name.split('@').next().unwrap_or(name), symbol.address()))
}

/// Functions of these objects with names similar to a missing one; the most similar come first.
pub fn near(files: &[&File], wanted: &str) -> Vec<String> {
    let mut names: HashSet<String> = HashSet::new();
    for file in files {
        let bytes = ElfBytes::new(file);
        let Ok(elf) = object::File::parse(&bytes) else { continue };
        for symbol in elf.dynamic_symbols().chain(elf.symbols()) {
            if let Some((name, _)) = definition(&symbol)
                && name.len().abs_diff(wanted.len()) <= wanted.len() / 2
                && !names.contains(name)
            {
                names.insert(name.to_owned());
            }
        }
    }
    nearest(names.into_iter(), wanted)
}

/// The names most similar to `wanted`.
pub fn nearest(names: impl Iterator<Item = String>, wanted: &str) -> Vec<String> {
    let mut near: Vec<(usize, String)> =
        names.map(|name| (distance(&name, wanted), name)).collect();
    near.sort_unstable();
    near.retain(|(distance, _)| *distance <= wanted.len() / 2);
    near.truncate(NEAR);
    near.into_iter().map(|(_, name)| name).collect()
}

impl PairFunctions {
    fn note(&mut self, name: &str) {
        if !self.found.iter().any(|known| known == name) {
            self.found.push(name.to_owned());
        }
    }

    /// Adds the probes of a function.
    fn add(
        &mut self,
        object: &Object<'_, '_, '_>,
        function: &PairFunction,
        (address, size): (u64, u64),
        probe_at: ProbeAt,
    ) {
        let code = &object.code;
        let Some(start) = code.file_offset(address) else { return };
        self.note(&function.name);
        let bytes = code.whole(address, size);
        let (offset, single_steps) = match probe_at {
            ProbeAt::Entry => (0, placement::single_steps_first(bytes)),
            ProbeAt::Cheapest => placement::cheapest_of(bytes, &function.arguments),
        };
        let offset = start.saturating_add(offset);
        let probe = |cookie: leaktrace_common::PairCookie| PairProbe {
            offset,
            cookie: cookie.0,
            single_steps,
        };
        if !function.acquires {
            self.releasing.push(probe(function.cookie));
        } else if !is_mangled(&function.name) && !(object.is_harmed)() {
            self.acquiring.push(probe(function.cookie));
        } else if let Some(exits) = exits::exits(code, address) {
            let cookie = function.cookie.staying();
            let throws = is_mangled(&function.name);
            self.staying.push(probe(if throws { cookie.throwing() } else { cookie }));
            let offsets = exits.into_iter().filter_map(|exit| code.file_offset(exit));
            self.exits.extend(offsets.map(|offset| PairProbe {
                offset,
                cookie: 0,
                single_steps: true,
            }));
        } else {
            self.unseen.push(format!(
                "{}: exceptions may pass through it, or it may switch stacks, and where it returns \
                 cannot be told from its code",
                function.name
            ));
        }
    }
}

/// The object that a function is in.
struct Object<'elf, 'file, 'find> {
    code: ElfCode<'elf, 'file>,
    /// See [`is_harmed_by_return_probes`].
    is_harmed: &'find dyn Fn() -> bool,
}

/// Sections that every Go program has: its table of functions, and what it was built from.
const GO_SECTIONS: [&str; 2] = [".gopclntab", ".go.buildinfo"];

/// Functions by which exceptions of C++ are thrown, and by which panics of Rust go on.
const THROWERS: [&str; 3] = ["__cxa_throw", "__gxx_personality_v0", "rust_eh_personality"];
/// Functions of the unwinder, which a static program of C has as well, but does not use.
const UNWINDERS: [&str; 3] =
    ["_Unwind_RaiseException", "_Unwind_Resume", "_Unwind_Resume_or_Rethrow"];

/// Functions that switch stacks: ucontext's and those of boost.context. The C library defines the
/// former and does not use them.
const SWITCHERS: [&str; 4] = ["swapcontext", "setcontext", "jump_fcontext", "ontop_fcontext"];

/// Whether a return probe on functions of an object may harm: exceptions may pass through them, as
/// the object has what throws or imports what has them go on, or they may switch stacks.
fn is_harmed_by_return_probes<'a>(elf: &'a object::File<'a, &'a ElfBytes<'a>>) -> bool {
    let is_static = elf.dynamic_symbols().next().is_none();
    elf.dynamic_symbols().chain(elf.symbols()).any(|symbol| {
        let name = symbol.name().unwrap_or_default();
        let name = name.split('@').next().unwrap_or(name);
        THROWERS.contains(&name)
            || (symbol.is_undefined() && UNWINDERS.contains(&name))
            || ((symbol.is_undefined() || is_static) && SWITCHERS.contains(&name))
    })
}

/// Whether a function is one of C++ or of Rust, by its symbol.
fn is_mangled(symbol: &str) -> bool {
    symbol.starts_with("_Z") || symbol.starts_with("_R")
}

/// The program that is attached to each releasing function by a link of its own.
const RELEASE: &str = "lt_pair_free";
const ENTRY: &str = "lt_pair_entry";
const RETURN: &str = "lt_pair_return";
const EXIT: &str = "lt_pair_exit";
const SESSION: &str = "lt_pair_session";

/// The probes of pairs; detaches when dropped.
pub struct PairProbes {
    programs: Programs,
    /// The links of each process; those for all processes under 0.
    links: BTreeMap<u32, Vec<Link>>,
}

enum Programs {
    Multi {
        /// Entry and return in one program, where the kernel has session links.
        session: Option<MultiProgram>,
        entry: MultiProgram,
        returned: MultiProgram,
        exit: MultiProgram,
        release: MultiProgram,
    },
    PerfEvent,
}

impl PairProbes {
    /// Loads the programs.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when the kernel does not load a program.
    pub fn load(loaded: &mut Loaded, way: Way) -> Result<Self, Error> {
        let programs = match way {
            Way::PerfEvent => {
                for name in [RELEASE, ENTRY, RETURN, EXIT] {
                    loaded.load_uprobe(name)?;
                }
                Programs::PerfEvent
            }
            Way::Session | Way::Multi => {
                let loader = loaded.multi_loader()?;
                let has_session = way == Way::Session;
                let session = has_session.then(|| loader.load(SESSION, ATTACH_SESSION));
                Programs::Multi {
                    session: session.transpose()?,
                    entry: loader.load(ENTRY, ATTACH_MULTI)?,
                    returned: loader.load(RETURN, ATTACH_MULTI)?,
                    exit: loader.load(EXIT, ATTACH_MULTI)?,
                    release: loader.load(RELEASE, ATTACH_MULTI)?,
                }
            }
        };
        Ok(Self { programs, links: BTreeMap::new() })
    }

    /// Attaches to functions in the object that can be read at `path`: for one process or, if `pid`
    /// is 0, for all processes that map the object, now and later.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when the process is gone, [`Error::Kernel`] for any other refusal.
    pub fn attach(
        &mut self,
        loaded: &mut Loaded,
        path: &str,
        functions: &PairFunctions,
        pid: u32,
    ) -> Result<(), Error> {
        let probes = |list: &[PairProbe]| -> Vec<(u64, u64)> {
            list.iter().map(|probe| (probe.offset, u64::from(probe.cookie))).collect()
        };
        let (acquiring, releasing) = (probes(&functions.acquiring), probes(&functions.releasing));
        let (staying, exits) = (probes(&functions.staying), probes(&functions.exits));
        let mut links = Vec::new();
        let mut link = |program: &MultiProgram, probes: &[(u64, u64)], at_return| {
            // Nothing to attach is no link: the kernel refuses those.
            if probes.is_empty() {
                return Ok(());
            }
            let attached = program.attach(path, probes, pid, at_return);
            attached
                .map(|attached| links.push(attached))
                .map_err(|error| refused("a function of --pair", pid, error))
        };
        // As for allocators: releases first, and returns before entries.
        match &self.programs {
            Programs::Multi { session, entry, returned, exit, release } => {
                link(release, &releasing, false)?;
                link(exit, &exits, false)?;
                link(entry, &staying, false)?;
                match session {
                    Some(session) => link(session, &acquiring, false)?,
                    None => {
                        link(returned, &acquiring, true)?;
                        link(entry, &acquiring, false)?;
                    }
                }
            }
            Programs::PerfEvent => {
                let all = [
                    (RELEASE, &releasing),
                    (EXIT, &exits),
                    (ENTRY, &staying),
                    (RETURN, &acquiring),
                    (ENTRY, &acquiring),
                ];
                for (program, probes) in all {
                    for probe in probes {
                        loaded.attach_uprobe(program, path, *probe, pid)?;
                    }
                }
            }
        }
        self.links.entry(pid).or_default().extend(links);
        Ok(())
    }

    /// Drops the links of a process that has ended; perf_event links stay until the session ends.
    pub fn detach(&mut self, pid: u32) {
        self.links.remove(&pid);
    }

    /// As [`Loaded::recursion_misses`], for the programs of multi links.
    pub fn recursion_misses(&self) -> BTreeMap<String, u64> {
        let Programs::Multi { session, entry, returned, exit, release } = &self.programs else {
            return BTreeMap::new();
        };
        let programs = session.iter().chain([entry, returned, exit, release]);
        programs
            .filter_map(|program| {
                let misses = program.recursion_misses()?;
                (misses > 0).then(|| (program.name().to_owned(), misses))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::spec::pairs::{functions, parse};

    /// The C library of the running test.
    fn libc() -> File {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let path = maps
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .find(|path| path.contains("libc.so") || path.contains("ld-musl"))
            .expect("no C library is mapped");
        File::open(path).unwrap()
    }

    #[test]
    fn functions_of_an_object_are_found_once_each() {
        let pairs = [
            parse("fopen,fopen64:fclose").unwrap(),
            parse("opendir:closedir,no_such_close").unwrap(),
        ];
        let functions = functions(&pairs);
        let found = find(&libc(), &functions, ProbeAt::Cheapest).unwrap();
        // On x86-64 fopen64 is another name of fopen.
        let acquiring = found.acquiring.len() + found.staying.len();
        assert_eq!((acquiring, found.releasing.len()), (2, 2), "{found:?}");
        for name in ["fopen", "fopen64", "fclose", "opendir", "closedir"] {
            assert!(found.found.iter().any(|one| one == name), "{name}: {found:?}");
        }
        assert_eq!(found.found.len(), 5);
        // Nothing throws there.
        assert!(found.staying.is_empty() && found.unseen.is_empty(), "{found:?}");
    }

    #[test]
    fn one_function_of_two_pairs_is_told() {
        let pairs = [parse("fopen:fclose").unwrap(), parse("fopen64:fclose").unwrap()];
        let found = find(&libc(), &functions(&pairs), ProbeAt::Cheapest).unwrap();
        assert_eq!(found.acquiring.len() + found.staying.len(), 1, "{found:?}");
        assert!(found.unseen.iter().any(|what| what.contains("the same function")), "{found:?}");
    }

    #[test]
    fn one_function_with_other_options_is_told() {
        for (pair, is_told) in [
            ("fopen,fopen64:fclose", false),
            ("fopen(size=1),fopen64(size=2):fclose", true),
            ("fopen:fclose,_IO_fclose", false),
            ("fopen:fclose,_IO_fclose(key=2)", true),
        ] {
            let found = find(&libc(), &functions(&[parse(pair).unwrap()]), ProbeAt::Cheapest);
            let unseen = found.unwrap().unseen;
            assert_eq!(unseen.iter().any(|what| what.contains("other options")), is_told, "{pair}");
        }
    }

    #[test]
    fn what_may_throw_has_probes_at_its_ends() {
        let file = File::open("/proc/self/exe").unwrap();
        let bytes = ElfBytes::new(&file);
        let elf = object::File::parse(&bytes).unwrap();
        let symbols = elf.symbols().chain(elf.dynamic_symbols());
        let mangled = symbols
            .filter_map(|symbol| definition(&symbol).filter(|_| symbol.size() > 64))
            .map(|(name, _)| name.to_owned())
            .find(|name| name.starts_with("_R") || name.starts_with("_ZN"));
        let mangled = mangled.expect("this program has functions of Rust");
        let functions = functions(&[parse(&format!("{mangled}:no_such_free")).unwrap()]);
        let found = find(&file, &functions, ProbeAt::Cheapest).unwrap();
        assert!(found.acquiring.is_empty(), "{found:?}");
        assert_eq!(found.staying.len() + found.unseen.len(), 1, "{found:?}");
        assert_eq!(found.staying.is_empty(), found.exits.is_empty(), "{found:?}");
    }

    #[test]
    fn names_that_are_near_are_told() {
        assert_eq!(near(&[&libc()], "fclos").first().map(String::as_str), Some("fclose"));
        assert_eq!(near(&[&libc()], "a_name_that_nothing_has_in_any_libc"), [""; 0]);
    }
}
