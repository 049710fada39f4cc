//! The compiler of unwind tables on sections that are hostile by size, too large for a corpus of
//! files.

use std::time::{Duration, Instant};

use leaktrace_common::{CfaRule, UnwindRow};

use super::eh_frame::{Sections, compile, compile_within};

const BASE: u64 = 0x1000;
/// Start address of the one function.
const START: u32 = 0x10000;

/// Pads an entry to a multiple of 8 bytes and puts its length in front.
fn entry(mut body: Vec<u8>) -> Vec<u8> {
    body.resize((body.len() + 4).next_multiple_of(8) - 4, 0);
    let mut entry = (body.len() as u32).to_le_bytes().to_vec();
    entry.append(&mut body);
    entry
}

/// Makes a CIE: CFA = rsp + 8, return address at CFA - 8, relative pointers of 4 bytes.
fn cie(augmentation: &[u8], instructions: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 0, 1];
    body.extend_from_slice(augmentation);
    body.extend_from_slice(&[0, 1, 0x78, 16, 1, 0x1b, 12, 7, 8, 0x90, 1]);
    body.extend_from_slice(instructions);
    entry(body)
}

/// Adds an FDE that belongs to the CIE at the section's start.
fn push_fde(section: &mut Vec<u8>, start: u32, size: u32, instructions: &[u8]) {
    let at = section.len() as u32;
    let mut body = (at + 4).to_le_bytes().to_vec();
    body.extend_from_slice(&start.wrapping_sub(BASE as u32 + at + 8).to_le_bytes());
    body.extend_from_slice(&size.to_le_bytes());
    body.push(0);
    body.extend_from_slice(instructions);
    section.extend_from_slice(&entry(body));
}

/// Compiles a section within a deadline that holds for a debug build on a slow machine.
fn compiled(section: &[u8]) -> Vec<UnwindRow> {
    let start = Instant::now();
    let rows = compile(&Sections { eh_frame: Some((BASE, section)), ..Sections::default() });
    let taken = start.elapsed();
    assert!(taken < Duration::from_secs(20), "{taken:?} for {} bytes", section.len());
    rows
}

/// A naive reader would search the string for its end once for each FDE.
#[test]
fn a_long_augmentation_string_is_not_read_over_and_over() {
    let mut augmentation = b"zR".to_vec();
    augmentation.resize(1 << 20, b'S');
    let mut section = cie(&augmentation, &[]);
    for index in 0..20_000 {
        push_fde(&mut section, START + 16 * index, 16, &[]);
    }
    assert_eq!(compiled(&section), []);
}

/// One function has more rows than an object may have; the code that is left out has no rule.
#[test]
fn an_endless_function_is_cut_and_says_so() {
    const MAX_ROWS: usize = 1000;
    let mut section = cie(b"zR", &[]);
    // Moves on by a byte; the offset alternates, so that no two rows are the same.
    push_fde(&mut section, START, 1 << 20, &[0x41, 14, 16, 0x41, 14, 24].repeat(MAX_ROWS));
    let sections = Sections { eh_frame: Some((BASE, &section)), ..Sections::default() };
    let rows = compile_within(&sections, MAX_ROWS);
    assert_eq!(rows.len(), MAX_ROWS + 2);
    let [.., before, last, end] = &rows[..] else { panic!("{} rows", rows.len()) };
    assert_eq!((before.rule, last.rule), (CfaRule::Rsp, CfaRule::Unsupported));
    assert_eq!((last.pc, end.rule), (before.pc + 1, CfaRule::Gap));
}

/// Functions that the cap leaves out take no rule from the function before them, not even where
/// they are as short as padding.
#[test]
fn functions_that_are_left_out_have_no_rule() {
    let mut section = cie(b"zR", &[]);
    for start in [START + 0x48, START, START + 0x40] {
        push_fde(&mut section, start, 8, &[]);
    }
    let sections = Sections { eh_frame: Some((BASE, &section)), ..Sections::default() };
    let starts = |max_rows: usize| -> Vec<(u32, CfaRule)> {
        let rows = compile_within(&sections, max_rows);
        rows.iter().map(|row| (row.pc - START, row.rule)).collect()
    };
    let (gap, rsp) = (CfaRule::Gap, CfaRule::Rsp);
    assert_eq!(starts(9), [(0, rsp), (8, gap), (0x40, rsp), (0x50, gap)]);
    assert_eq!(starts(2), [(0, rsp), (8, gap), (0x48, rsp), (0x50, gap)]);
}

/// Each byte saves a state with the most registers that there may be, in a CIE that is run for each
/// of its functions.
#[test]
fn states_that_are_kept_over_and_over_take_bounded_time() {
    let mut program: Vec<u8> = (17..46).flat_map(|register| [0x80 | register, 2]).collect();
    program.extend([0x0a, 0x0b].repeat(1900));
    let mut section = cie(b"zR", &program);
    for index in 0..20_000 {
        push_fde(&mut section, START + 16 * index, 16, &[]);
    }
    push_fde(&mut section, 0x100_0000, 0x1000, &program.repeat(50));
    assert!(!compiled(&section).is_empty());
}
