//! Names of kernel functions, and the module that each belongs to, from /proc/kallsyms.
//!
//! blazesym reads kallsyms as well, but once for its whole life, with data symbols among the
//! functions, without their modules and without an end to the last one (0.2.7): a module that is
//! loaded later would get its neighbour's names, and an address behind everything a name at all.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    path::PathBuf,
};

use blazesym::symbolize::Symbolizer as Blazesym;

use super::kernel_lines::{KernelLines, LANDMARK};
use crate::snapshot::{Frame, Resolved, Symbol, Unknown};

/// What lies in the kernel proper.
const VMLINUX: &str = "vmlinux";

/// kallsyms tells where functions begin and not where they end. The last one of a module ends
/// within this many bytes, or the address is nobody's.
const LAST_FUNCTION_BYTES: u64 = 64 << 10;

/// The running kernel's functions; read when first needed, and again when they change.
#[derive(Debug)]
pub(super) struct Kernel {
    kallsyms: PathBuf,
    modules: PathBuf,
    /// The list of modules at the time of reading; one comes or goes: read again.
    modules_then: Option<Vec<u8>>,
    functions: io::Result<Functions>,
    /// Those of modules that have gone.
    gone: Functions,
    lines: KernelLines,
    /// Address of [`LANDMARK`].
    landmark: Option<u64>,
}

/// Functions by address.
#[derive(Debug, Default)]
struct Functions {
    entries: Vec<Entry>,
    /// The names, one behind the other.
    names: String,
    /// `vmlinux`, then the modules in brackets.
    objects: Vec<String>,
    /// Whether there are functions, but all of them at address 0.
    are_hidden: bool,
}

/// One function: 24 bytes, as there are a hundred thousand.
#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    /// Among names of one address the lowest is the one to show.
    rank: u8,
    object: u16,
    name_bytes: u16,
    name_start: u32,
}

impl Kernel {
    /// The running kernel; `folders` hold debug information besides where packages put it.
    pub(super) fn running(folders: &[PathBuf]) -> Self {
        let lines = KernelLines::new(folders);
        Self::new("/proc/kallsyms".into(), "/proc/modules".into(), lines)
    }

    fn new(kallsyms: PathBuf, modules: PathBuf, lines: KernelLines) -> Self {
        Self {
            lines,
            landmark: None,
            kallsyms,
            modules,
            modules_then: None,
            functions: Ok(Functions::default()),
            gone: Functions::default(),
        }
    }

    /// Reads the functions if modules have come or gone since; gives whether it did.
    pub(super) fn refresh(&mut self) -> bool {
        // A kernel without loadable modules has no such file.
        let modules_now = fs::read(&self.modules).unwrap_or_default();
        let has_changed = self.modules_then.as_ref() != Some(&modules_now);
        if has_changed {
            let functions = Functions::read(&self.kallsyms);
            if let (Ok(old), Ok(new)) = (&self.functions, &functions) {
                self.gone.take_in(old, |object| !new.objects.iter().any(|known| known == object));
            }
            self.landmark = functions.as_ref().ok().and_then(|known| known.address(LANDMARK));
            self.functions = functions;
            self.lines.note_modules(&String::from_utf8_lossy(&modules_now));
            self.modules_then = Some(modules_now);
        }
        has_changed
    }

    /// Names kernel frames.
    pub(super) fn resolve(
        &mut self,
        blazesym: &Blazesym,
        frames: &[Frame],
    ) -> Vec<(Frame, Resolved)> {
        let is_fresh = self.refresh();
        // BPF programs and trampolines come and go without a change in the list of modules.
        let may_be_newer = |functions: &Functions| {
            let proper = |frame: &Frame| {
                functions.find(call_of(frame)).is_some_and(|(entry, _)| entry.object == 0)
            };
            !frames.iter().all(|frame| proper(frame) || self.is_in_module(functions, frame))
        };
        if !is_fresh && self.functions.as_ref().is_ok_and(may_be_newer) {
            self.functions = Functions::read(&self.kallsyms);
        }
        frames.iter().map(|frame| (*frame, self.name(blazesym, call_of(frame)))).collect()
    }

