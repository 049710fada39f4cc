//! The mappings of a traced process: read while the process runs, or taken from the kernel's
//! records once it has ended. Attaches probes to the allocators in the mappings.

use std::{
    collections::hash_map::Entry,
    fs::File,
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
};

use leaktrace_common::FileKey;

use super::{
    pairs::Mapper,
    processes::{Processes, Traced},
    requested,
};
use crate::{
    attach::allocator,
    bpf::Loaded,
    collect::{Collector, monotonic_ns},
    error::{self, Error},
    host::{
        objects::{ObjectId, ObjectTable},
        proc::{self, Mapping},
    },
    unwind::{object, tables::ProcessMapping},
};

impl Processes {
    /// Reads a process' mappings, compiles the unwind tables of new objects, and publishes them;
    /// returns whether anything changed.
    pub(super) fn read_mappings(
        &mut self,
        pid: u32,
        collector: &mut Collector,
    ) -> Result<bool, Error> {
        let Some(traced) = self.traced.get_mut(&pid) else { return Ok(false) };
        // Clears the flag by which the programs know that they have told of a change, before
        // the reading: what is mapped during it is told again.
        self.tables.publish(traced.space, &traced.mappings);
        let mut lines = proc::mappings(pid)?;
        lines.retain(|mapping| mapping.executable);
        if lines == traced.lines {
            return Ok(false);
        }
        let present = traced.with_objects(&lines, &mut collector.objects, |objects, mapping| {
            objects.intern(pid, mapping)
        });
        if proc::is_ending(pid) {
            // Files that could not be opened any more are not what it mapped.
            return Err(Error::Usage(format!("process {pid} has ended")));
        }
        traced.lines = lines;
        if present == traced.mappings {
            return Ok(false);
        }
        traced.mappings = present;
        collector.update_mappings(traced.space, &traced.mappings);
        self.compile(pid, collector);
        Ok(true)
    }

    /// Compiles the missing unwind tables that a process needs.
    fn compile(&mut self, pid: u32, collector: &Collector) {
        let Some(traced) = self.traced.get(&pid) else { return };
        let files: Vec<(FileKey, ObjectId)> = traced
            .lines
            .iter()
            .zip(&traced.mappings)
            .filter_map(|(line, mapping)| {
                Some((FileKey::new(line.device, line.inode), mapping.object?))
            })
            .filter(|(file, _)| !self.tables.knows_file(file))
            .collect();
        let missing: Vec<ObjectId> = traced
            .mappings
            .iter()
            .filter_map(|mapping| mapping.object)
            .filter(|id| !self.tables.has(*id))
            .collect();
        if !missing.is_empty() {
            // Until their tables are there, stacks say what they wait for.
            self.tables.publish(traced.space, &traced.mappings);
        }
        for id in missing {
            if self.tables.has(id) {
                continue;
            }
            let file = collector.objects.get(id).and_then(|object| object.file.as_ref().ok());
            if file
                .and_then(|file| object::build_id(file))
                .is_some_and(|build_id| self.tables.share(id, &build_id))
            {
                continue;
            }
            let compiled = match file {
                Some(file) => object::compile_file(file).ok(),
                None => traced
                    .vdso(id)
                    .and_then(|line| read_memory(pid, line.start, line.end).ok())
                    .and_then(|image| object::compile_bytes(&image).ok()),
            };
            // What cannot be read has no rows: frame pointers are tried there.
            let compiled = compiled.unwrap_or_default();
            let path = collector.objects.get(id).map(|object| object.path.clone());
            self.rows.push((path.unwrap_or_default(), compiled.rows.len() as u64));
            self.tables.place(id, &compiled);
        }
        self.tables.publish(traced.space, &traced.mappings);
        for (file, id) in files {
            let held = collector.objects.get(id).and_then(|object| object.file.as_ref().ok());
            // While it is held, no other file gets its numbers. Those of btrfs, and some of
            // overlayfs, are not what the kernel has with a mapping.
            if held.is_some_and(|held| is_file(held, file)) {
                self.tables.know_file(file, id);
            }
        }
    }

