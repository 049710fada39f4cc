//! The kernel modules that frames lie in; each load is one entry.

use std::collections::HashMap;

/// One load of a kernel module, with what the kernel shows only while the module is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// The module's name.
    pub name: String,
    /// Start and end of the module's code, and of its init code, which the kernel frees early.
    pub text: Vec<(u64, u64)>,
    /// The module's functions by address; empty where the module was gone before they could be
    /// read.
    pub functions: Vec<(u64, String)>,
    /// The module's build ID, if it has one.
    pub build_id: Option<Vec<u8>>,
    /// Addresses of the sections of the module's code.
    pub sections: HashMap<String, u64>,
}

impl Module {
    /// Whether an address lies in the module's code.
    pub fn has(&self, address: u64) -> bool {
        self.text.iter().any(|(start, end)| (*start..*end).contains(&address))
    }

    /// The function at an address, and the address at which it begins; a function never reaches
    /// beyond the range of code that it lies in.
    pub fn function(&self, address: u64) -> Option<(u64, &str)> {
        let (start, _) = self.text.iter().find(|(start, end)| (*start..*end).contains(&address))?;
        let next = self.functions.partition_point(|(begins, _)| *begins <= address);
        let (begins, name) = self.functions.get(next.checked_sub(1)?)?;
        (begins >= start).then_some((*begins, name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_ends_with_the_code_it_lies_in() {
        let module = Module {
            text: vec![(0x1000, 0x1800), (0x4000, 0x4100)],
            functions: vec![(0x1000, "open".into()), (0x1700, "close".into())],
            ..Module::default()
        };
        assert_eq!(module.function(0x16ff), Some((0x1000, "open")));
        assert_eq!(module.function(0x17ff), Some((0x1700, "close")));
        assert_eq!(module.function(0x1800), None);
        // Init, whose symbols were not read.
        assert_eq!((module.has(0x4010), module.function(0x4010)), (true, None));
    }
}
