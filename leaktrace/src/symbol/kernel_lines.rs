//! File, line and inlined functions of kernel frames, where the debug information of the running
//! kernel or of the loaded modules is at hand.

use std::{collections::HashMap, fs::File, path::PathBuf, sync::Arc};

use blazesym::symbolize::{
    Input, Symbolized, Symbolizer as Blazesym,
    source::{Elf, Source},
};
use object::{Object as _, ObjectSymbol as _, read::ReadCache};

use super::{
    convert,
    module_lines::{Line, ModuleLines},
};
use crate::{
    host::debug_files,
    snapshot::{Module, Resolved, Symbol},
};

/// A function that every kernel exports exactly once. Its address shows by how much the kernel was
/// moved when it started (`CONFIG_RANDOMIZE_BASE`).
pub(super) const LANDMARK: &str = "kfree";

/// Looks up lines; files are read when first needed.
#[derive(Debug)]
pub(super) struct KernelLines {
    sysfs: PathBuf,
    /// Directories with files of modules and kernels, besides those of packages.
    folders: Vec<PathBuf>,
    release: String,
    vmlinux: Option<Option<Vmlinux>>,
    /// The lines of each load of a module that was looked up, if there are any.
    modules: Vec<(Arc<Module>, Option<ModuleLines>)>,
    /// The files of modules, by the modules' names, and how many loads there were when the files
    /// were listed.
    files: Option<(usize, HashMap<String, Vec<PathBuf>>)>,
}

/// The file of the kernel proper.
#[derive(Debug)]
struct Vmlinux {
    path: PathBuf,
    /// The address of [`LANDMARK`] in the file.
    landmark: u64,
}

impl KernelLines {
    /// Looks up lines of the running kernel; `folders` hold more files, anywhere below them.
    pub(super) fn new(folders: &[PathBuf]) -> Self {
        let release = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        Self {
            sysfs: "/sys".into(),
            folders: folders.to_vec(),
            release,
            vmlinux: None,
            modules: Vec::new(),
            files: None,
        }
    }

    /// The functions at an address of a module, inlined ones first. `symbol` is what is known
    /// without debug information, and `loads` is how many loads of modules have been seen.
    pub(super) fn in_module(
        &mut self,
        symbol: Symbol,
        module: &Arc<Module>,
        loads: usize,
        address: u64,
    ) -> Vec<Symbol> {
        let Some(build_id) = &module.build_id else { return vec![symbol] };
        // Kept alive by the key, so that no other module can have its address.
        let known = self.modules.iter().position(|(known, _)| Arc::ptr_eq(known, module));
        let index = known.unwrap_or_else(|| {
            // One that has come since may have been built since.
            if self.files.as_ref().is_none_or(|(listed, _)| *listed != loads) {
                self.files = Some((loads, debug_files::modules(&self.folders, &self.release)));
            }
            let files = self.files.as_ref().map(|(_, files)| files);
            let files = files.and_then(|files| files.get(&module.name));
            let named = files.into_iter().flatten().cloned();
            let mut files = debug_files::by_id(&self.folders, build_id).chain(named);
            let lines = files.find_map(|path| {
                ModuleLines::read(&path, build_id, &module.sections).ok().flatten()
            });
            self.modules.push((Arc::clone(module), lines));
            self.modules.len() - 1
        });
        let lines = self.modules.get(index).and_then(|(_, lines)| lines.as_ref());
        let found = lines.map(|lines| lines.find(address)).unwrap_or_default();
        if found.is_empty() { vec![symbol] } else { with_lines(symbol, found) }
    }

    /// The functions at an address of the kernel proper. `landmark` is the address of [`LANDMARK`]
    /// in the running kernel.
    pub(super) fn in_vmlinux(
        &mut self,
        blazesym: &Blazesym,
        symbol: Symbol,
        address: u64,
        landmark: Option<u64>,
    ) -> Vec<Symbol> {
        let vmlinux = self.vmlinux.get_or_insert_with(|| {
            let notes = self.sysfs.join("kernel/notes");
            read_vmlinux(debug_files::vmlinux(&notes, &self.folders, &self.release)?)
        });
        let (Some(vmlinux), Some(landmark)) = (vmlinux, landmark) else { return vec![symbol] };
        let linked_at = address.wrapping_sub(landmark).wrapping_add(vmlinux.landmark);
        let source = Source::Elf(Elf::new(&vmlinux.path));
        let found = blazesym.symbolize_single(&source, Input::VirtOffset(linked_at));
        let Ok(Symbolized::Sym(found)) = found else { return vec![symbol] };
        let Resolved::Known(found) = convert(&found, &symbol.object) else { return vec![symbol] };
        let lines = found
            .into_iter()
            .map(|found| Line { function: found.name, file: found.file, line: found.line })
            .collect();
        with_lines(symbol, lines)
    }
}

