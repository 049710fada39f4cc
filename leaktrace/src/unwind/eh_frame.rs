//! Compiles `.eh_frame` (or `.debug_frame`) of one object to rows.
//!
//! The compiler is pure: bytes in, rows out. Hostile input costs at most time and memory in
//! proportion to the section's size: an instruction yields at most one row, CIEs are read again
//! only within a budget, and a cap on the rows ends the rest. Code that is left out has no rule,
//! and never that of a neighbour.

use gimli::{
    BaseAddresses, CfaRule as GimliCfa, CieOrFde, DebugFrame, EhFrame, EndianSlice, Expression,
    FrameDescriptionEntry, LittleEndian, Operation, Register, RegisterRule, UnwindContext,
    UnwindContextStorage, UnwindOffset, UnwindSection, UnwindTableRow, X86_64,
};
use leaktrace_common::{CfaRule, UnwindRow};

/// Gaps between functions that are shorter than this are padding, and no frame is ever in padding.
const PADDING_BYTES: u64 = 16;
/// Longest CIE. Its instructions are run again for each of its FDEs; compilers write some 20 bytes.
const MAX_CIE_BYTES: usize = 4096;
/// Most rows of one object (64 MiB of unwind table); libLLVM has 1.3 million.
const MAX_ROWS: usize = 8 << 20;
/// Most registers with a rule at the same time: the 17 of the signal frame, and some to spare. Each
/// saved state is a copy of all of them.
const MAX_RULES: usize = 32;
/// Most states that are saved at the same time, the CIE's included; the number is gimli's own.
const MAX_STATES: usize = 4;
/// Most bytes of CIEs that are read for each byte of the section; the worst of Debian's libraries
/// needs 0.9.
const CIE_BYTES_PER_BYTE: usize = 2;

/// The sections of an object that unwinding needs, with their virtual addresses.
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

/// Rows sorted by address, with equal neighbours merged; empty if there is nothing to compile.
///
/// Data that cannot be parsed is left out: a walk that gets to its code stops with a reason.
pub fn compile(sections: &Sections<'_>) -> Vec<UnwindRow> {
    compile_within(sections, MAX_ROWS)
}

/// As [`compile`], but stops at about `max_rows` rows.
pub(super) fn compile_within(sections: &Sections<'_>, max_rows: usize) -> Vec<UnwindRow> {
    let mut bases = BaseAddresses::default().set_text(sections.text).set_got(sections.got);
    let mut compiler = Compiler { max_rows, ..Compiler::default() };
    if let Some((address, data)) = sections.eh_frame.filter(|(_, data)| !data.is_empty()) {
        bases = bases.set_eh_frame(address);
        let mut section = EhFrame::new(data, LittleEndian);
        section.set_address_size(8);
        compiler.section(&section, data, &bases);
    }
    if let Some((_, data)) = sections.debug_frame.filter(|_| compiler.functions.is_empty()) {
        let mut section = DebugFrame::new(data, LittleEndian);
        section.set_address_size(8);
        compiler.section(&section, data, &bases);
    }
    compiler.finish()
}

type Data<'data> = EndianSlice<'data, LittleEndian>;

/// The storage in which gimli keeps the state of a function's instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Storage;

impl UnwindContextStorage<usize> for Storage {
    type Rules = [(Register, RegisterRule<usize>); MAX_RULES];
    type Stack = [UnwindTableRow<usize, Self>; MAX_STATES];
}

#[derive(Default)]
struct Compiler {
    /// The address range of each function, and the range of its rows in `rows`.
    functions: Vec<(u64, u64, usize, usize)>,
    rows: Vec<UnwindRow>,
    max_rows: usize,
    /// Whether the compiler left something out whose addresses are not known: it may be in any gap.
    is_cut: bool,
}

