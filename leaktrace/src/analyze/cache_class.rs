//! The names under which slab caches are compared with the kernel's own counts.

/// Sizes as the names of kmalloc's caches end.
const SIZES: [&str; 13] =
    ["8", "16", "32", "64", "96", "128", "192", "256", "512", "1k", "2k", "4k", "8k"];

/// Stands before the size in the name of all of kmalloc's caches of a size.
pub const KMALLOC: &str = "kmalloc-*";

/// The name under which a cache is compared. kmalloc has several caches of one size (by flags, by
/// chance where the kernel was built so, by subsystem), which the tracepoint does not tell apart.
pub fn cache_class(cache: &str) -> String {
    match cache.rsplit_once('-') {
        Some((_, size)) if SIZES.contains(&size) => format!("{KMALLOC}{size}"),
        _ => cache.to_owned(),
    }
}
