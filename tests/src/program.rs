//! Compiles the test programs.

use std::{path::Path, path::PathBuf, process::Command, time::SystemTime};

use tempfile::TempDir;

use crate::binary::{target_dir, workspace};

/// Flags of every program in C and C++: frames that a frame-pointer walk sees whole, and each call a call.
const COMMON_FLAGS: &[&str] = &[
    "-g",
    "-O1",
    "-fno-omit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-fno-builtin",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror",
];

/// Code as distributions ship it: the stack can only be walked by call frame information. (Later
/// flags win.)
const UNWIND_FLAGS: &[&str] =
    &["-O2", "-fomit-frame-pointer", "-foptimize-sibling-calls", "-fbuiltin"];

/// A program or library and what it needs beyond the common flags.
struct Recipe {
    name: &'static str,
    source: &'static str,
    flags: &'static [&'static str],
}

const RECIPES: &[Recipe] = &[
    Recipe { name: "allocators", source: "allocators.cpp", flags: &[] },
    Recipe {
        name: "allocators-jemalloc",
        source: "allocators.cpp",
        flags: &["-DMALLOCX", "-ljemalloc"],
    },
    Recipe {
        name: "allocators-jemalloc-static",
        source: "allocators.cpp",
        flags: &["-DMALLOCX", "-static", "-ljemalloc"],
    },
    Recipe {
        name: "allocators-mimalloc",
        source: "allocators.cpp",
        flags: &["-DMIMALLOC", "-lmimalloc"],
    },
    Recipe { name: "allocators-musl", source: "allocators.c", flags: &[] },
    Recipe { name: "allocators-musl-static", source: "allocators.c", flags: &["-static"] },
    Recipe { name: "allocators-rust", source: "allocators.rs", flags: &["--edition=2024", "-O"] },
    Recipe { name: "allocators-static", source: "allocators.cpp", flags: &["-static"] },
    Recipe { name: "allocators-static-pie", source: "allocators.cpp", flags: &["-static-pie"] },
    Recipe {
        name: "allocators-tcmalloc",
        source: "allocators.cpp",
        flags: &["-DTCMALLOC", "-ltcmalloc_minimal"],
    },
    Recipe {
        name: "allocators-tcmalloc-static",
        source: "allocators.cpp",
        flags: &["-DTCMALLOC", "-static", "-ltcmalloc_minimal"],
    },
    Recipe { name: "chain", source: "chain.c", flags: UNWIND_FLAGS },
    // Static: probes that reach children reach every process that maps the same file.
    Recipe { name: "children", source: "children.c", flags: &["-fomit-frame-pointer", "-static"] },
    Recipe {
        name: "coroutines",
        source: "coroutines.c",
        flags: &["-O2", "-fomit-frame-pointer", "-fbuiltin", "-lboost_context"],
    },
    Recipe { name: "cpp", source: "cpp.cpp", flags: UNWIND_FLAGS },
    Recipe { name: "crowd", source: "crowd.c", flags: &["-fomit-frame-pointer"] },
    Recipe { name: "deep", source: "deep.c", flags: &[] },
    Recipe { name: "exact", source: "exact.c", flags: &[] },
    Recipe { name: "execer", source: "execer.c", flags: &[] },
    Recipe { name: "execer-static", source: "execer.c", flags: &["-static"] },
    Recipe { name: "family", source: "family.c", flags: &["-fomit-frame-pointer", "-static"] },
    Recipe { name: "forker", source: "forker.c", flags: &[] },
    Recipe { name: "freed", source: "freed.c", flags: &[] },
    Recipe { name: "grower", source: "grower.c", flags: &["-D_GNU_SOURCE"] },
    Recipe { name: "handles", source: "handles.c", flags: &["-lssl", "-lcrypto", "-lsqlite3"] },
    Recipe { name: "held", source: "held.c", flags: &["-D_GNU_SOURCE"] },
    Recipe { name: "heap", source: "heap.c", flags: &[] },
    Recipe { name: "hoards", source: "hoards.cpp", flags: UNWIND_FLAGS },
    Recipe { name: "hotloop", source: "hotloop.c", flags: &[] },
    Recipe { name: "keeps", source: "keeps.c", flags: &[] },
    Recipe { name: "kmaps", source: "kmaps.c", flags: &["-D_GNU_SOURCE"] },
    Recipe { name: "kobjects", source: "kobjects.c", flags: &[] },
    Recipe { name: "longjmp", source: "longjmp.c", flags: &[] },
    Recipe { name: "lost", source: "lost.c", flags: &[] },
    Recipe { name: "many", source: "many.c", flags: &[] },
    // Frame pointers, and no call frame information but that of the C library's start files.
    Recipe {
        name: "many-bare",
        source: "many.c",
        flags: &["-fno-asynchronous-unwind-tables", "-fno-unwind-tables"],
    },
    // No libc to be found in its mappings; its own malloc is in the executable.
    Recipe { name: "many-static", source: "many.c", flags: &["-static", "-s"] },
    Recipe { name: "mappings", source: "mappings.c", flags: &["-O2", "-fomit-frame-pointer"] },
    Recipe { name: "maze-c", source: "maze.c", flags: UNWIND_FLAGS },
    Recipe { name: "maze-cpp", source: "maze.cpp", flags: UNWIND_FLAGS },
    Recipe { name: "maze-rust", source: "maze.rs", flags: &["--edition=2024", "-O"] },
    Recipe { name: "neverfrees-musl-static", source: "neverfrees.c", flags: &["-static"] },
    Recipe { name: "newleaks", source: "newleaks.cpp", flags: &[] },
    Recipe { name: "paced", source: "paced.c", flags: &[] },
    Recipe { name: "pairs", source: "pairs.c", flags: &[] },
    Recipe { name: "pairs-cpp", source: "pairs.cpp", flags: &[] },
    Recipe { name: "pairs-hidden", source: "pairs.c", flags: &["-DHIDDEN"] },
    // Calls at the end of a function are jumps.
    Recipe { name: "pairs-jumping", source: "pairs.c", flags: UNWIND_FLAGS },
    Recipe { name: "pairs-static", source: "pairs.c", flags: &["-static"] },
    Recipe { name: "pairs-switching", source: "pairs.c", flags: &["-DSWITCHING"] },
    Recipe { name: "paths", source: "paths.c", flags: &[] },
    Recipe { name: "pipeloop", source: "pipeloop.c", flags: &[] },
    Recipe { name: "plugged", source: "plugged.c", flags: &["-fomit-frame-pointer"] },
    Recipe { name: "pool", source: "pool.c", flags: &[] },
    Recipe { name: "pool-static", source: "pool.c", flags: &["-static"] },
    Recipe { name: "quitter", source: "quitter.c", flags: &[] },
    Recipe { name: "reach", source: "reach.c", flags: &["-D_GNU_SOURCE"] },
    Recipe { name: "reach-jemalloc", source: "reach.c", flags: &["-D_GNU_SOURCE", "-ljemalloc"] },
    Recipe { name: "reach-mimalloc", source: "reach.c", flags: &["-D_GNU_SOURCE", "-lmimalloc"] },
    // musl has no makecontext.
    Recipe { name: "reach-musl", source: "reach.c", flags: &["-D_GNU_SOURCE", "-DNO_CONTEXT"] },
    Recipe {
        name: "reach-tcmalloc",
        source: "reach.c",
        flags: &["-D_GNU_SOURCE", "-ltcmalloc_minimal"],
    },
    Recipe { name: "renamed", source: "renamed.c", flags: &["-pthread"] },
    Recipe { name: "reused", source: "reused.c", flags: &[] },
    Recipe { name: "sampling", source: "sampling.c", flags: &[] },
    Recipe { name: "semantics", source: "semantics.c", flags: &[] },
    Recipe { name: "short", source: "short.c", flags: &[] },
    Recipe { name: "uring", source: "uring.c", flags: &[] },
    Recipe { name: "verdicts", source: "verdicts.c", flags: &[] },
];

