//! Compiles `.eh_frame` (or `.debug_frame`) of one object to rows.
//!
//! Pure: bytes in, rows out. Hostile input costs at most time and memory in proportion to the
//! section's size: each FDE yields at most one row for each of its instructions' bytes, and a
//! total cap ends the rest.

use gimli::{
    BaseAddresses, CfaRule as GimliCfa, CieOrFde, DebugFrame, EhFrame, EndianSlice, Expression,
    LittleEndian, Operation, Register, RegisterRule, UnwindContext, UnwindOffset, UnwindSection,
    X86_64,
};
use leaktrace_common::{CfaRule, UnwindRow};

/// Gaps between functions shorter than this are padding, which no frame is ever in.
const PADDING_BYTES: u64 = 16;
/// Longest CIE; its instructions are run again for each of its FDEs. Compilers write some 20 bytes.
const MAX_CIE_BYTES: usize = 4096;
/// Most rows of one object (64 MiB of table).
const MAX_ROWS: usize = 8 << 20;
/// Bytes of CIEs that are run, at most, for each byte of the section: compilers' sections need 2.
const CIE_BYTES_PER_BYTE: usize = 16;

/// An object's sections that unwinding needs, with their virtual addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sections<'data> {
    /// `.eh_frame`
    pub eh_frame: Option<(u64, &'data [u8])>,
    /// `.debug_frame`
    pub debug_frame: Option<(u64, &'data [u8])>,
    /// Address of `.text`, for text-relative pointers.
    pub text: u64,
    /// Address of `.got`, for data-relative pointers.
    pub got: u64,
}

/// Rows sorted by address, equal neighbours merged; empty if there is nothing to compile.
///
/// What cannot be parsed is left out: walks that get there stop with a reason.
pub fn compile(sections: &Sections<'_>) -> Vec<UnwindRow> {
    let mut bases = BaseAddresses::default().set_text(sections.text).set_got(sections.got);
    let mut compiler = Compiler::default();
    if let Some((address, data)) = sections.eh_frame.filter(|(_, data)| !data.is_empty()) {
        bases = bases.set_eh_frame(address);
        let mut section = EhFrame::new(data, LittleEndian);
        section.set_address_size(8);
        compiler.section(&section, data.len(), &bases);
    }
    if let Some((_, data)) = sections.debug_frame.filter(|_| compiler.functions.is_empty()) {
        let mut section = DebugFrame::new(data, LittleEndian);
        section.set_address_size(8);
        compiler.section(&section, data.len(), &bases);
    }
    compiler.finish()
}

type Data<'data> = EndianSlice<'data, LittleEndian>;

#[derive(Default)]
struct Compiler {
    /// Address range of each function, and its rows' place in `rows`.
    functions: Vec<(u64, u64, usize, usize)>,
    rows: Vec<UnwindRow>,
}

impl Compiler {
    fn section<'data, S>(&mut self, section: &S, size: usize, bases: &BaseAddresses)
    where
        S: UnwindSection<Data<'data>>,
        S::Offset: UnwindOffset<usize>,
    {
        let mut context = UnwindContext::new();
        let mut cie_bytes = 64 * 1024 + CIE_BYTES_PER_BYTE.saturating_mul(size);
        let mut entries = section.entries(bases);
        while let Ok(Some(entry)) = entries.next() {
            if self.rows.len() > MAX_ROWS {
                return;
            }
            let CieOrFde::Fde(partial) = entry else { continue };
            let Ok(fde) = partial.parse(S::cie_from_offset) else { continue };
            let (start, end) = (fde.initial_address(), fde.end_address());
            if start == 0 || end <= start || end > u64::from(u32::MAX) {
                continue;
            }
            if fde.cie().entry_len() > MAX_CIE_BYTES {
                continue;
            }
            let Some(left) = cie_bytes.checked_sub(fde.cie().entry_len()) else { return };
            cie_bytes = left;
            let first = self.rows.len();
            let is_signal = fde.is_signal_trampoline();
            let encoding = fde.cie().encoding();
            let Ok(mut table) = fde.rows(section, bases, &mut context) else { continue };
            // A row an instruction byte at most: a table cannot be longer than that.
            for _ in 0..=(end - start) {
                let Ok(Some(row)) = table.next_row() else { break };
                let row = if is_signal {
                    plain(row.start_address(), CfaRule::Signal)
                } else {
                    translate(row, section, encoding)
                };
                self.rows.push(row);
            }
            self.functions.push((start, end, first, self.rows.len()));
        }
    }

    /// Joins the functions' rows in the order of their addresses.
    fn finish(mut self) -> Vec<UnwindRow> {
        self.functions.sort_unstable();
        let mut all: Vec<UnwindRow> = Vec::with_capacity(self.rows.len());
        let mut covered = 0;
        for (start, end, first, last) in self.functions {
            if start < covered {
                // Overlapping functions: the first one wins.
                continue;
            }
            if covered != 0 && start - covered >= PADDING_BYTES {
                push_merged(&mut all, plain(covered, CfaRule::Gap));
            }
            for row in self.rows.get(first..last).unwrap_or(&[]) {
                if u64::from(row.pc) >= start && u64::from(row.pc) < end {
                    push_merged(&mut all, *row);
                }
            }
            covered = end;
        }
        if covered != 0 {
            push_merged(&mut all, plain(covered, CfaRule::Gap));
        }
        all
    }
}

/// Adds a row unless it says what the one before says, or goes backwards.
fn push_merged(rows: &mut Vec<UnwindRow>, row: UnwindRow) {
    match rows.last_mut() {
        Some(last) if row.pc < last.pc => {}
        Some(last) if row.pc == last.pc => *last = row,
        Some(last) if (UnwindRow { pc: last.pc, ..row }) == *last => {}
        _ => rows.push(row),
    }
}

fn plain(pc: u64, rule: CfaRule) -> UnwindRow {
    UnwindRow { pc: pc as u32, rule, offset: 0, rbp_offset: 0 }
}

/// One row of gimli's in our form; what has no form of ours is unsupported.
fn translate<'data, S>(
    row: &gimli::UnwindTableRow<usize>,
    section: &S,
    encoding: gimli::Encoding,
) -> UnwindRow
where
    S: UnwindSection<Data<'data>>,
{
    let pc = row.start_address();
    let unsupported = plain(pc, CfaRule::Unsupported);
    match row.register(X86_64::RA) {
        // The outermost frame (_start, clone) marks its return address as undefined.
        Some(RegisterRule::Undefined) => return plain(pc, CfaRule::End),
        Some(RegisterRule::Offset(-8)) => {}
        _ => return unsupported,
    }
    let (rule, offset) = match row.cfa() {
        GimliCfa::RegisterAndOffset { register, offset } => {
            let rule = match *register {
                X86_64::RSP => CfaRule::Rsp,
                X86_64::RBP => CfaRule::Rbp,
                _ => return unsupported,
            };
            match u16::try_from(*offset) {
                Ok(offset) if offset % 8 == 0 => (rule, offset),
                _ => return unsupported,
            }
        }
        GimliCfa::Expression(expression) => {
            let Ok(expression) = expression.get(section) else { return unsupported };
            match cfa_expression(&expression, encoding) {
                Some(found) => found,
                None => return unsupported,
            }
        }
    };
    let rbp_offset = match row.register(X86_64::RBP) {
        None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => 0,
        Some(RegisterRule::Offset(offset)) if rule != CfaRule::Deref => offset,
        // A realigned frame keeps rbp where rbp points: DW_CFA_expression rbp (breg6 0).
        Some(RegisterRule::Expression(expression)) if rule == CfaRule::Deref => {
            match expression.get(section).ok().and_then(|e| base_register(&e, encoding)) {
                Some((X86_64::RBP, 0)) => 0,
                _ => return unsupported,
            }
        }
        _ => return unsupported,
    };
    match i32::try_from(rbp_offset) {
        Ok(rbp_offset) if rbp_offset % 8 == 0 && rbp_offset.abs() < (1 << 17) => {
            UnwindRow { pc: pc as u32, rule, offset, rbp_offset }
        }
        _ => unsupported,
    }
}

