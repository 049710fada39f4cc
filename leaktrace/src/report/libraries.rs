//! Which blocks the C and C++ libraries keep for themselves, so that a program has no way to free
//! them.
//!
//! Names decide it, and only where they leave no doubt. A library without debug information has
//! only the names of its exported functions; blocks that it keeps under no such name are not told
//! apart.

use std::collections::HashSet;

use leaktrace_common::Kind;

use super::{FrameView, Keeper, Row};
use crate::snapshot::{Mode, Snapshot};

/// Functions of the C library that keep everything they allocate, by the name that the program
/// calls, without leading underscores. What they return belongs to the library. glibc 2.36 frees it
/// in `__libc_freeres` (malloc/set-freeres.c), which no program calls.
const KEEPING: &[&str] = &[
    // locale/, intl/
    "setlocale",
    "bindtextdomain",
    "bind_textdomain_codeset",
    "textdomain",
    "gettext",
    "dgettext",
    "dcgettext",
    "dcigettext",
    "ngettext",
    "dngettext",
    "dcngettext",
    "strerror",
    "strerror_l",
    "strsignal",
    // time/
    "tzset",
    "tz_convert",
    "localtime",
    "localtime_r",
    "gmtime",
    "gmtime_r",
    "mktime",
    "strftime",
    "strftime_l",
    // nss/: results in a buffer of the library's, or of the caller's.
    "getpwnam",
    "getpwnam_r",
    "getpwuid",
    "getpwuid_r",
    "getgrnam",
    "getgrnam_r",
    "getgrgid",
    "getgrgid_r",
    "getspnam",
    "getspnam_r",
    "getservbyname",
    "getservbyname_r",
    "getservbyport",
    "getservbyport_r",
    "getprotobyname",
    "getprotobyname_r",
    "getprotobynumber",
    "gethostbyname",
    "gethostbyname_r",
    "gethostbyname2",
    "gethostbyname2_r",
    "gethostbyaddr",
    "gethostbyaddr_r",
    "getnetbyname",
    "getnetbyaddr",
    "getlogin",
    "ttyname",
    "ctermid",
    "initgroups",
    // misc/
    "getmntent",
    "openlog",
    "syslog",
    "vsyslog",
    "syslog_chk",
    // stdlib/: lists of functions to call, the environment.
    "atexit",
    "at_quick_exit",
    "on_exit",
    "cxa_atexit",
    "new_exitfn",
    "setenv",
    "putenv",
    "add_to_environ",
];

/// Functions inside the library under which everything is kept, whatever function called them.
const KEEPING_WITHIN: &[&str] = &[
    "nl_find_locale",
    "nl_load_locale",
    "nl_load_locale_from_archive",
    "nl_intern_locale_data",
    "nl_find_domain",
    "nl_load_domain",
    "nl_expand_alias",
    "tzfile_read",
    "tzset_internal",
    "nss_database_get",
    "nss_database_check_reload_and_get",
    "nss_lookup_function",
    "nss_module_load",
    "gconv_load_cache",
    "gconv_find_shlib",
    "resolv_context_get",
    "tls_get_addr",
];

/// Functions whose caller frees what is allocated under them (freelocale).
const FREED: &[&str] = &["newlocale", "duplocale"];

/// Functions that give a buffer to a stream at its first use.
const BUFFERS: &[&str] = &["IO_file_doallocate", "IO_wfile_doallocate"];
/// Functions that use standard input and output alone.
const STANDARD: &[&str] = &[
    "printf",
    "printf_chk",
    "vprintf",
    "vprintf_chk",
    "wprintf",
    "wprintf_chk",
    "vwprintf",
    "vwprintf_chk",
    "puts",
    "putchar",
    "putchar_unlocked",
    "putwchar",
    "putwchar_unlocked",
    "getchar",
    "getchar_unlocked",
    "getwchar",
    "gets",
    "scanf",
    "isoc99_scanf",
    "vscanf",
    "isoc99_vscanf",
    "isoc23_scanf",
];
/// Functions that allocate a stream.
const OPENING: &[&str] = &[
    "fopen",
    "fopen64",
    "fopen_internal",
    "fdopen",
    "popen",
    "tmpfile",
    "tmpfile64",
    "fopencookie",
    "open_memstream",
    "open_wmemstream",
];

/// The function that gives a thread its vector of thread-local storage, which the thread's stack
/// keeps for the next thread.
const TLS: &str = "dl_allocate_tls";
/// Most stacks of the usual 8 MiB that glibc keeps for the next threads: its limit is 40 MiB
/// (nptl/nptl-stack.c).
const KEPT_STACKS: u64 = 5;

/// Sets the keeper of each row that a library keeps.
pub(super) fn find(rows: &mut [Row], snapshot: &Snapshot) {
    for (row, keeper) in keepers(rows, snapshot).into_iter().enumerate() {
        if let (Some(row), Some(keeper)) = (rows.get_mut(row), keeper) {
            row.keeper = Some(keeper);
        }
    }
}

