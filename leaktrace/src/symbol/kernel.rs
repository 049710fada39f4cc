//! Names of kernel functions. Those of the kernel proper, and of code made at run time, come from
//! /proc/kallsyms. Those of modules come from the snapshot, which has them from the time of the
//! load.
//!
//! blazesym reads kallsyms as well, but only once; it mixes data symbols with functions, and knows
//! neither the modules of functions nor the end of the last one (0.2.7). So code that is gone would
//! get its neighbour's name, and any address behind all functions would get a name at all.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::PathBuf,
};

use blazesym::symbolize::Symbolizer as Blazesym;

use super::kernel_lines::{KernelLines, LANDMARK};
use crate::{
    host::bpf_code,
    snapshot::{Frame, Place, Resolved, Snapshot, Symbol, Unknown},
};

/// The object name of the kernel proper.
const VMLINUX: &str = "vmlinux";

/// Names that kallsyms shows as modules and that are none: code made at run time
/// (kernel/kallsyms.c, 6.1 and 6.18).
const MADE: [&str; 3] = ["[bpf]", "[__builtin__ftrace]", "[__builtin__kprobes]"];

/// Most bytes of a trampoline or of a copied instruction: a page (arch/x86/net/bpf_jit_comp.c,
/// kernel/kprobes.c, 6.1 and 6.18). BPF programs may be longer; the kernel shows their lengths.
const MADE_BYTES: u64 = 4096;

/// The running kernel's functions; read when first needed, and again for code made since then.
#[derive(Debug)]
pub(super) struct Kernel {
    kallsyms: PathBuf,
    /// Reads where BPF programs lie.
    programs: fn() -> Vec<(u64, u64)>,
    functions: Option<io::Result<Functions>>,
    lines: KernelLines,
    /// The address of [`LANDMARK`] in the running kernel.
    landmark: Option<u64>,
}

/// Functions by address.
#[derive(Debug, Default)]
struct Functions {
    entries: Vec<Entry>,
    /// The functions' names, one behind the other.
    names: String,
    /// Start and end of BPF programs, by address.
    programs: Vec<(u64, u64)>,
    /// Whether there are functions, but the kernel shows address 0 for all of them.
    are_hidden: bool,
}

/// One function, in 24 bytes, as there are a hundred thousand functions.
#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    /// The rank of the name; of the names of one address, the one with the lowest rank is shown.
    rank: u8,
    /// 0 for the kernel proper; else the number of an entry of [`MADE`], counted from 1.
    object: u8,
    name_bytes: u16,
    name_start: u32,
}

impl Kernel {
    /// The running kernel; `folders` hold debug information, besides the directories of packages.
    pub(super) fn running(folders: &[PathBuf]) -> Self {
        Self::new("/proc/kallsyms".into(), bpf_code::ranges, KernelLines::new(folders))
    }

    fn new(kallsyms: PathBuf, programs: fn() -> Vec<(u64, u64)>, lines: KernelLines) -> Self {
        Self { kallsyms, programs, functions: None, lines, landmark: None }
    }

    fn read(&mut self) {
        let functions = Functions::read(&self.kallsyms, self.programs);
        self.landmark = functions.as_ref().ok().and_then(|known| known.address(LANDMARK));
        self.functions = Some(functions);
    }

    /// Names kernel frames.
    pub(super) fn resolve(
        &mut self,
        blazesym: &Blazesym,
        snapshot: &Snapshot,
        frames: &[Frame],
    ) -> Vec<(Frame, Resolved)> {
        // BPF programs and trampolines come and go.
        let is_made = |functions: &Functions, frame: &Frame| {
            let known = functions.find(call_of(frame));
            frame.place == Place::Kernel && known.is_none_or(|symbol| symbol.object != VMLINUX)
        };
        let may_be_newer = match &self.functions {
            None => true,
            Some(Err(_)) => false,
            Some(Ok(functions)) => frames.iter().any(|frame| is_made(functions, frame)),
        };
        if may_be_newer {
            self.read();
        }
        let name = |frame: &Frame| {
            let found = match frame.place {
                Place::Module { load } => self.in_module(snapshot, load, call_of(frame)),
                _ => self.name(blazesym, call_of(frame)),
            };
            (*frame, found)
        };
        frames.iter().map(name).collect()
    }