    /// Whether a frame lies in a module of the list, whose functions stay as they are.
    fn is_in_module(&self, functions: &Functions, frame: &Frame) -> bool {
        let Some((_, symbol)) = functions.find(call_of(frame)) else { return false };
        let name = symbol.object.trim_matches(['[', ']']);
        self.modules_then.as_ref().is_some_and(|modules| {
            modules.split(|byte| *byte == b'\n').any(|line| {
                line.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b' '))
            })
        })
    }

    fn name(&mut self, blazesym: &Blazesym, address: u64) -> Resolved {
        match &self.functions {
            Err(error) => Resolved::Unknown(Unknown::Unreadable(VMLINUX.into(), error.to_string())),
            Ok(functions) if functions.are_hidden => Resolved::Unknown(Unknown::KernelHidden),
            Ok(functions) => {
                // Where a module has gone, its neighbour's last function does not reach.
                let found = [functions.find(address), self.gone.find(address)];
                let nearest = found.into_iter().flatten().max_by_key(|(entry, _)| entry.address);
                let Some((_, symbol)) = nearest else {
                    return Resolved::Unknown(Unknown::NoSymbol(VMLINUX.into()));
                };
                Resolved::Known(match symbol.object == VMLINUX {
                    true => self.lines.in_vmlinux(blazesym, symbol, address, self.landmark),
                    false => self.lines.in_module(symbol, address),
                })
            }
        }
    }
}

/// The call lies before its return address.
fn call_of(frame: &Frame) -> u64 {
    frame.address.wrapping_sub(1)
}

impl Functions {
    fn read(path: &PathBuf) -> io::Result<Self> {
        let mut functions = Self { objects: vec![VMLINUX.to_owned()], ..Self::default() };
        let mut reader = BufReader::with_capacity(1 << 16, File::open(path)?);
        let mut line = String::new();
        while reader.read_line(&mut line)? != 0 {
            functions.add(&line);
            line.clear();
        }
        functions.entries.sort_unstable_by_key(|entry| (entry.address, entry.rank));
        functions.entries.dedup_by_key(|entry| entry.address);
        functions.are_hidden &= functions.entries.is_empty();
        Ok(functions)
    }

    /// Adds the functions of those objects of another table that `wanted` accepts.
    fn take_in(&mut self, other: &Self, wanted: impl Fn(&str) -> bool) {
        for entry in &other.entries {
            let start = entry.name_start as usize;
            let name = other.names.get(start..start + usize::from(entry.name_bytes));
            let object = other.objects.get(usize::from(entry.object));
            let (Some(name), Some(object)) = (name, object.filter(|object| wanted(object))) else {
                continue;
            };
            let (Ok(name_start), Some(object)) =
                (u32::try_from(self.names.len()), self.object(object))
            else {
                return;
            };
            self.names.push_str(name);
            self.entries.push(Entry { object, name_start, ..*entry });
        }
        // A module that takes the place of an older one hides it.
        self.entries.sort_by_key(|entry| entry.address);
        self.entries.reverse();
        self.entries.dedup_by_key(|entry| entry.address);
        self.entries.reverse();
    }

