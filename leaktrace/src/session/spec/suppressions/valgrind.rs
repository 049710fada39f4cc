//! Valgrind's blocks (coregrind/m_errormgr.c, memcheck/mc_errors.c, 3.16 to 3.24).

use wildmatch::WildMatch;

use super::Frame;

/// Most location lines of a block (VG_MAX_SUPP_CALLERS).
pub(crate) const LINES_MOST: usize = 24;
/// The name of what has none.
const UNKNOWN: &str = "???";
/// How the object with Valgrind's own malloc is called.
const PRELOADED: [&str; 2] = [
    "/usr/libexec/valgrind/vgpreload_memcheck-amd64-linux.so",
    "/usr/lib/x86_64-linux-gnu/valgrind/vgpreload_memcheck-amd64-linux.so",
];

/// The locations of a block, innermost frame first.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    locations: Vec<Location>,
    /// Whether it is for no kind of leak at all (`match-leak-kinds: none`).
    is_off: bool,
}

/// One line of a block.
#[derive(Clone, Debug, PartialEq)]
enum Location {
    /// `fun:`, a function by the linker's name.
    Function(WildMatch),
    /// `obj:`, an object by its path.
    Object(WildMatch),
    /// `src:`, a source file, and a line.
    Source(WildMatch, Option<u32>),
    /// `...`, any number of frames.
    Any,
}

/// Reads a block behind its first line; `None` if it is for other errors or for other tools. The
/// error is as that of a file.
pub(super) fn parse<'a>(
    first: usize,
    lines: &mut impl Iterator<Item = (usize, &'a str)>,
) -> Result<Option<(String, Block)>, (usize, String)> {
    let mut lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let mut next = || lines.next().ok_or_else(|| (first, "this block has no `}`".to_owned()));
    let (number, name) = next()?;
    if name == "}" {
        return Err((number, "a block needs a name, and the kind of error".into()));
    }
    let (number, kind) = next()?;
    let Some((tools, error)) = kind.split_once(':') else {
        return Err((number, format!("`{kind}` is no TOOL:KIND, as Memcheck:Leak")));
    };
    if error != "Leak" || !tools.split(',').any(|tool| tool == "Memcheck") {
        while next()?.1 != "}" {}
        return Ok(None);
    }
    let mut block = Block { locations: Vec::new(), is_off: false };
    loop {
        let (number, line) = next()?;
        if line == "}" {
            if block.locations.iter().all(|location| *location == Location::Any) {
                let why = "a block needs a line with fun:, obj: or src:";
                return Err((number, why.into()));
            }
            return Ok(Some((name.to_owned(), block)));
        }
        if let (true, Some(kinds)) =
            (block.locations.is_empty(), line.strip_prefix("match-leak-kinds:"))
        {
            block.is_off = leak_kinds(kinds.trim()).map_err(|why| (number, why))?;
            continue;
        }
        if block.locations.len() == LINES_MOST {
            return Err((number, format!("a block has at most {LINES_MOST} locations")));
        }
        let location = location(line).ok_or_else(|| {
            (number, format!("`{line}` is no location: fun:NAME, obj:PATH, src:FILE:LINE or ..."))
        })?;
        block.locations.push(location);
    }
}

/// Whether these are none.
fn leak_kinds(kinds: &str) -> Result<bool, String> {
    const KINDS: [&str; 4] = ["definite", "indirect", "possible", "reachable"];
    match kinds {
        "all" => Ok(false),
        "none" => Ok(true),
        list => match list.split(',').find(|kind| !KINDS.contains(kind)) {
            None => Ok(false),
            Some(kind) => Err(format!(
                "`{kind}` is no kind of leak: definite, indirect, possible, reachable, all or none"
            )),
        },
    }
}

fn location(line: &str) -> Option<Location> {
    if line == "..." {
        return Some(Location::Any);
    }
    let (what, pattern) = line.split_once(':').filter(|(_, pattern)| !pattern.is_empty())?;
    match what {
        "fun" => Some(Location::Function(WildMatch::new(pattern))),
        "obj" => Some(Location::Object(WildMatch::new(pattern))),
        "src" => {
            let (file, line) = match pattern.rsplit_once(':') {
                Some((file, line)) => (file, Some(line.parse().ok()?)),
                None => (pattern, None),
            };
            Some(Location::Source(WildMatch::new(file), line))
        }
        _ => None,
    }
}

impl Block {
    /// Whether the innermost frames are those of the block, whatever comes behind them.
    pub(super) fn matches(&self, stack: &[Frame<'_>]) -> bool {
        !self.is_off && begins(stack, &self.locations)
    }
}

/// As in a pattern with wild cards: where something does not match, only the latest `...` takes one
/// frame more, as what lies before it has matched as early as it can.
fn begins(stack: &[Frame<'_>], locations: &[Location]) -> bool {
    let (mut frame, mut location) = (0, 0);
    // The location behind the latest `...`, and the first frame that it has not been tried at.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        match (locations.get(location), stack.get(frame)) {
            (None, _) => return true,
            (Some(Location::Any), _) => {
                location += 1;
                retry = Some((location, frame + 1));
            }
            (Some(wanted), Some(found)) if is_at(wanted, found) => {
                location += 1;
                frame += 1;
            }
            _ => match retry {
                Some((behind, next)) if next <= stack.len() => {
                    (location, frame) = (behind, next);
                    retry = Some((behind, next + 1));
                }
                _ => return false,
            },
        }
    }
}

fn is_at(location: &Location, frame: &Frame<'_>) -> bool {
    match location {
        // By either name: a linker's name is what Valgrind writes.
        Location::Function(wanted) => {
            let has_linkage = !frame.linkage.is_empty();
            (has_linkage && wanted.matches(frame.linkage)) || wanted.matches(known(frame.name))
        }
        Location::Object(wanted) => {
            wanted.matches(known(frame.object))
                || (frame.is_allocator && PRELOADED.iter().any(|path| wanted.matches(path)))
        }
        Location::Source(wanted, line) => {
            let base = frame.file.rsplit('/').next().unwrap_or(frame.file);
            (wanted.matches(base) || wanted.matches(frame.file))
                && line.is_none_or(|line| line == frame.line)
        }
        Location::Any => true,
    }
}

/// What Valgrind takes for a name.
fn known(name: &str) -> &str {
    if name.is_empty() { UNKNOWN } else { name }
}