    fn in_module(&mut self, snapshot: &Snapshot, load: u32, address: u64) -> Resolved {
        let Some(module) = snapshot.modules.get(load as usize) else {
            return Resolved::Unknown(Unknown::Unloaded(None));
        };
        let object = format!("[{}]", module.name);
        let Some((begins, name)) = module.function(address) else {
            // The code of its init comes second, and goes when that has run.
            let of_init =
                !module.text.first().is_some_and(|(start, end)| (*start..*end).contains(&address));
            let has_gone = of_init || snapshot.gone_modules.contains(&load);
            return Resolved::Unknown(match has_gone {
                true => Unknown::Unloaded(Some(object)),
                false => Unknown::NoSymbol(object),
            });
        };
        let (name, offset) = (name.to_owned(), address - begins);
        let symbol =
            Symbol { name, linkage: None, offset, object, file: None, line: None, inlined: false };
        Resolved::Known(self.lines.in_module(symbol, module, snapshot.modules.len(), address))
    }

    fn name(&mut self, blazesym: &Blazesym, address: u64) -> Resolved {
        let functions = match &self.functions {
            Some(Ok(functions)) => functions,
            Some(Err(error)) => {
                let cause = error.to_string();
                return Resolved::Unknown(Unknown::Unreadable(VMLINUX.into(), cause));
            }
            None => return Resolved::Unknown(Unknown::NoSymbol(VMLINUX.into())),
        };
        if functions.are_hidden {
            return Resolved::Unknown(Unknown::KernelHidden);
        }
        match functions.find(address) {
            Some(symbol) if symbol.object == VMLINUX => {
                Resolved::Known(self.lines.in_vmlinux(blazesym, symbol, address, self.landmark))
            }
            Some(symbol) => Resolved::Known(vec![symbol]),
            None if functions.is_behind_kernel(address) => {
                Resolved::Unknown(Unknown::Unloaded(None))
            }
            None => Resolved::Unknown(Unknown::NoSymbol(VMLINUX.into())),
        }
    }
}

/// The address of the call, which lies before its return address.
fn call_of(frame: &Frame) -> u64 {
    frame.address.wrapping_sub(1)
}

impl Functions {
    fn read(path: &PathBuf, programs: fn() -> Vec<(u64, u64)>) -> io::Result<Self> {
        let mut functions = Self::default();
        let mut reader = BufReader::with_capacity(1 << 16, File::open(path)?);
        let mut line = String::new();
        while reader.read_line(&mut line)? != 0 {
            functions.add(&line);
            line.clear();
        }
        functions.entries.sort_unstable_by_key(|entry| (entry.address, entry.rank));
        functions.entries.dedup_by_key(|entry| entry.address);
        functions.are_hidden &= functions.entries.is_empty();
        if functions.entries.iter().any(|entry| entry.object != 0) {
            functions.programs = programs();
            functions.programs.sort_unstable();
        }
        Ok(functions)
    }

