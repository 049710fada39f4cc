//! Names of what holds blocks: variables, and the sections that they lie in.

use std::{collections::HashMap, fs::File};

use super::mangled;
use crate::{
    host::variables::{Data, Variable},
    snapshot::{Object, RootName, Snapshot, reach::Root},
};

/// The data of objects, each read once.
#[derive(Default)]
pub(super) struct Variables {
    objects: HashMap<u32, Option<Data>>,
}

impl Variables {
    /// The name of a root; empty where nothing is known.
    pub(super) fn name(&mut self, snapshot: &Snapshot, root: &Root) -> RootName {
        let index = match root {
            Root::Global { object, .. } | Root::ThreadLocal { object: Some(object), .. } => *object,
            _ => return RootName::default(),
        };
        let Some(object) = snapshot.objects.get(index as usize) else { return RootName::default() };
        let data = self.objects.entry(index).or_insert_with(|| read(object));
        let mut name = RootName { object: Some(object.path.clone()), ..RootName::default() };
        let Some(data) = data else { return name };
        let demangled = |variable: &Variable| mangled::demangle(&variable.name).into_owned();
        match root {
            Root::Global { address, .. } => {
                name.name = data.variable(*address).map(demangled);
                name.section = data.section(*address).map(|section| {
                    let offset = address - section.address;
                    if name.name.is_some() {
                        section.name.clone()
                    } else {
                        format!("{}+{offset:#x}", section.name)
                    }
                });
            }
            Root::ThreadLocal { offset, .. } => {
                name.name = data.thread_local(*offset).map(demangled)
            }
            _ => {}
        }
        name
    }
}

fn read(object: &Object) -> Option<Data> {
    Data::read(&File::open(&object.readable_at).ok()?).ok()
}
