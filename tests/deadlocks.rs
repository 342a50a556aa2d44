//! Rules 4, 5 and 8: what waits, for whom, and what becomes of it when the pager ends. A hang is a
//! failure here, found by a limit; nothing waits for time to pass otherwise.

mod common;

use common::*;
use daxpager::probe::Point;
use daxpager::sabotage::Rule;
use daxpager::{Allocation, Error, Pager};
use std::sync::Arc;
use std::time::{Duration, Instant};

const A: u8 = 0xaa;

/// Waits until a thread of a pager is in the same system call at three looks one after the other: it sleeps there.
fn until_one_sleeps_in(call: i64) {
    let look = || -> Vec<String> {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let tids = tasks.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let of = |tid: &str, what| std::fs::read_to_string(format!("/proc/self/task/{tid}/{what}")).unwrap_or_default();
        let there =
            |tid: &String| of(tid, "comm").starts_with("dax-") && of(tid, "syscall").starts_with(&format!("{call} "));
        tids.filter(there).collect()
    };
    until("a sleep in a system call", || {
        let first = look();
        let again = (0..2).all(|_| {
            std::thread::park_timeout(Duration::from_millis(10));
            let now = look();
            first.iter().any(|tid| now.contains(tid))
        });
        (again && !first.is_empty()).then_some(())
    });
}

/// A range is being re-pointed, which waits for the reader to read its event; the reader is held up. The
/// file must be usable meanwhile: nothing that waits for the pager holds its lock.
///
/// ```text
/// worker                       reader               control
///   about to re-point
///                                a fault (parked)
///   re-point: waits for
///   the reader
///                                                     truncate: takes L2
/// ```
fn file_is_usable_during_a_repoint(world: &mut World) -> Verdict {
    let a = world.file("a", 2, A);
    let other = world.file("other", 1, A);
    let (map, other_map) = (world.map(&a, 2), world.map(&other, 1));
    let repointing = world.park.at_page(Point::Repointing, 0);
    let load = spawn(move || map.load(0));
    repointing.wait();
    let reader = world.park.at(Point::FaultRead, |_| true);
    let second = spawn(move || other_map.load(0));
    reader.wait();
    repointing.release();
    // Until the worker is asleep in mremap there is nothing to see.
    until_one_sleeps_in(libc::SYS_mremap);
    let truncate = spawn(move || a.truncate(PAGE));
    let in_time = truncate.within(patience());
    reader.release();
    check(in_time.is_some(), || "hang: a truncate waits for the reader".to_owned())?;
    load.join("the load")?.unwrap();
    second.join("the second load")?.map(drop).map_err(|error| error.to_string())
}

rule_test!(nothing_waits_for_the_pager_under_the_files_lock, Rule::NoWaitUnderLock, 3, file_is_usable_during_a_repoint);

/// The reader meets a lock that a worker holds who waits for the reader.
///
/// ```text
/// worker                                    reader
///   regions exclusive (parked)
///                                             a fault: regions is taken. Wait for it?
///   re-point: waits for its event
///   to be read
/// ```
fn reader_meets_a_repoint(world: &mut World) -> Verdict {
    // The reader answers what it can here: that is when it takes locks.
    let rule = world.rule;
    *world = World::with_reader(3, rule, true);
    let a = world.file("a", 2, A);
    let (map, second_map) = (world.map(&a, 2), world.map(&a, 2));
    let repointing = world.park.at_page(Point::Repointing, 0);
    let read = world.park.at_page(Point::FaultRead, u64::MAX);
    let load = spawn(move || map.load(0));
    repointing.wait();
    // `regions` is held, so the reader cannot tell the page of this fault.
    let second = spawn(move || second_map.load(PAGE));
    read.wait();
    read.release();
    repointing.release();
    load.join("the load whose range is re-pointed")?.unwrap();
    second.join("the load that the reader met")?.map(drop).map_err(|error| error.to_string())
}

rule_test!(the_reader_never_blocks, Rule::ReaderNeverBlocks, 3, reader_meets_a_repoint);

