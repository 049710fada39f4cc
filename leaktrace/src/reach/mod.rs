//! Which outstanding blocks of a process an address in its memory still leads to, and who holds
//! them.
//!
//! Every word of the memory that may hold addresses is looked at. Words in tracked blocks lead from
//! block to block; all other words are roots. docs/reachability.md says what that means.

pub mod blocks;
pub mod graph;
pub mod held;
pub mod hold;
pub mod index;
pub mod kernel;
pub mod live;
pub mod look;
pub mod lost;
pub mod mappings;
pub mod memory;
pub mod objects;
pub mod other_threads;
pub mod places;
pub mod stacks;
pub mod still;
pub mod sweep;
pub mod view;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::sync::oneshot;

use self::{look::Target, view::ThreadState};
use crate::{
    bpf::blocks::BlockReader,
    collect::site_id,
    session::spec::Reachability,
    snapshot::{
        Snapshot,
        reach::{Reached, Scan, Way},
    },
};

/// What is known of all processes.
#[derive(Debug, Default)]
pub struct Reach {
    /// How each process was looked at.
    pub scans: Vec<Scan>,
    /// What is to be said of each call site, by [`crate::snapshot::Site::id`].
    pub sites: HashMap<u64, Reached>,
}

/// Scans that are under way in a thread of their own.
pub struct Running {
    result: oneshot::Receiver<Reach>,
    cancel: Arc<AtomicBool>,
    /// The processes that are looked at, each with its space.
    of: Vec<(u32, u32)>,
    way: Way,
}

impl Running {
    /// Begins. No further scan begins after `until` if there were enough.
    pub fn start(
        way: Reachability,
        targets: Vec<Target>,
        reader: BlockReader,
        until: Option<Instant>,
    ) -> Self {
        let of = targets.iter().map(|target| (target.pid, target.space)).collect();
        Self::spawn(of, Way::Live { scans: 0, time_ms: 0 }, move |cancel| {
            let found = match way {
                Reachability::Off => Vec::new(),
                Reachability::Live => live::run(&targets, &reader, until, cancel),
                Reachability::Snapshot | Reachability::Stop => {
                    still::run(way, &targets, &reader, until, cancel)
                }
            };
            Reach::of(found, &reader)
        })
    }

    /// Begins with a command that waits at its exit; see [`still::at_exit`].
    pub fn at_exit(
        target: Target,
        reader: BlockReader,
        thread: ThreadState,
        is_whole: bool,
    ) -> Self {
        Self::spawn(vec![(target.pid, target.space)], Way::AtExit, move |cancel| {
            let found = still::at_exit(&target, &reader, thread, is_whole, cancel);
            Reach::of(vec![found], &reader)
        })
    }

    /// Runs `look` in a thread of its own, with whose end the kernel lets go of what is still held.
    fn spawn(
        of: Vec<(u32, u32)>,
        way: Way,
        look: impl FnOnce(&AtomicBool) -> Reach + Send + 'static,
    ) -> Self {
        let (sender, result) = oneshot::channel();
        let cancel = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&cancel);
        // Where there is no thread for it, the sender is gone, and `done` says that it has failed.
        let _ = std::thread::Builder::new().spawn(move || {
            // Nobody is there to hear it if the session has ended.
            let _ = sender.send(look(&asked));
        });
        Self { result, cancel, of, way }
    }

    /// Ends soon, without verdicts.
    pub fn skip(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// Waits for the end. The caller may drop the future, and call again.
    pub async fn done(&mut self) -> Reach {
        match (&mut self.result).await {
            Ok(found) => found,
            Err(_) => self.without_answer("the look through its memory failed"),
        }
    }

    /// What is told of the processes if nobody waits for the end.
    pub fn without_answer(&self, why: &str) -> Reach {
        let scan = |(pid, space): &(u32, u32)| Scan {
            pid: *pid,
            space: *space,
            way: self.way,
            bytes: 0,
            threads: 0,
            refused: Some(why.to_owned()),
            limits: Vec::new(),
        };
        Reach { scans: self.of.iter().map(scan).collect(), sites: HashMap::new() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.skip();
    }
}

impl Reach {
    fn of(found: Vec<live::Found>, reader: &BlockReader) -> Self {
        let mut reach = Self::default();
        for (scan, sites) in found {
            reach.scans.push(scan);
            let sites = sites
                .into_iter()
                .filter_map(|(index, reached)| Some((site_id(&reader.site(index)?), reached)));
            reach.sites.extend(sites);
        }
        reach
    }

    /// Adds what is known to a snapshot, if that is sure of every free: a block whose free was missed
    /// looks lost.
    pub fn add_to(mut self, snapshot: &mut Snapshot) {
        if !snapshot.loss.sees_all_frees() {
            self.sites.clear();
            for scan in self.scans.iter_mut().filter(|scan| scan.refused.is_none()) {
                scan.refused =
                    Some("frees may have been missed, and blocks that were freed look lost".into());
            }
        }
        if snapshot.sites.iter().any(|site| site.sampled.is_some()) {
            for scan in &mut self.scans {
                scan.limits.push(
                    "only sampled blocks are judged, and their figures are no estimates".into(),
                );
            }
        }
        for site in &mut snapshot.sites {
            site.reached = self.sites.remove(&site.id);
        }
        snapshot.scans = self.scans;
    }
}
