//! Mappings whose faults are resolved by the threads that have them.
#![allow(unsafe_code, reason = "a system call with a buffer in a mapping")]

mod common;

use std::os::fd::AsFd;
use std::sync::Arc;

use common::*;
use daxpager::probe::Point;
use daxpager::{Allocation, Device, Error, File, MapOptions, Mapping, Pager, Resolve, Volume};

const A: u8 = 0xaa;
const B: u8 = 0xbb;

fn options() -> MapOptions {
    MapOptions::new().resolve(Resolve::FaultingThread)
}

fn map(pager: &Pager, file: &File, pages: u64) -> Arc<Mapping> {
    Arc::new(pager.map_with(file, 0..pages * PAGE, &options()).unwrap())
}

fn small(blocks: u64) -> (Volume, Pager) {
    let volume = Volume::format_with(Device::memfd("direct", blocks * PAGE).unwrap(), Allocation::Blocks);
    (volume, Pager::builder().start().unwrap())
}

/// A page that has its block and its address is there after one fault, which no thread of the pager has seen.
#[test]
fn a_hit_is_resolved_without_the_pagers_threads() {
    let (volume, pager) = small(16);
    let file = volume.create("a").unwrap();
    file.write_at(&[A; 4 * PAGE as usize], 0).unwrap();
    let map = map(&pager, &file, 4);
    // The first fault points the address at the device, which is a worker's to do.
    assert_eq!(map.load(0), Ok(u64::from_ne_bytes([A; 8])));
    let before = pager.stats();
    assert_eq!(map.load(PAGE), Ok(u64::from_ne_bytes([A; 8])));
    assert_eq!(map.store(2 * PAGE, 1), Ok(()));
    assert_eq!(map.store(PAGE, 2), Ok(()));
    let after = pager.stats();
    assert_eq!(after.in_thread - before.in_thread, 3);
    assert_eq!(after.handed_over, before.handed_over);
    let calls = after.calls.since(&before.calls);
    assert_eq!((calls.installs, calls.wakes), (3, 0), "{calls:?}");
    // The reader may have been on its way back to sleep, from the first fault; woken for each access, it would count three.
    assert!(calls.polls <= 1 && calls.reads <= 1, "{calls:?}");
    assert_eq!(map.take_dirty().unwrap(), [PAGE..3 * PAGE]);
}

/// Past the end is SIGBUS, and not for ever.
#[test]
fn the_end_of_the_file_is_asked_each_time() {
    let (volume, pager) = small(16);
    let file = volume.create("a").unwrap();
    let map = map(&pager, &file, 4);
    let past_end =
        |result: Result<u64, Error>| assert!(matches!(result, Err(Error::Bus(bus)) if bus.offset == 8), "{result:?}");
    past_end(map.load(8));
    file.truncate(PAGE).unwrap();
    assert_eq!(map.load(8), Ok(0));
    map.store(8, 5).unwrap();
    file.truncate(0).unwrap();
    past_end(map.load(8));
    file.truncate(PAGE).unwrap();
    assert_eq!(map.load(8), Ok(0));
}

/// Holes and unwritten pages: a worker prepares them while the thread waits.
#[test]
fn stores_to_holes_are_handed_to_a_worker() {
    let (volume, pager) = small(64);
    let file = volume.create("a").unwrap();
    file.truncate(16 * PAGE).unwrap();
    file.allocate(8 * PAGE, 8 * PAGE, false).unwrap();
    let map = map(&pager, &file, 16);
    for page in 0..16 {
        assert_eq!(map.load(page * PAGE), Ok(0));
        map.store(page * PAGE, page + 1).unwrap();
        assert_eq!(map.load(page * PAGE), Ok(page + 1));
    }
    assert!(pager.stats().handed_over >= 16);
    let mut word = [0; 8];
    file.read_at(&mut word, 15 * PAGE).unwrap();
    assert_eq!(u64::from_ne_bytes(word), 16);
}

