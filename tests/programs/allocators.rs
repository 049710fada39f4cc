//! What Rust asks of its allocator: the system's, or with the feature `jemalloc` that of
//! tikv-jemallocator. Of each site 5 blocks, 3 of which are freed.
//!
//! Stages: ready, (byte: allocate) holding, (byte) end without freeing.

#![allow(unexpected_cfgs, reason = "rustc alone knows no features")]

use std::{
    alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc},
    hint::black_box,
    io::{Read as _, Write as _},
};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static JEMALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const BLOCKS: usize = 5;

/// A site, and what it asks for.
struct Form {
    name: &'static str,
    allocate: fn(Layout) -> *mut u8,
    bytes: usize,
    alignment: usize,
}

// Each has something of its own: equal functions become one.

#[unsafe(no_mangle)]
#[inline(never)]
fn site_alloc(layout: Layout) -> *mut u8 {
    black_box(1);
    unsafe { alloc(layout) }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn site_alloc_large(layout: Layout) -> *mut u8 {
    black_box(2);
    unsafe { alloc(layout) }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn site_alloc_aligned(layout: Layout) -> *mut u8 {
    black_box(3);
    unsafe { alloc(layout) }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn site_alloc_zeroed(layout: Layout) -> *mut u8 {
    black_box(4);
    unsafe { alloc_zeroed(layout) }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn site_grow_old(layout: Layout) -> *mut u8 {
    black_box(5);
    unsafe { alloc(layout) }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn site_grow(old: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
    black_box(6);
    unsafe { realloc(old, layout, bytes) }
}

const FORMS: [Form; 4] = [
    Form { name: "site_alloc", allocate: site_alloc, bytes: 41, alignment: 1 },
    Form { name: "site_alloc_large", allocate: site_alloc_large, bytes: 300_011, alignment: 8 },
    Form { name: "site_alloc_aligned", allocate: site_alloc_aligned, bytes: 1_003, alignment: 256 },
    Form { name: "site_alloc_zeroed", allocate: site_alloc_zeroed, bytes: 57, alignment: 1 },
];
const GROW: (usize, usize) = (163, 10_007);

/// Says where it is, and waits to be told to go on. Nothing here may allocate at a site.
fn stage(name: &str, sites: &[(&str, usize, usize, usize)]) {
    let mut line = format!("{{\"stage\":\"{name}\",\"pid\":{},\"sites\":[", std::process::id());
    for (index, (name, allocated, freed, bytes)) in sites.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let figures = [("outstanding", allocated - freed), ("allocated", *allocated), ("freed", *freed)];
        line += &format!("{comma}{{\"name\":\"{name}\"");
        for (what, count) in figures {
            line += &format!(",\"{what}_count\":{count},\"{what}_bytes\":{}", count * bytes);
        }
        line += "}";
    }
    println!("{line}]}}");
    std::io::stdout().flush().expect("stdout");
    std::io::stdin().read_exact(&mut [0]).expect("the test closed stdin");
}

fn main() {
    stage("ready", &[("site_alloc", 0, 0, 0)]);
    let mut sites = Vec::new();
    for Form { name, allocate, bytes, alignment } in FORMS {
        let layout = Layout::from_size_align(bytes, alignment).expect("layout");
        let blocks: [_; BLOCKS] = std::array::from_fn(|_| allocate(layout));
        assert!(blocks.iter().all(|block| !block.is_null()));
        let other = blocks[2] as usize;
        unsafe {
            dealloc(blocks[0], layout);
            dealloc(blocks[1], layout);
            std::thread::spawn(move || dealloc(other as *mut u8, layout)).join().expect("thread");
        }
        sites.push((name, BLOCKS, 3, bytes));
    }
    let layout = Layout::from_size_align(GROW.0, 1).expect("layout");
    let block = site_grow(site_grow_old(layout), layout, GROW.1);
    assert!(!block.is_null());
    sites.extend([("site_grow_old", 1, 1, GROW.0), ("site_grow", 1, 0, GROW.1)]);
    stage("holding", &sites);
}
