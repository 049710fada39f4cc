//! The functions in an object's own symbol tables: where each begins, and the names under which the
//! object exports them.

use std::{collections::BTreeMap, fs::File};

use object::{
    Object as _, ObjectSymbol as _, ObjectSymbolTable as _, SymbolKind,
    read::{ReadCache, ReadRef},
};

use crate::host::debug_files;

/// The functions of one object; each table is read when it is first needed.
#[derive(Debug)]
pub(super) struct Functions {
    readable_at: String,
    /// Start and end of each function, by address.
    ranges: Option<Vec<(u64, u64)>>,
    exports: Option<BTreeMap<u64, Vec<String>>>,
}

impl Functions {
    /// The functions of the object that can be read at this path.
    pub(super) fn of(readable_at: &str) -> Self {
        Self { readable_at: readable_at.to_owned(), ranges: None, exports: None }
    }

    /// The address at which the function, or the part of it, begins that this address lies in.
    pub(super) fn start(&mut self, address: u64) -> Option<u64> {
        let ranges =
            self.ranges.get_or_insert_with(|| read_ranges(&self.readable_at).unwrap_or_default());
        let next = ranges.partition_point(|(start, _)| *start <= address);
        let (start, end) = ranges.get(next.checked_sub(1)?)?;
        (address < *end).then_some(*start)
    }

    /// The name by which other objects call the function at `start`. A library's internal name for
    /// an exported function (`__GI___libc_malloc`, `__libc_start_main_impl`) becomes the exported
    /// name.
    pub(super) fn plain_name(&mut self, start: u64, name: &str) -> Option<&str> {
        if !name.starts_with('_') {
            return None;
        }
        let exports =
            self.exports.get_or_insert_with(|| read_exports(&self.readable_at).unwrap_or_default());
        let underscores = |name: &str| name.bytes().take_while(|byte| *byte == b'_').count();
        exports
            .get(&start)?
            .iter()
            // The linker may have folded another function with the same code into this one.
            .filter(|export| name.contains(export.as_str()))
            .min_by_key(|export| (underscores(export), export.len()))
            .map(String::as_str)
    }
}

fn read_exports(path: &str) -> Option<BTreeMap<u64, Vec<String>>> {
    // Executables can be larger than memory: only what is needed of it is read.
    let cache = ReadCache::new(File::open(path).ok()?);
    let file = object::File::parse(&cache).ok()?;
    let mut exports: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for symbol in file.dynamic_symbols().filter(is_function) {
        if let Ok(name) = symbol.name() {
            exports.entry(symbol.address()).or_default().push(name.to_owned());
        }
    }
    Some(exports)
}

fn read_ranges(path: &str) -> Option<Vec<(u64, u64)>> {
    let cache = ReadCache::new(File::open(path).ok()?);
    let file = object::File::parse(&cache).ok()?;
    let mut ranges: Vec<(u64, u64)> = file.dynamic_symbols().filter_map(range).collect();
    if file.symbol_table().is_some_and(|table| table.symbols().next().is_some()) {
        ranges.extend(file.symbols().filter_map(range));
    } else if let Ok(Some(build_id)) = file.build_id() {
        let debug_file = debug_files::by_id(&[], build_id).find_map(|path| File::open(path).ok());
        let cache = debug_file.map(ReadCache::new);
        if let Some(file) = cache.as_ref().and_then(|cache| object::File::parse(cache).ok()) {
            ranges.extend(file.symbols().filter_map(range));
        }
    }
    ranges.sort_unstable();
    Some(ranges)
}

fn range<'a, R: ReadRef<'a>>(symbol: object::Symbol<'a, '_, R>) -> Option<(u64, u64)> {
    let end = symbol.address().checked_add(symbol.size())?;
    is_function(&symbol).then_some((symbol.address(), end))
}

fn is_function<'a, R: ReadRef<'a>>(symbol: &object::Symbol<'a, '_, R>) -> bool {
    symbol.is_definition() && symbol.kind() == SymbolKind::Text
}
