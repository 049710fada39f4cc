//! Fills in the names of frames, each once.
//!
//! This module knows nothing of sorting or verdicts. A frame without a name gets the reason
//! instead.

mod functions;
mod kernel;
mod kernel_lines;
mod mangled;
mod module_lines;
mod perf_map;
mod roots;
mod user;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
};

use blazesym::symbolize::Symbolizer as Blazesym;

use self::{functions::Functions, perf_map::PerfMap};
use crate::{
    host::debug_files,
    snapshot::{Frame, Names, Place, Resolved, Snapshot, Symbol, Unknown, reach::Root},
};

/// Finds names, with caches that live as long as the symbolizer. Not `Send`: keep it on one thread.
pub struct Symbolizer {
    blazesym: Blazesym,
    kernel: kernel::Kernel,
    functions: HashMap<String, Functions>,
    perf_maps: HashMap<u32, PerfMap>,
    variables: roots::Variables,
}

impl Symbolizer {
    /// A symbolizer that has read nothing yet; `folders` hold debug information, besides the
    /// directories of packages.
    pub fn new(folders: &[PathBuf]) -> Self {
        let usual = [debug_files::DEBUG, "/lib/debug"].map(PathBuf::from);
        let blazesym = Blazesym::builder()
            .set_debug_dirs(Some(folders.iter().chain(&usual)))
            .enable_code_info(true)
            .enable_inlined_fns(true)
            // It decodes every name, mangled or not: see `mangled`.
            .enable_demangling(false)
            .build();
        Self {
            blazesym,
            kernel: kernel::Kernel::running(folders),
            functions: HashMap::new(),
            perf_maps: HashMap::new(),
            variables: roots::Variables::default(),
        }
    }

    /// Names every frame of the snapshot that `names` does not hold yet.
    pub fn resolve(&mut self, snapshot: &Snapshot, names: &mut Names) {
        let mut missing: HashSet<Frame> = HashSet::new();
        let of_stacks = snapshot.stacks.values().flat_map(|stack| &stack.frames);
        let of_sites = snapshot.sites.iter().map(|site| &site.call_site);
        // A map may come later that names code made at run time.
        let has_name = |frame: &&Frame| match names.frames.get(*frame) {
            None | Some(Resolved::Unknown(Unknown::Anonymous { .. })) => false,
            Some(_) => true,
        };
        let held_by = || {
            let reached = snapshot.sites.iter().filter_map(|site| site.reached.as_ref());
            reached.flat_map(|reached| reached.held_by.iter().map(|held| &held.root))
        };
        let of_roots = held_by().filter_map(|root| match root {
            Root::Stack { frame, .. } => frame.as_ref(),
            _ => None,
        });
        missing.extend(of_stacks.chain(of_sites).chain(of_roots).filter(|frame| !has_name(frame)));
        let mut kernel = Vec::new();
        let mut anonymous: BTreeMap<u32, Vec<Frame>> = BTreeMap::new();
        let mut objects: BTreeMap<u32, Vec<(Frame, u64)>> = BTreeMap::new();
        for frame in missing {
            match frame.place {
                Place::Kernel | Place::Module { .. } => kernel.push(frame),
                Place::Object { object, file_offset } => {
                    objects.entry(object).or_default().push((frame, file_offset));
                }
                Place::Anonymous { pid } => {
                    anonymous.entry(pid).or_default().push(frame);
                }
                // Should its mapping be known by a later snapshot, that is another frame.
                Place::Unmapped => {
                    names.frames.insert(frame, Resolved::Unknown(Unknown::Unmapped));
                }
            }
        }
        for root in held_by() {
            if !names.roots.contains_key(root) {
                let name = self.variables.name(snapshot, root);
                names.roots.insert(root.clone(), name);
            }
        }
        for (pid, frames) in anonymous {
            names.frames.extend(self.anonymous(snapshot, pid, frames));
        }
        if !kernel.is_empty() {
            names.frames.extend(self.kernel.resolve(&self.blazesym, snapshot, &kernel));
        }
        for (index, frames) in objects {
            if let Some(object) = snapshot.objects.get(index as usize) {
                names.frames.extend(user::resolve(
                    &self.blazesym,
                    &mut self.functions,
                    object,
                    &frames,
                ));
            }
        }
    }

    /// Names code made at run time by the map that its maker may have written for perf.
    fn anonymous(
        &mut self,
        snapshot: &Snapshot,
        pid: u32,
        frames: Vec<Frame>,
    ) -> Vec<(Frame, Resolved)> {
        let map = self.perf_maps.entry(pid).or_default();
        map.refresh(pid);
        let process = snapshot.processes.values().find(|process| process.pid == pid);
        let way = process.and_then(|process| perf_map::way(&process.exe, pid));
        let name = |frame: &Frame| match map.find(frame.address.wrapping_sub(1)) {
            Some((name, offset)) => Resolved::Known(vec![Symbol {
                name: name.to_owned(),
                offset,
                object: "[jit]".to_owned(),
                file: None,
                line: None,
                inlined: false,
            }]),
            None => {
                let (has_map, way) = (map.was_read(), way.clone());
                Resolved::Unknown(Unknown::Anonymous { has_map, way })
            }
        };
        frames.into_iter().map(|frame| (frame, name(&frame))).collect()
    }
}

