//! What a fault costs: one poll, one read, one ioctl, and nothing from the heap. Alone in its process, so
//! that every allocation counted is the pager's or this thread's.
#![allow(unsafe_code, reason = "a counting allocator")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use daxpager::probe::Point;
use daxpager::{Calls, MapOptions, Stats};

struct Counting;
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as promised by our own caller.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as promised by our own caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PAGES: u64 = 2000;

fn cost(world: &World, faults: impl FnOnce()) -> (Stats, Calls, u64) {
    let before = world.pager().stats();
    let heap = ALLOCATIONS.load(Ordering::SeqCst);
    faults();
    let heap = ALLOCATIONS.load(Ordering::SeqCst) - heap;
    // The reader may still be on its way back to poll.
    let after = world.pager().stats();
    let calls = Calls::since(&after.calls, &before.calls);
    (after, calls, heap)
}

fn assert_one_each(what: &str, calls: Calls, heap: u64, faults: u64) {
    println!("{what}, {faults} faults: {calls:?}, {heap} allocations");
    assert_eq!(calls.installs, faults, "{what}");
    // One more of each may have been under way when the counting began.
    assert!(calls.polls <= faults + 1 && calls.reads <= faults + 1, "{what}: {calls:?}");
    assert_eq!((calls.wakes, calls.repoints, calls.zaps), (0, 0, 0), "{what}");
    // The worker that had the first fault may hold a lock still, and then has one more: its queue grows by a piece.
    assert!(heap <= 1, "{what}: {heap} allocations");
}

#[test]
fn one_poll_one_read_one_ioctl_and_no_heap() {
    let world = World::with_reader(PAGES + 8, None, true);
    let a = world.file("a", PAGES, 1);
    // One page a fault: what it costs to install more is for tests/around.rs.
    let options = MapOptions::new().fault_around(0);
    let map = world.map_with(&a, PAGES + 8, &options);
    // The first fault points the whole extent; that one goes to a worker. It also sets up what is lazy.
    map.load(0).unwrap();
    let ours = map.clone();
    let (_, calls, heap) = cost(&world, || (1..PAGES).for_each(|page| assert!(ours.load(page * PAGE).is_ok())));
    assert_one_each("minor, load", calls, heap, PAGES - 1);

    map.store(0, 7).unwrap();
    let (_, calls, heap) = cost(&world, || (1..PAGES).for_each(|page| map.store(page * PAGE, 7).unwrap()));
    assert_one_each("write-protect", calls, heap, PAGES - 1);

    let fresh = world.map(&a, PAGES);
    fresh.store(0, 7).unwrap();
    let (_, calls, heap) = cost(&world, || (1..PAGES).for_each(|page| fresh.store(page * PAGE, 7).unwrap()));
    assert_one_each("minor, store", calls, heap, PAGES - 1);

    let sparse = world.volume.create("sparse").unwrap();
    sparse.truncate(PAGES * PAGE).unwrap();
    let holes = world.map(&sparse, PAGES + 8);
    holes.load(0).unwrap();
    let (_, calls, heap) = cost(&world, || (1..PAGES).for_each(|page| assert!(holes.load(page * PAGE).is_ok())));
    assert_one_each("missing, load of a hole", calls, heap, PAGES - 1);

    let (_, calls, _) = cost(&world, || (PAGES..PAGES + 8).for_each(|page| assert!(is_bus(&holes.load(page * PAGE)))));
    assert_eq!(calls.installs, 8, "past the end: one POISON each");

    several_messages_a_read(&world);
}

/// How many faults wait to be read, from the kernel.
fn pending() -> u64 {
    let mut pending = 0;
    for entry in std::fs::read_dir("/proc/self/fdinfo").unwrap() {
        let Ok(text) = std::fs::read_to_string(entry.unwrap().path()) else { continue };
        let value = text.lines().find_map(|line| line.strip_prefix("pending:"));
        pending += value.map_or(0, |value| value.trim().parse::<u64>().unwrap());
    }
    pending
}

/// Faults that come together are read together.
fn several_messages_a_read(world: &World) {
    const THREADS: u64 = 8;
    let a = world.volume.open("a").unwrap();
    // One page a fault, in whatever order the faults come.
    let map: Arc<_> = world.map_with(&a, PAGES, &MapOptions::new().fault_around(0));
    map.load(0).unwrap();
    let parked = world.park.at_page(Point::FaultRead, 1);
    let first = spawn({
        let map = map.clone();
        move || map.load(PAGE)
    });
    parked.wait();
    let before = world.pager().stats().calls;
    let loads: Vec<_> = (2..2 + THREADS)
        .map(|page| {
            let map = map.clone();
            spawn(move || map.load(page * PAGE))
        })
        .collect();
    until("eight faults waiting to be read", || (pending() == THREADS).then_some(()));
    parked.release();
    first.join("the first load").unwrap().unwrap();
    loads.iter().for_each(|load| assert!(load.join("a load").unwrap().is_ok()));
    let calls = Calls::since(&world.pager().stats().calls, &before);
    println!("{THREADS} faults that came together: {calls:?}");
    assert_eq!(calls.installs, THREADS + 1);
    assert!(calls.reads <= 2, "{calls:?}");
}