    /// Takes `address type name [module]`; data, and what is no such line, is passed over.
    fn add(&mut self, line: &str) {
        let mut parts = line.split_ascii_whitespace();
        let (Some(address), Some(kind), Some(name)) = (parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        let rank = match kind {
            // Of several names the global one is the kernel's own; linker scripts name the
            // beginning of sections so as well (`_stext`).
            "T" if !is_of_linker(name) => 0,
            "t" => 1,
            "W" | "w" => 2,
            "T" => 3,
            _ => return,
        };
        let Ok(address) = u64::from_str_radix(address, 16) else { return };
        if address == 0 {
            self.are_hidden = true;
            return;
        }
        let Ok(name_start) = u32::try_from(self.names.len()) else { return };
        let (Some(object), Ok(name_bytes)) =
            (self.object(parts.next().unwrap_or(VMLINUX)), u16::try_from(name.len()))
        else {
            return;
        };
        self.names.push_str(name);
        self.entries.push(Entry { address, rank, object, name_bytes, name_start });
    }

    /// Number of an object; symbols of one module follow one another.
    fn object(&mut self, name: &str) -> Option<u16> {
        let known = self.objects.iter().rposition(|object| object == name);
        let index = known.unwrap_or_else(|| {
            self.objects.push(name.to_owned());
            self.objects.len() - 1
        });
        u16::try_from(index).ok()
    }

    /// Where the kernel's own function of this name lies.
    fn address(&self, name: &str) -> Option<u64> {
        let found = self.entries.iter().find(|entry| {
            let start = entry.name_start as usize;
            entry.object == 0
                && self.names.get(start..start + usize::from(entry.name_bytes)) == Some(name)
        });
        found.map(|entry| entry.address)
    }

    fn find(&self, address: u64) -> Option<(Entry, Symbol)> {
        let next = self.entries.partition_point(|entry| entry.address <= address);
        let entry = *self.entries.get(next.checked_sub(1)?)?;
        let is_last = self.entries.get(next).is_none_or(|next| next.object != entry.object);
        let offset = address - entry.address;
        let start = entry.name_start as usize;
        let name = self.names.get(start..start + usize::from(entry.name_bytes))?;
        // Behind the end of the kernel's text comes nothing that can be called.
        if is_last && offset >= LAST_FUNCTION_BYTES || matches!(name, "_etext" | "_einittext") {
            return None;
        }
        let symbol = Symbol {
            name: name.to_owned(),
            offset,
            object: self.objects.get(usize::from(entry.object))?.clone(),
            file: None,
            line: None,
            inlined: false,
        };
        Some((entry, symbol))
    }
}

/// Names that the kernel's linker script gives to places (include/asm-generic/vmlinux.lds.h).
fn is_of_linker(name: &str) -> bool {
    matches!(name, "_text" | "_stext" | "_etext" | "_sinittext" | "_einittext")
        || name.starts_with("__") && (name.ends_with("_start") || name.ends_with("_end"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Place;

    const KALLSYMS: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000000 t first_local
ffffffff81000000 T first
ffffffff81000100 d data_in_between
ffffffff81000200 T second
ffffffff81001000 T _etext
ffffffffc0100000 t drv_open\t[drv]
ffffffffc0100040 t drv_close\t[drv]
ffffffffc0200000 t bpf_prog_1\t[bpf]
";

    struct Host {
        directory: tempfile::TempDir,
        kernel: Kernel,
    }

    impl Host {
        fn new(kallsyms: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = |name| directory.path().join(name);
            let kernel = Kernel::new(path("kallsyms"), path("modules"), KernelLines::new(&[]));
            let host = Self { directory, kernel };
            host.write("kallsyms", kallsyms);
            host
        }

        fn write(&self, file: &str, text: &str) {
            fs::write(self.directory.path().join(file), text).unwrap();
        }

        /// The name of what calls and comes back to `address`, as a person reads it.
        fn ask(&mut self, address: u64) -> String {
            let frame = Frame { address, place: Place::Kernel };
            match self.kernel.resolve(&Blazesym::new(), &[frame]).pop().unwrap().1 {
                Resolved::Known(symbols) => symbols
                    .iter()
                    .map(|symbol| format!("{}+{} {}", symbol.name, symbol.offset, symbol.object))
                    .collect(),
                Resolved::Unknown(unknown) => unknown.reason(),
            }
        }
    }

    #[test]
    fn the_call_is_named_and_not_what_follows_it() {
        let mut host = Host::new(KALLSYMS);
        assert_eq!(host.ask(0xffff_ffff_8100_0101), "first+256 vmlinux");
        // The last instruction of `first` is a call that never comes back.
        assert_eq!(host.ask(0xffff_ffff_8100_0200), "first+511 vmlinux");
        assert_eq!(host.ask(0xffff_ffff_8100_0201), "second+0 vmlinux");
    }

    #[test]
    fn an_address_outside_all_functions_has_no_name() {
        let mut host = Host::new(KALLSYMS);
        let none = "no symbol there";
        assert_eq!(host.ask(0xffff_ffff_8100_0000), none);
        assert_eq!(host.ask(0xffff_ffff_8100_2000), none);
        assert_eq!(host.ask(0xffff_ffff_c018_0000), none);
        assert_eq!(host.ask(0), none);
    }

    #[test]
    fn functions_of_modules_say_so() {
        let mut host = Host::new(KALLSYMS);
        assert_eq!(host.ask(0xffff_ffff_c010_0011), "drv_open+16 [drv]");
        assert_eq!(host.ask(0xffff_ffff_c010_0051), "drv_close+16 [drv]");
        assert_eq!(host.ask(0xffff_ffff_c020_0011), "bpf_prog_1+16 [bpf]");
    }

    /// A module that was loaded after the first look gets its own names.
    #[test]
    fn modules_that_come_later_are_seen() {
        let mut host = Host::new(KALLSYMS);
        host.write("modules", "drv 4096 0 - Live 0xffffffffc0100000\n");
        assert_eq!(host.ask(0xffff_ffff_c010_0051), "drv_close+16 [drv]");
        let later = format!("{KALLSYMS}ffffffffc0101000 t other_open\t[other]\n");
        host.write("kallsyms", &later);
        // Nothing tells of a change yet, and `drv` is in the list.
        assert_eq!(host.ask(0xffff_ffff_c010_1011), "drv_close+4048 [drv]");
        host.write("modules", "other 1 0 - Live 0x0\ndrv 4096 0 - Live 0xffffffffc0100000\n");
        assert_eq!(host.ask(0xffff_ffff_c010_1011), "other_open+16 [other]");
        host.write("kallsyms", &format!("{later}ffffffffc0200100 t bpf_prog_2\t[bpf]\n"));
        assert_eq!(host.ask(0xffff_ffff_c020_0111), "bpf_prog_2+16 [bpf]");
    }

    /// With kernel.kptr_restrict every address reads as 0.
    #[test]
    fn hidden_addresses_are_said_to_be_hidden() {
        let mut host = Host::new("0000000000000000 T first\n0000000000000000 t second\n");
        let hidden = "kernel addresses are hidden (kernel.kptr_restrict)";
        assert_eq!(host.ask(0xffff_ffff_8100_0101), hidden);
    }

    #[test]
    fn an_unreadable_file_is_the_reason() {
        let mut host = Host::new(KALLSYMS);
        fs::remove_file(host.directory.path().join("kallsyms")).unwrap();
        let reason = host.ask(0xffff_ffff_8100_0101);
        assert_eq!(reason, "the file cannot be read: No such file or directory (os error 2)");
    }

    /// Functions of the running kernel whose names nobody shares are found by their addresses.
    #[test]
    fn the_running_kernel_is_read() {
        let text = fs::read_to_string("/proc/kallsyms").unwrap();
        let mut kernel = Kernel::running(&[]);
        for wanted in ["kfree", "vfs_read", "do_exit"] {
            let line = text.lines().find(|line| line.ends_with(&format!(" T {wanted}"))).unwrap();
            let address = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
            let frame = Frame { address: address + 5, place: Place::Kernel };
            let (_, resolved) = kernel.resolve(&Blazesym::new(), &[frame]).pop().unwrap();
            if address == 0 {
                assert_eq!(resolved, Resolved::Unknown(Unknown::KernelHidden));
                continue;
            }
            let Resolved::Known(symbols) = resolved else { panic!("{wanted}: {resolved:?}") };
            let symbol = symbols.first().unwrap();
            assert_eq!(
                (symbol.name.as_str(), symbol.offset, symbol.object.as_str()),
                (wanted, 4, VMLINUX)
            );
        }
    }

    /// A name that nobody asked for while its module was there; no neighbour takes its place.
    #[test]
    fn a_module_that_has_gone_keeps_its_names() {
        let mut host = Host::new(KALLSYMS);
        host.write("modules", "drv 1 0 - Live 0xffffffffc0100000\n");
        host.kernel.refresh();
        let without: String = KALLSYMS
            .lines()
            .filter(|line| !line.contains("[drv]"))
            .map(|l| format!("{l}\n"))
            .collect();
        let neighbour = "ffffffffc00ff000 t near_open\t[near]\n";
        host.write("kallsyms", &(without + neighbour));
        host.write("modules", "near 1 0 - Live 0xffffffffc00ff000\n");
        assert_eq!(host.ask(0xffff_ffff_c010_0045), "drv_close+4 [drv]");
        assert_eq!(host.ask(0xffff_ffff_c00f_f005), "near_open+4 [near]");
    }
}