/// xfstests generic/647: the buffer of a read or write lies in a mapping of the same file, in a page
/// that has not been touched. Copying it faults, and the fault needs the file's lock.
#[allow(unsafe_code, reason = "a buffer in a mapping")]
fn buffers_in_the_mapping(world: &mut World) -> Verdict {
    let a = world.file("a", 4, A);
    a.truncate(8 * PAGE).unwrap();
    let map = world.map(&a, 8);
    let slice = {
        let map = map.clone();
        move |page: u64| {
            // SAFETY: within the mapping, which the closure keeps; nobody else stores to these pages.
            let at = unsafe { map.as_ptr().add((page * PAGE) as usize) };
            // SAFETY: as above.
            unsafe { std::slice::from_raw_parts_mut(at, PAGE as usize) }
        }
    };
    let steps = spawn(move || {
        // from a written page over a hole, into a hole, over itself
        a.write_at(slice(0), 5 * PAGE).unwrap();
        a.read_at(slice(6), 0).unwrap();
        a.write_at(slice(1), PAGE).unwrap();
        a.read_at(slice(2), 2 * PAGE).unwrap();
        a
    });
    let a = steps.join("a read or write whose buffer lies in a mapping")?;
    for page in [0, 1, 2, 3, 5, 6] {
        check(page_of(&a, page) == vec![A; PAGE as usize], || format!("page {page} is wrong"))?;
    }
    Ok(())
}
rule_test!(no_lock_is_held_over_a_users_buffer, Rule::NoCopyUnderLock, 16, buffers_in_the_mapping);

/// A thread waits in a fault, the pager is dropped: SIGBUS, and so for every later access. Neither a
/// hang, nor zeros.
fn pager_dropped_under_a_fault(world: &mut World) -> Verdict {
    let a = world.file("a", 2, A);
    let map = world.map(&a, 2);
    map.load(PAGE).unwrap();
    let parked = world.park.at_page(Point::FaultTaken, 0);
    let waiting = spawn({
        let map = map.clone();
        move || map.load(0)
    });
    parked.wait();
    let pager = world.pager.take().unwrap();
    let start = Instant::now();
    let ended = spawn(move || drop(pager));
    let waited = waiting.within(patience());
    let took = start.elapsed();
    parked.release();
    let waited = waited.ok_or("hang: a thread waits for a pager that is gone")?;
    check(is_bus(&waited), || format!("the waiting load gave {waited:x?}"))?;
    println!("the waiting load ended after {took:?}");
    ended.join("the pager's drop")?;
    for offset in [0, PAGE] {
        let later = spawn({
            let map = map.clone();
            move || map.load(offset)
        });
        let later = later.join("a load after the pager is gone")?;
        check(is_bus(&later), || format!("a load after the pager is gone gave {later:x?}"))?;
    }
    let read = map.read_at(&mut [0; 8], 0);
    check(matches!(read, Err(Error::PagerGone { .. })), || format!("read_at: {read:?}"))?;
    check(page_of(&a, 0) == vec![A; PAGE as usize], || "the file has changed".to_owned())
}
rule_test!(a_dropped_pager_ends_in_sigbus, Rule::RevokeBeforeClose, 3, pager_dropped_under_a_fault);

/// A probe that panics in the thread whose name is given, once armed.
struct Bomb {
    thread: &'static str,
    armed: std::sync::atomic::AtomicBool,
}

impl daxpager::probe::Probe for Bomb {
    fn at(&self, event: daxpager::probe::Event) {
        let here = std::thread::current().name().is_some_and(|name| name.contains(self.thread));
        let point = matches!(event.point, Point::FaultRead | Point::Decided | Point::Prepared | Point::Repointing);
        if here && point && self.armed.swap(false, std::sync::atomic::Ordering::SeqCst) {
            panic!("the test has the {} panic", self.thread);
        }
    }
}

