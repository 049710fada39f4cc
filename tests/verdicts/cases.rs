//! The corpus: which programs run, and what is true of each.

/// How a case is started.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// A program of `tests/corpus`, with the name of one of its cases.
    Program(&'static str, &'static str),
    /// A case of `tests/corpus/cases.py`.
    Python(&'static str),
    /// `tests/corpus/loop.pl`.
    Perl,
    /// redis-server, under a bounded load.
    Redis,
    /// nginx, under requests.
    Nginx,
    /// sqlite3, with a table in memory that rows enter and leave.
    Sqlite,
}

/// A call site that leaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leak {
    /// The function that allocates what is forgotten.
    pub(crate) function: &'static str,
    /// How it leaks, in the words of a report.
    pub(crate) class: &'static str,
}

/// A program with a known truth.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) start: Start,
    /// Its leaks; a healthy program has none. Every other site of the program is healthy.
    pub(crate) leaks: &'static [Leak],
    /// What it does, for the table.
    pub(crate) what: &'static str,
}

impl Case {
    pub(crate) fn is_healthy(&self) -> bool {
        self.leaks.is_empty()
    }

    /// Whether it leaks only once: nothing of that shows in its growth, so that only a search for
    /// lost blocks can tell it from what is in use.
    pub(crate) fn is_bounded(&self) -> bool {
        self.leaks.iter().any(|leak| leak.class == "one-time")
    }
}

const fn healthy(name: &'static str, start: Start, what: &'static str) -> Case {
    Case { name, start, leaks: &[], what }
}

/// A healthy case of `healthy.c`.
const fn fine(name: &'static str, what: &'static str) -> Case {
    healthy(name, Start::Program("corpus-healthy", name), what)
}

const fn leaky(
    name: &'static str,
    start: Start,
    leaks: &'static [Leak],
    what: &'static str,
) -> Case {
    Case { name, start, leaks, what }
}

/// A case of `leaky.c`.
const fn leaks(name: &'static str, leaks: &'static [Leak], what: &'static str) -> Case {
    leaky(name, Start::Program("corpus-leaky", name), leaks, what)
}

/// Leaks each time the function runs.
const fn steady(function: &'static str) -> Leak {
    Leak { function, class: "steady" }
}

const fn sporadic(function: &'static str) -> Leak {
    Leak { function, class: "sporadic" }
}

const fn hoarding(function: &'static str) -> Leak {
    Leak { function, class: "hoarding" }
}

