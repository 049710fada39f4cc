//! Names of frames: filled by the symbolizer, read by everything after it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Frame;

/// What is known of each frame, learnt once.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// By frame; a frame that is not here was never asked for.
    pub frames: HashMap<Frame, Resolved>,
}

/// The answer for one frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resolved {
    /// The functions at that address: inlined ones first, the real one last; never empty.
    Known(Vec<Symbol>),
    /// No name, and why.
    Unknown(Unknown),
}

/// One function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbol {
    /// Demangled name.
    pub name: String,
    /// Offset of the call from the start of the function, in bytes.
    pub offset: u64,
    /// `vmlinux`, a module as `[name]`, or the path of a mapped file.
    pub object: String,
    /// Source file, if debug information tells.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
    /// Whether the compiler put this function into the next one.
    pub inlined: bool,
}

/// Why a frame has no name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unknown {
    /// The object has no symbol there (stripped); its path.
    NoSymbol(String),
    /// Code made at run time.
    Anonymous {
        /// Whether its process has a perf map, which does not name it.
        has_map: bool,
        /// What makes a perf map, if that is known.
        way: Option<String>,
    },
    /// In no known mapping.
    Unmapped,
    /// In the kernel, in code that has been unloaded; the module, if it is known.
    Unloaded(Option<String>),
    /// The kernel hides its addresses (`kernel.kptr_restrict`).
    KernelHidden,
    /// The object could not be read: path and cause.
    Unreadable(String, String),
}

impl Unknown {
    /// The object, where it is known.
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
