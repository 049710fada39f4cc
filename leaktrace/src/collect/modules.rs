//! Kernel modules that come and go while the kernel is traced: tells whose code lay at an address
//! when the programs counted something there.
//!
//! When the ring reports a module, its names are read while it is loaded. A module that is gone by
//! then, as its init has failed, keeps the name and the bounds that the ring reported.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use aya::maps::{MapData, RingBuf};
use leaktrace_common::{LAST_GENERATION, ModuleEvent, ModuleEventKind, TextRange};

use crate::{
    host::module_code::{self, Listed, Symbols},
    snapshot::{Frame, Module, Place},
};

/// One load of a module.
#[derive(Debug)]
struct Load {
    module: Arc<Module>,
    /// The number of the load; 0 for a module that was there before.
    loaded: u64,
    /// The number of the unload; `None` while the module is loaded.
    freed: Option<u64>,
    /// Whether the module's symbols were read.
    is_read: bool,
}

/// Every load of a module that was seen.
#[derive(Default)]
pub(super) struct Modules {
    events: Option<RingBuf<MapData>>,
    loads: Vec<Load>,
    /// The kernel's own text, where no module lies.
    kernel_text: TextRange,
    /// Whether there were more loads and unloads than numbers.
    is_exhausted: bool,
}

impl Modules {
    /// Begins to follow modules; the ring has held their events since an earlier moment.
    pub(super) fn start(&mut self, events: Option<RingBuf<MapData>>, kernel_text: TextRange) {
        (self.events, self.kernel_text) = (events, kernel_text);
        let listed = module_code::listed();
        let mut symbols = module_code::symbols(|_| true);
        let bounds: Vec<u64> = listed.iter().map(|module| module.base).collect();
        for module in &listed {
            let symbols = symbols.remove(&module.name).unwrap_or_default();
            let text = vec![(module.base, end_of_text(module, &symbols, &bounds))];
            self.loads.push(Load {
                module: Arc::new(read(&module.name, text, symbols)),
                loaded: 0,
                freed: None,
                is_read: true,
            });
        }
        self.take_in();
    }

    /// The ring of module events, to wait for.
    pub(super) fn events(&self) -> Option<&RingBuf<MapData>> {
        self.events.as_ref()
    }

    /// Takes in the events of the ring, and reads the names of modules that have come.
    pub(super) fn take_in(&mut self) {
        loop {
            self.drain();
            let is_new = |load: &&Load| !load.is_read && load.freed.is_none();
            let new: BTreeMap<String, Option<String>> = self
                .loads
                .iter()
                .filter(is_new)
                .map(|load| (load.module.name.clone(), module_code::state(&load.module.name)))
                .collect();
            if new.is_empty() {
                return;
            }
            let mut symbols = module_code::symbols(|name| new.contains_key(name));
            // The end of its init takes symbols away, and while it goes all of them: what was read
            // meanwhile may have gaps, and gaps would have the names of what lies before them.
            let settled = |name: &String| new.get(name) == Some(&module_code::state(name));
            let settled: BTreeSet<String> =
                new.keys().filter(|name| settled(name)).cloned().collect();
            self.drain();
            for load in self.loads.iter_mut().filter(|load| !load.is_read && load.freed.is_none()) {
                if let Some(name) = settled.get(&load.module.name) {
                    let symbols = symbols.remove(name).unwrap_or_default();
                    load.module = Arc::new(read(name, load.module.text.clone(), symbols));
                    load.is_read = true;
                }
            }
        }
    }

    fn drain(&mut self) {
        let Some(mut ring) = self.events.take() else { return };
        while let Some(item) = ring.next() {
            if item.len() >= size_of::<ModuleEvent>() {
                // SAFETY: the ring holds events of this repr(C) type of integers; the length is
                // checked.
                let event = unsafe { item.as_ptr().cast::<ModuleEvent>().read_unaligned() };
                self.note(&event);
            }
        }
        self.events = Some(ring);
    }

