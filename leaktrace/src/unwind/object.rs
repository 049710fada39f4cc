//! Reads from an object what unwinding needs: its sections, and where its segments lie.

use std::fs::File;

use leaktrace_common::{CfaRule, TextSegment, UnwindRow};
use object::{Object as _, ObjectSection as _, ObjectSegment as _, ReadRef};

use super::eh_frame::{self, Sections};
use crate::host::elf::ElfBytes;

/// Largest section that is read; a larger one is taken for corrupt.
const MAX_SECTION_BYTES: u64 = 128 << 20;

/// Most text segments of one object: linkers make one, or a few for hot and cold code.
const MAX_SEGMENTS: usize = 64;
/// Longest build ID, as each is kept for the session; SHA-256 has 32 bytes.
const MAX_BUILD_ID_BYTES: usize = 64;

/// A compiled object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompiledObject {
    /// The rows, sorted by address; empty where the object has no call frame information.
    pub rows: Vec<UnwindRow>,
    /// The text segments.
    pub segments: Vec<Segment>,
}

/// A part of a file, and the virtual address that it is linked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset of the segment in the file.
    pub file_offset: u64,
    /// Bytes of the segment in the file.
    pub file_bytes: u64,
    /// Virtual address of the segment.
    pub address: u64,
}

impl Segment {
    /// The segment as it is mapped, which is from the beginning of its first page.
    pub fn pages(&self) -> TextSegment {
        TextSegment {
            start: self.file_offset & !0xfff,
            end: self.file_offset.saturating_add(self.file_bytes),
            address: self.address & !0xfff,
        }
    }
}

impl CompiledObject {
    /// The virtual address that an executable mapping from this file offset on begins at.
    ///
    /// Segments may share a page of the file, which is then mapped once for each of them (lld does
    /// not pad, and is rustc's default linker). Of the segments that have the page, the mapping is
    /// that of the last one that begins there.
    pub fn address_of(&self, file_offset: u64) -> Option<u64> {
        let found = self.segments.iter().filter_map(|segment| {
            let TextSegment { start, end, address } = segment.pages();
            let within = file_offset.checked_sub(start)?;
            (file_offset < end).then(|| (start, address.wrapping_add(within)))
        });
        found.max_by_key(|(start, _)| *start).map(|(_, address)| address)
    }
}

/// Two files with equal build IDs have the same code: the linker's build ID, and the length of the
/// file.
///
/// Container images hold the same library in many files. The length protects against a forged ID: a
/// file that pretends to be another one has to be as long.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BuildId {
    id: Vec<u8>,
    file_bytes: u64,
}

/// The build ID of a file, if it has one.
pub fn build_id(file: &File) -> Option<BuildId> {
    let bytes = ElfBytes::new(file);
    let elf = object::File::parse(&bytes).ok()?;
    let id = elf.build_id().ok()??;
    if id.len() > MAX_BUILD_ID_BYTES {
        return None;
    }
    let id = id.to_vec();
    Some(BuildId { id, file_bytes: file.metadata().ok()?.len() })
}

/// Compiles the object in a file.
///
/// # Errors
///
/// Says why the file is no ELF object that can be read.
pub fn compile_file(file: &File) -> Result<CompiledObject, object::Error> {
    compile(&ElfBytes::new(file))
}

/// Compiles the object in memory (the vdso).
///
/// # Errors
///
/// Says why the bytes are no ELF object.
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
    let (text, got) = (address(".text"), address(".got"));
    let mut rows = Vec::new();
    // One section in memory at a time, and debug information only where it is the only one.
    if let Some((address, data)) = read(".eh_frame") {
        let eh_frame = Some((address, data.as_ref()));
        rows = eh_frame::compile(&Sections { eh_frame, text, got, ..Sections::default() });
    }
    if rows.is_empty()
        && let Some((address, data)) = read(".debug_frame")
    {
        let debug_frame = Some((address, data.as_ref()));
        rows = eh_frame::compile(&Sections { debug_frame, text, got, ..Sections::default() });
    }
    end_at_entry(&mut rows, elf.entry());
    let mut segments: Vec<Segment> = elf
        .segments()
        .filter(|segment| segment.permissions().executable())
        .map(|segment| {
            let (file_offset, file_bytes) = segment.file_range();
            Segment { file_offset, file_bytes, address: segment.address() }
        })
        .take(MAX_SEGMENTS + 1)
        .collect();
    if segments.len() > MAX_SEGMENTS {
        // Of segments that share a page the last one counts, so that some are as good as none:
        // no address is known then, and no row applies.
        segments.clear();
    }
    Ok(CompiledObject { rows, segments })
}

/// Most bytes of code at an entry point that has no row of its own.
const ENTRY_BYTES: u32 = 256;