/// What runs at once.
pub(crate) const CASES: &[Case] = &[
    fine("arena", "64 KiB chunks, all freed each 5 s"),
    fine("big", "a ring of four buffers of 300 KiB"),
    fine("delayed", "100/s, each freed 10 s later"),
    fine("diurnal", "a working set that follows the load, up and down each 60 s"),
    fine("intern", "2,000 names, each kept when first met"),
    fine("job", "a batch each 10 s, freed at its end"),
    fine("long-lived", "connections of 25 to 45 s"),
    fine("long-sawtooth", "grows for 170 s, then freed"),
    fine("lru", "a cache that is full after 30 s, then churns"),
    fine("lru-older", "a cache that was full before tracing, and churns"),
    fine("lru-slow", "a cache that would be full after 10 min"),
    fine("pool", "an object pool"),
    fine("printer", "prints by printf, asprintf, fopen, open_memstream"),
    fine("ramp", "traffic that rises for 40 s and stays"),
    fine("reload", "a configuration that is read anew each 15 s"),
    fine("ring", "the last 1,000 lines of a log"),
    fine("sawtooth", "grows for 20 s, then freed"),
    fine("table", "a hash table that grows, keys that enter and leave"),
    fine("tail", "sessions of 0.5 to 30 s, most of them short"),
    fine("threads", "8 threads a second that come and go"),
    fine("vector", "realloc to larger for 7 s, then small again"),
    fine("warm-up", "tables for 15 s, then requests"),
    healthy(
        "lru-jemalloc",
        Start::Program("corpus-healthy-jemalloc", "lru"),
        "the cache of lru, with jemalloc",
    ),
    healthy(
        "sawtooth-musl",
        Start::Program("corpus-healthy-musl-static", "sawtooth"),
        "grows for 20 s, then freed; musl in a static program",
    ),
    healthy(
        "delayed-tcmalloc",
        Start::Program("corpus-healthy-tcmalloc", "delayed"),
        "each freed 10 s later; tcmalloc",
    ),
    healthy("library", Start::Program("corpus-library", "library"), "regcomp, opendir, getline"),
    healthy("crypto", Start::Program("corpus-library", "crypto"), "OpenSSL: digests and numbers"),
    healthy("containers", Start::Program("corpus-cpp", "containers"), "C++ deque and vectors"),
    healthy("streams", Start::Program("corpus-cpp", "streams"), "C++ streams and std::map"),
    healthy("rust", Start::Program("corpus-rust", "churn"), "Rust HashMap and VecDeque"),
    healthy("glib", Start::Program("corpus-glib", "glib"), "GLib tables, lists and strings"),
    healthy("python", Start::Python("loop"), "CPython: dict and json"),
    healthy("perl", Start::Perl, "Perl: hashes and lists"),
    healthy("redis", Start::Redis, "redis-server, 500 keys of each type that come and go"),
    healthy("nginx", Start::Nginx, "nginx under requests"),
    healthy("sqlite", Start::Sqlite, "sqlite3, rows that enter and leave"),
    leaks("fast", &[steady("leak_1000")], "1,000/s"),
    leaks("ten", &[steady("leak_10")], "10/s"),
    leaks("one", &[steady("leak_1")], "1/s"),
    leaks("tenth", &[steady("leak_tenth")], "1 in 10 s"),
    leaks("churn-10", &[sporadic("churn_10")], "1 in 10 of 100/s"),
    leaks("churn-100", &[sporadic("churn_100")], "1 in 100 of 400/s"),
    leaks("churn-1000", &[sporadic("churn_1000")], "1 in 1,000 of 1,000/s"),
    leaks("churn-10000", &[sporadic("churn_10000")], "1 in 10,000 of 2,500/s"),
    leaks("bursts", &[sporadic("leak_in_bursts")], "50 at once, each 11 to 25 s"),
    leaks("once", &[Leak { function: "leak_once", class: "one-time" }], "400 blocks, once"),
    leaks("list", &[hoarding("append_for_ever")], "a list that is never trimmed"),
    leaks("unbounded", &[hoarding("unbounded_insert")], "a cache without a bound"),
    leaks("forgotten", &[sporadic("open_session")], "1 of 100 sessions stays in a list"),
    leaks("error", &[sporadic("handle_request")], "1 of 50 requests fails, and forgets"),
    leaks("realloc", &[steady("grow_and_forget")], "a buffer from realloc is forgotten"),
    leaks("wrapped", &[steady("set_attribute")], "through xstrdup and xmalloc, beside churn"),
    leaks("record", &[steady("open_record")], "a record and its name"),
    leaks("matrix", &[steady("make_matrix")], "a block with pointers to eight others"),
    leaks("thread", &[steady("thread_that_forgets")], "each thread leaves a buffer"),
    leaks("large", &[steady("leak_large")], "blocks above the threshold of mmap"),
    leaks("aligned", &[steady("leak_aligned")], "posix_memalign"),
    leaks("beside", &[steady("leak_beside")], "80 B/s beside a cache that fills by 300 KB/s"),
    leaks("two", &[steady("leak_more"), steady("leak_less")], "two leaks at once"),
    leaky(
        "ten-jemalloc",
        Start::Program("corpus-leaky-jemalloc", "ten"),
        &[steady("leak_10")],
        "10/s, jemalloc",
    ),
    leaky(
        "ten-tcmalloc",
        Start::Program("corpus-leaky-tcmalloc", "ten"),
        &[steady("leak_10")],
        "10/s, tcmalloc",
    ),
    leaky(
        "ten-musl",
        Start::Program("corpus-leaky-musl-static", "ten"),
        &[steady("leak_10")],
        "10/s, musl in a static program",
    ),
    leaky(
        "new",
        Start::Program("corpus-cpp", "new"),
        &[steady("forget_object")],
        "C++ objects from new",
    ),
    leaky(
        "cycle",
        Start::Program("corpus-cpp", "cycle"),
        &[steady("make_cycle")],
        "two shared_ptr that hold each other",
    ),
    leaky(
        "table-cpp",
        Start::Program("corpus-cpp", "table"),
        &[steady("forget_table")],
        "a whole std::map",
    ),
    leaky(
        "line",
        Start::Program("corpus-library", "forget-line"),
        &[steady("forget_line")],
        "the line of getline",
    ),
    leaky(
        "folder",
        Start::Program("corpus-library", "forget-folder"),
        &[steady("forget_folder")],
        "opendir without closedir",
    ),
    leaky(
        "expression",
        Start::Program("corpus-library", "forget-expression"),
        &[steady("forget_expression")],
        "regcomp without regfree",
    ),
    leaky(
        "digest",
        Start::Program("corpus-library", "forget-crypto"),
        &[steady("forget_digest")],
        "a context of OpenSSL",
    ),
    leaky(
        "rust-forget",
        Start::Program("corpus-rust", "forget"),
        &[steady("forget_box")],
        "mem::forget of a Box",
    ),
    leaky(
        "rust-cycle",
        Start::Program("corpus-rust", "cycle"),
        &[steady("make_cycle")],
        "two Rc that hold each other",
    ),
    leaky(
        "python-strdup",
        Start::Python("strdup"),
        &[steady("strdup")],
        "a string of C that Python forgets",
    ),
];