/// `symbol` with its line, and before it the functions inlined into it. The name in `symbol` stays.
fn with_lines(symbol: Symbol, mut lines: Vec<Line>) -> Vec<Symbol> {
    let Some(outermost) = lines.pop() else { return vec![symbol] };
    let mut symbols: Vec<Symbol> = lines
        .into_iter()
        .map(|line| Symbol {
            name: line.function,
            linkage: None,
            offset: 0,
            object: symbol.object.clone(),
            file: line.file,
            line: line.line,
            inlined: true,
        })
        .collect();
    symbols.push(Symbol { file: outermost.file, line: outermost.line, ..symbol });
    symbols
}

/// Opens the kernel's file and finds the landmark in it.
fn read_vmlinux(path: PathBuf) -> Option<Vmlinux> {
    let cache = ReadCache::new(File::open(&path).ok()?);
    let file = object::File::parse(&cache).ok()?;
    let mut symbols = file.symbols();
    let landmark = symbols.find(|symbol| symbol.name() == Ok(LANDMARK) && symbol.is_global())?;
    Some(Vmlinux { landmark: landmark.address(), path })
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use object::ObjectSection as _;

    use super::*;
    use crate::host::module_code;

    /// The compiler inlines `helper` into `caller`, which calls it on line 5.
    const SOURCE: &str = "\
void kfree(void *block) { (void)block; }
__attribute__((noinline)) void *allocate(int size) { __asm__ volatile(\"\"); return (void *)(long)size; }
static inline __attribute__((always_inline)) void *helper(int size) { return (char *)allocate(size) + 1; }
__attribute__((noinline, section(\".text.unlikely\"))) void *caller(int size) {
    return (char *)helper(size) + 2;
}
void _start(void) { kfree(caller(1)); }
";

    /// A host with one object, which is either its kernel or its module.
    struct Host {
        directory: tempfile::TempDir,
        build_id: Vec<u8>,
        /// Linked address of `caller`, and of the code behind its call.
        caller: u64,
        landmark: u64,
    }

    impl Host {
        /// Compiles the source and links it with these flags to `file`.
        fn new(file: &str, flags: &[&str]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = |name: &str| directory.path().join(name);
            fs::write(path("source.c"), SOURCE).unwrap();
            fs::create_dir_all(path("files/below")).unwrap();
            let status = Command::new("cc")
                .args(["-g", "-O2", "-ffreestanding", "-nostdlib", "-Wl,--build-id=sha1"])
                .args(["-fcf-protection=none", "-o"])
                .arg(path("files").join(file))
                .arg(path("source.c"))
                .args(flags)
                .status()
                .unwrap();
            assert!(status.success());
            let data = fs::read(path("files").join(file)).unwrap();
            let object = object::File::parse(data.as_slice()).unwrap();
            let symbol = |name| {
                let found = object.symbols().find(|symbol| symbol.name() == Ok(name));
                found.unwrap().address()
            };
            let notes = object.section_by_name(".note.gnu.build-id").unwrap().data().unwrap();
            fs::create_dir_all(path("sys/kernel")).unwrap();
            fs::create_dir_all(path("sys/module/drv/notes")).unwrap();
            fs::create_dir_all(path("sys/module/drv/sections")).unwrap();
            fs::write(path("sys/kernel/notes"), notes).unwrap();
            fs::write(path("sys/module/drv/notes/.note.gnu.build-id"), notes).unwrap();
            let build_id = object.build_id().unwrap().unwrap().to_vec();
            let (caller, landmark) = (symbol("caller"), symbol("kfree"));
            Self { build_id, caller, landmark, directory }
        }

        fn section(&self, name: &str, address: &str) {
            let sections = self.directory.path().join("sys/module/drv/sections");
            fs::write(sections.join(name), format!("{address}\n")).unwrap();
        }

        fn lines(&self) -> KernelLines {
            let mut lines = KernelLines::new(&[self.directory.path().join("files")]);
            lines.sysfs = self.directory.path().join("sys");
            lines
        }
    }

    fn symbol(object: &str) -> Symbol {
        Symbol {
            name: "caller.isra.0".into(),
            linkage: None,
            offset: 1,
            object: object.into(),
            file: None,
            line: None,
            inlined: false,
        }
    }

    /// Symbols in short form; files stand without their directories.
    fn shown(symbols: &[Symbol]) -> Vec<String> {
        let show = |symbol: &Symbol| {
            let file = symbol.file.as_ref().map(|file| file.rsplit('/').next().unwrap().to_owned());
            let kind = if symbol.inlined { "inlined" } else { "real" };
            format!("{} {file:?}:{:?} {kind}", symbol.name, symbol.line)
        };
        symbols.iter().map(show).collect()
    }

    const FOUND: [&str; 2] = [
        "helper Some(\"source.c\"):Some(3) inlined",
        "caller.isra.0 Some(\"source.c\"):Some(5) real",
    ];
    const NOT_FOUND: [&str; 1] = ["caller.isra.0 None:None real"];

    /// An address inside the call, found by the bytes of the code (`e8`).
    fn call_in(host: &Host, file: &str, section: &str) -> u64 {
        let data = fs::read(host.directory.path().join("files").join(file)).unwrap();
        let object = object::File::parse(data.as_slice()).unwrap();
        let section = object.section_by_name(section).unwrap();
        let start = host.caller - section.address();
        let code = &section.data().unwrap()[usize::try_from(start).unwrap()..];
        let call = code.iter().position(|byte| *byte == 0xe8).unwrap() as u64;
        host.caller + call + 4
    }

    /// The module of the host as it is loaded now.
    fn loaded(host: &Host) -> Arc<Module> {
        let folder = host.directory.path().join("sys/module");
        let (sections, build_id) = module_code::sections(&folder, "drv");
        Arc::new(Module { name: "drv".into(), build_id, sections, ..Module::default() })
    }

    #[test]
    fn each_load_of_a_module_has_its_lines() {
        let host = Host::new("below/drv.ko", &["-r"]);
        host.section(".text", "0xffffffffc0100000");
        host.section(".text.unlikely", "0xffffffffc0200000");
        let address = 0xffff_ffff_c020_0000 + call_in(&host, "below/drv.ko", ".text.unlikely");
        let first = loaded(&host);
        // Loaded again elsewhere: frames of both times have lines.
        host.section(".text.unlikely", "0xffffffffc0600000");
        let second = loaded(&host);
        let mut lines = host.lines();
        let mut ask = |module: &Arc<Module>, address| {
            shown(&lines.in_module(symbol("[drv]"), module, 2, address))
        };
        assert_eq!(ask(&first, address), FOUND);
        assert_eq!(ask(&first, address + 0x10_0000), NOT_FOUND);
        assert_eq!(ask(&second, address + 0x40_0000), FOUND);
        assert_eq!(ask(&second, address), NOT_FOUND);
        assert_eq!(ask(&Arc::default(), address), NOT_FOUND);
    }

    #[test]
    fn the_kernel_has_lines_wherever_it_was_moved() {
        let host = Host::new("vmlinux", &["-no-pie", "-static"]);
        let moved = 0x1234_5000;
        let address = call_in(&host, "vmlinux", ".text") + moved;
        let mut lines = host.lines();
        let blazesym = Blazesym::new();
        let mut ask = |address, landmark| {
            shown(&lines.in_vmlinux(&blazesym, symbol("vmlinux"), address, landmark))
        };
        assert_eq!(ask(address, Some(host.landmark + moved)), FOUND);
        assert_eq!(ask(address + 0x10_0000, Some(host.landmark + moved)), NOT_FOUND);
        assert_eq!(ask(address, None), NOT_FOUND);
    }

    /// Lines of another build would point to the wrong place.
    #[test]
    fn a_file_of_another_build_is_not_used() {
        let host = Host::new("drv.ko", &["-r"]);
        host.section(".text.unlikely", "0xffffffffc0200000");
        let notes = host.directory.path().join("sys/module/drv/notes/.note.gnu.build-id");
        let mut other = fs::read(&notes).unwrap();
        *other.last_mut().unwrap() ^= 1;
        fs::write(&notes, other).unwrap();
        let mut lines = host.lines();
        let address = 0xffff_ffff_c020_0000 + call_in(&host, "drv.ko", ".text.unlikely");
        let module = loaded(&host);
        assert_eq!(shown(&lines.in_module(symbol("[drv]"), &module, 1, address)), NOT_FOUND);

        let host = Host::new("vmlinux", &["-no-pie", "-static"]);
        let notes = host.directory.path().join("sys/kernel/notes");
        let mut other = fs::read(&notes).unwrap();
        *other.last_mut().unwrap() ^= 1;
        fs::write(&notes, other).unwrap();
        let found = debug_files::vmlinux(&notes, &[host.directory.path().join("files")], "none");
        assert!(found.is_none());
    }

    #[test]
    fn files_are_found_by_build_id() {
        let host = Host::new("vmlinux", &["-no-pie", "-static"]);
        let files = host.directory.path().join("files");
        let by_id =
            debug_files::by_id(std::slice::from_ref(&files), &host.build_id).next().unwrap();
        fs::create_dir_all(by_id.parent().unwrap()).unwrap();
        fs::rename(files.join("vmlinux"), &by_id).unwrap();
        let notes = host.directory.path().join("sys/kernel/notes");
        assert_eq!(debug_files::vmlinux(&notes, &[files], "none"), Some(by_id));
    }
}