const LIBRARIES: &[Recipe] = &[
    Recipe {
        name: "chainlib.so",
        source: "chainlib.c",
        flags: &["-O2", "-fomit-frame-pointer", "-fbuiltin", "-shared", "-fPIC"],
    },
    // The same source, but other code.
    Recipe {
        name: "chainplug.so",
        source: "chainlib.c",
        flags: &["-O1", "-fomit-frame-pointer", "-fbuiltin", "-fno-plt", "-shared", "-fPIC"],
    },
    Recipe { name: "ctorlib.so", source: "ctorlib.c", flags: &["-shared", "-fPIC"] },
    Recipe {
        name: "leaklib.so",
        source: "leaklib.c",
        flags: &["-fomit-frame-pointer", "-shared", "-fPIC"],
    },
];

/// The programs of the corpus of verdicts, whose sources are in `tests/corpus`.
const CORPUS: &[Recipe] = &[
    Recipe { name: "corpus-cpp", source: "cases.cpp", flags: &[] },
    Recipe { name: "corpus-glib", source: "glib.c", flags: &["-l:libglib-2.0.so.0"] },
    Recipe { name: "corpus-healthy", source: "healthy.c", flags: &["-lm"] },
    Recipe { name: "corpus-healthy-jemalloc", source: "healthy.c", flags: &["-lm", "-ljemalloc"] },
    Recipe { name: "corpus-healthy-musl-static", source: "healthy.c", flags: &["-static", "-lm"] },
    Recipe {
        name: "corpus-healthy-tcmalloc",
        source: "healthy.c",
        flags: &["-lm", "-ltcmalloc_minimal"],
    },
    Recipe { name: "corpus-kernel", source: "kernel.c", flags: &[] },
    Recipe { name: "corpus-leaky", source: "leaky.c", flags: &[] },
    Recipe { name: "corpus-leaky-jemalloc", source: "leaky.c", flags: &["-ljemalloc"] },
    Recipe { name: "corpus-leaky-musl-static", source: "leaky.c", flags: &["-static"] },
    Recipe { name: "corpus-leaky-tcmalloc", source: "leaky.c", flags: &["-ltcmalloc_minimal"] },
    Recipe { name: "corpus-library", source: "library.c", flags: &["-lcrypto"] },
    Recipe { name: "corpus-rust", source: "cases.rs", flags: &["--edition=2024", "-O"] },
];

