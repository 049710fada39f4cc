//! What the outstanding blocks of one site add up to: their sum, the oldest block, and their
//! holders.

use std::collections::HashMap;

use leaktrace_common::{AllocKey, Outstanding};

use super::{
    estimates::BlockSum,
    names::{ProcessNames, Who},
};
use crate::snapshot::{Amount, Block, GENERATIONS, Holder};

/// Most blocks listed for a site with `--show-allocs`.
pub(super) const BLOCKS_SHOWN: usize = 10_000;
/// Most processes that are named as holders of one site.
const HOLDERS_SHOWN: usize = 32;

/// What one process holds of a site.
#[derive(Clone, Copy)]
struct Held {
    outstanding: Amount,
    oldest_ns: u64,
    newest_ns: u64,
}

/// What the outstanding blocks of one site add up to.
#[derive(Default)]
pub(super) struct SiteDetails {
    pub(super) outstanding: Amount,
    /// The sum of the blocks of a process.
    pub(super) sum: BlockSum,
    pub(super) oldest_ns: u64,
    /// All outstanding blocks, young ones as well, see [`crate::snapshot::Site::born`].
    pub(super) born: [u64; GENERATIONS],
    /// What each process holds.
    by_process: HashMap<(u32, Who), Held>,
    pub(super) blocks: Vec<Block>,
}

impl SiteDetails {
    /// Adds a block; for kernel memory, `who` is the process that allocated it.
    pub(super) fn add(
        &mut self,
        key: &AllocKey,
        block: &Outstanding,
        who: Option<Who>,
        now_ns: u64,
        list: bool,
    ) {
        let one = Amount { count: 1, bytes: block.size_bytes };
        if self.outstanding.count == 0 || block.timestamp_ns < self.oldest_ns {
            self.oldest_ns = block.timestamp_ns;
        }
        self.outstanding = self.outstanding.plus(one);
        match who {
            Some(who) => {
                let at_ns = block.timestamp_ns;
                let none =
                    Held { outstanding: Amount::default(), oldest_ns: at_ns, newest_ns: at_ns };
                let held = self.by_process.entry((block.detail, who)).or_insert(none);
                held.outstanding = held.outstanding.plus(one);
                held.oldest_ns = held.oldest_ns.min(at_ns);
                held.newest_ns = held.newest_ns.max(at_ns);
            }
            None => self.sum.add(block),
        }
        if list && self.blocks.len() < BLOCKS_SHOWN {
            self.blocks.push(Block {
                address: key.address,
                size_bytes: block.size_bytes,
                age_ms: now_ns.saturating_sub(block.timestamp_ns) / 1_000_000,
            });
        }
    }

    /// The largest holders, by bytes, or all of them.
    pub(super) fn holders(&self, now_ns: u64, all: bool, names: &ProcessNames) -> Vec<Holder> {
        let each = self.by_process.iter().map(|((pid, who), held)| {
            let (comm, exited) = names.name(*pid, *who, (held.oldest_ns, held.newest_ns));
            let oldest_ms = now_ns.saturating_sub(held.oldest_ns) / 1_000_000;
            Holder { pid: *pid, comm, exited, outstanding: held.outstanding, oldest_ms }
        });
        let mut holders = Holder::merged(each);
        if !all {
            holders.truncate(HOLDERS_SHOWN);
        }
        holders
    }
}
