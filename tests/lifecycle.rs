//! Mappings that come and go, pagers that end, and what the process does to its memory meanwhile.
#![allow(unsafe_code, reason = "system calls of the application's own")]

mod common;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use common::*;
use daxpager::probe::Point;
use daxpager::{Access, Allocation, Device, Error, Pager, Volume};

/// Four threads load the same page of a hole at once.
fn four_loads(map: &Arc<daxpager::Mapping>, round: usize) {
    let loads: Vec<_> = (0..4)
        .map(|_| {
            let map = map.clone();
            spawn(move || map.load(0))
        })
        .collect();
    for load in loads {
        assert_eq!(load.join("a load").unwrap(), Ok(0), "round {round}");
    }
}

/// A message that is served when its mapping has gone and another is at the address: of several
/// threads that faulted on one page, the first answer wakes all, and the other messages are still there.
/// They must do no harm to the new mapping.
#[test]
fn late_messages_do_no_harm_at_an_address_used_again() {
    let world = World::with_reader(4, None, true);
    let a = world.volume.create("a").unwrap();
    a.truncate(PAGE).unwrap();
    let (mut last, mut again) = (0, 0);
    let mut round = 0;
    // The kernel promises nothing: nearly every address is used again, unless other threads of the process are quicker.
    while round < 3_000 || again < 100 {
        assert!(round < 100_000, "the address was used again {again} times only: the test proves little");
        round += 1;
        let map = world.map(&a, 1);
        again += u64::from(map.as_ptr() as usize == last);
        last = map.as_ptr() as usize;
        four_loads(&map, round);
    }
}

/// A store is held at a point in the hands of its worker, and answered by somebody else. Then nobody has its file any more:
/// neither a name, a handle nor a mapping. `used` blocks are in use just before.
fn late_for_a_file_that_is_gone(point: Point, used: u64) -> (World, Arc<Trap>) {
    let world = World::with_reader(4, None, true);
    let file = world.volume.create("a").unwrap();
    file.truncate(PAGE).unwrap();
    let map = world.map(&file, 1);
    let parked = world.park.at_page(point, 0);
    let store = spawn_on(&map, |map| map.store(0, 1));
    parked.wait();
    map.populate(0..PAGE, Access::Store).unwrap();
    assert_eq!(store.join("the store").unwrap(), Ok(()));
    assert_eq!(world.volume.used_blocks(), used);
    drop((map, file));
    world.volume.remove("a").unwrap();
    (world, parked)
}

/// Who has nothing but a late message in his hands keeps no block from anybody.
#[test]
fn a_late_fault_keeps_no_block_of_a_file_that_is_gone() {
    let (world, parked) = late_for_a_file_that_is_gone(Point::Prepared, 1);
    assert_eq!(world.volume.used_blocks(), 0);
    parked.release();
}

/// The same when the block comes after the file has gone.
#[test]
fn a_late_fault_puts_no_block_into_a_file_that_is_gone() {
    let (world, parked) = late_for_a_file_that_is_gone(Point::Allocated, 2);
    // The one that the worker has in its hands: on its way, and whoever runs short waits for it.
    assert_eq!(world.volume.used_blocks(), 1);
    parked.release();
    until("the block is free", || (world.volume.used_blocks() == 0).then_some(()));
}

/// The same with two pagers that take turns at the address: what one has to say of an address that is
/// no longer its own must not touch what the other has there.
#[test]
fn late_messages_do_no_harm_to_another_pager() {
    let worlds = [World::with_reader(4, None, true), World::with_reader(4, None, true)];
    let files = worlds.each_ref().map(|world| {
        let a = world.volume.create("a").unwrap();
        a.truncate(PAGE).unwrap();
        a
    });
    for round in 0..2_000 {
        let map = worlds[round % 2].map(&files[round % 2], 1);
        four_loads(&map, round);
    }
}

