//! Feeds system calls in the order in which they are reported, and checks what is mapped then.

use super::*;

const RW: u32 = (libc::PROT_READ | libc::PROT_WRITE) as u32;
const ANON: u32 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32;
const AT: u64 = 0x7000_0000;
const REFUSED: u64 = 22_u64.wrapping_neg();

fn mmaps() -> Mmaps {
    Mmaps::new((0, u64::MAX), 100, 2 << 20)
}

fn event(kind: MapEventKind, tid: u32) -> MapEvent {
    MapEvent { kind: kind as u32, space: 1, tid, ..MapEvent::default() }
}

fn mapped(tid: u32, at: u64, pages: u64) -> MapEvent {
    let (length, protection, flags) = (pages * PAGE_BYTES, RW, ANON);
    MapEvent { result: at, length, protection, flags, ..event(MapEventKind::Mapped, tid) }
}

fn munmap(tid: u32, at: u64, pages: u64, result: u64) -> [MapEvent; 2] {
    let length = pages * PAGE_BYTES;
    let begun = MapEvent { address: at, length, ..event(MapEventKind::Unmapping, tid) };
    [begun, MapEvent { kind: MapEventKind::Unmapped as u32, result, ..begun }]
}

fn mremap(at: u64, pages: u64, new_pages: u64, flags: i32, result: u64) -> [MapEvent; 2] {
    let (length, new_length) = (pages * PAGE_BYTES, new_pages * PAGE_BYTES);
    let flags = flags as u32;
    let begun =
        MapEvent { address: at, length, new_length, flags, ..event(MapEventKind::Moving, 1) };
    [begun, MapEvent { kind: MapEventKind::Moved as u32, result, ..begun }]
}

fn brk(asked: u64, result: u64) -> MapEvent {
    MapEvent { address: asked, result, ..event(MapEventKind::Brk, 1) }
}

/// Outstanding mappings and pages, by call and role, after these events.
fn after(mmaps: &mut Mmaps, events: &[MapEvent]) -> Vec<(MapCall, Role, u64, u64)> {
    for event in events {
        mmaps.apply(event);
    }
    let details = mmaps.details(0, 0, usize::MAX);
    let mut all = Vec::new();
    for (at, site, counters) in mmaps.sites() {
        let left = counters.allocated.minus(counters.freed);
        let held = details.get(&at).cloned().unwrap_or_default();
        assert_eq!(left, held.outstanding, "counters and ranges of {site:?}");
        let blocks: u64 = held.blocks.iter().map(|block| block.size_bytes).sum();
        assert_eq!(left.bytes, blocks, "blocks of {site:?}");
        if left.count > 0 {
            all.push((site.call, site.role, left.count, left.bytes / PAGE_BYTES));
        }
    }
    all
}

/// While one thread's munmap has not returned yet, another thread gets the address.
#[test]
fn an_address_that_is_used_again_at_once_stays_mapped() {
    let [begun, done] = munmap(1, AT, 4, 0);
    let events = [mapped(1, AT, 4), begun, mapped(2, AT, 2), done];
    assert_eq!(after(&mut mmaps(), &events), [(MapCall::Mmap, Role::Program, 1, 2)]);
}

#[test]
fn calls_that_fail_change_nothing() {
    let mut mmaps = mmaps();
    let whole = [(MapCall::Mmap, Role::Program, 1, 4)];
    assert_eq!(after(&mut mmaps, &[mapped(1, AT, 4)]), whole);
    assert_eq!(after(&mut mmaps, &munmap(1, AT + PAGE_BYTES, 1, REFUSED)), whole);
    assert_eq!(after(&mut mmaps, &mremap(AT, 4, 9, 0, REFUSED)), whole);
    // What the kernel would refuse takes nothing out even for the time of the call.
    assert_eq!(after(&mut mmaps, &munmap(1, AT + 1, 1, REFUSED)[..1]), whole);
}

#[test]
fn mremap_ends_the_old_mapping_unless_it_is_kept() {
    let to = AT << 4;
    let moved = (MapCall::Mremap, Role::Program, 1, 9);
    let mut all = mmaps();
    after(&mut all, &[mapped(1, AT, 4)]);
    assert_eq!(after(&mut all, &mremap(AT, 4, 9, libc::MREMAP_MAYMOVE, to)), [moved]);
    let mut all = mmaps();
    after(&mut all, &[mapped(1, AT, 4)]);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
    let kept = (MapCall::Mmap, Role::Program, 1, 4);
    assert_eq!(after(&mut all, &mremap(AT, 4, 9, flags, to)), [kept, moved]);
    // What is not known stays so: it may be a file, or older than the session.
    assert_eq!(after(&mut mmaps(), &mremap(AT, 4, 9, 0, to)), []);
}

