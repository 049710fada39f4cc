//! Command names of the processes that hold kernel memory, ended ones included. The kernel may give
//! a process ID to another process: a name is shown only where the process had the ID at the time.

use std::{
    collections::{HashMap, HashSet},
    fs,
};

use leaktrace_common::EndedProcess;

use crate::bpf::Maps;

/// Most ended processes that are remembered: 16 MiB.
const REMEMBERED: usize = 256 * 1024;
/// A process still allocates while it ends, after the tracepoint of its end (do_exit,
/// kernel/exit.c, 6.1 and 6.18). The kernel gives a process ID out again only after all others
/// (alloc_pid, kernel/pid.c), which is later than this.
const ENDING_NS: u64 = 1_000_000_000;
/// Ticks in a second, the unit of /proc/PID/stat (USER_HZ, x86_64).
const TICKS: u64 = 100;

/// Which of the processes that have had a process ID owns a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Who {
    /// The process that has the ID now.
    Living,
    /// A process that has ended, by its start.
    Ended(u64),
    /// A process of which nothing is known but that it has ended.
    Unknown,
}

/// A running process.
#[derive(Clone, Debug)]
struct Living {
    start_ns: u64,
    comm: String,
}

/// What is known of the processes of one session.
#[derive(Default)]
pub(super) struct ProcessNames {
    /// The processes that have ended, by process ID.
    ended: HashMap<u32, Vec<EndedProcess>>,
    ended_count: usize,
    /// The number of the next end to read.
    next: u64,
    /// The processes that run; each is looked up once while blocks are read.
    living: HashMap<u32, Option<Living>>,
    /// By how much `CLOCK_BOOTTIME`, which process starts are in, is ahead of `CLOCK_MONOTONIC`,
    /// which block times are in; in nanoseconds.
    suspended_ns: u64,
}

impl ProcessNames {
    /// Reads the ends of processes that the programs have recorded.
    pub(super) fn read(&mut self, maps: &Maps) {
        let (ended, count) = (&mut self.ended, &mut self.ended_count);
        self.next = maps.read_ended(self.next, |process| {
            ended.entry(process.tgid).or_default().push(*process);
            *count += 1;
        });
        if self.ended_count > REMEMBERED {
            self.forget();
        }
    }

    /// Forgets the older half of the ended processes, except those that held memory when blocks
    /// were read last.
    fn forget(&mut self) {
        let held: HashSet<u32> = self.living.keys().copied().collect();
        let mut ends: Vec<u64> = self.ended.values().flatten().map(|it| it.end_ns).collect();
        let middle = ends.len() / 2;
        let (_, middle, _) = ends.select_nth_unstable(middle);
        let middle = *middle;
        self.ended.retain(|tgid, processes| {
            processes.retain(|process| process.end_ns >= middle || held.contains(tgid));
            !processes.is_empty()
        });
        self.ended_count = self.ended.values().map(Vec::len).sum();
    }

    /// Begins to read blocks: the running processes will be looked up anew.
    pub(super) fn begin(&mut self, maps: &Maps) {
        self.living.clear();
        let clock = |id| {
            let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: writes one timespec; both clocks always exist.
            unsafe { libc::clock_gettime(id, &raw mut now) };
            now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
        };
        let monotonic = clock(libc::CLOCK_MONOTONIC);
        self.suspended_ns = clock(libc::CLOCK_BOOTTIME).saturating_sub(monotonic);
        self.read(maps);
    }

    /// Whose a block is that was allocated at `at_ns` while a process with this ID ran.
    pub(super) fn who(&mut self, tgid: u32, at_ns: u64) -> Who {
        let suspended_ns = self.suspended_ns;
        let living = self.living.entry(tgid).or_insert_with(|| living(tgid, suspended_ns));
        let ended = self.ended.get(&tgid).and_then(|all| latest(all, at_ns));
        match (ended, living) {
            (Some(process), _) if at_ns <= process.end_ns => Who::Ended(process.start_ns),
            (_, Some(living)) if living.start_ns <= at_ns => Who::Living,
            (Some(process), _) if at_ns <= process.end_ns + ENDING_NS => {
                Who::Ended(process.start_ns)
            }
            _ => Who::Unknown,
        }
    }

