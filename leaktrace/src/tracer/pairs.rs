//! Pairs of functions by name, in traced processes: which objects have the functions, and since
//! when these have probes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
};

use super::seccomp_guard::SeccompGuard;
use crate::{
    attach::{
        pairs::{PairFunctions, PairProbes, find, near},
        user::Way,
    },
    bpf::Loaded,
    collect::{Collector, monotonic_ns},
    error::{self, Error},
    host::objects::ObjectId,
    session::spec::{
        ProbeAt, TraceOptions,
        pairs::{self, PairFunction},
    },
};

/// The functions of pairs, and their probes.
pub(super) struct TracedPairs {
    pub(super) probes: PairProbes,
    functions: Vec<PairFunction>,
    probe_at: ProbeAt,
    /// The pairs' functions in each object, looked up once.
    objects: HashMap<ObjectId, PairFunctions>,
    /// Objects with probes, each with the process that the probes are for (0 for all): the time at
    /// which they were attached, in nanoseconds of `CLOCK_MONOTONIC`.
    attached: HashMap<(u32, ObjectId), u64>,
    /// Names of the functions that some object has.
    found: BTreeSet<String>,
    /// Functions that could not be probed, and why.
    unprobed: Vec<String>,
    /// The objects with functions of pairs that each process was seen to map.
    known: BTreeMap<u32, Vec<ObjectId>>,
}

impl TracedPairs {
    /// Loads the programs; `None` if no pair is to be traced.
    pub(super) fn new(
        loaded: &mut Loaded,
        way: Way,
        trace: &TraceOptions,
    ) -> Result<Option<Self>, Error> {
        if trace.pairs.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            probes: PairProbes::load(loaded, way)?,
            functions: pairs::functions(&trace.pairs),
            probe_at: trace.probe_at,
            objects: HashMap::new(),
            attached: HashMap::new(),
            found: BTreeSet::new(),
            unprobed: Vec::new(),
            known: BTreeMap::new(),
        }))
    }

    /// The objects with functions of pairs: each one's path, its number of probes on emulated
    /// instructions, and its number of probes on single-stepped ones.
    pub(super) fn probe_costs<'a>(
        &'a self,
        collector: &'a Collector,
    ) -> impl Iterator<Item = (&'a str, usize, usize)> {
        self.objects.iter().filter_map(|(id, functions)| {
            let object = collector.objects.get(*id)?;
            let dear = functions.probes().filter(|probe| probe.single_steps).count();
            let all = functions.probes().count();
            (all > 0).then_some((object.path.as_str(), all - dear, dear))
        })
    }

    /// Forgets the objects of a process that has ended or has another image.
    pub(super) fn left(&mut self, pid: u32, has_own_links: bool) {
        self.known.remove(&pid);
        if has_own_links {
            self.probes.detach(pid);
            self.attached.retain(|(owner, _), _| *owner != pid);
        }
    }

    /// Functions that no object has, of all objects looked at.
    fn missing(&self) -> BTreeSet<&str> {
        let names = self.functions.iter().map(|function| function.name.as_str());
        names.filter(|name| !self.found.contains(*name)).collect()
    }

    /// Sentences on what is not in the figures, for the report.
    pub(super) fn unseen(&self) -> impl Iterator<Item = String> {
        let missing = self
            .missing()
            .into_iter()
            .map(|name| format!("--pair: no object that a traced process maps defines {name}"));
        self.unprobed.iter().cloned().chain(missing)
    }

    /// Refuses functions that no object has; only for a session that waits for no further process.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] with similar names.
    pub(super) fn check(&self, collector: &Collector) -> Result<(), Error> {
        let missing = self.missing();
        let Some(name) = missing.first() else { return Ok(()) };
        let all = collector.objects.all();
        let files: Vec<&File> =
            all.iter().filter_map(|object| object.file.as_deref().ok()).collect();
        let near = near(&files, name);
        let mend = match near.is_empty() {
            false => format!("did you mean {}?", near.join(", ")),
            true => "name functions that have a symbol there (see nm -D), and that are not \
                     inlined"
                .into(),
        };
        Err(Error::Usage(format!(
            "--pair: no object that the traced processes map defines {name}: {mend}"
        )))
    }

    /// Looks for the functions in an object, unless that was done before.
    fn look_up(&mut self, id: ObjectId, collector: &Collector) {
        if self.objects.contains_key(&id) {
            return;
        }
        let Some(object) = collector.objects.get(id) else { return };
        // What is no ELF object has no functions.
        let found = object
            .file
            .as_deref()
            .ok()
            .and_then(|file| find(file, &self.functions, self.probe_at).ok());
        let found = found.unwrap_or_default();
        self.found.extend(found.found.iter().cloned());
        self.unprobed.extend(found.unseen.iter().map(|what| format!("{}: {what}", object.path)));
        self.objects.insert(id, found);
    }
}

/// A process that may have functions of pairs.
pub(super) struct Mapper {
    pub(super) pid: u32,
    /// The process that its probes are for: itself, or 0 where all processes share probes.
    pub(super) owner: u32,
    /// The objects that it maps.
    pub(super) objects: Vec<ObjectId>,
    /// Since when it has its present image, in nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) since_ns: u64,
}

impl TracedPairs {
    /// Attaches to the functions of pairs in a process that have no probes yet. Returns whether the
    /// process may have called any newly found function before it had its probe.
    pub(super) fn attach(
        &mut self,
        process: &Mapper,
        loaded: &mut Loaded,
        collector: &Collector,
        seccomp: &SeccompGuard,
    ) -> Result<bool, Error> {
        let mut is_late = false;
        for id in process.objects.iter().copied() {
            if self.known.get(&process.pid).is_some_and(|known| known.contains(&id)) {
                continue;
            }
            self.known.entry(process.pid).or_default().push(id);
            self.look_up(id, collector);
            let (Some(functions), Some(object)) =
                (self.objects.get(&id), collector.objects.get(id))
            else {
                continue;
            };
            if functions.probes().next().is_none() {
                continue;
            }
            if !self.attached.contains_key(&(process.owner, id)) {
                seccomp.check(process.pid)?;
                // What fails once is not tried again.
                self.attached.insert((process.owner, id), u64::MAX);
                let path = object.readable_at();
                let result = self.probes.attach(loaded, &path, functions, process.owner);
                if let (Err(error), 0) = (&result, process.owner) {
                    self.unprobed.push(format!("{}: {}", object.path, error::one_line(error)));
                }
                result?;
                self.attached.insert((process.owner, id), monotonic_ns());
            }
            is_late |= self.is_late(process, id);
        }
        Ok(is_late)
    }

    /// Whether a process that has ended mapped functions of pairs whose probes came too late, or
    /// never.
    pub(super) fn are_late(&mut self, process: &Mapper, collector: &Collector) -> bool {
        process.objects.iter().any(|id| {
            self.look_up(*id, collector);
            let has_some =
                self.objects.get(id).is_some_and(|functions| functions.probes().next().is_some());
            has_some && self.is_late(process, *id)
        })
    }

    /// Whether an object got its probes after the present image of a process began.
    fn is_late(&self, process: &Mapper, id: ObjectId) -> bool {
        let attached_at_ns = self.attached.get(&(process.owner, id));
        attached_at_ns.is_none_or(|at_ns| *at_ns > process.since_ns)
    }
}
