//! Finds the return instructions of functions on whose returns the kernel must put no return probe.
//!
//! A return probe replaces the return address. An exception that is thrown through such a call
//! finds no way past the probe, and the C++ runtime ends the process. So leaktrace probes the
//! return instructions of `operator new` instead, and finds them by following its code.

use std::collections::{BTreeSet, HashSet};

use iced_x86::{Decoder, DecoderOptions, FlowControl};

use super::placement::{self, Forward};

/// Most instructions that the search follows.
const MOST_INSTRUCTIONS: usize = 20_000;
/// Most return instructions of a function.
const MOST_EXITS: usize = 64;
/// Bytes that the search decodes at once.
pub const CHUNK_BYTES: u64 = 256;

/// Access to an object's code.
pub trait Code {
    /// The bytes from an address on, at most [`CHUNK_BYTES`]; `None` where there is no code.
    fn bytes(&self, address: u64) -> Option<&[u8]>;
    /// The object's function whose address this word holds; a jump goes through the word.
    fn jumped_through(&self, word: u64) -> Option<u64>;
    /// Whether a function, or a separate part of one, begins at this address.
    fn is_start(&self, address: u64) -> bool;
}

/// The addresses of the return instructions by which a call of the function can end, those of its
/// tail calls included; `None` if they cannot all be known.
pub fn exits(code: &impl Code, function: u64) -> Option<BTreeSet<u64>> {
    let mut exits = BTreeSet::new();
    let mut visited: HashSet<u64> = HashSet::new();
    let mut waiting = vec![function];
    while let Some(start) = waiting.pop() {
        let bytes = code.bytes(start)?;
        for instruction in &mut Decoder::with_ip(64, bytes, start, DecoderOptions::NONE) {
            let address = instruction.ip();
            // Cut at the end of the chunk: from there on anew.
            if instruction.is_invalid() && address > start {
                waiting.push(address);
                break;
            }
            // What runs into a function's start has called one that does not return.
            if !visited.insert(address) || (address != start && code.is_start(address)) {
                break;
            }
            if visited.len() > MOST_INSTRUCTIONS || exits.len() > MOST_EXITS {
                return None;
            }
            match instruction.flow_control() {
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {}
                FlowControl::ConditionalBranch => waiting.push(instruction.near_branch_target()),
                FlowControl::UnconditionalBranch => {
                    waiting.push(target(code, instruction.near_branch_target())?);
                    break;
                }
                FlowControl::IndirectBranch if instruction.is_ip_rel_memory_operand() => {
                    waiting.push(code.jumped_through(instruction.ip_rel_memory_address())?);
                    break;
                }
                FlowControl::Return => {
                    exits.insert(address);
                    break;
                }
                FlowControl::Exception => break,
                _ => return None,
            }
            if instruction.next_ip() == start.saturating_add(bytes.len() as u64) {
                waiting.push(instruction.next_ip());
            }
        }
    }
    (!exits.is_empty()).then_some(exits)
}

/// The address that a jump leads to, through a stub of the procedure linkage table if there is one.
pub fn target(code: &impl Code, address: u64) -> Option<u64> {
    let bytes = code.bytes(address)?;
    match placement::forward(bytes.get(..16).unwrap_or(bytes), address) {
        Some(Forward::Through(word)) => code.jumped_through(word),
        _ => Some(address),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Code that lies at address 0, with a function that begins at the given address.
    struct Bytes<'code>(&'code [u8], u64);

    impl Code for Bytes<'_> {
        fn bytes(&self, address: u64) -> Option<&[u8]> {
            self.0.get(address as usize..)
        }
        fn jumped_through(&self, word: u64) -> Option<u64> {
            (word == 0x100).then_some(0)
        }
        fn is_start(&self, address: u64) -> bool {
            address == self.1
        }
    }

    fn check(code: &'static [u8], start: u64, expected: Option<&[u64]>) {
        let found = exits(&Bytes(code, start), 0);
        assert_eq!(found, expected.map(|all| all.iter().copied().collect()), "{code:02x?}");
    }

    #[test]
    fn branches_and_jumps_are_followed() {
        // test %rdi,%rdi; je 6; ret; (6:) jmp 9; int3; (9:) ret
        let code = &[0x48, 0x85, 0xff, 0x74, 1, 0xc3, 0xeb, 1, 0xcc, 0xc3];
        check(code, 99, Some(&[5, 9]));
        // (0:) jmp 0: no return at all
        check(&[0xeb, 0xfe], 99, None);
    }

    #[test]
    fn code_behind_a_call_that_does_not_return_is_another_functions() {
        // je 3; ret; (3:) call; (8:) ret, which is the next function's
        let code = &[0x74, 1, 0xc3, 0xe8, 0, 0, 0, 0, 0xc3];
        check(code, 8, Some(&[2]));
        check(code, 99, Some(&[2, 8]));
    }

    #[test]
    fn a_jump_that_leads_nobody_knows_where_gives_nothing() {
        // jmp *%rax
        check(&[0xff, 0xe0, 0xc3], 99, None);
        // jmp *(%rip) through a word of another object
        check(&[0xff, 0x25, 0, 0, 0, 0, 0xc3], 99, None);
        // Code that ends.
        check(&[0x48, 0x85, 0xff], 99, None);
    }

    proptest! {
        /// Whatever bytes a file has as code, the search gives up or reads them to their end.
        #[test]
        fn any_bytes_come_to_an_end(code in prop::collection::vec(any::<u8>(), 0..600)) {
            let length = code.len() as u64;
            let found = exits(&Bytes(&code, 99), 0).unwrap_or_default();
            assert!(found.iter().all(|exit| *exit < length), "{found:?}");
            for shape in leaktrace_common::AllocFunction::all().map(|known| known.shape()) {
                let place = placement::cheapest(&code, shape);
                assert!(place.offset == 0 || place.offset < length, "{place:?}");
            }
        }
    }
}
