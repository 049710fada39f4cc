//! The stacks of all sites, each normalized once and then remembered: mappings come and go.
//!
//! Sites are read after the mappings, and a library may come in between. Then some of its frames
//! are in no known mapping, and the next snapshot, before which mappings are read again, has
//! another look. Not the ones after it: by then another library may lie there.

use std::collections::{BTreeMap, HashSet};

use crate::snapshot::{Place, Stack};

/// By space and id: the same addresses mean other functions in another process.
type Key = (u32, u64);

/// The stacks that were seen so far.
#[derive(Debug, Default)]
pub(super) struct Stacks {
    known: BTreeMap<Key, Stack>,
    /// Those with a frame in no known mapping, new in this snapshot.
    unsettled: HashSet<Key>,
    /// The same of the snapshot before, until they are asked for.
    due: HashSet<Key>,
}

impl Stacks {
    /// Begins a snapshot: the mappings have been read.
    pub(super) fn begin_snapshot(&mut self) {
        self.due = std::mem::take(&mut self.unsettled);
    }

    /// A stack, by what `normalize` makes of it where that is not settled; nothing if it makes
    /// nothing of one that is not known.
    pub(super) fn get_or(
        &mut self,
        key: Key,
        normalize: impl FnOnce() -> Option<Stack>,
    ) -> Option<&Stack> {
        let is_new = !self.known.contains_key(&key);
        if (is_new || self.due.remove(&key))
            && let Some(stack) = normalize()
        {
            if is_new && stack.frames.iter().any(|frame| frame.place == Place::Unmapped) {
                self.unsettled.insert(key);
            }
            self.known.insert(key, stack);
        }
        self.known.get(&key)
    }

    /// A stack that was asked for before.
    pub(super) fn get(&self, key: Key) -> Option<&Stack> {
        self.known.get(&key)
    }

    /// Forgets those of some spaces.
    pub(super) fn forget(&mut self, gone: &HashSet<u32>) {
        self.known.retain(|(space, _), _| !gone.contains(space));
        self.unsettled.retain(|(space, _)| !gone.contains(space));
        self.due.retain(|(space, _)| !gone.contains(space));
    }
}

#[cfg(test)]
mod tests {
    use leaktrace_common::StackEnd;

    use super::*;
    use crate::snapshot::Frame;

    const KEY: Key = (1, 7);
    const LIBRARY: Place = Place::Object { object: 3, file_offset: 16 };
    const OTHER: Place = Place::Object { object: 4, file_offset: 16 };

    fn seen(stacks: &mut Stacks, now: Place) -> Option<Place> {
        let stack = Stack { frames: vec![Frame::new(0x1010, now)], end: StackEnd::Complete };
        let stack = stacks.get_or(KEY, || Some(stack))?;
        stack.frames.first().map(|frame| frame.place)
    }

    #[test]
    fn a_library_that_came_during_a_snapshot_is_known_in_the_next_one() {
        let mut stacks = Stacks::default();
        stacks.begin_snapshot();
        assert_eq!(seen(&mut stacks, Place::Unmapped), Some(Place::Unmapped));
        // Two call sites may share a stack.
        assert_eq!(seen(&mut stacks, LIBRARY), Some(Place::Unmapped));
        stacks.begin_snapshot();
        assert_eq!(seen(&mut stacks, LIBRARY), Some(LIBRARY));
        stacks.begin_snapshot();
        assert_eq!(seen(&mut stacks, OTHER), Some(LIBRARY));
    }

    #[test]
    fn a_library_that_came_later_is_not_taken_for_the_one_before() {
        let mut stacks = Stacks::default();
        for _ in 0..2 {
            stacks.begin_snapshot();
            assert_eq!(seen(&mut stacks, Place::Unmapped), Some(Place::Unmapped));
        }
        stacks.begin_snapshot();
        assert_eq!(seen(&mut stacks, OTHER), Some(Place::Unmapped));
        assert_eq!(stacks.get_or(KEY, || None).map(|stack| stack.frames.len()), Some(1));
    }

    #[test]
    fn a_space_that_is_gone_takes_its_stacks_with_it() {
        let mut stacks = Stacks::default();
        seen(&mut stacks, Place::Unmapped);
        stacks.forget(&HashSet::from([KEY.0]));
        assert_eq!(stacks.get(KEY), None);
        assert_eq!(seen(&mut stacks, OTHER), Some(OTHER));
    }
}
