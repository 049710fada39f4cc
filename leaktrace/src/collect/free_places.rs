//! Where the blocks of each call site are freed.

use std::{cmp::Reverse, collections::HashMap};

use leaktrace_common::{FreePlace, KERNEL_SPACE, SiteKey};

use super::Collector;
use crate::{
    error::Error,
    snapshot::{FreedAt, Place},
};

/// Most places that are kept of one call site.
const MOST: usize = 8;

/// The places that free blocks, by the index of the call site's record.
pub(super) type FreePlaces = HashMap<u32, Vec<(FreePlace, u64)>>;

impl Collector {
    /// Reads where blocks were freed up to now.
    pub(super) fn free_places(&self) -> Result<FreePlaces, Error> {
        let mut all = FreePlaces::new();
        self.maps.read_free_places(|place, count| {
            all.entry(place.site).or_default().push((*place, *count));
        })?;
        for places in all.values_mut() {
            places.sort_unstable_by_key(|(place, count)| (Reverse(*count), place.address));
        }
        Ok(all)
    }

    /// The places of one call site, in its own terms.
    pub(super) fn freed_at(&mut self, key: &SiteKey, places: &[(FreePlace, u64)]) -> Vec<FreedAt> {
        let mut freed_at = Vec::new();
        for (place, count) in places.iter().take(MOST) {
            let frame = match key.space {
                KERNEL_SPACE => self.modules.frame(place.address, u64::from(place.generation)),
                space => self.call_site(space, place.address),
            };
            // What lay there may be gone, or another's by now.
            if frame.place != Place::Unmapped {
                freed_at.push(FreedAt { frame, count: *count });
            }
        }
        freed_at
    }
}