impl Compiler {
    fn section<'data, S>(&mut self, section: &S, data: &'data [u8], bases: &BaseAddresses)
    where
        S: UnwindSection<Data<'data>>,
        S::Offset: UnwindOffset<usize>,
    {
        let mut context = Box::new(UnwindContext::<usize, Storage>::new_in());
        let mut budget_bytes = 64 * 1024 + CIE_BYTES_PER_BYTE.saturating_mul(data.len());
        let mut entries = section.entries(bases);
        loop {
            let partial = match entries.next() {
                Ok(Some(CieOrFde::Fde(partial))) => partial,
                Ok(Some(CieOrFde::Cie(_))) => continue,
                Ok(None) => return,
                Err(_) => break,
            };
            if self.rows.len() >= self.max_rows {
                break;
            }
            // Before gimli parses the CIE, which reads a string to its end, each time anew.
            let cie_bytes = entry_bytes(data, UnwindOffset::into(partial.cie_offset()));
            let Some(cie_bytes) = cie_bytes.filter(|bytes| *bytes <= MAX_CIE_BYTES) else {
                self.is_cut = true;
                continue;
            };
            let Some(left) = budget_bytes.checked_sub(cie_bytes) else { break };
            budget_bytes = left;
            let Ok(fde) = partial.parse(S::cie_from_offset) else {
                self.is_cut = true;
                continue;
            };
            let (start, end) = (fde.initial_address(), fde.end_address());
            // The linker leaves functions that it has dropped at address 0.
            if start == 0 || end <= start || start > u64::from(u32::MAX) {
                continue;
            }
            if end > u64::from(u32::MAX) {
                self.is_cut = true;
                continue;
            }
            let first = self.rows.len();
            self.function(&fde, section, bases, &mut context);
            self.functions.push((start, end, first, self.rows.len()));
        }
        self.is_cut = true;
    }

    /// Adds the rows of a function. From the instruction on that cannot be understood, or is one
    /// too many, the function has no rule.
    fn function<'data, S>(
        &mut self,
        fde: &FrameDescriptionEntry<Data<'data>>,
        section: &S,
        bases: &BaseAddresses,
        context: &mut UnwindContext<usize, Storage>,
    ) where
        S: UnwindSection<Data<'data>>,
    {
        let end = fde.end_address();
        let (is_signal, encoding) = (fde.is_signal_trampoline(), fde.cie().encoding());
        // The first address that no row speaks of.
        let mut open = fde.initial_address();
        if let Ok(mut table) = fde.rows(section, bases, context) {
            while self.rows.len() < self.max_rows
                && let Ok(row) = table.next_row()
            {
                // What begins behind the function's end belongs to none.
                let Some(row) = row.filter(|row| row.start_address() < end) else { return };
                open = row.end_address();
                self.rows.push(if is_signal {
                    plain(row.start_address(), CfaRule::Signal)
                } else {
                    translate(row, section, encoding)
                });
            }
        }
        if open < end {
            self.rows.push(plain(open, CfaRule::Unsupported));
        }
    }

    /// Joins the functions' rows in the order of their addresses.
    fn finish(mut self) -> Vec<UnwindRow> {
        self.functions.sort_unstable();
        let mut all: Vec<UnwindRow> = Vec::with_capacity(self.rows.len());
        let (mut covered, mut disputed) = (0, 0);
        for (start, end, first, last) in self.functions {
            if start < covered {
                // Overlapping functions: the first one wins, and nobody has what is behind it.
                disputed = end.max(disputed);
                continue;
            }
            let is_padding = start - covered < PADDING_BYTES && !self.is_cut && disputed <= covered;
            if covered != 0 && start != covered && !is_padding {
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

/// Length in bytes of the entry at `offset`, without its length field.
fn entry_bytes(data: &[u8], offset: usize) -> Option<usize> {
    let (length, rest) = data.get(offset..)?.split_first_chunk()?;
    match u32::from_le_bytes(*length) {
        // The 64-bit format of DWARF (DWARF 5 section 7.4).
        u32::MAX => usize::try_from(u64::from_le_bytes(*rest.first_chunk()?)).ok(),
        length => Some(length as usize),
    }
}

/// Adds a row, unless it is equal to the row before it or its address goes backwards.
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

/// Turns one row of gimli's into an [`UnwindRow`]; a rule that no row can express is unsupported.
fn translate<'data, S>(
    row: &UnwindTableRow<usize, Storage>,
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

/// Reads the two expressions that compilers and linkers emit for a CFA on x86_64.
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

/// Reads an expression that is one register and an offset.
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
