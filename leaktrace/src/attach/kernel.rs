//! Kernel probes: raw tracepoints of the slab allocators.

use leaktrace_common::Config;

use crate::{
    bpf::{Loaded, object::KernelProgram},
    error::Error,
};

/// Attaches the slab tracepoints; they stay while `loaded` lives. Gives what they cannot see,
/// for the report's `unseen`.
///
/// # Errors
///
/// [`Error::Host`] when the kernel's tracepoints have a shape that we do not know,
/// [`Error::Kernel`] when it refuses a program.
pub fn attach(
    loaded: &mut Loaded,
    config: &Config,
    node_variants: bool,
) -> Result<Vec<String>, Error> {
    let known_shape = matches!(config.kmalloc_size_arg, 2 | 3)
        && matches!((config.cache_arg, config.cache_size_arg), (0, 2) | (2, 0) | (2, 3));
    if !known_shape {
        return Err(Error::Host(
            "this kernel's kmalloc or kmem_cache_alloc tracepoint has arguments that leaktrace \
             does not know: please report the kernel's version"
                .into(),
        ));
    }
    let mut unseen = vec![
        "kmem_cache_free_bulk: no tracepoint fires; objects freed through it still look \
         outstanding"
            .to_owned(),
    ];
    let refused = |cause: &str| {
        format!("kfree_rcu: {cause}; objects freed through it still look outstanding")
    };
    if config.rcu.work_function == 0 {
        unseen.push(refused("this kernel gathers them in a way that leaktrace does not know"));
    } else if let Err(error) = loaded.attach_tracepoint(KernelProgram::RcuWork) {
        unseen.push(refused(&error.to_string()));
    }
    // Frees first: an allocation seen without its free would look like a leak.
    for program in [KernelProgram::Kfree, KernelProgram::KmemCacheFree] {
        loaded.attach_tracepoint(program)?;
    }
    for program in [KernelProgram::Kmalloc, KernelProgram::KmemCacheAlloc] {
        loaded.attach_tracepoint(program)?;
    }
    if node_variants {
        for program in [KernelProgram::KmallocNode, KernelProgram::KmemCacheAllocNode] {
            loaded.attach_tracepoint(program)?;
        }
    }
    Ok(unseen)
}