/// No block is left: the store ends in SIGBUS in its own thread; loads read zeros; with a block free it works.
#[test]
fn a_full_volume_is_a_sigbus_for_the_store_alone() {
    let (volume, pager) = small(2);
    let (full, file) = (volume.create("full").unwrap(), volume.create("a").unwrap());
    full.allocate(0, 2 * PAGE, false).unwrap();
    file.truncate(PAGE).unwrap();
    let map = map(&pager, &file, 1);
    assert_eq!(map.load(0), Ok(0));
    assert!(matches!(map.store(0, 1), Err(Error::Bus(_))));
    assert_eq!(map.load(0), Ok(0));
    full.punch_hole(0, PAGE).unwrap();
    assert_eq!(map.store(0, 1), Ok(()));
    assert_eq!(map.load(0), Ok(1));
}

/// The thread's two columns, with the fault in its own thread. Decided under the lock, so the punch waits:
///
/// ```text
/// load of A, page 1, in its handler                 punch A, page 1
///   L2 shared: block 1 (parked)
///                                                     waits for L2
///   install, unlock
///                                                     publish, zap; B takes the block
/// ```
#[test]
fn a_punch_waits_for_the_handler() {
    let world = World::new(2, None);
    let a = world.file("a", 2, A);
    let map = Arc::new(world.pager().map_with(&a, 0..2 * PAGE, &options()).unwrap());
    map.load(0).unwrap();
    let parked = world.park.at_page(Point::Decided, 1);
    let load = spawn({
        let map = map.clone();
        move || map.load(PAGE)
    });
    parked.wait();
    let punched = world.park.at(Point::Invalidated, |_| true);
    let punch = spawn({
        let a = a.clone();
        move || a.punch_hole(PAGE, PAGE)
    });
    assert!(punched.caught_within(WATCH).is_none(), "the punch went past a handler that had decided");
    parked.release();
    punched.wait();
    punched.release();
    // The punch may come between the install and the access, which is then made once more.
    let loaded = load.join("the load").unwrap();
    assert!([Ok(u64::from_ne_bytes([A; 8])), Ok(0)].contains(&loaded), "{loaded:?}");
    punch.join("the punch").unwrap().unwrap();
    let _b = world.file("b", 1, B);
    assert_eq!(map.load(PAGE), Ok(0));
}

/// The pager ends while a thread waits for a worker: SIGBUS, and no hang.
#[test]
fn who_waits_is_dismissed_when_the_pager_ends() {
    let mut world = World::new(4, None);
    let a = world.volume.create("a").unwrap();
    a.truncate(PAGE).unwrap();
    let map = Arc::new(world.pager().map_with(&a, 0..PAGE, &options()).unwrap());
    let parked = world.park.at_page(Point::Allocated, 0);
    let store = spawn({
        let map = map.clone();
        move || map.store(0, 1)
    });
    parked.wait();
    let pager = world.pager.take().unwrap();
    let end = spawn(move || drop(pager));
    parked.release();
    let stored = store.join("the store").unwrap();
    end.join("the end").unwrap();
    // Served before the end, or dismissed by it.
    assert!(matches!(stored, Ok(()) | Err(Error::Bus(_))), "{stored:?}");
    assert!(matches!(map.load(0), Err(Error::Bus(_))));
}

/// A buffer of a system call in a page that is not installed gets EFAULT, as documented; the library's own calls put it in
/// place first, also while a thread punches it.
#[test]
fn system_calls_get_efault_where_nothing_is_installed() {
    let (volume, pager) = small(16);
    let file = volume.create("a").unwrap();
    file.write_at(&[A; PAGE as usize], 0).unwrap();
    let map = map(&pager, &file, 2);
    let (from, to) = nix::unistd::pipe().unwrap();
    let refused = raw_write(&to, &map);
    assert_eq!(refused, Err(nix::errno::Errno::EFAULT));
    for _ in 0..200 {
        let punch = spawn({
            let file = file.clone();
            move || file.punch_hole(0, PAGE).unwrap()
        });
        nix::unistd::write(&to, &[7; 64]).unwrap();
        assert_eq!(map.read_from(from.as_fd(), 0, 2 * PAGE), Ok(64));
        punch.join("the punch").unwrap();
        assert_eq!(map.write_to(to.as_fd(), 0, 64), Ok(64));
        let mut got = [0; 64];
        nix::unistd::read(&from, &mut got).unwrap();
        assert!([[7; 64], [0; 64]].contains(&got), "{got:?}");
    }
    file.truncate(0).unwrap();
    let past_end = map.write_to(to.as_fd(), 0, 64);
    assert!(matches!(past_end, Err(Error::System { errno: libc::EFAULT, .. })), "{past_end:?}");
}

