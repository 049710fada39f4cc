//! A reader of the kernel's BTF, for the few questions that leaktrace asks of it.
//!
//! The format is that of Documentation/bpf/btf.rst (6.18): a header, a table of types of variable
//! length, and a table of strings. Every access is checked: damaged data leads to an error or to
//! "not there", never to a panic.

use std::{fs, path::Path};

const MAGIC: u16 = 0xeb9f;
/// Most members that a search for one member looks at; `struct task_struct` has some 300 with the
/// anonymous ones. A search in damaged data, where structs contain themselves, must end.
const MAX_MEMBERS: u32 = 4096;
/// Deepest nesting of anonymous members.
const MAX_DEPTH: u32 = 16;
/// Longest chain of qualifiers or typedefs.
const MAX_CHAIN: u32 = 32;

/// Kinds of types (include/uapi/linux/btf.h).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Why BTF cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The data is no BTF, or damaged.
    #[error("damaged BTF: {0}")]
    Damaged(&'static str),
}

/// A parameter of a function, as far as leaktrace tells types apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Param {
    /// A pointer to a struct of this name.
    StructPointer(String),
    /// Any other pointer.
    Pointer,
    /// A typedef of this name.
    Typedef(String),
    /// Anything else.
    Other,
}

/// Parsed BTF.
pub struct Btf {
    data: Vec<u8>,
    strings: usize,
    strings_end: usize,
    /// Offset of each type in the data; type IDs count from 1.
    types: Vec<u32>,
}

impl Btf {
    /// Reads a BTF file, such as /sys/kernel/btf/vmlinux.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read or is damaged.
    pub fn read(path: &Path) -> Result<Self, BtfError> {
        Self::parse(fs::read(path)?)
    }