/// The application moves a part of a mapping away, and then the pager ends. What was moved must not become
/// an ordinary mapping of the device, in which other files' bytes show up.
#[test]
fn a_part_that_was_moved_away_ends_with_the_pager() {
    let mut world = World::with_reader(4, None, true);
    let a = world.file("a", 2, 0xaa);
    let map = world.map(&a, 2);
    map.load(PAGE).unwrap();
    let target = {
        let length = std::num::NonZeroUsize::new(PAGE as usize).unwrap();
        let (prot, flags) = (nix::sys::mman::ProtFlags::PROT_NONE, nix::sys::mman::MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping where there is room.
        unsafe { nix::sys::mman::mmap_anonymous(None, length, prot, flags) }.unwrap().as_ptr()
    };
    let from = map.as_ptr().wrapping_add(PAGE as usize);
    // SAFETY: the page is the mapping's, and the target is the page just reserved.
    let moved = unsafe {
        libc::mremap(from.cast(), PAGE as usize, PAGE as usize, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, target)
    };
    assert_eq!(moved, target);
    until("the mapping given up", || map.read_at(&mut [0; 8], 0).err());
    drop(world.pager.take());
    let look = |at: usize| {
        let mut word = [0; 8];
        // SAFETY: mapped above, and never unmapped.
        unsafe { daxpager::checked::copy_out(at, &mut word) }.map(|()| u64::from_ne_bytes(word))
    };
    let at = target as usize;
    let load = spawn(move || look(at));
    assert!(load.join("a load of what was moved away").unwrap().is_err());
    a.truncate(0).unwrap();
    let b = world.file("b", 4, 0xbb);
    drop(map);
    assert!(look(at).is_err(), "another file's bytes: {:x?}", look(at));
    assert_eq!(page_of(&b, 1), vec![0xbb; PAGE as usize]);
}

/// The pager's own re-points must not be taken for the application moving a mapping, however late
/// their events are seen: their staging ranges are given to new mappings at once.
#[test]
fn own_moves_are_not_mistaken_for_the_applications() {
    let world = World::with_reader(64, None, true);
    let a = world.volume.create("a").unwrap();
    a.truncate(64 * PAGE).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let repointers: Vec<_> = [16, 32]
        .map(|page| {
            let (a, stop) = (a.clone(), stop.clone());
            let map = world.pager().map(&a, page * PAGE..(page + 1) * PAGE).unwrap();
            spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    a.write_at(&[1; PAGE as usize], page * PAGE).unwrap();
                    map.load(0).unwrap();
                    a.punch_hole(page * PAGE, PAGE).unwrap();
                    map.load(0).unwrap();
                }
            })
        })
        .into();
    let begun = Instant::now();
    let mut rounds = 0u64;
    while (rounds < 20_000 || world.pager().stats().repoints < 2_000) && begun.elapsed() < HANG {
        rounds += 1;
        let map = world.pager().map(&a, 0..PAGE).unwrap();
        let read = map.read_at(&mut [0; 8], 0);
        assert_eq!(read, Ok(()), "round {rounds}");
    }
    stop.store(true, Ordering::Relaxed);
    repointers.iter().for_each(|task| task.join("a thread whose range is re-pointed").unwrap());
    assert!(world.pager().stats().repoints > 500, "{:?}", world.pager().stats());
}

/// Readers that hold the file's lock shared, one after the other without a gap, do not keep a pager from ending.
#[test]
fn shutdown_is_not_starved_by_readers() {
    let mut world = World::with_reader(1024, None, true);
    let a = world.file("a", 1024, 1);
    let map = world.map(&a, 1024);
    map.load(0).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (a, stop) = (a.clone(), stop.clone());
            spawn(move || {
                let mut bytes = vec![0; 1024 * PAGE as usize];
                while !stop.load(Ordering::Relaxed) {
                    a.read_at(&mut bytes, 0).unwrap();
                }
            })
        })
        .collect();
    let pager = world.pager.take().unwrap();
    let begun = Instant::now();
    let ended = spawn(move || pager.shutdown());
    let in_time = ended.within(HANG);
    stop.store(true, Ordering::Relaxed);
    readers.iter().for_each(|reader| reader.join("a reader").unwrap());
    assert!(in_time.is_some(), "after {:?} the pager had not ended", begun.elapsed());
    assert!(is_bus(&map.load(0)));
}

/// Runs a test of this file in a process of its own, and expects it to succeed.
fn in_a_child(name: &str) {
    let output = guard::output(guard::this_program(name));
    assert!(output.status.success(), "{name}: {}\n{}", output.status, guard::text(&output));
}

/// mlockall changes the whole process. With MCL_FUTURE the kernel fills every new mapping at once, which
/// must not keep the pager from seeing faults; with MCL_CURRENT it locks what is there.
#[test]
fn locked_memory() {
    in_a_child("locked_from_now_on");
    in_a_child("locked_so_far");
}