/// The keeper of the blocks of each row.
fn keepers(rows: &[Row], snapshot: &Snapshot) -> Vec<Option<Keeper>> {
    let outstanding = || rows.iter().filter(|row| row.totals.outstanding.count > 0);
    // A stream that is open may be what a buffer belongs to; it shows, unless it was opened before,
    // or left out.
    let sees_all = snapshot.mode == Mode::Run
        && snapshot.loss.is_complete()
        && !snapshot.loss.filtered
        && snapshot.sample_bytes == 0
        && snapshot.older_ms == 0;
    let may_open = |row: &Row| match entry(row) {
        Entry::Called(name) => OPENING.contains(&name) && !gives_buffer(row),
        Entry::Unknown => !library(row).is_empty() && !gives_buffer(row),
        Entry::None => false,
    };
    let has_streams = !sees_all || outstanding().any(may_open);
    let mut vectors = std::collections::HashMap::new();
    for row in outstanding().filter(|row| is_within(row, &[TLS])) {
        *vectors.entry(pid(row)).or_insert(0) += row.totals.outstanding.count;
    }
    let many: HashSet<Option<u32>> =
        vectors.into_iter().filter(|(_, count)| *count > KEPT_STACKS).map(|(pid, _)| pid).collect();
    rows.iter()
        .map(|row| {
            if row.kind != Kind::Malloc {
                return None;
            }
            let called = match entry(row) {
                Entry::Called(name) => name,
                Entry::None | Entry::Unknown => "",
            };
            let is_kept = if gives_buffer(row) {
                !has_streams || STANDARD.contains(&called)
            } else if is_within(row, &[TLS]) {
                !many.contains(&pid(row))
            } else {
                let is_freed = FREED.contains(&called);
                KEEPING.contains(&called) || (!is_freed && is_within(row, KEEPING_WITHIN))
            };
            if is_kept {
                return Some(Keeper::CLibrary);
            }
            is_constructed(row).then_some(Keeper::CplusplusLibrary)
        })
        .collect()
}

fn pid(row: &Row) -> Option<u32> {
    row.process.as_ref().map(|process| process.pid)
}

/// The function of the C library that code outside of it has called.
enum Entry<'a> {
    Called(&'a str),
    /// The function has no name, or the stack does not show it.
    Unknown,
    /// The C library has not allocated the block.
    None,
}

fn entry(row: &Row) -> Entry<'_> {
    let frames = library(row);
    match frames.last() {
        None => Entry::None,
        Some(outermost) if frames.len() < row.stack.len() => {
            outermost.symbol.as_deref().map_or(Entry::Unknown, |name| Entry::Called(plain(name)))
        }
        Some(_) => Entry::Unknown,
    }
}

/// The innermost frames that are all the C library's.
fn library(row: &Row) -> &[FrameView] {
    let length = row.stack.iter().take_while(|frame| is_of(frame, is_c_library)).count();
    row.stack.get(..length).unwrap_or_default()
}

fn is_within(row: &Row, names: &[&str]) -> bool {
    let mut symbols = library(row).iter().filter_map(|frame| frame.symbol.as_deref());
    symbols.any(|symbol| names.contains(&plain(symbol)))
}

/// Whether the row is the buffer of a stream.
fn gives_buffer(row: &Row) -> bool {
    let innermost = library(row).first().and_then(|frame| frame.symbol.as_deref());
    innermost.is_some_and(|symbol| BUFFERS.contains(&plain(symbol)))
}

/// Whether the C++ library has allocated the row's blocks while the dynamic loader started it.
fn is_constructed(row: &Row) -> bool {
    let is_cplusplus = |name: &str| name.starts_with("libstdc++.so.");
    let length = row.stack.iter().take_while(|frame| is_of(frame, is_cplusplus)).count();
    let mut callers = row.stack.iter().skip(length).peekable();
    // The loader, and nobody else: `dlopen` has its caller behind it.
    length > 0 && callers.peek().is_some() && callers.all(|frame| is_of(frame, is_loader))
}

fn is_of(frame: &FrameView, is_wanted: impl Fn(&str) -> bool) -> bool {
    let path = frame.object.as_deref().unwrap_or_default();
    is_wanted(path.rsplit('/').next().unwrap_or(path))
}

fn is_c_library(name: &str) -> bool {
    name == "libc.so.6" || name.starts_with("libc-2.") || is_loader(name)
}

fn is_loader(name: &str) -> bool {
    name.starts_with("ld-linux") || name.starts_with("ld-2.")
}

fn plain(symbol: &str) -> &str {
    let bare = symbol.trim_start_matches('_');
    bare.strip_prefix("GI_").map_or(bare, |rest| rest.trim_start_matches('_'))
}