    /// Adds a line `address type name [module]`; passes over data, modules, and any other line.
    fn add(&mut self, line: &str) {
        let mut parts = line.split_ascii_whitespace();
        let (Some(address), Some(kind), Some(name)) = (parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        let object = match parts.next() {
            None => 0,
            Some(module) => match MADE.iter().zip(1..).find(|(made, _)| **made == module) {
                Some((_, number)) => number,
                None => return,
            },
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
        let Ok(name_bytes) = u16::try_from(name.len()) else { return };
        self.names.push_str(name);
        self.entries.push(Entry { address, rank, object, name_bytes, name_start });
    }

    fn name(&self, entry: &Entry) -> Option<&str> {
        let start = entry.name_start as usize;
        self.names.get(start..start + usize::from(entry.name_bytes))
    }

    /// The address of the kernel's own function of this name.
    fn address(&self, name: &str) -> Option<u64> {
        let is_it = |entry: &&Entry| entry.object == 0 && self.name(entry) == Some(name);
        self.entries.iter().find(is_it).map(|entry| entry.address)
    }

    /// Whether an address lies behind all functions of the kernel proper, where modules and code
    /// made at run time lie.
    fn is_behind_kernel(&self, address: u64) -> bool {
        let last = self.entries.iter().rev().find(|entry| entry.object == 0);
        // A call that nobody told comes back to 0.
        address != u64::MAX && last.is_some_and(|last| address >= last.address)
    }

    fn find(&self, address: u64) -> Option<Symbol> {
        let next = self.entries.partition_point(|entry| entry.address <= address);
        let entry = *self.entries.get(next.checked_sub(1)?)?;
        let offset = address - entry.address;
        let name = self.name(&entry)?;
        let is_in = match entry.object {
            // Behind the end of the kernel's text comes nothing that can be called.
            0 => !matches!(name, "_etext" | "_einittext"),
            _ => {
                let program = self.programs.binary_search_by_key(&entry.address, |(at, _)| *at);
                match program.ok().and_then(|at| self.programs.get(at)) {
                    Some((_, end)) => address < *end,
                    // Gone between the two looks, and nothing tells how long it was.
                    None if name.starts_with("bpf_prog_") => false,
                    None => offset < MADE_BYTES,
                }
            }
        };
        let object = match usize::from(entry.object).checked_sub(1) {
            None => VMLINUX,
            Some(made) => MADE.get(made)?,
        };
        is_in.then(|| Symbol {
            name: name.to_owned(),
            linkage: None,
            offset,
            object: object.to_owned(),
            file: None,
            line: None,
            inlined: false,
        })
    }
}

/// Whether the kernel's linker script gives this name to a place
/// (include/asm-generic/vmlinux.lds.h).
fn is_of_linker(name: &str) -> bool {
    matches!(name, "_text" | "_stext" | "_etext" | "_sinittext" | "_einittext")
        || name.starts_with("__") && (name.ends_with("_start") || name.ends_with("_end"))
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use super::*;
    use crate::snapshot::Module;

    const KALLSYMS: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000000 t first_local
ffffffff81000000 T first
ffffffff81000100 d data_in_between
ffffffff81000200 T second
ffffffff81001000 T _etext
ffffffffc0100000 t drv_open\t[drv]
ffffffffc0200000 t bpf_prog_1\t[bpf]
ffffffffc0201000 t bpf_trampoline_1\t[bpf]
ffffffffc0300000 t ftrace_trampoline\t[__builtin__ftrace]
";

    fn programs() -> Vec<(u64, u64)> {
        vec![(0xffff_ffff_c020_0000, 0xffff_ffff_c020_0100)]
    }

    struct Host {
        directory: tempfile::TempDir,
        kernel: Kernel,
        snapshot: Snapshot,
    }

    impl Host {
        fn new(kallsyms: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("kallsyms");
            let kernel = Kernel::new(path, programs, KernelLines::new(&[]));
            let snapshot = super::super::tests::snapshot(Vec::new(), Vec::new());
            let host = Self { directory, kernel, snapshot };
            host.write(kallsyms);
            host
        }

        fn write(&self, text: &str) {
            fs::write(self.directory.path().join("kallsyms"), text).unwrap();
        }

        /// The name of the function whose call returns to `address`, as a person reads it.
        fn ask(&mut self, address: u64) -> String {
            self.ask_in(address, Place::Kernel)
        }

        fn ask_in(&mut self, address: u64, place: Place) -> String {
            let frame = Frame::new(address, place);
            let found = self.kernel.resolve(&Blazesym::new(), &self.snapshot, &[frame]);
            match &found.first().unwrap().1 {
                Resolved::Known(symbols) => symbols
                    .iter()
                    .map(|symbol| format!("{}+{} {}", symbol.name, symbol.offset, symbol.object))
                    .collect(),
                Resolved::Unknown(unknown) => unknown.reason(),
            }
        }
    }

    const NONE: &str = "no symbol there";
    const GONE: &str = "code that has been unloaded";

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
        assert_eq!(host.ask(0xffff_ffff_8100_0000), NONE);
        assert_eq!(host.ask(0), NONE);
        assert_eq!(host.ask(0xffff_ffff_8100_2000), GONE);
        assert_eq!(host.ask(0xffff_ffff_c018_0000), GONE);
    }

    /// An address behind run-time code does not get the name of what lies before it.
    #[test]
    fn code_made_at_run_time_has_its_bounds() {
        let mut host = Host::new(KALLSYMS);
        assert_eq!(host.ask(0xffff_ffff_c020_0011), "bpf_prog_1+16 [bpf]");
        assert_eq!(host.ask(0xffff_ffff_c020_0101), GONE);
        assert_eq!(host.ask(0xffff_ffff_c020_1011), "bpf_trampoline_1+16 [bpf]");
        assert_eq!(host.ask(0xffff_ffff_c020_2001), GONE);
        assert_eq!(host.ask(0xffff_ffff_c030_0011), "ftrace_trampoline+16 [__builtin__ftrace]");
        assert_eq!(host.ask(0xffff_ffff_c030_1001), GONE);
    }

    #[test]
    fn code_made_later_is_seen() {
        let mut host = Host::new(&KALLSYMS.replace("bpf_prog_1", "bpf_other"));
        assert_eq!(host.ask(0xffff_ffff_c040_0011), GONE);
        host.write(&format!("{KALLSYMS}ffffffffc0400000 t bpf_trampoline_2\t[bpf]\n"));
        assert_eq!(host.ask(0xffff_ffff_c040_0011), "bpf_trampoline_2+16 [bpf]");
    }

    /// The load that a frame lies in decides its name, whatever lies there now.
    #[test]
    fn each_load_of_a_module_has_its_own_names() {
        let mut host = Host::new(KALLSYMS);
        let base = 0xffff_ffff_c010_0000;
        let load = |name: &str, function: &str| {
            let functions =
                if function.is_empty() { vec![] } else { vec![(base, function.into())] };
            let text = vec![(base, base + 0x100), (base + 0x1000, base + 0x1100)];
            Arc::new(Module { name: name.into(), text, functions, ..Module::default() })
        };
        host.snapshot.modules =
            vec![load("drv", "drv_open"), load("other", "other_open"), load("short", "")];
        host.snapshot.gone_modules = [0, 2].into();
        let mut ask = |address, load| host.ask_in(address, Place::Module { load });
        assert_eq!(ask(base + 0x11, 0), "drv_open+16 [drv]");
        assert_eq!(ask(base + 0x11, 1), "other_open+16 [other]");
        assert_eq!(ask(base + 0x11, 2), GONE);
        // The code of its init.
        assert_eq!(ask(base + 0x1011, 1), GONE);
    }

    /// With kernel.kptr_restrict, every address in kallsyms is 0.
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

    /// Finds functions of the running kernel with unique names by their addresses.
    #[test]
    fn the_running_kernel_is_read() {
        let text = fs::read_to_string("/proc/kallsyms").unwrap();
        let mut kernel = Kernel::running(&[]);
        let snapshot = super::super::tests::snapshot(Vec::new(), Vec::new());
        for wanted in ["kfree", "vfs_read", "do_exit"] {
            let line = text.lines().find(|line| line.ends_with(&format!(" T {wanted}"))).unwrap();
            let address = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
            let frame = Frame::new(address + 5, Place::Kernel);
            let (_, resolved) =
                kernel.resolve(&Blazesym::new(), &snapshot, &[frame]).pop().unwrap();
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
}