/// A thread of the pager panics, in the reader with no lock held, in a worker with some held: the
/// pager is gone as if it had been dropped, and says why.
fn panic_in(thread: &'static str) {
    let bomb = Arc::new(Bomb { thread, armed: false.into() });
    let volume = daxpager::Volume::format_observed(
        daxpager::Device::memfd("bomb", 8 * PAGE).unwrap(),
        Allocation::Blocks,
        bomb.clone(),
    );
    let pager = Pager::builder().probe(bomb.clone()).start().unwrap();
    let a = volume.create("a").unwrap();
    a.write_at(&[A; 2 * PAGE as usize], 0).unwrap();
    let maps: Vec<_> = (0..3).map(|_| Arc::new(pager.map(&a, 0..2 * PAGE).unwrap())).collect();
    maps[0].load(0).unwrap();
    bomb.armed.store(true, std::sync::atomic::Ordering::SeqCst);
    let start = Instant::now();
    // The one whose fault sets it off, one that comes after, and a page that was there already.
    for (map, offset) in [(&maps[1], 0), (&maps[2], PAGE), (&maps[0], 0)] {
        let map = map.clone();
        let load = spawn(move || until("the pager's end", || map.load(offset).err()));
        let error = load.join("a load of a dying pager").unwrap();
        assert!(matches!(error, Error::Bus(_)), "{error:?}");
    }
    println!("all had ended after {:?}", start.elapsed());
    let error = until("the error", || maps[0].read_at(&mut [0; 8], 0).err());
    assert!(error.to_string().contains("panic"), "{error}");
    assert!(matches!(pager.map(&a, 0..PAGE), Err(Error::PagerGone { .. })));
    assert!(matches!(pager.shutdown(), Err(Error::PagerGone { .. })));
    // The file is none the worse.
    assert_eq!(page_of(&a, 0), vec![A; PAGE as usize]);
    a.truncate(0).unwrap();
    drop(maps);
    assert_eq!(volume.used_blocks(), 0);
}

#[test]
fn a_panic_of_the_reader_ends_in_sigbus() {
    panic_in("reader");
}

#[test]
fn a_panic_of_a_worker_ends_in_sigbus() {
    panic_in("worker");
}

/// Unmapping while faults are in flight: whoever waits there ends (its access is repeated on an address
/// that is not mapped, so the kernel is asked to do it, for which that is an error), and the same
/// again and again with new mappings at the same address.
#[test]
#[allow(unsafe_code, reason = "the address may be unmapped meanwhile: that is the test")]
fn unmap_ends_those_who_wait() {
    let world = World::new(4, None);
    let a = world.file("a", 1, A);
    let mut refused = 0;
    for round in 1..=20 {
        // The thread waits at its lowest page: the kernel gives out a gap from its upper end, and an allocator may take a page at once.
        let map = world.map(&a, 256);
        let address = map.as_ptr() as usize;
        let parked = world.park.at_page(Point::FaultTaken, 0);
        let (_read, write) = nix::unistd::pipe().unwrap();
        let wait = spawn(move || {
            // SAFETY: the kernel checks the address.
            unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&write), address as *const libc::c_void, 8) }
        });
        parked.wait();
        let unmap = spawn(move || drop(map));
        unmap.join("the unmap").unwrap();
        let written = wait.join("a thread that waited in a mapping that is gone").unwrap();
        // Another test's thread may have memory of its own there by then.
        assert!(matches!(written, -1 | 8), "{written}");
        refused += u64::from(written == -1);
        parked.release();
        // The fault that was parked belongs to nobody now. Were it served later, it would be served in
        // the next mapping, which is right and would leave that one without a fault to park.
        until("the end of the parked fault", || (world.pager().stats().unknown_addresses == round).then_some(()));
    }
    assert!(refused >= 10, "{refused} of 20: the address is somebody else's nearly each time");
    assert_eq!(world.pager().mappings(), 0);
}

/// Nothing is left behind by mappings that come and go: no descriptor, no address range, no memory.
#[test]
fn mappings_leave_nothing_behind() {
    let device = daxpager::Device::memfd("leaves-nothing", 8 * PAGE).unwrap();
    let volume = daxpager::Volume::format(device);
    let pager = Pager::builder().start().unwrap();
    let a = volume.create("a").unwrap();
    a.truncate(4 * PAGE).unwrap();
    let count = |path: &str| std::fs::read_dir(path).unwrap().count();
    let ranges = || {
        std::fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .filter(|line| line.contains("memfd:leaves-nothing"))
            .count()
    };
    let round = || {
        let map = pager.map(&a, 0..4 * PAGE).unwrap();
        for page in 0..4 {
            map.store(page * PAGE, page).unwrap();
        }
    };
    round();
    let before = ranges();
    let fds = count("/proc/self/fd");
    for _ in 0..200 {
        round();
    }
    assert_eq!(ranges(), before);
    // Other tests of this process open some too.
    assert!(count("/proc/self/fd") < fds + 50);
    // A device that is gone takes its memory with it, though the pager that has served it goes on.
    drop(a);
    drop(volume);
    assert_eq!(ranges(), 0);
}