#[test]
fn roles_are_told_by_the_call() {
    let own = mapped(1, AT, 1);
    let inside = MapEvent { in_allocator: 1, ..mapped(1, 2 * AT, 2) };
    let stack = MapEvent { flags: ANON | libc::MAP_STACK as u32, ..mapped(1, 3 * AT, 3) };
    let reserved = MapEvent { protection: 0, ..mapped(1, 4 * AT, 4) };
    let file = MapEvent { flags: libc::MAP_PRIVATE as u32, ..mapped(1, 5 * AT, 5) };
    let expected = [Role::Program, Role::Allocator, Role::Stack, Role::Reserved];
    let found = after(&mut mmaps(), &[own, inside, stack, reserved, file]);
    let roles: Vec<Role> = found.iter().map(|(_, role, ..)| *role).collect();
    assert_eq!(roles, expected);
    // An allocator's memory stays its own wherever it is moved to.
    let mut all = mmaps();
    after(&mut all, &[inside]);
    let [(_, role, ..)] = after(&mut all, &mremap(2 * AT, 2, 3, 0, 2 * AT))[..] else {
        panic!("no mapping")
    };
    assert_eq!(role, Role::Allocator);
}

#[test]
fn the_heap_grows_and_shrinks_by_pages_once_its_end_is_known() {
    let mut all = mmaps();
    // Refused or asked for only: the break is where it is.
    assert_eq!(after(&mut all, &[brk(0, AT + 100), brk(u64::MAX, AT + 100)]), []);
    let heap = |pages| [(MapCall::Brk, Role::Program, 1, pages)];
    let top = AT + PAGE_BYTES;
    assert_eq!(after(&mut all, &[brk(top + 1, top + 1)]), heap(1));
    assert_eq!(after(&mut all, &[brk(top + 9 * PAGE_BYTES, top + 9 * PAGE_BYTES)])[0].3, 9);
    assert_eq!(after(&mut all, &[brk(top + 1, top + 1)]), heap(1));
    assert_eq!(after(&mut all, &[brk(top, top)]), []);
    // A child goes on from there.
    all.forked(1, 2);
    let child = MapEvent { space: 2, ..brk(top + PAGE_BYTES, top + PAGE_BYTES) };
    assert_eq!(after(&mut all, &[child]), heap(1));
}

#[test]
fn an_image_that_is_gone_tells_nothing_any_more() {
    let mut all = mmaps();
    after(&mut all, &[mapped(1, AT, 4)]);
    all.forget(1);
    assert_eq!(after(&mut all, &[mapped(1, AT, 4)]), []);
}

/// Another image gets the slot of its call site and its space, and none of its figures.
#[test]
fn an_image_that_is_forgotten_leaves_its_place_to_others() {
    let mut all = mmaps();
    let other = MapEvent { space: 2, stack: 30, ..mapped(1, AT, 8) };
    let events = [MapEvent { stack: 20, ..mapped(1, AT, 4) }, other];
    assert_eq!(after(&mut all, &events).len(), 2);
    all.forget(1);
    let (of_gone, of_others) = all.forget_sites(&HashSet::from([1]));
    assert_eq!((of_gone, of_others), (HashSet::from([20]), HashSet::from([30])));
    let program = |pages| (MapCall::Mmap, Role::Program, 1, pages);
    assert_eq!(after(&mut all, &[]), [program(8)]);
    assert_eq!(after(&mut all, &[mapped(1, AT, 1)]), [program(1), program(8)]);
    assert_eq!(all.sites.len(), 2, "slots");
    // Nothing is left of it that could be forgotten twice.
    let (of_gone, _) = all.forget_sites(&HashSet::from([7]));
    assert!(of_gone.is_empty(), "{of_gone:?}");
}

#[test]
fn huge_pages_round_up() {
    let huge =
        |flags| MapEvent { flags: ANON | libc::MAP_HUGETLB as u32 | flags, ..mapped(1, AT, 1) };
    assert_eq!(after(&mut mmaps(), &[huge(0)])[0].3, 512);
    assert_eq!(after(&mut mmaps(), &[huge(30 << HUGE_SHIFT)])[0].3, 1 << 18);
}

#[test]
fn sizes_that_are_not_wanted_are_followed_but_not_counted() {
    let mut all = Mmaps::new((5 * PAGE_BYTES, u64::MAX), 100, 2 << 20);
    assert_eq!(after(&mut all, &[mapped(1, AT, 4)]), []);
    let grown = [(MapCall::Mremap, Role::Program, 1, 6)];
    assert_eq!(after(&mut all, &mremap(AT, 4, 6, 0, AT)), grown);
}

#[test]
fn what_finds_no_room_is_counted() {
    let mut all = Mmaps::new((0, u64::MAX), 1, 2 << 20);
    let events = [mapped(1, AT, 1), mapped(1, 2 * AT, 1)];
    assert_eq!(after(&mut all, &events), [(MapCall::Mmap, Role::Program, 1, 1)]);
    assert_eq!(all.lost(), 1);
}
