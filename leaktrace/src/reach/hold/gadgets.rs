//! Instructions in the code of a process that leaktrace can use; it writes none itself.

use std::{fs::File, os::unix::fs::FileExt as _};

use super::ptrace::Tid;
use crate::host::proc::{self, Mapping};

/// `syscall; ret`
const SYSCALL: [u8; 3] = [0x0f, 0x05, 0xc3];
/// `mov $15, %rax; syscall`: how glibc, musl and others end a signal handler.
const SIGRETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
/// Bytes of code read at once.
const PIECE: usize = 1 << 18;

/// Addresses of such instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gadgets {
    /// A system call that returns to its caller.
    pub(super) syscall: u64,
    /// The call of rt_sigreturn(2).
    pub(super) sigreturn: u64,
}

impl Gadgets {
    /// Finds them in the code that a process has mapped: first in its C library, where they are.
    pub(super) fn find(tid: Tid, mappings: &[Mapping]) -> Option<Self> {
        let memory = File::open(format!("/proc/{tid}/mem")).ok()?;
        let mut code: Vec<&Mapping> =
            mappings.iter().filter(|mapping| mapping.executable && mapping.inode != 0).collect();
        code.sort_by_key(|mapping| !is_c_library(mapping));
        let (mut syscall, mut sigreturn) = (None, None);
        for mapping in code {
            syscall = syscall.or_else(|| search(&memory, mapping, &SYSCALL));
            sigreturn = sigreturn.or_else(|| search(&memory, mapping, &SIGRETURN));
            if let (Some(syscall), Some(sigreturn)) = (syscall, sigreturn) {
                return Some(Self { syscall, sigreturn });
            }
        }
        None
    }

    /// Whether they are there in the memory of a process.
    pub(super) fn are_in(self, memory: &File) -> bool {
        let has = |address, pattern: &[u8]| {
            let mut bytes = vec![0; pattern.len()];
            memory.read_exact_at(&mut bytes, address).is_ok() && bytes == pattern
        };
        has(self.syscall, &SYSCALL) && has(self.sigreturn, &SIGRETURN)
    }
}

fn is_c_library(mapping: &Mapping) -> bool {
    let name = mapping.path.as_deref().and_then(|path| path.rsplit('/').next());
    name.is_some_and(|name| name.starts_with("libc.") || name.contains("musl"))
}

/// The address of the first such bytes in a mapping.
fn search(memory: &File, mapping: &Mapping, pattern: &[u8]) -> Option<u64> {
    let mut piece = vec![0; PIECE + pattern.len() - 1];
    let mut start = mapping.start;
    while start < mapping.end {
        let length = piece.len().min((mapping.end - start) as usize);
        let read = memory.read_at(piece.get_mut(..length)?, start).ok()?;
        let found = piece[..read].windows(pattern.len()).position(|bytes| bytes == pattern);
        if let Some(offset) = found {
            return Some(start + offset as u64);
        }
        start += PIECE as u64;
    }
    None
}

/// The mappings of a process, by a living thread of it.
pub(super) fn mappings(tid: Tid) -> Option<Vec<Mapping>> {
    proc::mappings(tid as u32).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_them_in_its_c_library() {
        let tid = std::process::id() as Tid;
        let mappings = mappings(tid).unwrap();
        let gadgets = Gadgets::find(tid, &mappings).unwrap();
        for address in [gadgets.syscall, gadgets.sigreturn] {
            let mapping = mappings
                .iter()
                .find(|mapping| (mapping.start..mapping.end).contains(&address))
                .unwrap();
            assert!(is_c_library(mapping), "{mapping:?}");
        }
    }
}