#[test]
#[ignore = "run by `locked_memory`, in a process of its own"]
fn locked_from_now_on() {
    // SAFETY: changes how memory is mapped, nothing else.
    assert_eq!(unsafe { libc::mlockall(libc::MCL_FUTURE) }, 0, "mlockall needs root, or a larger RLIMIT_MEMLOCK");
    under_mlockall(|| ());
}

#[test]
#[ignore = "run by `locked_memory`, in a process of its own"]
fn locked_so_far() {
    under_mlockall(|| {
        // SAFETY: as above.
        assert_eq!(unsafe { libc::mlockall(libc::MCL_CURRENT) }, 0, "mlockall needs root, or a larger RLIMIT_MEMLOCK");
    });
}

fn under_mlockall(lock: impl FnOnce()) {
    let volume = Volume::format(Device::memfd("lock", 64 * PAGE).unwrap());
    let pager = Pager::builder().start().unwrap();
    let a = volume.create("a").unwrap();
    a.truncate(8 * PAGE).unwrap();
    a.write_at(&[7; PAGE as usize], PAGE).unwrap();
    let map = Arc::new(pager.map(&a, 0..8 * PAGE).unwrap());
    map.load(PAGE).unwrap();
    lock();
    let work = spawn(move || {
        map.store(0, 42).unwrap();
        assert_eq!(page_of(&a, 0)[..8], 42u64.to_ne_bytes(), "a store into a hole is lost");
        a.write_at(&[8; PAGE as usize], 3 * PAGE).unwrap();
        assert_eq!(map.load(3 * PAGE).unwrap(), u64::from_ne_bytes([8; 8]));
        a.punch_hole(0, 2 * PAGE).unwrap();
        assert_eq!((map.load(0).unwrap(), map.load(PAGE).unwrap()), (0, 0), "a zap does not reach locked memory");
        a.truncate(0).unwrap();
        assert!(is_bus(&map.load(0)));
    });
    work.join("work under mlockall").unwrap();
}

/// A mapping much longer than memory, of a file much longer too: it costs nothing.
#[test]
fn a_sparse_tebibyte() {
    let world = World::with_reader(8, None, true);
    let a = world.volume.create("a").unwrap();
    a.truncate(1 << 40).unwrap();
    let map = world.pager().map(&a, 0..1 << 40).unwrap();
    for offset in [0, 1 << 20, 1 << 30, (1 << 40) - 8] {
        map.store(offset, offset + 1).unwrap();
        assert_eq!(map.load(offset), Ok(offset + 1));
    }
    let dirty = map.take_dirty().unwrap();
    assert_eq!(dirty.iter().map(|range| range.end - range.start).sum::<u64>(), 4 * PAGE);
    assert_eq!(a.blocks(), 4);
    a.punch_hole(0, 1 << 40).unwrap();
    assert_eq!((map.load(1 << 30), a.blocks()), (Ok(0), 0));
}

/// A file so fragmented that every page is an address range of its own, with far fewer of them than
/// pages: it becomes slow, it does not fail.
#[test]
fn a_fragmented_file_with_few_address_ranges() {
    const PAGES: u64 = 600;
    let volume = Volume::format_with(Device::memfd("fragments", (PAGES + 8) * PAGE).unwrap(), Allocation::Blocks);
    let pager = Pager::builder().address_ranges_max(64).start().unwrap();
    let (a, b) = (volume.create("a").unwrap(), volume.create("b").unwrap());
    // Every other block goes to the other file.
    for page in 0..PAGES / 2 {
        a.write_at(&[1; PAGE as usize], 2 * page * PAGE).unwrap();
        b.write_at(&[2; PAGE as usize], page * PAGE).unwrap();
    }
    let map = pager.map(&a, 0..PAGES * PAGE).unwrap();
    for round in 0..3 {
        for page in 0..PAGES - 1 {
            let expected = if page % 2 == 0 { u64::from_ne_bytes([1; 8]) } else { 0 };
            assert_eq!(map.load(page * PAGE), Ok(expected), "page {page} in round {round}");
        }
    }
    let stats = pager.stats();
    assert!(stats.evictions > 0 && stats.address_ranges <= 64 + 8, "{stats:?}");
}