    /// Takes the unknown mappings of a process that has ended from the kernel's records, so that
    /// the stacks it left can be named. Nothing in that process can be probed any more.
    pub(super) fn take_recorded(&mut self, pid: u32, collector: &mut Collector) {
        let Some(space) = self.traced.get(&pid).map(|traced| traced.space) else { return };
        // A child of vfork has its parent's image, which lives on.
        if self.traced.values().filter(|traced| traced.space == space).count() > 1 {
            return;
        }
        let (Some(records), Some(traced)) = (&mut self.records, self.traced.get_mut(&pid)) else {
            return;
        };
        let image = records.image(pid, traced.since_ns);
        // /proc knows better: it tells of each file what the process sees (overlayfs), and no
        // record of it is lost.
        let mut lines = traced.lines.clone();
        for mapping in image.mappings {
            if lines.iter().all(|line| line.end <= mapping.start || line.start >= mapping.end) {
                lines.push(mapping);
            }
        }
        let present = traced.with_objects(&lines, &mut collector.objects, |objects, mapping| {
            objects.intern_gone(mapping)
        });
        if present.is_empty() {
            return;
        }
        traced.lines = lines;
        traced.mappings = present;
        let exe = traced.lines.iter().filter_map(|line| line.path.as_deref()).next();
        collector.name_process(traced.space, image.comm.as_deref(), exe);
        collector.update_mappings(traced.space, &traced.mappings);
        // The next one that maps the same finds its tables.
        self.compile(pid, collector);
        let found = self.find_allocators(pid, collector);
        let is_late = found.is_ok_and(|allocators| self.are_late(pid, &allocators));
        let mapper = self.mapper(pid);
        let are_pairs_late = match (&mut self.pairs, mapper) {
            (Some(pairs), Some(mapper)) => pairs.are_late(&mapper, collector),
            _ => false,
        };
        if is_late || are_pairs_late {
            self.came_late(pid);
        }
    }

    /// Whether any of these allocators got its probes after the present image of the process began.
    fn are_late(&self, pid: u32, allocators: &[ObjectId]) -> bool {
        let owner = self.owner(pid);
        let Some(traced) = self.traced.get(&pid) else { return false };
        let is_late = |id: &ObjectId| {
            self.attached.get(&(owner, *id)).is_none_or(|at_ns| *at_ns > traced.since_ns)
        };
        self.traces_malloc && allocators.iter().any(is_late)
    }

    /// Attaches to the allocators of a process that have no probes yet. Returns whether the process
    /// may have called any newly found allocator before it had its probes.
    pub(super) fn attach_new(
        &mut self,
        pid: u32,
        loaded: &mut Loaded,
        collector: &mut Collector,
    ) -> Result<bool, Error> {
        let new = self.find_allocators(pid, collector)?;
        let owner = self.owner(pid);
        for id in &new {
            let Some(Some(allocator)) = self.allocators.get(id) else { continue };
            let Some(object) = collector.objects.get(*id) else { continue };
            if self.traces_malloc && !self.attached.contains_key(&(owner, *id)) {
                self.seccomp.check(pid)?;
                // What fails once is not tried again.
                self.attached.insert((owner, *id), u64::MAX);
                let result = self.probes.attach(loaded, &object.readable_at(), allocator, owner);
                if let (Err(error), 0) = (&result, owner) {
                    self.unprobed.push(format!("{}: {}", object.path, error::one_line(error)));
                }
                result?;
                self.attached.insert((owner, *id), monotonic_ns());
            }
        }
        let are_pairs_late = match (self.mapper(pid), &mut self.pairs) {
            (Some(mapper), Some(pairs)) => {
                pairs.attach(&mapper, loaded, collector, &self.seccomp)?
            }
            _ => false,
        };
        Ok(self.are_late(pid, &new) || are_pairs_late)
    }

