//! Reads of an object what unwinding needs: its sections and where its segments lie.

use std::fs::File;

use leaktrace_common::{CfaRule, UnwindRow};
use object::{Object as _, ObjectSection as _, ObjectSegment as _, ReadRef};

use super::eh_frame::{self, Sections};
use crate::host::elf::ElfBytes;

/// Largest section that is read; larger ones are taken for corrupt.
const MAX_SECTION_BYTES: u64 = 128 << 20;

/// A compiled object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompiledObject {
    /// Sorted by address; empty where the object has no call frame information.
    pub rows: Vec<UnwindRow>,
    /// Its segments of code.
    pub segments: Vec<Segment>,
    /// Bytes of its sections of code.
    pub code_bytes: u64,
}

/// Objects whose rows cover less than this part of their code were compiled without call frame
/// information, but for what the C library's start files bring along.
const LEAST_COVERED_PERCENT: u64 = 50;

/// Part of a file and the virtual address that it is linked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file.
    pub file_offset: u64,
    /// Bytes in the file.
    pub file_bytes: u64,
    /// Virtual address.
    pub address: u64,
}

impl CompiledObject {
    /// Whether most of its code has no rows.
    pub fn is_mostly_bare(&self) -> bool {
        let covered: u64 = self
            .rows
            .iter()
            .zip(self.rows.iter().skip(1))
            .filter(|(row, _)| row.rule != CfaRule::Gap)
            .map(|(row, next)| u64::from(next.pc - row.pc))
            .sum();
        covered < self.code_bytes / 100 * LEAST_COVERED_PERCENT
    }

    /// The virtual address at which an executable mapping from an offset in the file on begins.
    ///
    /// Segments may share a page of the file, which is then mapped once for each of them (lld
    /// does not pad, and is rustc's default linker): among those that have the page, it is the
    /// last that begins there.
    pub fn address_of(&self, file_offset: u64) -> Option<u64> {
        let found = self.segments.iter().filter_map(|segment| {
            // A mapping starts at a page, before its segment.
            let start = segment.file_offset & !0xfff;
            let within = file_offset.checked_sub(start)?;
            let file_bytes = segment.file_bytes.saturating_add(segment.file_offset - start);
            (within < file_bytes).then(|| (start, (segment.address & !0xfff).wrapping_add(within)))
        });
        found.max_by_key(|(start, _)| *start).map(|(_, address)| address)
    }
}

/// What makes two files the same code: the linker's build ID, and the length of the file.
///
/// Images of containers hold the same library in many files. The length stands against a forged
/// ID: a file that pretends to be another one has to be as long.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BuildId {
    id: Vec<u8>,
    file_bytes: u64,
}

/// The build ID of a file, if it has one.
pub fn build_id(file: &File) -> Option<BuildId> {
    let bytes = ElfBytes::new(file);
    let elf = object::File::parse(&bytes).ok()?;
    let id = elf.build_id().ok()??.to_vec();
    Some(BuildId { id, file_bytes: file.metadata().ok()?.len() })
}

/// Compiles an object of a file.
///
/// # Errors
///
/// Why the file is no ELF object that can be read.
pub fn compile_file(file: &File) -> Result<CompiledObject, object::Error> {
    compile(&ElfBytes::new(file))
}

/// Compiles an object in memory (the vdso).
///
/// # Errors
///
/// Why the bytes are no ELF object.
pub fn compile_bytes(data: &[u8]) -> Result<CompiledObject, object::Error> {
    compile(data)
}