/// Turns one answer of blazesym into frames: inlined functions first, the innermost of them
/// leading.
fn convert(sym: &blazesym::symbolize::Sym<'_>, object: &str) -> Resolved {
    use blazesym::symbolize::CodeInfo;

    let place = |info: Option<&CodeInfo<'_>>| {
        let file = info.map(|info| info.to_path().to_string_lossy().into_owned());
        (file, info.and_then(|info| info.line))
    };
    let symbol = |name: &str, offset, info, inlined| {
        let (file, line) = place(info);
        let name = mangled::demangle(name).into_owned();
        Symbol { name, offset, object: object.to_owned(), file, line, inlined }
    };
    let mut symbols: Vec<Symbol> = sym
        .inlined
        .iter()
        .rev()
        .map(|function| symbol(&function.name, 0, function.code_info.as_ref(), true))
        .collect();
    symbols.push(symbol(&sym.name, sym.offset as u64, sym.code_info.as_deref(), false));
    Resolved::Known(symbols)
}

#[cfg(test)]
mod tests {
    use leaktrace_common::{LIFETIME_BUCKETS, StackEnd, StackMode};

    use super::*;
    use crate::snapshot::{Loss, Mode, Object, Stack};

    #[inline(never)]
    fn a_function_to_be_found() -> u32 {
        std::hint::black_box(line!())
    }

    pub(super) fn snapshot(frames: Vec<Frame>, objects: Vec<Object>) -> Snapshot {
        let _ = LIFETIME_BUCKETS;
        Snapshot {
            unix_ms: 0,
            host: String::new(),
            mode: Mode::User,
            is_final: true,
            elapsed_ms: 0,
            stack_mode: StackMode::All,
            user_kinds: Vec::new(),
            sites: Vec::new(),
            stacks: [(1, Stack { frames, end: StackEnd::Complete })].into(),
            objects,
            processes: BTreeMap::new(),
            loss: Loss::default(),
            processes_ended: 0,
            max_outstanding: 0,
            sample_bytes: 0,
            budget: None,
            blocks_read: false,
            modules: Vec::new(),
            gone_modules: std::collections::BTreeSet::new(),
            cache_growth: std::collections::BTreeMap::new(),
            cache_aliases: std::collections::BTreeMap::new(),
            older_ms: 0,
            scans: Vec::new(),
        }
    }

    /// Finds a function of this test by its offset in the file, with file and line.
    #[test]
    fn a_function_of_this_program_has_name_file_and_line() {
        let line = a_function_to_be_found();
        let address = a_function_to_be_found as fn() -> u32 as usize as u64;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let (start, offset) = maps
            .lines()
            .find_map(|text| {
                let mut parts = text.split_whitespace();
                let (start, end) = parts.next()?.split_once('-')?;
                let (start, end) =
                    (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
                let offset = u64::from_str_radix(parts.nth(1)?, 16).ok()?;
                (start <= address && address < end).then_some((start, offset))
            })
            .unwrap();
        // As if the call were the function's first instruction.
        let file_offset = address - start + offset + 1;
        let frame = Frame::new(address + 1, Place::Object { object: 0, file_offset });
        let object = Object { path: "/the/test".into(), readable_at: "/proc/self/exe".into() };
        let mut names = Names::default();
        Symbolizer::new(&[]).resolve(&snapshot(vec![frame], vec![object]), &mut names);
        let Some(Resolved::Known(symbols)) = names.frames.get(&frame) else {
            panic!("not found: {names:?}");
        };
        let symbol = symbols.last().unwrap();
        assert!(symbol.name.ends_with("a_function_to_be_found"), "{symbol:?}");
        assert_eq!((symbol.offset, symbol.object.as_str()), (0, "/the/test"));
        assert!(symbol.file.as_ref().unwrap().ends_with("symbol/mod.rs"), "{symbol:?}");
        assert!(symbol.line.unwrap().abs_diff(line) <= 2, "{symbol:?}");
    }

    #[test]
    fn what_cannot_be_named_has_a_reason() {
        let at = |place| Frame::new(0x1000, place);
        let frames = vec![
            at(Place::Unmapped),
            at(Place::Anonymous { pid: u32::MAX }),
            at(Place::Object { object: 0, file_offset: 16 }),
        ];
        let object = Object { path: "[vdso]".into(), readable_at: String::new() };
        let mut names = Names::default();
        Symbolizer::new(&[]).resolve(&snapshot(frames.clone(), vec![object]), &mut names);
        let reasons: Vec<_> = frames.iter().filter_map(|frame| names.frames.get(frame)).collect();
        assert_eq!(
            reasons,
            [
                &Resolved::Unknown(Unknown::Unmapped),
                &Resolved::Unknown(Unknown::Anonymous { has_map: false, way: None }),
                &Resolved::Unknown(Unknown::NoSymbol("[vdso]".into())),
            ]
        );
    }
}
