//! Kernel modules that come and go.

/// Bytes of a module's name (`MODULE_NAME_LEN`, include/linux/moduleparam.h, 5.15 to 7.2).
pub const MODULE_NAME_BYTES: usize = 56;

/// Where `struct module` keeps its name and its code, as offsets (include/linux/module.h): up to 6.3
/// in `core_layout` and `init_layout`, from 6.4 in elements of `mem`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModuleLayout {
    /// Its name.
    pub name: u32,
    /// The address of its code.
    pub text_base: u32,
    /// The bytes of its code.
    pub text_bytes: u32,
    /// The address of its init's code, which is freed once that has run.
    pub init_base: u32,
    /// The bytes of its init's code.
    pub init_bytes: u32,
    /// 1: modules that come and go are followed, and the members above are known.
    pub is_known: u32,
}

const _: () = assert!(size_of::<ModuleLayout>() == 6 * 4);