/// The two expressions that compilers and linkers emit for a CFA on x86_64.
fn cfa_expression(
    expression: &Expression<Data<'_>>,
    encoding: gimli::Encoding,
) -> Option<(CfaRule, u16)> {
    let mut operations = Vec::new();
    let mut iterator = expression.operations(encoding);
    while let Ok(Some(operation)) = iterator.next() {
        operations.push(operation);
        if operations.len() > 9 {
            return None;
        }
    }
    match operations.as_slice() {
        // ld's .plt: rsp + 8 + ((rip & 15) >= N) * 8
        [
            Operation::RegisterOffset { register: X86_64::RSP, offset: 8, .. },
            Operation::RegisterOffset { register: X86_64::RA, offset: 0, .. },
            Operation::UnsignedConstant { value: 15 },
            Operation::And,
            Operation::UnsignedConstant { value: threshold @ 1..=15 },
            Operation::Ge,
            Operation::UnsignedConstant { value: 3 },
            Operation::Shl,
            ..,
        ] => Some((CfaRule::Plt, *threshold as u16)),
        // gcc's realigned stack: *(rbp - N)
        [
            Operation::RegisterOffset { register: X86_64::RBP, offset, .. },
            Operation::Deref { size: 8, .. },
        ] if *offset <= 0 && *offset % 8 == 0 => {
            Some((CfaRule::Deref, u16::try_from(-*offset).ok()?))
        }
        _ => None,
    }
}