    fn note(&mut self, event: &ModuleEvent) {
        let name = event.name.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        let generation = u64::from(event.generation);
        self.is_exhausted |= generation == LAST_GENERATION;
        let text: Vec<(u64, u64)> = [event.text, event.init_text]
            .into_iter()
            .map(|TextRange { start, end }| (start, end))
            .filter(|(start, end)| start < end)
            .collect();
        let present = self.loads.iter_mut().rev().find(|load| {
            let is_there = text.first().is_some_and(|(start, _)| load.module.has(*start));
            load.freed.is_none() && load.module.name == name && is_there
        });
        let module =
            || Arc::new(Module { name: name.clone(), text: text.clone(), ..Module::default() });
        if event.kind == ModuleEventKind::Freed as u32 {
            match present {
                Some(load) => load.freed = Some(generation),
                // It was there for less time than it takes to list what is there.
                None => self.loads.push(Load {
                    module: module(),
                    loaded: 0,
                    freed: Some(generation),
                    is_read: false,
                }),
            }
        } else {
            match present {
                // It has come after the probes were on and before the modules were listed.
                Some(load) if load.loaded == 0 => {
                    let mut known = (*load.module).clone();
                    known.text = text;
                    (load.module, load.loaded) = (Arc::new(known), generation);
                    load.is_read = false;
                }
                _ => self.loads.push(Load {
                    module: module(),
                    loaded: generation,
                    freed: None,
                    is_read: false,
                }),
            }
        }
    }

    /// Normalizes a kernel address: finds the load of the module that it lies in. `generation` is
    /// the number that the programs found there.
    pub(super) fn frame(&self, address: u64, generation: u64) -> Frame {
        let call = address.wrapping_sub(1);
        let TextRange { start, end } = self.kernel_text;
        let is_own = (start..end).contains(&call);
        let place = match (!is_own).then(|| self.find(call, generation)).flatten() {
            Some(load) => Place::Module { load: load as u32 },
            None => Place::Kernel,
        };
        Frame::new(address, place)
    }

    /// The latest load at this address that is not later than `generation`, unless its module had
    /// gone. In that case it is the next later load, whose code ran for the module's parameters
    /// before the load was reported.
    fn find(&self, call: u64, generation: u64) -> Option<usize> {
        let there = || self.loads.iter().enumerate().filter(|(_, load)| load.module.has(call));
        let latest = there()
            .filter(|(_, load)| load.loaded <= generation)
            .max_by_key(|(_, load)| load.loaded);
        let is_alive = |load: &Load| load.freed.is_none_or(|freed| freed > generation);
        if let Some((index, load)) = latest
            && is_alive(load)
        {
            return Some(index);
        }
        there()
            .filter(|(_, load)| load.loaded > generation)
            .min_by_key(|(_, load)| load.loaded)
            .map(|(index, _)| index)
    }

    /// All loads, in the order of [`Place::Module`].
    pub(super) fn all(&self) -> Vec<Arc<Module>> {
        self.loads.iter().map(|load| Arc::clone(&load.module)).collect()
    }

    /// Indices of the loads whose module is gone.
    pub(super) fn gone(&self) -> BTreeSet<u32> {
        let gone = self.loads.iter().enumerate().filter(|(_, load)| load.freed.is_some());
        gone.map(|(index, _)| index as u32).collect()
    }

    /// Whether a module of this name has gone and come again.
    pub(super) fn has_come_again(&self, name: &str) -> bool {
        let mut loads = self.loads.iter().filter(|load| load.module.name == name);
        loads.any(|load| load.freed.is_some()) && loads.next().is_some()
    }

    /// A sentence on what can no longer be told apart, if anything.
    pub(super) fn unseen(&self) -> Option<String> {
        self.is_exhausted.then(|| {
            format!(
                "more than {LAST_GENERATION} loads and unloads of modules: later ones are taken for \
                 earlier ones at the same addresses"
            )
        })
    }
}

/// Reads a module, with those of its symbols that lie in its code.
fn read(name: &str, text: Vec<(u64, u64)>, symbols: Symbols) -> Module {
    let (sections, build_id) = module_code::sections(Path::new(module_code::SYSFS), name);
    let mut module =
        Module { name: name.to_owned(), text, functions: Vec::new(), build_id, sections };
    module.functions = symbols.functions;
    let text = module.text.clone();
    module.functions.retain(|(at, _)| text.iter().any(|(start, end)| (start..end).contains(&at)));
    module
}

