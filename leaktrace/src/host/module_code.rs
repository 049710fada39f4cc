//! What the kernel shows of its modules while they are loaded: their functions, the addresses of
//! their sections, and their build IDs. Once a module is gone nobody shows any of it.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::BufReader,
    path::Path,
};

use super::debug_files;

/// The folder of all modules.
pub const SYSFS: &str = "/sys/module";

/// A module that is loaded now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The module's name.
    pub name: String,
    /// Address at which the module's code begins.
    pub base: u64,
    /// Bytes of the module's code and data, an upper bound for its code.
    pub bytes: u64,
}

/// The modules in /proc/modules; empty where the kernel has none.
pub fn listed() -> Vec<Listed> {
    // A kernel without loadable modules has no such file.
    parse_list(&fs::read_to_string("/proc/modules").unwrap_or_default())
}

/// Parses `name bytes users used-by state address`; a module whose address is hidden is left out.
fn parse_list(text: &str) -> Vec<Listed> {
    let parse = |line: &str| {
        let mut parts = line.split(' ');
        let (name, bytes) = (parts.next()?.to_owned(), parts.next()?.parse().ok()?);
        let base = u64::from_str_radix(parts.nth(3)?.trim_start_matches("0x"), 16).ok()?;
        (base != 0).then_some(Listed { name, base, bytes })
    };
    text.lines().filter_map(parse).collect()
}

/// The symbols of one module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    /// The functions by address, with one name for each address.
    pub functions: Vec<(u64, String)>,
    /// The addresses of all other symbols, in order.
    pub others: Vec<u64>,
}

/// Functions, with the rank of their names, and the addresses of all other symbols.
type Unsorted = (Vec<(u64, u8, String)>, Vec<u64>);

/// The symbols of the modules whose names `wanted` accepts; a module that cannot be read has none.
pub fn symbols(wanted: impl Fn(&str) -> bool) -> HashMap<String, Symbols> {
    match File::open("/proc/kallsyms") {
        Ok(file) => parse_symbols(BufReader::with_capacity(1 << 16, file), wanted),
        Err(_) => HashMap::new(),
    }
}

fn parse_symbols(
    mut kallsyms: impl std::io::BufRead,
    wanted: impl Fn(&str) -> bool,
) -> HashMap<String, Symbols> {
    let mut found: HashMap<String, Unsorted> = HashMap::new();
    let mut line = String::new();
    while kallsyms.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        // `address type name\t[module]`; the kernel proper has no module and comes first.
        if let Some((symbol, module)) = line.trim_end().split_once("\t[")
            && let Some(module) = module.strip_suffix(']')
            && wanted(module)
        {
            let mut parts = symbol.split(' ');
            let address = parts.next().and_then(|word| u64::from_str_radix(word, 16).ok());
            if let (Some(address @ 1..), Some(kind), Some(name)) =
                (address, parts.next(), parts.next())
            {
                let entry = match found.get_mut(module) {
                    Some(entry) => entry,
                    None => found.entry(module.to_owned()).or_default(),
                };
                // Of several names of an address the global one is the one to show.
                match kind {
                    "T" => entry.0.push((address, 0, name.to_owned())),
                    "t" => entry.0.push((address, 1, name.to_owned())),
                    "W" | "w" => entry.0.push((address, 2, name.to_owned())),
                    _ => entry.1.push(address),
                }
            }
        }
        line.clear();
    }
    found
        .into_iter()
        .map(|(module, (mut functions, mut others))| {
            functions.sort_unstable();
            functions.dedup_by_key(|(address, ..)| *address);
            others.sort_unstable();
            let functions = functions.into_iter().map(|(at, _, name)| (at, name)).collect();
            (module, Symbols { functions, others })
        })
        .collect()
}

/// A module's state: `coming` while its init runs, `live`, or `going`; `None` if it is gone.
pub fn state(name: &str) -> Option<String> {
    fs::read_to_string(Path::new(SYSFS).join(name).join("initstate")).ok()
}

/// Addresses of the code sections of a loaded module, by section, and the module's build ID.
/// `sysfs` is a directory like [`SYSFS`].
pub fn sections(sysfs: &Path, name: &str) -> (HashMap<String, u64>, Option<Vec<u8>>) {
    let folder = sysfs.join(name);
    let build_id = fs::read(folder.join("notes/.note.gnu.build-id"));
    let build_id = build_id.ok().and_then(|notes| debug_files::build_id(&notes));
    let read = |section: fs::DirEntry| {
        let name = section.file_name().into_string().ok()?;
        // Code alone: nothing else is in a stack.
        let address = name.contains("text").then(|| fs::read_to_string(section.path()))?.ok()?;
        let address = u64::from_str_radix(address.trim().trim_start_matches("0x"), 16).ok()?;
        Some((name, address))
    };
    let sections = fs::read_dir(folder.join("sections")).ok();
    (sections.into_iter().flatten().flatten().filter_map(read).collect(), build_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_names_and_bounds() {
        let list =
            "drv 16384 0 - Live 0xffffffffc0100000 (OE)\nhidden 1 0 - Live 0x0000000000000000\n";
        let drv = Listed { name: "drv".into(), base: 0xffff_ffff_c010_0000, bytes: 16384 };
        assert_eq!(parse_list(list), [drv]);
        assert_eq!(parse_list("damaged\n"), []);
    }

    #[test]
    fn a_module_has_its_symbols_and_no_others() {
        let kallsyms = "ffffffff81000000 T first\n\
                        ffffffffc0100040 t drv_close\t[drv]\n\
                        ffffffffc0100000 t drv_alias\t[drv]\n\
                        ffffffffc0100000 T drv_open\t[drv]\n\
                        ffffffffc0100800 d drv_data\t[drv]\n\
                        ffffffffc0101000 t other_open\t[other]\n";
        let found = parse_symbols(kallsyms.as_bytes(), |name| name == "drv");
        let functions = vec![
            (0xffff_ffff_c010_0000, "drv_open".to_owned()),
            (0xffff_ffff_c010_0040, "drv_close".to_owned()),
        ];
        let drv = Symbols { functions, others: vec![0xffff_ffff_c010_0800] };
        assert_eq!(found, [("drv".to_owned(), drv)].into());
    }
}
