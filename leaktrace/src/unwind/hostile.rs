//! The compiler of unwind tables on hostile input: a corpus, and mutations of it.
//!
//! For more cases: `PROPTEST_CASES=200000 cargo test --release -p leaktrace --lib hostile`. Input
//! that fails goes into the corpus (`corpus/make.py`); input that is hostile by its size is in
//! `large`.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::{Duration, Instant},
};

use leaktrace_common::{CfaRule, UnwindRow};
use object::{Object as _, ObjectSection as _};
use proptest::{prelude::*, sample::Index};

use super::{
    eh_frame::{Sections, compile},
    object::{compile_bytes, compile_file},
};

/// The address at which the corpus' sections are loaded.
const BASE: u64 = 0x1000;
/// Longest time for any input of this size, on a slow machine.
const DEADLINE: Duration = Duration::from_secs(5);

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/unwind/corpus")
}

/// The corpus' sections, by name.
static SECTIONS: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let mut files: Vec<_> = fs::read_dir(corpus())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "eh_frame"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    files
});

static ELF: LazyLock<Vec<u8>> = LazyLock::new(|| fs::read(corpus().join("tiny.elf")).unwrap());

/// The `.eh_frame` section of this test program, with its address.
static OWN: LazyLock<(u64, Vec<u8>)> = LazyLock::new(|| {
    let image = fs::read("/proc/self/exe").unwrap();
    let elf = object::File::parse(image.as_slice()).unwrap();
    let section = elf.section_by_name(".eh_frame").unwrap();
    (section.address(), section.data().unwrap().to_vec())
});

/// Compiles a section that a compiler wrote, or a part of it; panics on rows that make no sense.
fn own_rows(address: u64, data: &[u8]) -> Vec<UnwindRow> {
    let rows = compile(&Sections { eh_frame: Some((address, data)), ..Sections::default() });
    assert!(rows.is_sorted_by(|a, b| a.pc < b.pc));
    // A row takes at least a byte of instructions; each FDE adds at most an end and a gap.
    assert!(rows.len() <= 2 * data.len() + 1, "{} rows of {} bytes", rows.len(), data.len());
    rows
}

#[test]
fn a_whole_program_compiles() {
    let (address, data) = &*OWN;
    let rows = own_rows(*address, data);
    assert!(rows.len() > 1_000, "{} rows", rows.len());
    assert!(rows.iter().any(|row| row.rule == CfaRule::End), "_start has an end row");
}

#[test]
fn what_is_cut_off_gives_what_was_whole() {
    let (address, data) = &*OWN;
    let whole = own_rows(*address, data).len();
    for part in [0, 1, 7, data.len() / 3, data.len() / 2] {
        assert!(own_rows(*address, &data[..part]).len() <= whole + 1);
    }
}

/// Compiles a section as `.eh_frame` and as `.debug_frame`; panics on rows that make no sense.
fn checked(data: &[u8]) -> Vec<UnwindRow> {
    let start = Instant::now();
    let eh_frame = Sections { eh_frame: Some((BASE, data)), ..Sections::default() };
    let debug_frame = Sections { debug_frame: Some((0, data)), ..Sections::default() };
    let rows = compile(&eh_frame);
    for rows in [&rows, &compile(&debug_frame)] {
        assert!(rows.is_sorted_by(|a, b| a.pc < b.pc));
        // A row takes at least a byte of instructions, a CIE's are run for each of its FDEs
        // within a budget, and each FDE adds at most a gap.
        assert!(rows.len() <= 64 * 1024 + 18 * data.len(), "{} rows", rows.len());
        assert!(rows.last().is_none_or(|row| row.rule == CfaRule::Gap), "the end is open");
    }
    assert!(start.elapsed() < DEADLINE, "{:?} for {} bytes", start.elapsed(), data.len());
    rows
}

fn rows_of(name: &str) -> Vec<UnwindRow> {
    let (_, data) = SECTIONS.iter().find(|(known, _)| known == name).unwrap();
    checked(data)
}

#[test]
fn the_corpus_is_compiled_or_left_out() {
    assert!(SECTIONS.len() >= 40, "{} files", SECTIONS.len());
    for (name, data) in &*SECTIONS {
        let result = std::panic::catch_unwind(|| checked(data));
        assert!(result.is_ok(), "{name}");
    }
}

/// On hostile input a walk ends with a reason: no row holds a made-up rule.
#[test]
fn what_is_not_understood_has_no_rule() {
    let rules = |name: &str| -> Vec<CfaRule> { rows_of(name).iter().map(|row| row.rule).collect() };
    use CfaRule::{Gap, Plt, Rsp, Signal, Unsupported};
    assert_eq!(rules("good"), [Rsp, Rsp, Gap, Rsp, Rsp, Gap]);
    for name in ["length-too-long", "length-64-bit", "cie-is-itself", "cie-ahead", "size-zero"] {
        assert_eq!(rules(name), [], "{name}");
    }
    for name in ["offset-odd", "offset-huge", "expression-loops", "expression-nops"] {
        assert_eq!(rules(name), [Unsupported, Gap], "{name}");
    }
    assert_eq!(rules("expression-plt"), [Plt, Gap]);
    assert_eq!(rules("signal-frame"), [Signal, Gap]);
    assert_eq!(rules("address-zero"), []);
    // What is understood up to there counts.
    assert_eq!(rules("unknown-midway"), [Rsp, Unsupported, Gap]);
    assert_eq!(rules("states-midway"), [Rsp, Rsp, Unsupported, Gap]);
    assert_eq!(rules("overlap-tail"), [Rsp, Rsp, Gap, Rsp, Rsp, Gap]);
}

