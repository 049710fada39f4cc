//! Runs of kprobes' programs that the kernel has left out.
//!
//! A kprobe that is hit while another runs on that CPU (in an interrupt) runs no program, and so
//! does one whose return the kernel has no room to watch. Neither is in a program's
//! `recursion_misses`.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{BorrowedFd, RawFd},
};

use aya::programs::{Program, ProgramInfo};

use super::{Loaded, sys};

/// What is known of runs that were left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KprobeMisses {
    /// Runs by program; those with none are left out.
    pub counts: BTreeMap<String, u64>,
    /// Programs of which the kernel does not tell (before 6.7).
    pub untold: Vec<String>,
}

impl KprobeMisses {
    /// Whether each call that has been entered is known to be watched to its return.
    pub fn watches_returns(&self) -> bool {
        let is_return = |name: &String| RETURNS.contains(&name.as_str());
        !self.counts.keys().chain(&self.untold).any(is_return)
    }

    /// Functions of which calls in interrupts may be in no figure, in one line; nothing where the
    /// kernel tells, or none is called there.
    pub fn unseen(&self) -> Option<String> {
        let of = |program: &String| match program.as_str() {
            "lt_pair_get" | "lt_pair_got" | "lt_pair_put" => Some("functions of --pair"),
            "lt_rcu_call_k" => Some("kvfree_call_rcu"),
            "lt_free_bulk_k" => Some("kmem_cache_free_bulk"),
            "lt_vfree_k" => Some("vfree"),
            "lt_vfree_atomic_k" => Some("vfree_atomic"),
            // Of vmalloc, which may sleep.
            _ => None,
        };
        let mut functions: Vec<&str> = self.untold.iter().filter_map(of).collect();
        functions.sort_unstable();
        functions.dedup();
        (!functions.is_empty()).then(|| {
            format!(
                "calls in an interrupt that comes while a kprobe runs: this kernel does not count \
                 them (it is before 6.7): {}",
                functions.join(", ")
            )
        })
    }
}

/// Programs at the returns of functions.
const RETURNS: [&str; 2] = ["lt_vmalloc_return", "lt_pair_got"];

impl Loaded {
    /// What the kernel tells of each kprobe, by its links, which are among this process's
    /// descriptors (aya 0.14 has no way to them).
    pub fn kprobe_misses(&self) -> KprobeMisses {
        let mut counts: BTreeMap<u32, Option<u64>> = BTreeMap::new();
        for descriptor in fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
            let is_link = fs::read_link(descriptor.path())
                .is_ok_and(|what| what.as_os_str() == "anon_inode:bpf_link");
            let number =
                descriptor.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
            if let Some(number) = number.filter(|_| is_link) {
                // SAFETY: it was open a moment ago; should another thread have closed it, the kernel
                // says that it is none, or no link.
                let link = unsafe { BorrowedFd::borrow_raw(number) };
                if let Ok(Some((program, missed))) = sys::kprobe_link(link) {
                    let count = counts.entry(program).or_insert(Some(0));
                    *count = count.zip(missed).map(|(count, missed)| count + missed);
                }
            }
        }
        let mut misses = KprobeMisses::default();
        for (name, program) in self.ebpf.programs() {
            let Program::KProbe(program) = program else { continue };
            let Ok(id) = program.info().as_ref().map(ProgramInfo::id) else { continue };
            match counts.get(&id).copied().flatten() {
                Some(0) => {}
                Some(count) => drop(misses.counts.insert(name.to_owned(), count)),
                None => misses.untold.push(name.to_owned()),
            }
        }
        misses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_does_not_count_is_told_where_interrupts_can_call_it() {
        let untold = |names: &[&str]| KprobeMisses {
            untold: names.iter().map(|name| (*name).to_owned()).collect(),
            ..KprobeMisses::default()
        };
        let of_pairs = untold(&["lt_pair_put", "lt_pair_get", "lt_vfree_k"]).unseen();
        assert!(of_pairs.is_some_and(|line| line.ends_with(": functions of --pair, vfree")));
        let of_vmalloc = untold(&["lt_vmalloc", "lt_vmalloc_return"]);
        assert_eq!((of_vmalloc.unseen(), of_vmalloc.watches_returns()), (None, false));
        let none = KprobeMisses::default();
        assert_eq!((none.unseen(), none.watches_returns()), (None, true));
        let counts = [("lt_pair_got".to_owned(), 1)].into();
        assert!(!KprobeMisses { counts, untold: Vec::new() }.watches_returns());
    }
}
