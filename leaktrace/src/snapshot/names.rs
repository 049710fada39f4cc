//! Names of frames; the symbolizer fills them in, and everything after it reads them.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Frame, reach::Root};

/// The names of frames, each learnt once.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// The answer for each frame; a frame that is not here was never looked up.
    pub frames: HashMap<Frame, Resolved>,
    /// The name of each root that holds blocks; a root that is not here was never looked up.
    pub roots: HashMap<Root, RootName>,
}

/// The name of a root that holds blocks, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootName {
    /// The variable.
    pub name: Option<String>,
    /// The path of its object.
    pub object: Option<String>,
    /// Its section, with the offset in it where the variable has no name.
    pub section: Option<String>,
}

/// The answer for one frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resolved {
    /// The functions at that address: inlined ones first, the real one last; never empty.
    Known(Vec<Symbol>),
    /// There is no name, for this reason.
    Unknown(Unknown),
}

/// One function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbol {
    /// Demangled name.
    pub name: String,
    /// Offset of the call from the start of the function, in bytes.
    pub offset: u64,
    /// The object: `vmlinux`, a module as `[name]`, or the path of a mapped file.
    pub object: String,
    /// Source file, if debug information shows it.
    pub file: Option<String>,
    /// Line in the source file.
    pub line: Option<u32>,
    /// Whether the compiler inlined this function into the next one.
    pub inlined: bool,
}

/// Why a frame has no name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unknown {
    /// The object has no symbol there (stripped); the object's path.
    NoSymbol(String),
    /// The code was made at run time.
    Anonymous {
        /// Whether the process has a perf map, which does not name the code.
        has_map: bool,
        /// How to make the runtime write a perf map, if that is known.
        way: Option<String>,
    },
    /// The frame is in no known mapping.
    Unmapped,
    /// The frame is in kernel code that has been unloaded; the module, if it is known.
    Unloaded(Option<String>),
    /// The kernel hides its addresses (`kernel.kptr_restrict`).
    KernelHidden,
    /// The object could not be read: its path and the cause.
    Unreadable(String, String),
}

impl Unknown {
    /// The object that the frame lies in, where it is known.
    pub fn object(&self) -> Option<&str> {
        match self {
            Self::NoSymbol(path) | Self::Unreadable(path, _) => Some(path),
            Self::Unloaded(object) => object.as_deref(),
            Self::KernelHidden => Some("vmlinux"),
            Self::Anonymous { .. } | Self::Unmapped => None,
        }
    }

    /// The reason as the end of a sentence.
    pub fn reason(&self) -> String {
        match self {
            Self::NoSymbol(_) => "no symbol there".into(),
            Self::Anonymous { has_map: true, .. } => {
                "code made at run time, not in its perf map".into()
            }
            Self::Anonymous { way: None, .. } => "code made at run time, no perf map".into(),
            Self::Anonymous { way: Some(way), .. } => {
                format!("code made at run time, no perf map: {way} makes one")
            }
            Self::Unmapped => "in no known mapping".into(),
            Self::Unloaded(_) => "code that has been unloaded".into(),
            Self::KernelHidden => "kernel addresses are hidden (kernel.kptr_restrict)".into(),
            Self::Unreadable(_, cause) => format!("the file cannot be read: {cause}"),
        }
    }
}