/// Every program's name.
pub fn names() -> impl Iterator<Item = &'static str> {
    RECIPES.iter().map(|recipe| recipe.name)
}

/// Compiles a program into `target/test-programs` unless it is there and newer than its sources,
/// and returns its path.
///
/// # Panics
///
/// When there is no such program, or the compiler fails or says anything.
pub fn build_program(name: &str) -> PathBuf {
    build(RECIPES, "programs", name)
}

/// Compiles a program of the corpus, as [`build_program`] does a program.
///
/// # Panics
///
/// When there is no such program, or the compiler fails or says anything.
pub fn build_corpus(name: &str) -> PathBuf {
    build(CORPUS, "corpus", name)
}

/// A folder with a copy of a program, under the name `called`: a file that no other process maps.
///
/// # Panics
///
/// As [`build_program`], or when it cannot be copied.
pub fn private_copy(name: &str, called: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap_or_else(|error| panic!("{error}"));
    let copy = folder.path().join(called);
    let source = build_program(name);
    std::fs::copy(&source, &copy).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    (folder, copy)
}

/// Compiles a shared library, as [`build_program`] does a program.
///
/// # Panics
///
/// When there is no such library, or the compiler fails or says anything.
pub fn build_library(name: &str) -> PathBuf {
    build(LIBRARIES, "programs", name)
}