/// Makes the entry point of an object the outermost frame, also where no call frame information
/// says so: glibc's loader has none there (`RTLD_START`, sysdeps/x86_64/dl-machine.h, 2.36), and
/// calls constructors from it.
fn end_at_entry(rows: &mut Vec<UnwindRow>, entry: u64) {
    let Ok(entry) = u32::try_from(entry) else { return };
    let next = rows.partition_point(|row| row.pc <= entry);
    let is_short = rows.get(next).is_some_and(|row| row.pc - entry <= ENTRY_BYTES);
    let before = next.checked_sub(1).and_then(|at| rows.get(at)).copied();
    if entry == 0 || !is_short || before.is_some_and(|row| row.rule != CfaRule::Gap) {
        return;
    }
    if before.is_some_and(|row| row.pc == entry) {
        rows.remove(next - 1);
    }
    let at = rows.partition_point(|row| row.pc <= entry);
    rows.insert(at, UnwindRow { pc: entry, rule: CfaRule::End, offset: 0, rbp_offset: 0 });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_point_without_a_row_ends_the_stack() {
        let row = |pc, rule| UnwindRow { pc, rule, offset: 8, rbp_offset: 0 };
        let rules = |entry, rows: &[UnwindRow]| {
            let mut rows = rows.to_vec();
            end_at_entry(&mut rows, entry);
            rows.iter().map(|row| (row.pc, row.rule)).collect::<Vec<_>>()
        };
        let (gap, rsp, end) = (CfaRule::Gap, CfaRule::Rsp, CfaRule::End);
        let rows = [row(64, rsp), row(128, gap), row(256, rsp)];
        let known = [(64, rsp), (128, gap), (256, rsp)];
        let with = |entry| [(64, rsp), (128, gap), (entry, end), (256, rsp)].to_vec();
        assert_eq!(rules(160, &rows), with(160));
        assert_eq!(rules(128, &rows), [(64, rsp), (128, end), (256, rsp)]);
        // It has a row, or none is near: then all of the code may be without.
        assert_eq!(rules(100, &rows), known);
        assert_eq!(rules(300, &rows), known);
        assert_eq!(rules(0, &rows), known);
        let far = [row(64, rsp), row(128, gap), row(1024, rsp)];
        assert_eq!(rules(160, &far), [(64, rsp), (128, gap), (1024, rsp)]);
    }

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

    /// The segments of a Rust program that lld linked: the headers end in the page of the file at
    /// 0x18000, and the code begins in the same page.
    #[test]
    fn a_page_that_two_segments_share_is_the_later_ones() {
        let headers = Segment { file_offset: 0, file_bytes: 0x185e0, address: 0 };
        let code = Segment { file_offset: 0x185e0, file_bytes: 0x4c130, address: 0x195e0 };
        let rows = Vec::new();
        let object = CompiledObject { rows, segments: vec![headers, code] };
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

    /// A library of only an ELF header and program headers, with one page of code for each.
    fn library_of_segments(count: u16) -> Vec<u8> {
        let mut image = vec![0_u8; 64];
        image[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
        // e_type ET_DYN, e_machine EM_X86_64, e_version; e_phoff 64; e_ehsize.
        image[16..24].copy_from_slice(&[3, 0, 62, 0, 1, 0, 0, 0]);
        image[32] = 64;
        image[52] = 64;
        image[54] = 56;
        image[56..58].copy_from_slice(&count.to_le_bytes());
        for index in 0..u64::from(count) {
            let start = index * 0x1000;
            // PT_LOAD, PF_X | PF_R; offset, addresses, sizes, alignment.
            image.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
            for value in [start, start, start, 0x1000, 0x1000, 0x1000] {
                image.extend_from_slice(&u64::to_le_bytes(value));
            }
        }
        image
    }

    /// The segment of a page is looked up for each mapping of each process.
    #[test]
    fn an_object_of_countless_segments_has_none() {
        let few = compile_bytes(&library_of_segments(9)).unwrap();
        assert_eq!((few.segments.len(), few.address_of(0x8000)), (9, Some(0x8000)));
        let many = compile_bytes(&library_of_segments(u16::MAX - 1)).unwrap();
        assert_eq!((many.segments.len(), many.address_of(0)), (0, None));
    }

    /// leaktrace would keep the build ID as long as it runs.
    #[test]
    fn a_build_id_of_a_megabyte_is_none() {
        let of_length = |length: usize| {
            let mut note = Vec::new();
            for word in [4, length as u32, 3] {
                note.extend_from_slice(&word.to_le_bytes());
            }
            note.extend_from_slice(b"GNU\0");
            note.resize(note.len() + length, 7);
            let mut image = library_of_segments(1);
            // PT_NOTE, behind the headers.
            image[64] = 4;
            image[72..80].copy_from_slice(&120_u64.to_le_bytes());
            image[96..104].copy_from_slice(&(note.len() as u64).to_le_bytes());
            image[112..114].copy_from_slice(&[4, 0]);
            image.extend_from_slice(&note);
            let file = tempfile::tempfile().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &image, 0).unwrap();
            build_id(&file)
        };
        assert!(of_length(20).is_some());
        assert_eq!(of_length(1 << 20), None);
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
            let is = |row: &&UnwindRow| row.rule == leaktrace_common::CfaRule::Unsupported;
            let unsupported = compiled.rows.iter().filter(is).count();
            let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
            eprintln!(
                "{name}: {rows} rows, {} KiB, {unsupported} unsupported, {least:?} to {most:?}",
                rows * 8 / 1024
            );
        }
    }
}