    /// A process in the form in which its pairs are looked up; `None` where no pairs are traced.
    fn mapper(&self, pid: u32) -> Option<Mapper> {
        self.pairs.as_ref()?;
        let traced = self.traced.get(&pid)?;
        let objects = traced.mappings.iter().filter_map(|mapping| mapping.object).collect();
        Some(Mapper { pid, owner: self.owner(pid), objects, since_ns: traced.since_ns })
    }

    /// The process that the probes on `pid` are attached for; 0 stands for all processes.
    pub(super) fn owner(&self, pid: u32) -> u32 {
        if self.shares_probes { 0 } else { pid }
    }

    /// Stores the allocators of a process; returns those that are new for it.
    fn find_allocators(
        &mut self,
        pid: u32,
        collector: &mut Collector,
    ) -> Result<Vec<ObjectId>, Error> {
        let Some(traced) = self.traced.get_mut(&pid) else { return Ok(Vec::new()) };
        let mut new = Vec::new();
        for id in traced.mappings.iter().filter_map(|mapping| mapping.object) {
            let Some(object) = collector.objects.get(id) else { continue };
            let allocator = match self.allocators.entry(id) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let is_requested = self.requested.has(pid, object);
                    // What is no ELF object has no allocator.
                    let find =
                        |file| allocator::find(file, self.probe_at, is_requested).ok().flatten();
                    let found = object.file.as_deref().ok().and_then(find);
                    if is_requested && found.is_none() {
                        return Err(requested::without_functions(object));
                    }
                    let without = found.iter().flat_map(|found| &found.unseen);
                    self.without_return.extend(without.map(|function| {
                        format!(
                            "{} of {}: it throws exceptions, and where it returns cannot be told \
                             from its code",
                            function.name(),
                            object.path
                        )
                    }));
                    new.insert(found)
                }
            };
            let Some(allocator) = allocator else { continue };
            if traced.allocators.contains(&id) {
                continue;
            }
            traced.allocators.push(id);
            new.push(id);
            let name = match allocator.name.as_str() {
                "" => object.path.clone(),
                name => format!("{name} ({})", object.path),
            };
            collector.add_allocator_code(id, &allocator.code);
            collector.add_allocator(traced.space, &name);
        }
        Ok(new)
    }
}

impl Traced {
    /// The mappings with their objects. Files are opened only for lines that were not there before.
    fn with_objects(
        &self,
        lines: &[Mapping],
        objects: &mut ObjectTable,
        intern: impl Fn(&mut ObjectTable, &Mapping) -> Option<ObjectId>,
    ) -> Vec<ProcessMapping> {
        let with_object = |line: &Mapping| {
            let before = self.lines.iter().position(|known| known == line);
            let object = match before.and_then(|at| self.mappings.get(at)) {
                Some(known) => known.object,
                None => intern(objects, line),
            };
            ProcessMapping {
                start: line.start,
                end: line.end,
                file_offset: line.file_offset,
                object,
            }
        };
        lines.iter().map(with_object).collect()
    }

    /// The mapping of the vdso, if `id` is the vdso.
    fn vdso(&self, id: ObjectId) -> Option<&Mapping> {
        let at = self.mappings.iter().position(|mapping| mapping.object == Some(id))?;
        self.lines.get(at).filter(|line| line.path.as_deref() == Some("[vdso]"))
    }
}

/// Whether a file has this device and inode.
fn is_file(file: &File, key: FileKey) -> bool {
    file.metadata().is_ok_and(|metadata| {
        let device = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
        FileKey::new(device, metadata.ino()) == key
    })
}

/// Reads memory of a process.
fn read_memory(pid: u32, start: u64, end: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; end.saturating_sub(start).min(1 << 20) as usize];
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}
