//! Memory of this process, read as that of another.

use std::ptr;

use super::{super::mappings::Mappings, *};

/// Maps memory of this process, without taking any of it.
fn map(bytes: usize, rights: i32, flags: i32, fd: i32) -> u64 {
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(ptr::null_mut(), bytes, rights, flags, fd, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at as u64
}

fn write(address: u64, value: u64) {
    // SAFETY: within a mapping that this test has made.
    unsafe { (address as *mut u64).write_volatile(value) };
}

/// Every word that is read of the mapping at an address.
fn read_at(address: u64, bytes: u64, uses_scan: bool) -> Vec<(u64, u64)> {
    let mappings = Mappings::read(std::process::id()).unwrap();
    let Some(mapped) = mappings.find(address) else { return Vec::new() };
    let mut memory = Memory::open(std::process::id()).unwrap();
    memory.has_pagemap_scan = uses_scan;
    let ranges = memory.ranges(mapped).unwrap();
    let mut words = Vec::new();
    let mut buffer = vec![0; PIECE / 8];
    memory.read(&ranges, mapped.is_readable, &mut buffer, &mut |at, piece| {
        words.extend(piece.iter().enumerate().map(|(index, word)| (at + index as u64 * 8, *word)));
        true
    });
    assert_eq!(memory.unread_bytes, 0);
    // The kernel joins neighbouring mappings.
    words.retain(|(at, _)| (address..address + bytes).contains(at));
    words
}

fn values(words: &[(u64, u64)]) -> Vec<u64> {
    words.iter().map(|(_, word)| *word).filter(|word| *word != 0).collect()
}

/// Both ways to ask for pages.
#[test]
fn only_pages_that_there_are_are_read() {
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    for uses_scan in [true, false] {
        let at = map(1 << 30, libc::PROT_READ | libc::PROT_WRITE, private, -1);
        write(at, 11);
        write(at + (512 << 20), 22);
        write(at + (1 << 30) - 8, 33);
        let words = read_at(at, 1 << 30, uses_scan);
        assert_eq!(values(&words), [11, 22, 33], "{uses_scan}");
        assert!(words.len() <= 3 * (2 << 20) / 8, "{} words", words.len());
        // SAFETY: the mapping made above.
        unsafe { libc::munmap(at as *mut libc::c_void, 1 << 30) };
    }
}

/// Sanitizers, Go and the like reserve more addresses than any machine has memory.
#[test]
fn terabytes_of_nothing_take_no_time() {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let bytes = 16_usize << 40;
    let at = map(bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1);
    write(at + (7 << 40), 77);
    let start = std::time::Instant::now();
    let words = read_at(at, bytes as u64, true);
    assert_eq!(values(&words), [77]);
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    // Before 6.7 each page would have to be asked for: it is refused.
    let mappings = Mappings::read(std::process::id()).unwrap();
    let mut memory = Memory::open(std::process::id()).unwrap();
    memory.has_pagemap_scan = false;
    let refused = memory.ranges(mappings.find(at).unwrap()).unwrap_err();
    assert!(refused.contains("more than a terabyte"), "{refused}");
    // SAFETY: the mapping made above.
    unsafe { libc::munmap(at as *mut libc::c_void, bytes) };
}

#[test]
fn memory_that_nobody_may_read_is_read() {
    let at =
        map(8192, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    write(at + 4096, 44);
    // SAFETY: the mapping made above.
    unsafe { libc::mprotect(at as *mut libc::c_void, 8192, libc::PROT_NONE) };
    assert!(values(&read_at(at, 8192, true)).contains(&44));
}

/// What another process has written through a mapping of its own is in no page table here.
#[test]
fn shared_memory_is_read_whole() {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(1 << 30).unwrap();
    file.write_all_at(&55_u64.to_le_bytes(), 700 << 20).unwrap();
    let at = map(1 << 30, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd());
    let words = read_at(at, 1 << 30, true);
    assert_eq!(values(&words), [55]);
    assert!(words.len() <= 4096, "holes are read: {}", words.len());
}

#[test]
fn what_is_gone_is_passed_over() {
    let at =
        map(16384, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    (0..4).for_each(|page| write(at + page * PAGE, page + 1));
    // SAFETY: a page of the mapping made above.
    unsafe { libc::munmap((at + PAGE) as *mut libc::c_void, PAGE as usize) };
    let mut memory = Memory::open(std::process::id()).unwrap();
    let mut buffer = vec![0; PIECE / 8];
    let mut found = Vec::new();
    let ranges = vec![at..at + 8192, at + 8192..at + 16384];
    memory.read(&ranges, true, &mut buffer, &mut |_, words| {
        found.extend(words.iter().copied().filter(|word| *word != 0));
        true
    });
    assert_eq!((found.as_slice(), memory.unread_bytes), (&[1, 3, 4][..], 0));
}

#[test]
fn an_image_that_is_gone_is_known() {
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let mut memory = Memory::open(child.id()).unwrap();
    let mappings = Mappings::read(child.id()).unwrap();
    let stack = mappings.read.iter().find(|mapped| mapped.name == "[stack]").unwrap();
    let ranges = memory.ranges(stack).unwrap();
    let mut bytes = 0;
    memory.read(&ranges, true, &mut vec![0; PIECE / 8], &mut |_, words| {
        bytes += words.len() * 8;
        true
    });
    assert!(bytes >= PAGE as usize && memory.is_there());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!memory.is_there());
}