/// write(2) straight from the mapping, with nobody's help.
/// Where the process is short of address ranges, putting one page in place takes another away: a system call for
/// more than are to be had at once does one, and the next call the next.
#[test]
fn a_system_call_gets_on_where_address_ranges_are_short() {
    const PAGES: u64 = 40;
    let volume = Volume::format_with(Device::memfd("direct", PAGES * PAGE).unwrap(), Allocation::Blocks);
    let pager = Pager::builder().address_ranges_max(16).start().unwrap();
    let file = volume.create("a").unwrap();
    // The blocks lie the wrong way round: each page needs a range of its own.
    for page in (0..PAGES).rev() {
        file.write_at(&[A; PAGE as usize], page * PAGE).unwrap();
    }
    let map = map(&pager, &file, PAGES);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut done = 0;
    while done < PAGES * PAGE {
        let written = map.write_to(writer.as_fd(), done, PAGES * PAGE - done).unwrap();
        let mut bytes = vec![0; written];
        std::io::Read::read_exact(&mut reader, &mut bytes).unwrap();
        assert!(written > 0 && bytes.iter().all(|byte| *byte == A));
        done += written as u64;
    }
}

fn raw_write(to: &std::os::fd::OwnedFd, map: &Mapping) -> nix::Result<usize> {
    // SAFETY: the mapping lives, and the kernel only reads it, or says EFAULT.
    let bytes = unsafe { std::slice::from_raw_parts(map.as_ptr(), 64) };
    nix::unistd::write(to, bytes)
}

/// Mapped and unmapped again and again beside threads that fault: nobody hangs, and no store is lost.
#[test]
fn map_and_unmap_beside_faults() {
    let (volume, pager) = small(256);
    let file = volume.create("a").unwrap();
    file.truncate(64 * PAGE).unwrap();
    let pager = Arc::new(pager);
    let steady = map(&pager, &file, 64);
    let stores: Vec<_> = (0..2)
        .map(|thread| {
            let (steady, file) = (steady.clone(), file.clone());
            spawn(move || {
                for round in 0..2_000 {
                    let at = (round * 7 + thread * 32) % 64 * PAGE + thread * 8;
                    steady.store(at, round).unwrap();
                    assert_eq!(steady.load(at), Ok(round));
                    if round % 16 == 0 {
                        file.punch_hole((round + thread) % 64 * PAGE + 16, 8).unwrap();
                    }
                }
            })
        })
        .collect();
    for _ in 0..300 {
        let other = map(&pager, &file, 64);
        for page in 0..8 {
            other.load(page * PAGE).unwrap();
        }
    }
    stores.into_iter().for_each(|store| store.join("the stores").unwrap());
}

/// A handler that is held up keeps nobody from mapping and unmapping other ranges: it counts itself in at its own.
#[test]
fn a_handler_that_is_held_up_keeps_nobody_from_mapping() {
    let world = World::new(4, None);
    let (a, b) = (world.file("a", 1, A), world.file("b", 1, B));
    let held = Arc::new(world.pager().map_with(&a, 0..PAGE, &options()).unwrap());
    let parked = world.park.at(Point::FaultTaken, |_| true);
    let load = spawn({
        let held = held.clone();
        move || held.load(0)
    });
    parked.wait();
    let other = spawn({
        let other = map(world.pager(), &b, 1);
        move || other.load(0)
    });
    assert_eq!(other.join("another mapping").unwrap(), Ok(u64::from_ne_bytes([B; 8])));
    parked.release();
    assert_eq!(load.join("the load").unwrap(), Ok(u64::from_ne_bytes([A; 8])));
}