/// `home` is the folder of `tests` with the source.
fn build(recipes: &[Recipe], home: &str, name: &str) -> PathBuf {
    let Some(recipe) = recipes.iter().find(|recipe| recipe.name == name) else {
        let names: Vec<&str> = recipes.iter().map(|recipe| recipe.name).collect();
        panic!("nothing to compile is called {name:?}; there are {names:?}")
    };
    let tests = workspace().join("tests");
    let sources = tests.join(home);
    let folder = target_dir().join("test-programs");
    let program = folder.join(name);
    // The corpus takes headers of the programs.
    let newest = newest_source(&sources).max(newest_source(&tests.join("programs")));
    if modified(&program) > newest {
        return program;
    }
    std::fs::create_dir_all(&folder)
        .unwrap_or_else(|error| panic!("cannot create {}: {error}", folder.display()));

    // Two test binaries may build at once: each links under a name of its own.
    let scratch = folder.join(format!("{name}.{}", std::process::id()));
    let (compiler, common) = match recipe.source.rsplit('.').next() {
        Some("rs") => (rustc(), &[][..]),
        Some("cpp") => ("g++".into(), COMMON_FLAGS),
        _ if name.contains("-musl") => ("musl-gcc".into(), COMMON_FLAGS),
        _ => ("gcc".into(), COMMON_FLAGS),
    };
    let mut command = Command::new(&compiler);
    // Libraries behind what needs them.
    let (libraries, flags): (Vec<&str>, Vec<&str>) =
        recipe.flags.iter().partition(|flag| flag.starts_with("-l"));
    command.args(common).args(flags).arg(sources.join(recipe.source)).args(libraries);
    command.arg("-o").arg(&scratch);
    let output = command.output().unwrap_or_else(|error| {
        panic!("cannot start {} (is it installed?): {error}", compiler.display())
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{command:?}\n{}\n{said}", output.status);
    std::fs::rename(&scratch, &program)
        .unwrap_or_else(|error| panic!("cannot rename {}: {error}", scratch.display()));
    program
}

/// Builds the package in a folder of `tests/programs` with cargo, in `target/test-programs`, and
/// returns the path of its program.
///
/// # Panics
///
/// When cargo fails.
pub fn build_package(folder: &str, program: &str) -> PathBuf {
    let target = target_dir().join("test-programs").join(folder);
    let built = target.join("release").join(program);
    let package = workspace().join("tests/programs").join(folder);
    if modified(&built) > newest_source(&workspace().join("tests/programs")) {
        return built;
    }
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--release", "--locked", "--quiet"]).current_dir(package);
    command.env("CARGO_TARGET_DIR", &target);
    let output = command.output().unwrap_or_else(|error| panic!("cannot start cargo: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{}\n{said}", output.status);
    // What cargo left as it was is as new as its sources all the same.
    let file = std::fs::File::open(&built).and_then(|file| file.set_modified(SystemTime::now()));
    file.unwrap_or_else(|error| panic!("{}: {error}", built.display()));
    built
}

/// The compiler beside the cargo that built this, which need not be the first in PATH.
fn rustc() -> PathBuf {
    let beside = Path::new(env!("CARGO")).with_file_name("rustc");
    if beside.is_file() { beside } else { "rustc".into() }
}

/// When a file was last written; the beginning of time if it is not there.
fn modified(path: &Path) -> SystemTime {
    path.metadata().and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The newest of all sources (a header belongs to several programs) and of this file's table.
fn newest_source(folder: &Path) -> SystemTime {
    let entries = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
    let sources = entries.flatten().map(|entry| modified(&entry.path())).max();
    let table = modified(&workspace().join("tests/src/program.rs"));
    sources.unwrap_or(SystemTime::UNIX_EPOCH).max(table)
}
