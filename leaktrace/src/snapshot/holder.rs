//! The processes that hold kernel memory.

use std::{cmp::Reverse, collections::HashMap};

use super::Amount;

/// Outstanding kernel memory by the process that was running when it was allocated. Ended processes
/// with the same command name are one holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process ID; 0 is the idle task (interrupts). For several ended processes, the highest.
    pub pid: u32,
    /// The command name, if known.
    pub comm: Option<String>,
    /// Whether the process has ended.
    pub exited: bool,
    /// The outstanding memory that the process allocated.
    pub outstanding: Amount,
    /// Age of the oldest block of that memory.
    pub oldest_ms: u64,
}

/// Two holders with equal identities are one.
#[derive(PartialEq, Eq, Hash)]
enum Identity {
    Ended(String),
    Process { pid: u32, exited: bool },
}

impl Holder {
    fn identity(&self) -> Identity {
        match &self.comm {
            Some(comm) if self.exited => Identity::Ended(comm.clone()),
            _ => Identity::Process { pid: self.pid, exited: self.exited },
        }
    }

    /// Merges equal holders; most bytes first.
    pub fn merged(holders: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut merged: Vec<Self> = Vec::new();
        let mut index: HashMap<Identity, usize> = HashMap::new();
        for holder in holders {
            let at = *index.entry(holder.identity()).or_insert(merged.len());
            match merged.get_mut(at) {
                Some(known) => {
                    known.pid = known.pid.max(holder.pid);
                    known.outstanding = known.outstanding.plus(holder.outstanding);
                    known.comm = known.comm.take().or(holder.comm);
                    known.oldest_ms = known.oldest_ms.max(holder.oldest_ms);
                }
                None => merged.push(holder),
            }
        }
        merged.sort_by_key(|holder| (Reverse(holder.outstanding.bytes), holder.pid));
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_have_ended_are_one_by_their_command() {
        let holder = |pid, comm: Option<&str>, exited, bytes| Holder {
            pid,
            comm: comm.map(str::to_owned),
            exited,
            outstanding: Amount { count: 1, bytes },
            oldest_ms: u64::from(pid),
        };
        let merged = Holder::merged([
            holder(5, Some("sh"), true, 10),
            holder(6, Some("sh"), true, 20),
            holder(7, Some("sh"), false, 15),
            // Whether these two are one is not known.
            holder(8, None, true, 1),
            holder(8, None, false, 2),
        ]);
        let got: Vec<_> = merged
            .iter()
            .map(|it| (it.pid, it.exited, it.outstanding.count, it.outstanding.bytes, it.oldest_ms))
            .collect();
        let expected =
            [(6, true, 2, 30, 6), (7, false, 1, 15, 7), (8, false, 1, 2, 8), (8, true, 1, 1, 8)];
        assert_eq!(got, expected);
    }
}
