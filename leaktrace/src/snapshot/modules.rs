//! The kernel modules that frames lie in, each load of them by itself.

use std::collections::HashMap;

/// One load of a kernel module, with what the kernel tells only while it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Where its code lies, from and to; that of its init, which is freed early, as well.
    pub text: Vec<(u64, u64)>,
    /// Its functions by address; none where it had gone before they could be read.
    pub functions: Vec<(u64, String)>,
    /// Its build ID, if it has one.
    pub build_id: Option<Vec<u8>>,
    /// Where the sections of its code lie.
    pub sections: HashMap<String, u64>,
}

impl Module {
    /// Whether an address lies in its code.
    pub fn has(&self, address: u64) -> bool {
        self.text.iter().any(|(start, end)| (*start..*end).contains(&address))
    }

    /// The function at an address, and the address it begins at: never beyond the code that it lies
    /// in.
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