/// An expression that is one register and an offset.
fn base_register(
    expression: &Expression<Data<'_>>,
    encoding: gimli::Encoding,
) -> Option<(Register, i64)> {
    let mut iterator = expression.operations(encoding);
    match (iterator.next(), iterator.next()) {
        (Ok(Some(Operation::RegisterOffset { register, offset, .. })), Ok(None)) => {
            Some((register, offset))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use object::{Object as _, ObjectSection as _};
    use proptest::prelude::*;

    use super::*;

    /// The `.eh_frame` of this test program, with its address.
    static OWN: LazyLock<(u64, Vec<u8>)> = LazyLock::new(|| {
        let image = std::fs::read("/proc/self/exe").unwrap();
        let elf = object::File::parse(image.as_slice()).unwrap();
        let section = elf.section_by_name(".eh_frame").unwrap();
        (section.address(), section.data().unwrap().to_vec())
    });

    fn rows_of(address: u64, data: &[u8]) -> Vec<UnwindRow> {
        compile(&Sections { eh_frame: Some((address, data)), ..Sections::default() })
    }

    fn assert_sane(rows: &[UnwindRow], bytes: usize) {
        assert!(rows.is_sorted_by(|a, b| a.pc < b.pc));
        // A row takes at least a byte of instructions; each FDE adds at most a gap.
        assert!(rows.len() <= 2 * bytes + 1, "{} rows of {bytes} bytes", rows.len());
    }

    #[test]
    fn a_whole_program_compiles() {
        let (address, data) = &*OWN;
        let rows = rows_of(*address, data);
        assert!(rows.len() > 1_000, "{} rows", rows.len());
        assert_sane(&rows, data.len());
        assert!(rows.iter().any(|row| row.rule == CfaRule::End), "_start has an end row");
    }

    #[test]
    fn what_is_cut_off_gives_what_was_whole() {
        let (address, data) = &*OWN;
        let whole = rows_of(*address, data).len();
        for part in [0, 1, 7, data.len() / 3, data.len() / 2] {
            let rows = rows_of(*address, &data[..part]);
            assert_sane(&rows, part);
            assert!(rows.len() <= whole + 1);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Damaged in some places, it costs rows at most: no panic, no endless loop.
        #[test]
        fn damage_never_panics(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..64),
            start in any::<prop::sample::Index>(),
        ) {
            let (address, data) = &*OWN;
            // A stretch of the section, so that many cases run.
            let start = start.index(data.len().saturating_sub(20_000).max(1));
            let mut bytes = data[start..(start + 20_000).min(data.len())].to_vec();
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            assert_sane(&rows_of(*address + start as u64, &bytes), bytes.len());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            assert_sane(&rows_of(0x1000, &bytes), bytes.len());
        }
    }
}