/// Removing the last name and handle of a mapped file frees nothing while it is mapped, and the drop of
/// the mapping frees everything, whichever thread does it.
#[test]
fn the_last_mapping_frees_the_blocks() {
    let world = World::with_reader(8, None, true);
    let a = world.file("a", 4, 1);
    let map = world.map(&a, 4);
    world.volume.remove("a").unwrap();
    assert!(matches!(world.volume.remove("a"), Err(Error::NoSuchFile { .. })));
    drop(a);
    map.store(0, 5).unwrap();
    assert_eq!((map.load(0), world.volume.used_blocks()), (Ok(5), 4));
    spawn(move || drop(map)).join("the drop").unwrap();
    assert_eq!(world.volume.used_blocks(), 0);
}

/// Buffers of read(2) and write(2) that lie in the mapping, in pages that have not been touched: into holes, over the
/// end of the file, and out again.
#[test]
fn system_calls_with_a_buffer_in_the_mapping() {
    let world = World::with_reader(8, None, true);
    assert!(world.pager().serves_kernel_faults(), "needs root, or vm.unprivileged_userfaultfd=1");
    let a = world.volume.create("a").unwrap();
    a.truncate(2 * PAGE).unwrap();
    let map = world.map(&a, 4);
    let (read, write) = nix::unistd::pipe().unwrap();
    let bytes: Vec<u8> = (0..PAGE).map(|byte| byte as u8).collect();
    let work = spawn(move || {
        let put = || assert_eq!(nix::unistd::write(&write, &bytes), Ok(PAGE as usize));
        let take = || {
            let mut taken = vec![0; 2 * PAGE as usize];
            let count = nix::unistd::read(&read, &mut taken).unwrap();
            taken.truncate(count);
            taken
        };
        put();
        assert_eq!(map.read_from(read.as_fd(), 100, PAGE), Ok(PAGE as usize));
        assert_eq!((a.blocks(), map.take_dirty().unwrap()), (2, vec![0..2 * PAGE]));
        assert_eq!(map.write_to(write.as_fd(), 100, PAGE), Ok(PAGE as usize));
        assert_eq!(take(), bytes);
        // The end of it lies past the end of the file. A pipe takes a page at a time, or nothing of it.
        assert_eq!(map.write_to(write.as_fd(), PAGE - 8, PAGE + 16), Ok(PAGE as usize));
        assert_eq!(take().len(), PAGE as usize);
        let fault = |call| Err(Error::System { call, errno: libc::EFAULT });
        assert_eq!(map.write_to(write.as_fd(), 2 * PAGE, 16), fault("write"));
        put();
        assert_eq!(map.read_from(read.as_fd(), 2 * PAGE, PAGE), fault("read"));
        assert_eq!(map.write_to(write.as_fd(), 0, 0), Ok(0));
        let outside = Error::OutsideMapping { offset: 4 * PAGE - 8, len: 16, mapping_bytes: 4 * PAGE };
        assert_eq!(map.write_to(write.as_fd(), 4 * PAGE - 8, 16), Err(outside));
        assert!(matches!(map.read_from(read.as_fd(), u64::MAX, 16), Err(Error::OutsideMapping { .. })));
        let wrong_end = Error::System { call: "write", errno: libc::EBADF };
        assert_eq!(map.write_to(read.as_fd(), 0, 8), Err(wrong_end));
    });
    work.join("system calls with a buffer in the mapping").unwrap();
}

/// A reader that stays awake serves faults without a poll, and hears of the end.
#[test]
fn a_reader_that_stays_awake_serves_and_ends() {
    let volume = Volume::format_with(Device::memfd("busy", 64 * PAGE).unwrap(), Allocation::Blocks);
    let file = volume.create("a").unwrap();
    file.write_at(&[7; 64 * PAGE as usize], 0).unwrap();
    // Longer than the test.
    let pager = Pager::builder().busy_poll(HANG).start().unwrap();
    let map = pager.map_with(&file, 0..64 * PAGE, &daxpager::MapOptions::new().fault_around(0)).unwrap();
    map.load(0).unwrap();
    let before = pager.stats();
    for page in 1..64 {
        assert_eq!(map.load(page * PAGE), Ok(u64::from_ne_bytes([7; 8])));
    }
    let after = pager.stats();
    assert_eq!(after.all_faults() - before.all_faults(), 63);
    assert_eq!(after.calls.polls, before.calls.polls, "the reader slept");
    let end = spawn(move || drop(pager));
    end.join("the end").unwrap();
    assert!(map.load(0).is_err());
}