/// The rows of a tiny library, and those that are left when its headers lie.
#[test]
fn headers_that_lie_cost_rows_at_most() {
    let good = compile_bytes(&ELF).unwrap();
    assert!(good.rows.len() >= 3, "{:?}", good.rows);
    // Offsets in the ELF-64 header: e_phoff 32, e_shoff 40, e_phentsize 54, e_phnum 56,
    // e_shentsize 58, e_shnum 60, e_shstrndx 62.
    for at in [32, 40, 54, 56, 58, 60, 62] {
        for value in [0_u16, 1, 0x7fff, 0xffff] {
            let mut damaged = ELF.clone();
            damaged[at..at + 2].copy_from_slice(&value.to_le_bytes());
            check_elf(&damaged);
        }
    }
    for length in [0, 1, 63, 64, 200, ELF.len() / 2, ELF.len() - 1] {
        check_elf(&ELF[..length]);
    }
}

/// Compiles an object from memory and from a file: both must be equal and make sense.
fn check_elf(image: &[u8]) {
    let start = Instant::now();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(image).unwrap();
    let (in_memory, in_file) = (compile_bytes(image), compile_file(&file));
    assert_eq!(in_memory.is_ok(), in_file.is_ok());
    if let (Ok(in_memory), Ok(in_file)) = (in_memory, in_file) {
        assert_eq!(in_memory, in_file);
        assert!(in_memory.rows.is_sorted_by(|a, b| a.pc < b.pc));
        for offset in [0, 0xfff, 0x1000, u64::MAX - 1, u64::MAX] {
            // Whatever it says, it says it without an overflow.
            let _ = in_memory.address_of(offset);
        }
    }
    assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
}

/// One mutation of the bytes.
#[derive(Clone, Debug)]
enum Damage {
    Byte(Index, u8),
    /// Writes a number that means something somewhere: a size, a count or an offset.
    Word(Index, u64),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// Copies a part of the same input to another place.
    Splice(Index, Index, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let word =
        prop::sample::select(vec![0, 1, 4, 0x7f, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX]);
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, value)| Damage::Byte(at, value)),
        (any::<Index>(), word).prop_map(|(at, value)| Damage::Word(at, value)),
        (any::<Index>(), prop::collection::vec(any::<u8>(), 1..16))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (any::<Index>(), 1_usize..64).prop_map(|(at, count)| Damage::Remove(at, count)),
        (any::<Index>(), any::<Index>(), 1_usize..64)
            .prop_map(|(from, to, count)| Damage::Splice(from, to, count)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let end = |at: usize, count: usize, bytes: &[u8]| (at + count).min(bytes.len());
    match damage {
        Damage::Byte(at, value) => {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        Damage::Word(at, value) => {
            let at = at.index(bytes.len());
            for (to, from) in bytes[at..].iter_mut().zip(value.to_le_bytes()) {
                *to = from;
            }
        }
        Damage::Insert(at, new) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, new.iter().copied());
        }
        Damage::Remove(at, count) => {
            let at = at.index(bytes.len());
            bytes.drain(at..end(at, *count, bytes));
        }
        Damage::Splice(from, to, count) => {
            let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
            let part = bytes[from..end(from, *count, bytes)].to_vec();
            bytes.splice(to..to, part);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// Takes a part of a section that a compiler wrote, so that many cases run.
    #[test]
    fn a_damaged_program_is_compiled_or_left_out(
        damages in prop::collection::vec(damage(), 1..64),
        start in any::<Index>(),
    ) {
        let (address, data) = &*OWN;
        let start = start.index(data.len().saturating_sub(2_000).max(1));
        let mut bytes = data[start..(start + 2_000).min(data.len())].to_vec();
        for damage in &damages {
            apply(&mut bytes, damage);
        }
        own_rows(*address + start as u64, &bytes);
    }

    #[test]
    fn garbage_is_compiled_or_left_out(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        checked(&bytes);
    }

    #[test]
    fn damaged_sections_are_compiled_or_left_out(
        which in any::<Index>(),
        damages in prop::collection::vec(damage(), 1..12),
    ) {
        let mut bytes = which.get(&SECTIONS).1.clone();
        for damage in &damages {
            apply(&mut bytes, damage);
        }
        checked(&bytes);
    }

    #[test]
    fn damaged_objects_are_compiled_or_refused(damages in prop::collection::vec(damage(), 1..12)) {
        let mut bytes = ELF.clone();
        for damage in &damages {
            apply(&mut bytes, damage);
        }
        check_elf(&bytes);
    }
}

/// The number of cases: `PROPTEST_CASES`, or few.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(500)
}