    /// Parses BTF.
    ///
    /// # Errors
    ///
    /// Fails if the data is damaged.
    pub fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        let damaged = BtfError::Damaged;
        let magic = data.get(..2).ok_or(damaged("too short"))?;
        if magic != MAGIC.to_le_bytes() {
            return Err(damaged("wrong magic number"));
        }
        if data.get(2) != Some(&1) {
            return Err(damaged("unknown version"));
        }
        let header = |at| word(&data, at).map(|value| value as usize).ok_or(damaged("too short"));
        let base = header(4)?;
        let (types, types_bytes) = (base.saturating_add(header(8)?), header(12)?);
        let (strings, strings_bytes) = (base.saturating_add(header(16)?), header(20)?);
        let types_end = types.saturating_add(types_bytes);
        let strings_end = strings.saturating_add(strings_bytes);
        if types_end > data.len() || strings_end > data.len() {
            return Err(damaged("a table ends behind the data"));
        }
        let mut offsets = Vec::new();
        let mut at = types;
        while at < types_end {
            offsets.push(at as u32);
            let info = word(&data, at + 4).ok_or(damaged("a type is cut off"))?;
            let extra = extra_bytes(info).ok_or(damaged("unknown kind of type"))?;
            at = at.saturating_add(12 + extra);
        }
        if at != types_end {
            return Err(damaged("a type is cut off"));
        }
        Ok(Self { data, strings, strings_end, types: offsets })
    }

    /// The parameters of the tracepoint `name`, without the leading `void *__data`.
    pub fn tracepoint(&self, name: &str) -> Option<Vec<Param>> {
        let typedef = self.find(kind::TYPEDEF, &format!("btf_trace_{name}"))?;
        let pointer = self.target(typedef)?;
        self.params(self.target(pointer)?, 1)
    }

    /// The parameters of the kernel function `name`.
    pub fn function(&self, name: &str) -> Option<Vec<Param>> {
        self.params(self.target(self.find(kind::FUNC, name)?)?, 0)
    }

    /// The parameters of a function type, from index `first` on.
    fn params(&self, function: u32, first: u32) -> Option<Vec<Param>> {
        let at = self.at(function)?;
        let info = word(&self.data, at + 4)?;
        if kind_of(info) != kind::FUNC_PROTO {
            return None;
        }
        let first = first as usize;
        (first..count_of(info))
            .map(|index| Some(self.param(word(&self.data, at + 12 + 8 * index + 4)?)))
            .collect()
    }

    /// Size in bytes of the struct `name`.
    pub fn struct_bytes(&self, name: &str) -> Option<u32> {
        // The word that refers to another type elsewhere is the size here.
        self.target(self.find(kind::STRUCT, name)?)
    }

    /// Byte offset of a member of the struct `name`; the member may be inside anonymous members.
    /// `path` may have several parts, with dots between them.
    pub fn member_offset(&self, name: &str, path: &str) -> Option<u32> {
        let mut at_type = self.find(kind::STRUCT, name)?;
        let mut bits = 0_u32;
        for part in path.split('.') {
            let mut steps = MAX_MEMBERS;
            let (offset, member_type) = self.member(at_type, part, MAX_DEPTH, &mut steps)?;
            bits = offset.checked_add(bits)?;
            at_type = self.resolve(member_type)?;
        }
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// Value of an enumerator of any enum; for a 64-bit enum, its lower half.
    pub fn enumerator(&self, name: &str) -> Option<u32> {
        self.types.iter().find_map(|at| {
            let at = *at as usize;
            let info = word(&self.data, at + 4)?;
            let entry_bytes = match kind_of(info) {
                kind::ENUM => 8,
                kind::ENUM64 => 12,
                _ => return None,
            };
            (0..count_of(info)).find_map(|index| {
                let entry = at + 12 + entry_bytes * index;
                let found = self.string(word(&self.data, entry)?)? == name.as_bytes();
                if found { word(&self.data, entry + 4) } else { None }
            })
        })
    }

    /// Offset in bits, and type, of a member.
    fn member(&self, of: u32, name: &str, depth: u32, steps: &mut u32) -> Option<(u32, u32)> {
        let (at, depth) = (self.at(of)?, depth.checked_sub(1)?);
        let info = word(&self.data, at + 4)?;
        if !matches!(kind_of(info), kind::STRUCT | kind::UNION) {
            return None;
        }
        let is_bitfield_struct = info >> 31 != 0;
        (0..count_of(info)).find_map(|index| {
            *steps = steps.checked_sub(1)?;
            let entry = at + 12 + 12 * index;
            let member_name = self.string(word(&self.data, entry)?)?;
            let member_type = word(&self.data, entry + 4)?;
            let offset = word(&self.data, entry + 8)?;
            // With bit fields the upper 8 bits hold the field's size, 0 for other members.
            let (width, offset) =
                if is_bitfield_struct { (offset >> 24, offset & 0xff_ffff) } else { (0, offset) };
            if member_name == name.as_bytes() {
                return (width == 0).then_some((offset, member_type));
            }
            if !member_name.is_empty() {
                return None;
            }
            let (inner, found) = self.member(self.resolve(member_type)?, name, depth, steps)?;
            Some((offset.checked_add(inner)?, found))
        })
    }

    fn param(&self, type_id: u32) -> Param {
        let Some(type_id) = self.unqualified(type_id) else { return Param::Other };
        match self.kind(type_id) {
            Some(kind::TYPEDEF) => match self.name(type_id) {
                Some(name) => Param::Typedef(name),
                None => Param::Other,
            },
            Some(kind::PTR) => {
                let target = self.target(type_id).and_then(|target| self.resolve(target));
                let is_struct = matches!(
                    target.and_then(|target| self.kind(target)),
                    Some(kind::STRUCT | kind::FWD)
                );
                match target.and_then(|target| self.name(target)) {
                    Some(name) if is_struct => Param::StructPointer(name),
                    _ => Param::Pointer,
                }
            }
            _ => Param::Other,
        }
    }

    /// Follows typedefs and qualifiers to the type itself.
    fn resolve(&self, type_id: u32) -> Option<u32> {
        let mut seen = self.unqualified(type_id)?;
        for _ in 0..MAX_CHAIN {
            if self.kind(seen)? != kind::TYPEDEF {
                return Some(seen);
            }
            seen = self.unqualified(self.target(seen)?)?;
        }
        None
    }

    /// Follows qualifiers, but no typedefs.
    fn unqualified(&self, mut type_id: u32) -> Option<u32> {
        for _ in 0..MAX_CHAIN {
            match self.kind(type_id)? {
                kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    type_id = self.target(type_id)?;
                }
                _ => return Some(type_id),
            }
        }
        None
    }

    fn kind(&self, type_id: u32) -> Option<u32> {
        word(&self.data, self.at(type_id)? + 4).map(kind_of)
    }

    fn find(&self, wanted: u32, name: &str) -> Option<u32> {
        let index = self.types.iter().position(|at| {
            let at = *at as usize;
            word(&self.data, at + 4).is_some_and(|info| kind_of(info) == wanted)
                && word(&self.data, at).and_then(|name| self.string(name)) == Some(name.as_bytes())
        })?;
        Some(index as u32 + 1)
    }

    fn name(&self, type_id: u32) -> Option<String> {
        let name = self.string(word(&self.data, self.at(type_id)?)?)?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    /// The type that a pointer, typedef or qualifier refers to.
    fn target(&self, type_id: u32) -> Option<u32> {
        word(&self.data, self.at(type_id)? + 8)
    }

    fn at(&self, type_id: u32) -> Option<usize> {
        self.types.get(type_id.checked_sub(1)? as usize).map(|at| *at as usize)
    }

    fn string(&self, offset: u32) -> Option<&[u8]> {
        let table = self.data.get(self.strings..self.strings_end)?;
        table.get(offset as usize..)?.split(|byte| *byte == 0).next()
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

const fn kind_of(info: u32) -> u32 {
    (info >> 24) & 0x1f
}

const fn count_of(info: u32) -> usize {
    (info & 0xffff) as usize
}

/// Number of bytes that follow a type's 12-byte head.
fn extra_bytes(info: u32) -> Option<usize> {
    let count = count_of(info);
    Some(match kind_of(info) {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
        kind::ENUM | kind::FUNC_PROTO => 8 * count,
        0..=kind::ENUM64 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