fn compile<'data>(data: impl ReadRef<'data>) -> Result<CompiledObject, object::Error> {
    let elf = object::File::parse(data)?;
    let read = |name: &str| -> Option<(u64, std::borrow::Cow<'data, [u8]>)> {
        let section = elf.section_by_name(name)?;
        if section.size() > MAX_SECTION_BYTES {
            return None;
        }
        let data = section.compressed_data().ok()?;
        // What it claims is allocated before it is seen to be true.
        if data.uncompressed_size > MAX_SECTION_BYTES {
            return None;
        }
        Some((section.address(), data.decompress().ok()?))
    };
    let address = |name: &str| elf.section_by_name(name).map_or(0, |section| section.address());
    let (eh_frame, debug_frame) = (read(".eh_frame"), read(".debug_frame"));
    let rows = eh_frame::compile(&Sections {
        eh_frame: eh_frame.as_ref().map(|(address, data)| (*address, data.as_ref())),
        debug_frame: debug_frame.as_ref().map(|(address, data)| (*address, data.as_ref())),
        text: address(".text"),
        got: address(".got"),
    });
    let segments = elf
        .segments()
        .filter(|segment| segment.permissions().executable())
        .map(|segment| {
            let (file_offset, file_bytes) = segment.file_range();
            Segment { file_offset, file_bytes, address: segment.address() }
        })
        .collect();
    let code = elf.sections().filter(|section| section.kind() == object::SectionKind::Text);
    let code_bytes = code.fold(0_u64, |sum, section| sum.saturating_add(section.size()));
    Ok(CompiledObject { rows, segments, code_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libc() -> File {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let path = maps
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .find(|path| path.contains("libc.so"))
            .expect("no C library is mapped");
        File::open(path).unwrap()
    }

    #[test]
    fn the_c_library_has_sorted_rows_and_few_unsupported_ones() {
        let compiled = compile_file(&libc()).unwrap();
        assert!(compiled.rows.len() > 5_000, "{} rows", compiled.rows.len());
        assert!(compiled.rows.is_sorted_by(|a, b| a.pc < b.pc));
        let unsupported = compiled
            .rows
            .iter()
            .filter(|row| row.rule == leaktrace_common::CfaRule::Unsupported)
            .count();
        assert!(unsupported * 1000 < compiled.rows.len(), "{unsupported} unsupported rows");
    }

    /// The segments of a Rust program that lld linked: the headers end, and the code begins, in
    /// the page of the file at 0x18000.
    #[test]
    fn a_page_that_two_segments_share_is_the_later_ones() {
        let headers = Segment { file_offset: 0, file_bytes: 0x185e0, address: 0 };
        let code = Segment { file_offset: 0x185e0, file_bytes: 0x4c130, address: 0x195e0 };
        let rows = Vec::new();
        let object = CompiledObject { rows, segments: vec![headers, code], code_bytes: 0 };
        assert_eq!(object.address_of(0x18000), Some(0x19000));
        assert_eq!(object.address_of(0x17000), Some(0x17000));
        assert_eq!(object.address_of(0x64000), Some(0x65000));
        assert_eq!(object.address_of(0x65000), None);
    }

    /// This test program is position-independent: its address 0 is where its file is mapped from.
    #[test]
    fn the_code_of_this_program_lies_where_it_was_mapped() {
        let exe = std::fs::read_link("/proc/self/exe").unwrap();
        let mappings = crate::host::proc::mappings(std::process::id()).unwrap();
        let mut own = mappings.iter().filter(|mapping| exe.to_str() == mapping.path.as_deref());
        let first = own.next().unwrap();
        assert_eq!(first.file_offset, 0);
        let code = own.find(|mapping| mapping.executable).unwrap();
        let compiled = compile_file(&File::open(&exe).unwrap()).unwrap();
        assert_eq!(compiled.address_of(code.file_offset), Some(code.start - first.start));
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(compile_bytes(b"no ELF at all").is_err());
        assert!(compile_bytes(&[]).is_err());
    }

    /// Prints the figures of docs/performance.md for the files in LEAKTRACE_OBJECTS (paths with
    /// colons between them), or for the C library.
    #[test]
    #[ignore = "prints figures; run it with --release, --ignored and --nocapture"]
    fn figures_of_tables() {
        let paths = std::env::var("LEAKTRACE_OBJECTS").unwrap_or_default();
        let named = paths
            .split(':')
            .filter(|path| !path.is_empty())
            .map(|path| (path.to_owned(), File::open(path).unwrap()));
        for (name, file) in std::iter::once(("C library".to_owned(), libc())).chain(named) {
            let mut times = Vec::new();
            let mut compiled = CompiledObject::default();
            for _ in 0..5 {
                let start = std::time::Instant::now();
                compiled = compile_file(&file).unwrap();
                times.push(start.elapsed());
            }
            let rows = compiled.rows.len();
            let is = |row: &&UnwindRow| row.rule == CfaRule::Unsupported;
            let unsupported = compiled.rows.iter().filter(is).count();
            let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
            eprintln!(
                "{name}: {rows} rows, {} KiB, {unsupported} unsupported, {least:?} to {most:?}",
                rows * 8 / 1024
            );
        }
    }
}