/// The end of the code of a module that was there before leaktrace: its first data behind its last
/// function, or the next module, or the end of the module's memory.
fn end_of_text(module: &Listed, symbols: &Symbols, bases: &[u64]) -> u64 {
    let end = module.base.saturating_add(module.bytes);
    let inside = |at: &&u64| (module.base..end).contains(*at);
    let functions = symbols.functions.iter().map(|(at, _)| at).filter(inside);
    let last = functions.max().copied().unwrap_or(module.base);
    let behind = symbols.others.iter().chain(bases).filter(|at| **at > last);
    behind.min().copied().unwrap_or(end).min(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xffff_ffff_c010_0000;

    fn event(kind: ModuleEventKind, generation: u32, name: &str, init: u64) -> ModuleEvent {
        let mut event = ModuleEvent {
            kind: kind as u32,
            generation,
            text: TextRange { start: BASE, end: BASE + 0x1000 },
            init_text: TextRange { start: init, end: init + 0x100 },
            name: [0; leaktrace_common::MODULE_NAME_BYTES],
        };
        for (to, from) in event.name.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        event
    }

    fn names(modules: &Modules, address: u64, generations: &[u64]) -> Vec<String> {
        let name = |generation: &u64| {
            let found = modules.find(address, *generation).and_then(|at| modules.loads.get(at));
            found.map_or("none".to_owned(), |load| load.module.name.clone())
        };
        generations.iter().map(name).collect()
    }

    #[test]
    fn each_load_at_an_address_is_told_apart() {
        use ModuleEventKind::{Freed, Loaded};
        let mut modules = Modules::default();
        let init = BASE + 0x5000;
        for event in [
            event(Loaded, 1, "a", init),
            event(Freed, 2, "a", init),
            // Number 3 is of another module.
            event(Loaded, 4, "b", init),
        ] {
            modules.note(&event);
        }
        // What runs before a load is told is that load's.
        assert_eq!(names(&modules, BASE, &[1, 2, 3, 4, 9]), ["a", "b", "b", "b", "b"]);
        assert_eq!(names(&modules, init, &[1, 4]), ["a", "b"]);
        assert_eq!(names(&modules, BASE + 0x1000, &[1, 4]), ["none", "none"]);
        assert_eq!(modules.gone(), [0].into());
        assert!(!modules.has_come_again("a"));
        modules.note(&event(Freed, 5, "b", init));
        modules.note(&event(Loaded, 6, "a", init));
        assert!(modules.has_come_again("a") && !modules.has_come_again("b"));
    }

    /// The kernel frees a module's init without an event, and other modules may then lie there.
    #[test]
    fn what_comes_to_lie_where_an_init_was_is_not_it() {
        use ModuleEventKind::Loaded;
        let mut modules = Modules::default();
        let mut first = event(Loaded, 1, "first", BASE);
        first.text = TextRange { start: BASE + 0x9000, end: BASE + 0xa000 };
        modules.note(&first);
        modules.note(&event(Loaded, 2, "second", BASE + 0x7000));
        assert_eq!(names(&modules, BASE + 0x10, &[1, 2]), ["first", "second"]);
    }

    #[test]
    fn one_that_was_there_ends_before_its_data_and_its_neighbour() {
        let module = Listed { name: "a".into(), base: 0x1000, bytes: 0x4000 };
        let functions = vec![(0x1000, "f".to_owned()), (0x1400, "g".to_owned())];
        let symbols =
            |others: &[u64]| Symbols { functions: functions.clone(), others: others.into() };
        assert_eq!(end_of_text(&module, &symbols(&[0x0800, 0x2000]), &[0x1000, 0x6000]), 0x2000);
        assert_eq!(end_of_text(&module, &symbols(&[]), &[0x1000, 0x3000]), 0x3000);
        assert_eq!(end_of_text(&module, &symbols(&[]), &[0x1000]), 0x5000);
    }
}