    /// The name of the process that [`ProcessNames::who`] has found, and whether it has ended. For
    /// [`Who::Unknown`], the times of its blocks show whether it is a process that has ended
    /// meanwhile.
    pub(super) fn name(
        &self,
        tgid: u32,
        who: Who,
        blocks_ns: (u64, u64),
    ) -> (Option<String>, bool) {
        let ended = self.ended.get(&tgid).map(Vec::as_slice).unwrap_or_default();
        let (oldest_ns, newest_ns) = blocks_ns;
        let found = match who {
            // The idle tasks have no folder in /proc, and no end.
            _ if tgid == 0 => return (None, false),
            Who::Living => {
                let living = self.living.get(&tgid).and_then(Option::as_ref);
                return (living.map(|living| living.comm.clone()), false);
            }
            Who::Ended(start_ns) => ended.iter().find(|process| process.start_ns == start_ns),
            Who::Unknown => latest(ended, oldest_ns)
                .filter(|process| newest_ns <= process.end_ns + ENDING_NS)
                .filter(|process| latest(ended, newest_ns) == Some(process)),
        };
        (found.map(|process| text(&process.comm)), true)
    }
}

/// The last process that had begun by `at_ns`.
fn latest(all: &[EndedProcess], at_ns: u64) -> Option<&EndedProcess> {
    all.iter().filter(|process| process.start_ns <= at_ns).max_by_key(|process| process.start_ns)
}

fn text(comm: &[u8; 16]) -> String {
    let name = comm.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// The process that has this ID now, if there is one.
fn living(tgid: u32, suspended_ns: u64) -> Option<Living> {
    let stat = fs::read(format!("/proc/{tgid}/stat")).ok()?;
    let (comm, ticks) = parse(&String::from_utf8_lossy(&stat))?;
    let start_ns = (ticks * (1_000_000_000 / TICKS)).saturating_sub(suspended_ns);
    Some(Living { start_ns, comm })
}

/// Command name, and start in ticks since the boot: the second and the 22nd field; the name stands in
/// parentheses and may hold anything (man 5 proc_pid_stat).
fn parse(stat: &str) -> Option<(String, u64)> {
    let (before, rest) = stat.rsplit_once(')')?;
    let (_, comm) = before.split_once('(')?;
    Some((comm.to_owned(), rest.split_whitespace().nth(19)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(tgid: u32, start_ns: u64, end_ns: u64, name: &str) -> EndedProcess {
        let mut comm = [0; 16];
        for (to, from) in comm.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        EndedProcess { sequence: 1, start_ns, end_ns, comm, tgid, zero: 0 }
    }

    fn names(all: &[EndedProcess], living: Option<(u64, &str)>) -> ProcessNames {
        let mut names = ProcessNames::default();
        names.ended.insert(7, all.to_vec());
        let living = living.map(|(start_ns, comm)| Living { start_ns, comm: comm.into() });
        names.living.insert(7, living);
        names
    }

    /// Checks which process a block of that time is said to belong to.
    fn check(names: &mut ProcessNames, at_ns: u64, expected: (Option<&str>, bool)) {
        let who = names.who(7, at_ns);
        let (name, has_ended) = names.name(7, who, (at_ns, at_ns));
        assert_eq!((name.as_deref(), has_ended), expected, "at {at_ns}: {who:?}");
    }

    #[test]
    fn a_number_that_is_given_again_does_not_give_its_name() {
        const S: u64 = 1_000_000_000;
        let all = [ended(7, 10 * S, 20 * S, "first"), ended(7, 30 * S, 40 * S, "second")];
        let mut names = names(&all, Some((50 * S, "third")));
        check(&mut names, 5 * S, (None, true));
        check(&mut names, 15 * S, (Some("first"), true));
        check(&mut names, 20 * S + 1, (Some("first"), true));
        // Whoever had it then, its end was not seen.
        check(&mut names, 25 * S, (None, true));
        check(&mut names, 35 * S, (Some("second"), true));
        check(&mut names, 45 * S, (None, true));
        check(&mut names, 50 * S, (Some("third"), false));
    }

    /// The process had ended before it was looked up, and its end is read after that.
    #[test]
    fn an_end_that_is_read_late_names_the_blocks() {
        let mut names = names(&[], None);
        assert_eq!(names.who(7, 15), Who::Unknown);
        names.ended.insert(7, vec![ended(7, 10, 20, "short")]);
        let name = |from, to| names.name(7, Who::Unknown, (from, to)).0;
        assert_eq!(name(12, 18).as_deref(), Some("short"));
        assert_eq!(name(5, 18), None);
        assert_eq!(name(12, 20 + ENDING_NS + 1), None);
    }

    #[test]
    fn the_name_of_a_process_may_hold_anything() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 2 3";
        assert_eq!(parse(stat), Some(("a) b (c".to_owned(), 98_765)));
        let own = living(std::process::id(), 0).unwrap();
        assert!(own.start_ns > 0 && !own.comm.is_empty());
    }
}
