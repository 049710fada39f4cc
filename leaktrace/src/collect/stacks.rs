//! The stacks of all sites, each normalized once and then remembered, as mappings come and go.
//!
//! Sites are read after the mappings, and a process may map a library in between. Then some frames
//! of a stack are in no known mapping. The next snapshot reads the mappings again and normalizes
//! the stack once more. Later snapshots do not: by then another library may lie there.

use std::collections::{BTreeMap, HashSet};

use crate::snapshot::{Place, Stack};

/// Space and stack ID: in another process the same addresses stand for other functions.
type Key = (u32, u64);

/// The stacks that were seen so far.
#[derive(Debug, Default)]
pub(super) struct Stacks {
    known: BTreeMap<Key, Stack>,
    /// The stacks that are new in this snapshot and have a frame in no known mapping.
    unsettled: HashSet<Key>,
    /// The unsettled stacks of the snapshot before, until they are asked for again.
    due: HashSet<Key>,
}

impl Stacks {
    /// Begins a snapshot; the caller has read the mappings.
    pub(super) fn begin_snapshot(&mut self) {
        self.due = std::mem::take(&mut self.unsettled);
    }

    /// A stack; where it is new or unsettled, `normalize` makes it. `None` if `normalize` cannot
    /// and the stack is not known.
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

    /// Forgets the stacks of these spaces.
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
