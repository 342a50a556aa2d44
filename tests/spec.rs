//! What mapped access promises beside truncate and punch: one test or more for each point, named after it.
//!
//! Not here: 15 and 24 (private mappings), 17 (collapse and insert), 19 (pins) and 22 (MAP_SYNC)
//! are not offered; 21 (dirty tracking) has tests of its own. Nor is there a modification time (first
//! half of 26): the library keeps no times, and the second half, that allocated size and
//! extents show a mapped store, is tested.
//!
//! Every device is full of old bytes before the test begins, and most files are mapped
//! three times, by two pagers.

mod blackbox;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use blackbox::*;
use daxpager::probe::Point;
use daxpager::{Device, Error, ExtentKind, File, Mapping, Pager, Result, Volume};
use nix::errno::Errno;

/// What a page is made of when a test comes to it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Start {
    /// A hole that nobody has touched.
    Hole,
    /// A hole whose zero page is mapped: a store is a write-protect fault.
    LoadedHole,
    /// Allocated and not written, not touched.
    Unwritten,
    /// The same with its zeros mapped.
    LoadedUnwritten,
    /// Written, not touched.
    Written,
    /// Written and mapped by a load: a store is a write-protect fault.
    LoadedWritten,
}

const STARTS: [Start; 6] =
    [Start::Hole, Start::LoadedHole, Start::Unwritten, Start::LoadedUnwritten, Start::Written, Start::LoadedWritten];

impl Start {
    /// Makes page `index` of the file this, and says what it holds.
    fn make(self, file: &File, page: u64, index: u64) -> Vec<u8> {
        let (offset, size) = (index * page, file.len());
        file.punch_hole(offset, page).unwrap();
        match self {
            Start::Hole | Start::LoadedHole => zeros(page),
            Start::Unwritten | Start::LoadedUnwritten => {
                file.allocate(offset, page, true).unwrap();
                assert_eq!(file.len(), size);
                zeros(page)
            }
            Start::Written | Start::LoadedWritten => {
                file.write_at(&pattern(page, index + 40), offset).unwrap();
                pattern(page, index + 40)
            }
        }
    }

    fn is_loaded(self) -> bool {
        matches!(self, Start::LoadedHole | Start::LoadedUnwritten | Start::LoadedWritten)
    }

    /// Touches the page through the mappings, if that is part of it.
    fn touch(self, maps: &[Mapping], page: u64, index: u64) {
        if self.is_loaded() {
            maps.iter().for_each(|map| touch(map, index * page));
        }
    }
}

/// Point 1: a lock that a fault takes is never held while a user buffer is copied, because the copy may fault
/// (xfstests generic/647). A database writes a record from one place of a mapped file to another
/// with the library's own calls: the buffer is a page of a mapping of that very file which nobody
/// has touched. Once it is another page, once the page that is being written.
#[test]
fn p01_library_calls_take_buffers_in_untouched_pages_of_the_same_file() {
    for start in STARTS {
        let rig = Rig::new(32);
        let p = rig.page;
        let file = rig.written("a", 8);
        let want = start.make(&file, p, 2);
        let before = read(&file, 0, 8 * p);

        // From page 2 to page 5, and then to a page by which the file grows.
        for to in [5, 8] {
            let map = rig.pager.map(&file, 0..16 * p).unwrap();
            start.touch(std::slice::from_ref(&map), p, 2);
            assert_eq!(file.write_at(raw::slice(&map, 2 * p, p), to * p), Ok(p as usize), "{start:?}");
            assert_everywhere(&file, &[map], to * p, &want);
        }
        assert_eq!(file.len(), 9 * p);

        // Onto itself: the page written to is the one that the buffer lies in.
        let map = rig.pager.map(&file, 0..16 * p).unwrap();
        start.touch(std::slice::from_ref(&map), p, 2);
        assert_eq!(file.write_at(raw::slice(&map, 2 * p, p), 2 * p), Ok(p as usize), "{start:?}");
        assert_everywhere(&file, &[map], 2 * p, &want);

        // The other way: reads whose buffer is the untouched page, which is a store to it.
        for from in [7, 2] {
            start.make(&file, p, 2);
            let want = read(&file, from * p, p);
            let map = rig.pager.map(&file, 0..16 * p).unwrap();
            start.touch(std::slice::from_ref(&map), p, 2);
            assert_eq!(file.read_at(raw::slice_mut(&map, 2 * p, p), from * p), Ok(p as usize), "{start:?}");
            assert_everywhere(&file, &[map], 2 * p, &want);
        }

        // The mapping's own calls, and across a page border.
        let want = start.make(&file, p, 2);
        let map = rig.pager.map(&file, 0..16 * p).unwrap();
        start.touch(std::slice::from_ref(&map), p, 2);
        map.write_at(raw::slice(&map, 2 * p, p), 6 * p + 8).unwrap();
        assert_everywhere(&file, &[map], 6 * p + 8, &want);
        let want = start.make(&file, p, 2);
        let map = rig.pager.map(&file, 0..16 * p).unwrap();
        start.touch(std::slice::from_ref(&map), p, 2);
        map.read_at(raw::slice_mut(&map, 2 * p, p), 6 * p + 8).unwrap();
        assert_everywhere(&file, &[map], 2 * p, &want);

        assert_bytes(&read(&file, 0, 2 * p), &before[..2 * p as usize], "pages 0 and 1");
        rig.assert_blocks_add_up();
    }
}

/// Point 1: the same while a third thread changes the file all the time. A shared lock held over the copy
/// would do no harm alone; with a change waiting for it, the fault waits for the change, and the change for the copy.
#[test]
fn p01_buffers_in_the_same_file_while_it_is_punched() {
    let rig = Rig::new(32);
    let p = rig.page;
    let file = rig.written("a", 4);
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        let _end = at_end(|| stop.store(true, Ordering::Relaxed));
        let puncher = s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                file.punch_hole(p, p).unwrap();
                file.zero_range(2 * p, p, true).unwrap();
            }
        });
        for round in 0..300 {
            let map = rig.pager.map(&file, 0..4 * p).unwrap();
            let (hole, unwritten) = (raw::slice(&map, p, p), raw::slice_mut(&map, 2 * p, p));
            if round % 2 == 0 {
                assert_eq!(file.write_at(hole, 3 * p), Ok(p as usize));
                assert_eq!(file.read_at(unwritten, 0), Ok(p as usize));
            } else {
                map.write_at(hole, 3 * p).unwrap();
                map.read_at(unwritten, 0).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        join(puncher);
    });
    assert_bytes(&read(&file, 0, p), &pattern(p, 1), "the page that nobody changed");
    assert_bytes(&read(&file, 3 * p, p), &zeros(p), "the page written from the one that was always zero");
}

/// Point 1, and what the mapping is for: plain read(2) and write(2) by std::fs::File, with a
/// slice of the mapping as their buffer. The fault is the kernel's own, in the middle of a system call.
#[test]
fn p01_read_and_write_of_another_file_with_a_slice_of_the_mapping() {
    for start in STARTS {
        let rig = Rig::new(32);
        let p = rig.page;
        let pager = Pager::builder().require_kernel_faults().start().unwrap();
        assert!(pager.serves_kernel_faults());
        let file = rig.written("a", 6);
        let wanted: Vec<u8> = (1..4).flat_map(|index| start.make(&file, p, index)).collect();
        let map = pager.map(&file, 0..6 * p).unwrap();
        (1..4).for_each(|index| start.touch(std::slice::from_ref(&map), p, index));

        let outside = memfd();
        outside.write_all_at(raw::slice(&map, p, 3 * p), 0).unwrap();
        let mut got = zeros(3 * p);
        outside.read_exact_at(&mut got, 0).unwrap();
        assert_bytes(&got, &wanted, &format!("written by write(2), {start:?}"));

        let wanted = pattern(3 * p, 77);
        outside.write_all_at(&wanted, 0).unwrap();
        let map = pager.map(&file, 0..6 * p).unwrap();
        (1..4).for_each(|index| start.touch(std::slice::from_ref(&map), p, index));
        outside.read_exact_at(raw::slice_mut(&map, p, 3 * p), 0).unwrap();
        assert_everywhere(&file, &[map], p, &wanted);
        assert_bytes(&read(&file, 0, p), &pattern(6 * p, 1)[..p as usize], "the page before");
        assert_bytes(&read(&file, 4 * p, 2 * p), &pattern(6 * p, 1)[4 * p as usize..], "the pages behind");
        rig.assert_blocks_add_up();
    }
}

fn memfd() -> fs::File {
    nix::sys::memfd::memfd_create("outside", nix::sys::memfd::MFdFlags::empty()).map(fs::File::from).unwrap()
}

/// Point 2: any fault on a page at or past ceil(i_size / page) is SIGBUS. Sizes around page borders, mappings
/// that start at the file's start and behind it, and nothing changes for having tried.
#[test]
fn p02_past_the_end_every_access_is_sigbus() {
    let rig = Rig::new(16);
    let p = rig.page;
    let file = rig.file("a");
    let maps = rig.maps(&file, 6);
    let behind = rig.pager.map(&file, 2 * p..6 * p).unwrap();
    for size in [0, 1, p - 1, p, p + 1, 2 * p, 2 * p + 8, 3 * p, 0] {
        file.truncate(size).unwrap();
        let eof = size.div_ceil(p);
        for index in 0..6 {
            for at in [index * p, index * p + p - 8] {
                for map in &maps {
                    match index < eof {
                        true => assert_eq!(map.load(at), Ok(0), "page {index} of a file of {size}"),
                        false => assert_all_bus(map, at),
                    }
                }
                if index >= 2 {
                    match index < eof {
                        true => assert_eq!(behind.load(at - 2 * p), Ok(0)),
                        false => assert_all_bus(&behind, at - 2 * p),
                    }
                }
            }
        }
        assert_eq!(file.len(), size);
        assert_eq!(file.blocks(), 0);
        assert_eq!(rig.volume.free_blocks(), rig.blocks);
    }
}

/// Point 2: i_size is read after the lock is taken. A fault arrives while the page is within the file; before it
/// gets the lock, at every point that it passes on the way, the file is truncated and the freed block handed to
/// another file. The fault was right when it came, and is SIGBUS now.
///
/// A thread may fault twice, as a signal interrupts its wait: then another message of it may be answered before the truncate, while the
/// first is held. What was stored before the truncate began is no proof of anything: hardly ever, or this is no test.
#[test]
fn p02_size_is_looked_at_after_the_lock_is_taken() {
    let served_before = AtomicU64::new(0);
    for start in STARTS {
        for store in [false, true] {
            if !store && start.is_loaded() {
                continue; // no fault
            }
            for (point, reader_answers) in LOCK_FREE.into_iter().flat_map(|point| [(point, true), (point, false)]) {
                let rig = Rig::with_reader(16, reader_answers);
                let p = rig.page;
                let file = rig.written("a", 3);
                start.make(&file, p, 1);
                let maps = rig.maps(&file, 3);
                start.touch(&maps, p, 1);
                let trap = rig.park.trap(point, 1);
                thread::scope(|s| {
                    let map = &maps[0];
                    let access = s.spawn(|| {
                        let done = if store { map.store(p + 16, 99) } else { map.load(p + 16).map(drop) };
                        (done, Instant::now())
                    });
                    if trap.wait_or(|| access.is_finished()).is_none() {
                        assert_ne!(point, Point::FaultRead, "every fault is read");
                        return;
                    }
                    let begun = Instant::now();
                    file.truncate(8).unwrap();
                    let thief = rig.file("b");
                    // All but one: a fault in the middle may hold one.
                    let stolen = pattern((rig.volume.free_blocks() - 1) * p, 5);
                    thief.write_at(&stolen, 0).unwrap();
                    trap.release();
                    match join(access) {
                        (Ok(()), ended) if ended < begun => _ = served_before.fetch_add(1, Ordering::Relaxed),
                        (done, _) => assert_bus(done, map, p + 16),
                    }
                    assert_bytes(&read(&thief, 0, stolen.len() as u64), &stolen, "the other file");
                });
                maps.iter().for_each(|map| {
                    if file.len() == 8 {
                        assert_all_bus(map, p + 16)
                    }
                });
                rig.assert_blocks_add_up();
            }
        }
    }
    let served_before = served_before.into_inner();
    assert!(served_before <= 2, "{served_before} accesses were answered while their message was held");
}

/// The points of a fault at which no lock of the file is held. The last is not met in a sound library.
const LOCK_FREE: [Point; 5] = [Point::FaultRead, Point::FaultTaken, Point::Allocated, Point::Prepared, Point::SizeSeen];

/// Point 2, the other way round: the fault comes past the end, and while it waits the file grows over it. The access
/// may not be killed by what was true before: it sees the new page.
#[test]
fn p02_a_fault_that_the_file_outgrows_is_served() {
    for store in [false, true] {
        let rig = Rig::new(16);
        let p = rig.page;
        let file = rig.file("a");
        let maps = rig.maps(&file, 3);
        let trap = rig.park.trap(Point::FaultRead, 1);
        thread::scope(|s| {
            let access = s.spawn(|| if store { maps[0].store(p + 16, 99).map(|()| 0) } else { maps[0].load(p + 16) });
            trap.wait();
            file.truncate(2 * p).unwrap();
            trap.release();
            assert_eq!(join(access), Ok(0));
        });
        let want = if store { 99 } else { 0 };
        maps.iter().for_each(|map| assert_eq!(map.load(p + 16), Ok(want)));
        assert_eq!(file.blocks(), u64::from(store));
    }
}

/// Point 3: a write-protect fault repeats the check under the lock, and installs nothing if the page was taken away:
/// the access faults again. The page is mapped by a load; a store comes and its fault is read; then the page goes, in
/// three ways, and its block to another file. The store must act on what is there then.
#[test]
fn p03_a_write_protect_fault_whose_page_is_gone_faults_again() {
    let points = [(Point::FaultRead, true), (Point::FaultTaken, false)];
    for (way, (point, reader_answers)) in
        ["truncate", "punch", "truncate down and up"].into_iter().flat_map(|way| points.map(|point| (way, point)))
    {
        let rig = Rig::with_reader(16, reader_answers);
        let p = rig.page;
        let file = rig.written("a", 3);
        let maps = rig.maps(&file, 3);
        maps.iter().for_each(|map| touch(map, p));
        let trap = rig.park.trap(point, 1);
        let thief = rig.file("b");
        let stolen = pattern(rig.blocks * p, 5);
        thread::scope(|s| {
            let store = s.spawn(|| maps[0].store(p + 16, 99));
            trap.wait();
            match way {
                "truncate" => file.truncate(p).unwrap(),
                "punch" => file.punch_hole(p, p).unwrap(),
                _ => {
                    file.truncate(0).unwrap();
                    file.truncate(3 * p).unwrap();
                }
            }
            // The block that the store was aimed at is somebody else's now; one is left for a new one.
            let stolen = &stolen[..((rig.volume.free_blocks() - 1) * p) as usize];
            thief.write_at(stolen, 0).unwrap();
            trap.release();
            match way {
                "truncate" => assert_bus(join(store), &maps[0], p + 16),
                _ => assert_eq!(join(store), Ok(()), "{way}"),
            }
            assert_bytes(&read(&thief, 0, stolen.len() as u64), stolen, "the other file");
        });
        if way == "truncate" {
            maps.iter().for_each(|map| assert_all_bus(map, p + 16));
            assert_eq!(file.blocks(), 1);
        } else {
            let mut want = zeros(p);
            want[16] = 99;
            assert_everywhere(&file, &maps, p, &want);
            assert_eq!(thief.blocks() + file.blocks(), rig.blocks, "{way}");
        }
        rig.assert_blocks_add_up();
    }
}

/// Point 3, with threads and no help: two writers store to one page through mappings that each load has
/// write-protected again, while a third truncates the page away and brings it back. What a store left is what its
/// thread then loads, or nothing, or the page is gone; never an older value.
#[test]
fn p03_write_protect_faults_race_with_truncate() {
    let (rig, file, maps) = Rig::mapped(8, 1);
    let p = rig.page;
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        let _end = at_end(|| stop.store(true, Ordering::Relaxed));
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (map, at) = (&maps[writer], 8 + 8 * writer as u64);
                s.spawn(move || {
                    for value in 1..=1500 {
                        let _ = map.load(0); // write-protected, if it has just come back
                        let stored = map.store(at, value);
                        match (stored, map.load(at)) {
                            (Ok(()), Ok(seen)) => assert!(seen == value || seen == 0, "{seen} after {value}"),
                            (Err(Error::Bus(_)), Ok(seen)) => assert_eq!(seen, 0, "a store that failed was there"),
                            (Ok(()) | Err(Error::Bus(_)), Err(Error::Bus(_))) => {}
                            other => panic!("{other:?}"),
                        }
                    }
                })
            })
            .collect();
        let truncater = s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                file.truncate(0).unwrap();
                assert_bus(maps[2].load(0), &maps[2], 0);
                file.truncate(p).unwrap();
                assert_eq!(maps[2].load(0), Ok(0), "nobody writes this word");
            }
        });
        writers.into_iter().for_each(join);
        stop.store(true, Ordering::Relaxed);
        join(truncater);
    });
    file.truncate(0).unwrap();
    rig.assert_blocks_add_up();
}

/// Point 4: blocks go away in this order: keep new faults out, publish the new size, zap, and only then free. The test
/// stands still at each step. While a page-table entry is there the block is nobody else's: a store through it is lost
/// with the block and seen by no one. Once the entries are gone, so are the bytes, though the block is not free yet.
#[test]
fn p04_blocks_are_freed_after_the_last_entry_is_gone() {
    for punch in [true, false] {
        let rig = Rig::new(8);
        let p = rig.page;
        let file = rig.written("a", 8);
        let maps = rig.maps(&file, 8);
        for index in 0..8 {
            maps.iter().for_each(|map| map.store(index * p, 1).unwrap());
        }
        let late = rig.other.map(&file, 0..8 * p).unwrap();
        let thief = rig.file("b");
        assert_eq!(rig.volume.free_blocks(), 0);
        let first = if punch { 2 } else { 4 };
        let published = rig.park.trap(Point::Published, first);
        let invalidated = rig.park.trap(Point::Invalidated, first);
        let freed = rig.park.trap(Point::Freed, first);
        thread::scope(|s| {
            let change = s.spawn(|| if punch { file.punch_hole(2 * p, 4 * p) } else { file.truncate(4 * p) });
            let nothing_left = Err(Error::NoSpace { wanted: 1, free: 0 });
            published.wait();
            // The entries are still there, writable: these do not fault.
            maps.iter().for_each(|map| map.store(4 * p + 8, 0x5704_1e57_0041_e570).unwrap());
            assert_eq!(thief.write_at(&[1], 0), nothing_left);
            // Publishing and zapping are one step: while some see the old block nobody may fault on what comes after it.
            let early = s.spawn(|| late.load(4 * p + 8));
            assert!(!give_a_chance(&early), "one mapping shows the new layout, the others still the old");
            published.release();
            match join(early) {
                Ok(seen) => assert_eq!((seen, punch), (0, true)),
                other => assert_bus(other, &late, 4 * p + 8),
            }

            invalidated.wait();
            for map in &maps {
                match punch {
                    true => assert_eq!(map.load(4 * p + 8), Ok(0)),
                    false => assert_all_bus(map, 4 * p + 8),
                }
            }
            assert_eq!(thief.write_at(&[1], 0), nothing_left);
            invalidated.release();

            freed.wait();
            assert_eq!(rig.volume.free_blocks(), 4);
            thief.allocate(0, 4 * p, false).unwrap();
            assert_bytes(&read(&thief, 0, 4 * p), &zeros(4 * p), "the new owner");
            freed.release();
            assert_eq!(join(change), Ok(()));
        });
        thief.write_at(&pattern(4 * p, 9), 0).unwrap();
        if punch {
            assert_everywhere(&file, &maps, 2 * p, &zeros(4 * p));
        }
        // Nothing reaches the blocks that went from here on either.
        for map in &maps {
            assert_bus(map.store(4 * p + 8, 3), map, 4 * p + 8);
        }
        assert_bytes(&read(&thief, 0, 4 * p), &pattern(4 * p, 9), "the new owner");
        rig.assert_blocks_add_up();
    }
}

/// Point 4: faults are kept out while blocks go away. A fault that has been decided holds the change off: it is
/// answered before the new size is published, and what it installed is zapped with the rest.
#[test]
fn p04_a_decided_fault_is_answered_before_the_change_is_published() {
    for store in [false, true] {
        let rig = Rig::new(8);
        let p = rig.page;
        let file = rig.written("a", 2);
        let maps = rig.maps(&file, 2);
        // Pointed at the right block, so that the next fault is decided and answered in one go.
        maps[0].load(p).unwrap();
        file.write_at(&[1], p).unwrap();
        let thief = rig.file("b");
        if store {
            let trap = rig.park.trap(Point::Decided, 1);
            thread::scope(|s| {
                let access = s.spawn(|| maps[0].store(p + 8, 7));
                trap.wait();
                let change = s.spawn(|| file.truncate(p));
                assert!(!give_a_chance(&change), "the file was truncated between decision and answer of a fault");
                trap.release();
                assert_eq!(join(change), Ok(()));
                match join(access) {
                    Ok(()) => {}
                    other => assert_bus(other, &maps[0], p + 8),
                }
            });
        } else {
            let trap = rig.park.trap(Point::Decided, 1);
            thread::scope(|s| {
                let access = s.spawn(|| maps[1].load(p + 8));
                trap.wait();
                let change = s.spawn(|| file.truncate(p));
                assert!(!give_a_chance(&change), "the file was truncated between decision and answer of a fault");
                trap.release();
                assert_eq!(join(change), Ok(()));
                match join(access) {
                    Ok(loaded) => assert_eq!(loaded.to_ne_bytes(), pattern(2 * p, 1)[p as usize + 8..][..8]),
                    other => assert_bus(other, &maps[1], p + 8),
                }
            });
        }
        thief.write_at(&pattern(7 * p, 3), 0).unwrap();
        maps.iter().for_each(|map| assert_all_bus(map, p + 8));
        assert_bytes(&read(&thief, 0, 7 * p), &pattern(7 * p, 3), "the other file");
        rig.assert_blocks_add_up();
    }
}

/// Point 5: after truncate down returns, whole pages past the end are gone from every mapping, touched or not, and the
/// rest of the last page reads zero through mappings that exist. What lies before the end stays, and the blocks are free.
#[test]
fn p05_truncate_down_takes_pages_from_every_mapping_and_zeroes_the_tail() {
    let rig = Rig::new(16);
    let p = rig.page;
    for size in [5 * p, 4 * p + 1, 4 * p, 2 * p + p / 2, 2 * p + 3, 1, 0] {
        let name = format!("truncated to {size}");
        let file = rig.written(&name, 6);
        let maps = rig.maps(&file, 8);
        let behind = rig.pager.map(&file, 3 * p..8 * p).unwrap();
        // One mapping has stored, one has loaded, one has touched nothing.
        for index in 0..6 {
            let value = maps[0].load(index * p).unwrap();
            maps[0].store(index * p, value).unwrap();
            maps[1].load(index * p).unwrap();
        }
        behind.load(0).unwrap();

        file.truncate(size).unwrap();

        assert_eq!(file.len(), size);
        let whole = size.div_ceil(p);
        let mut want = pattern(6 * p, 1);
        want[size as usize..].fill(0);
        assert_in_maps(&maps, 0, &want[..(whole * p) as usize]);
        assert_bytes(&read(&file, 0, size), &want[..size as usize], &name);
        for index in whole..8 {
            for map in &maps {
                assert_all_bus(map, index * p);
                assert_all_bus(map, index * p + p - 8);
            }
            if index >= 3 {
                assert_all_bus(&behind, (index - 3) * p);
            }
        }
        assert_eq!(file.blocks(), whole);
        assert_eq!(rig.volume.free_blocks(), rig.blocks - whole);
        assert_eq!(file.read_at(&mut [0; 16], size), Ok(0));
        drop((maps, behind, file));
        rig.volume.remove(&name).unwrap();
        rig.assert_blocks_add_up();
    }
}

/// Point 5, past the end of a mapping that is in use: a truncate that has returned is seen by every thread at once. One
/// thread stores without end, and every time that truncate has returned the tail is looked at in the other mappings.
/// Stores past the new end in the last page are the writer's right; it keeps to the front of the page.
#[test]
fn p05_truncate_down_beside_a_writer_of_the_same_page() {
    let (rig, file, maps) = Rig::mapped(16, 2);
    let p = rig.page;
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        let _end = at_end(|| stop.store(true, Ordering::Relaxed));
        let writer = s.spawn(|| {
            let mut value = 0;
            while !stop.load(Ordering::Relaxed) {
                value += 1;
                maps[0].store(0, value).unwrap();
                assert_eq!(maps[0].load(0), Ok(value), "the file never gets shorter than this");
            }
        });
        for _ in 0..150 {
            file.write_at(&pattern(2 * p - 8, 4), 8).unwrap();
            file.truncate(100).unwrap();
            let mut want = pattern(2 * p - 8, 4)[..p as usize - 8].to_vec();
            want[92..].fill(0);
            assert_in_maps(&maps, 8, &want);
            maps.iter().for_each(|map| assert_all_bus(map, p));
        }
        stop.store(true, Ordering::Relaxed);
        join(writer);
    });
    rig.assert_blocks_add_up();
}

/// Point 6: truncate down and up again leaves zeros, by map and by read, also where one page was cut in two, also when
/// nobody looked in between, and the range is a hole.
#[test]
fn p06_truncate_down_and_up_leaves_zeros() {
    let rig = Rig::new(16);
    let p = rig.page;
    for (index, down) in [0, 100, p, p + 1, 2 * p - 1, 3 * p].into_iter().enumerate() {
        let name = index.to_string();
        let file = rig.written(&name, 5);
        let maps = rig.maps(&file, 5);
        for page in 0..5 {
            maps[0].store(page * p + 8, 5).unwrap();
            maps[1].load(page * p).unwrap();
        }
        let mut want = read(&file, 0, 5 * p);
        want[down as usize..].fill(0);
        file.truncate(down).unwrap();
        file.truncate(5 * p).unwrap();
        assert_everywhere(&file, &maps, 0, &want);
        let kept = down.div_ceil(p);
        let mut layout = vec![(ExtentKind::Written, 0, kept), (ExtentKind::Hole, kept, 5 - kept)];
        layout.retain(|extent| extent.2 > 0);
        assert_eq!(kinds(&file, p), layout);
        assert_eq!(rig.volume.free_blocks(), rig.blocks - kept);
        drop((maps, file));
        rig.volume.remove(&name).unwrap();
    }
}

/// Point 7: bytes past the end in the last page read zero when first mapped, whatever the block held before, and
/// stores there succeed and change neither size nor content. Also when the last page is a hole or unwritten.
#[test]
fn p07_the_tail_of_the_last_page_is_zero_and_takes_stores() {
    for start in ["written", "hole", "unwritten", "cut"] {
        let rig = Rig::new(16);
        let p = rig.page;
        let file = rig.file("a");
        match start {
            "written" => put(&file, &pattern(100, 1), 0),
            "hole" => file.truncate(100).unwrap(),
            "unwritten" => file.allocate(0, 100, false).unwrap(),
            _ => {
                file.write_at(&pattern(2 * p, 1), 0).unwrap();
                file.truncate(100).unwrap();
            }
        }
        let content = read(&file, 0, 100);
        let maps = rig.maps(&file, 2);
        let mut want = content.clone();
        want.resize(p as usize, 0);
        assert_in_maps(&maps, 0, &want);

        maps[0].store(200, 0x1111_1111).unwrap();
        maps[1].copy_in(p - 3, &[7, 8, 9]).unwrap();
        assert_eq!(maps[2].compare_exchange(208, 0, 3), Ok(0));
        maps[2].write_at(&[6], 300).unwrap();

        assert_eq!(file.len(), 100, "{start}");
        assert_bytes(&read(&file, 0, 100), &content, start);
        assert_eq!(file.read_at(&mut [0; 500], 0), Ok(100));
        assert_eq!(file.read_at(&mut [0; 500], 200), Ok(0));
        assert_eq!(file.blocks(), 1);
        // It is shared memory all the same, until the file changes.
        want[200..208].copy_from_slice(&0x1111_1111_u64.to_ne_bytes());
        want[208] = 3;
        want[300] = 6;
        want[p as usize - 3..].copy_from_slice(&[7, 8, 9]);
        assert_in_maps(&maps, 0, &want);
        maps.iter().for_each(|map| assert_all_bus(map, p));
        rig.assert_blocks_add_up();
    }
}

/// Point 8: stores past the end within the last page are gone on any later growth: by truncate, a write past the end, allocate,
/// zero range. The content before the end stays, and so does what the growing write wrote. tmpfs gets this wrong.
#[test]
fn p08_stores_past_the_end_are_gone_on_any_growth() {
    type Grow = fn(&File, u64);
    let ways: [(&str, Grow); 9] = [
        ("truncate within the page", |file, _| file.truncate(1000).unwrap()),
        ("truncate to the border", |file, p| file.truncate(p).unwrap()),
        ("truncate far", |file, p| file.truncate(3 * p + 5).unwrap()),
        ("write within the page", |file, _| put(file, &[0xbb; 8], 900)),
        ("write to another page", |file, p| put(file, &[0xbb; 8], 2 * p)),
        ("write over a border", |file, p| put(file, &[0xbb; 8], p - 4)),
        ("allocate", |file, p| file.allocate(2 * p, p, false).unwrap()),
        ("allocate the same page", |file, _| file.allocate(0, 1000, false).unwrap()),
        ("zero range", |file, p| file.zero_range(2 * p, 100, false).unwrap()),
    ];
    for start in ["written", "hole", "unwritten"] {
        for (way, grow) in ways {
            for touched in [1, 3] {
                let rig = Rig::new(16);
                let p = rig.page;
                let file = rig.file("a");
                match start {
                    "written" => put(&file, &pattern(100, 1), 0),
                    "hole" => file.truncate(100).unwrap(),
                    _ => file.allocate(0, 100, false).unwrap(),
                }
                let mut want = read(&file, 0, 100);
                let maps = rig.maps(&file, 4);
                for map in &maps[..touched] {
                    map.copy_in(100, &vec![0xcc; p as usize - 100]).unwrap();
                }
                grow(&file, p);
                let size = file.len();
                assert!(size > 100);
                want.resize(size as usize, 0);
                if let Some(at) = match way {
                    "write within the page" => Some(900),
                    "write to another page" => Some(2 * p as usize),
                    "write over a border" => Some(p as usize - 4),
                    _ => None,
                } {
                    want[at..at + 8].fill(0xbb);
                }
                let context = format!("{way}, {start}, stored through {touched} mappings");
                assert_bytes(&read(&file, 0, size), &want, &context);
                // Up to the border, unless the file still ends in this page: what is behind it is nobody's.
                let whole = if size < p { size } else { size.div_ceil(p) * p };
                want.resize(whole as usize, 0);
                assert_in_maps(&maps, 0, &want);
                // And the rest of the page comes to no light later.
                file.truncate(4 * p).unwrap();
                want.truncate(size as usize);
                want.resize(4 * p as usize, 0);
                assert_everywhere(&file, &maps, 0, &want);
                rig.assert_blocks_add_up();
            }
        }
    }
}

/// Point 8: an append that begins right at the end grows the file over the tail too, step by step: what was stored
/// behind never shows, and what was appended always does.
#[test]
fn p08_appends_never_show_what_was_stored_past_the_end() {
    let rig = Rig::new(16);
    let p = rig.page;
    let file = rig.file("a");
    file.write_at(&[0x11; 10], 0).unwrap();
    let maps = rig.maps(&file, 2);
    let mut want = vec![0x11; 10];
    while (want.len() as u64) < p + 500 {
        let size = want.len() as u64;
        let rest = size.next_multiple_of(p) - size;
        maps[0].copy_in(size, &vec![0xcc; rest as usize]).unwrap();
        if size.is_multiple_of(2) {
            file.write_at(&[0x22; 77], size).unwrap();
            want.extend([0x22; 77]);
        } else {
            // A gap of 50 bytes, over which the file grows.
            file.write_at(&[0x33; 27], size + 50).unwrap();
            want.extend([0; 50]);
            want.extend([0x33; 27]);
        }
        assert_everywhere(&file, &maps, 0, &want);
    }
}

/// Point 8, with a store on its way past the old end while the file grows: wholly before the growth, and it is gone;
/// or wholly after, and it is content. The fault is held on either side of the growth.
#[test]
fn p08_a_store_held_up_past_the_end_lands_after_the_growth() {
    for start in [Start::Hole, Start::LoadedHole, Start::Written, Start::LoadedWritten] {
        let rig = Rig::new(16);
        let p = rig.page;
        let file = rig.written("a", 1);
        start.make(&file, p, 0);
        file.truncate(100).unwrap();
        let mut want = read(&file, 0, 100);
        let maps = rig.maps(&file, 1);
        start.touch(&maps, p, 0);
        maps[1].copy_in(1000, &[0xcc; 100]).unwrap();
        start.touch(&maps[2..], p, 0);
        let trap = rig.park.trap(Point::FaultRead, 0);
        thread::scope(|s| {
            let store = s.spawn(|| maps[2].store(1000, 0x77));
            trap.wait();
            file.truncate(p).unwrap();
            trap.release();
            assert_eq!(join(store), Ok(()));
        });
        want.resize(p as usize, 0);
        want[1000] = 0x77;
        assert_everywhere(&file, &maps, 0, &want);
    }
}

/// Point 9: truncate to the same size zeroes the tail, in every mapping; and gives back blocks that were allocated past the end.
#[test]
fn p09_truncate_to_the_same_size_zeroes_the_tail() {
    for start in ["written", "hole", "unwritten"] {
        let rig = Rig::new(16);
        let p = rig.page;
        let size = p + 100;
        let file = rig.file("a");
        match start {
            "written" => put(&file, &pattern(size, 1), 0),
            "hole" => file.truncate(size).unwrap(),
            _ => file.allocate(0, size, false).unwrap(),
        }
        file.allocate(4 * p, 2 * p, true).unwrap();
        let mut want = read(&file, 0, size);
        let maps = rig.maps(&file, 3);
        maps[0].copy_in(size, &vec![0xcc; (p - 100) as usize]).unwrap();
        assert_eq!(maps[1].load(size.next_multiple_of(8)), Ok(0xcccc_cccc_cccc_cccc));

        file.truncate(size).unwrap();

        assert_eq!(file.len(), size);
        want.resize(2 * p as usize, 0);
        assert_in_maps(&maps, 0, &want);
        assert_bytes(&read(&file, 0, size), &want[..size as usize], start);
        let kept = if start == "hole" { 1 } else { 2 };
        assert_eq!(file.blocks(), kept, "{start}: blocks past the end are given back, the stored-to one is not");
        assert_eq!(rig.volume.free_blocks(), rig.blocks - kept);
        file.truncate(2 * p).unwrap();
        assert_everywhere(&file, &maps, 0, &want);
    }
}

/// Point 10: a load from a hole or an unwritten extent allocates nothing, however often and through however many mappings.
#[test]
fn p10_loads_allocate_nothing() {
    let rig = Rig::new(16);
    let p = rig.page;
    let file = rig.file("a");
    file.truncate(64 * p).unwrap();
    file.allocate(4 * p, 3 * p, false).unwrap();
    let extents = file.extents();
    let maps = rig.maps(&file, 64);
    for _ in 0..2 {
        assert_everywhere(&file, &maps, 0, &zeros(64 * p));
        assert_eq!(file.blocks(), 3);
        assert_eq!(rig.volume.free_blocks(), rig.blocks - 3);
        assert_eq!(file.extents(), extents);
    }
    let layout = [(ExtentKind::Hole, 0, 4), (ExtentKind::Unwritten, 4, 3), (ExtentKind::Hole, 7, 57)];
    assert_eq!(kinds(&file, p), layout);
    assert_eq!(maps[0].take_dirty(), Ok(vec![]), "a load makes nothing dirty");
}

/// Point 10: a store zeroes the whole block before anybody can see it, and replaces the zero page in every
/// mapping. The blocks are full of a removed file's bytes; one word is stored; all mappings, those that had the
/// zero page too, show that word and zeros.
#[test]
fn p10_a_store_zeroes_the_block_and_replaces_the_zero_page_everywhere() {
    for start in [Start::Hole, Start::LoadedHole, Start::Unwritten, Start::LoadedUnwritten] {
        for storing in 0..3 {
            let rig = Rig::new(16);
            let p = rig.page;
            let file = rig.file("a");
            file.truncate(4 * p).unwrap();
            (0..3).for_each(|index| drop(start.make(&file, p, index)));
            let maps = rig.maps(&file, 4);
            (0..3).for_each(|index| start.touch(&maps, p, index));
            maps[storing].store(p + 64, u64::MAX).unwrap();
            let mut want = zeros(4 * p);
            want[p as usize + 64..][..8].fill(0xff);
            assert_everywhere(&file, &maps, 0, &want);
            // And from then on they are one memory, in both directions.
            for (index, map) in maps.iter().enumerate() {
                map.store(p + 128 + 8 * index as u64, index as u64 + 1).unwrap();
                want[p as usize + 128 + 8 * index] = index as u8 + 1;
                assert_everywhere(&file, &maps, 0, &want);
            }
            let others = if file.blocks() == 1 { ExtentKind::Hole } else { ExtentKind::Unwritten };
            assert_eq!(kinds(&file, p)[..2], [(others, 0, 1), (ExtentKind::Written, 1, 1)], "{start:?}");
        }
    }
}

/// Point 10, while it is being done: a thread that loads the page all the time sees zero and then the value,
/// and never a byte of what the block held before.
#[test]
fn p10_nobody_ever_sees_the_old_bytes_of_a_block() {
    let rig = Rig::new(300);
    let p = rig.page;
    let file = rig.file("a");
    let pages = 256;
    file.truncate(pages * p).unwrap();
    file.allocate(0, pages / 2 * p, false).unwrap();
    let maps = rig.maps(&file, pages);
    let at = AtomicU64::new(0);
    thread::scope(|s| {
        let _end = at_end(|| at.store(pages, Ordering::Release));
        let watchers: Vec<_> = maps[1..]
            .iter()
            .map(|map| {
                let at = &at;
                s.spawn(move || {
                    loop {
                        let index = at.load(Ordering::Acquire);
                        if index == pages {
                            return;
                        }
                        for offset in [0, 8, 512, p - 8] {
                            let seen = map.load(index * p + offset).unwrap();
                            assert!(seen == 0 || (offset == 8 && seen == 1), "{seen:#x} at {offset} of page {index}");
                        }
                    }
                })
            })
            .collect();
        for index in 0..pages {
            at.store(index, Ordering::Release);
            thread::yield_now();
            maps[0].store(index * p + 8, 1).unwrap();
        }
        at.store(pages, Ordering::Release);
        watchers.into_iter().for_each(join);
    });
    assert_eq!(file.blocks(), pages);
}

/// Point 11: two faults on one hole allocate once, and the second never zeroes what the first has stored. The first
/// fault has a block ready that nobody knows when it is held; a second one, through the same mapping or another, fills
/// the hole and its store is done. Then the first goes on. Both stores are there.
#[test]
fn p11_the_loser_of_two_faults_leaves_the_winners_block_alone() {
    for start in [Start::Hole, Start::LoadedHole] {
        for point in [Point::FaultTaken, Point::Allocated, Point::Prepared] {
            for second in 0..3 {
                let rig = Rig::on_single_blocks(16);
                let p = rig.page;
                let file = rig.file("a");
                file.truncate(2 * p).unwrap();
                let maps = rig.maps(&file, 2);
                start.touch(&maps, p, 1);
                let trap = rig.park.trap(point, 1);
                thread::scope(|s| {
                    let loser = s.spawn(|| maps[0].store(p + 8, 1));
                    if trap.wait_or(|| loser.is_finished()).is_none() {
                        assert_eq!(point, Point::Prepared, "a store on a hole is allocated for, by a worker");
                        join(loser).unwrap();
                        return maps[second].store(p + 16, 2).unwrap();
                    }
                    let winner = s.spawn(|| maps[second].store(p + 16, 2));
                    assert_eq!(join(winner), Ok(()));
                    assert_eq!(maps[second].load(p + 16), Ok(2));
                    trap.release();
                    assert_eq!(join(loser), Ok(()));
                });
                let mut want = zeros(p);
                want[8] = 1;
                want[16] = 2;
                assert_everywhere(&file, &maps, p, &want);
                assert_eq!(file.blocks(), 1, "{start:?} {point:?}");
                // By the worker that was held, whose fault the winner's answer has ended.
                rig.assert_blocks_add_up();
            }
        }
    }
}

/// Point 11, as xfstests' holetest does it: threads store to the same holes at the same time, each a word of its
/// own; every word of every page is there, and every page has one block.
#[test]
fn p11_holetest() {
    let rig = Rig::new(130);
    let p = rig.page;
    let pages = 128;
    for round in 0..6 {
        let file = rig.file("a");
        match round % 3 {
            0 => file.truncate(pages * p).unwrap(),
            1 => file.allocate(0, pages * p, false).unwrap(),
            _ => {
                file.truncate(pages * p).unwrap();
                file.allocate(p, pages / 2 * p, false).unwrap();
            }
        }
        let maps = rig.maps(&file, pages);
        if round >= 3 {
            assert_in_maps(&maps, 0, &zeros(pages * p));
        }
        thread::scope(|s| {
            let stores: Vec<_> = (0..4)
                .map(|writer| {
                    let map = &maps[writer % 3];
                    s.spawn(move || {
                        for index in 0..pages {
                            map.store(index * p + 8 * writer as u64, index + 1).unwrap();
                        }
                    })
                })
                .collect();
            stores.into_iter().for_each(join);
        });
        for index in 0..pages {
            let mut want = zeros(p);
            for writer in 0..4 {
                want[8 * writer..][..8].copy_from_slice(&(index + 1).to_ne_bytes());
            }
            assert_everywhere(&file, &maps, index * p, &want);
        }
        assert_eq!(file.blocks(), pages);
        assert_eq!(rig.volume.used_blocks(), pages);
        drop((maps, file));
        rig.volume.remove("a").unwrap();
        rig.soil();
    }
}

/// Point 12: a load racing a store on a hole can't leave the zero page there once the store is done. The
/// load's fault is held on its way; meanwhile the store through another pager's mapping is done. What is
/// loaded after that is the store, everywhere. Where the load's fault holds the lock, the store has to wait.
#[test]
fn p12_a_load_held_up_leaves_no_zero_page_behind_a_store() {
    for start in [Start::Hole, Start::Unwritten] {
        for point in [Point::FaultRead, Point::FaultTaken, Point::Decided, Point::Prepared] {
            for (touched, reader_answers) in [(false, false), (false, true), (true, false), (true, true)] {
                let rig = Rig::with_reader(16, reader_answers);
                let p = rig.page;
                let file = rig.file("a");
                file.truncate(2 * p).unwrap();
                start.make(&file, p, 1);
                let maps = rig.maps(&file, 2);
                if touched {
                    maps[1].load(p).unwrap();
                }
                let trap = rig.park.trap(point, 1);
                thread::scope(|s| {
                    let load = s.spawn(|| maps[0].load(p + 8));
                    let held = trap.wait_or(|| load.is_finished()).is_some();
                    assert!(held || !matches!(point, Point::FaultRead | Point::Decided), "{point:?} was not reached");
                    let store = s.spawn(|| maps[1].store(p + 8, 5));
                    if held && point == Point::Decided {
                        give_a_chance(&store);
                        trap.release();
                        assert_eq!(join(store), Ok(()));
                        let seen = join(load).unwrap();
                        assert!(seen == 0 || seen == 5, "{seen:#x}");
                    } else {
                        assert_eq!(join(store), Ok(()));
                        if held {
                            trap.release();
                            assert_eq!(join(load), Ok(5), "{start:?} {point:?}: the store was done before the load");
                        }
                    }
                });
                for map in &maps {
                    assert_eq!(map.load(p + 8), Ok(5), "{start:?} {point:?}: a zero page is left");
                }
                let mut want = zeros(p);
                want[8] = 5;
                assert_everywhere(&file, &maps, p, &want);
            }
        }
    }
}

/// Point 12, with threads and no help: one loads each page for the first time while another stores to it. Once the
/// store is done every mapping shows it.
#[test]
fn p12_loads_race_with_stores_on_holes() {
    let rig = Rig::new(270);
    let p = rig.page;
    let pages = 256;
    for round in 0..4 {
        let file = rig.file("a");
        file.truncate(pages * p).unwrap();
        if round % 2 == 1 {
            file.allocate(0, pages * p, false).unwrap();
        }
        let maps = rig.maps(&file, pages);
        let turn = AtomicU64::new(0);
        thread::scope(|s| {
            let _end = at_end(|| turn.store(pages, Ordering::Release));
            // Both go for a page at the same time: the loader waits for the storer to come to it.
            let loader = s.spawn(|| {
                for index in 0..pages {
                    while turn.load(Ordering::Acquire) < index {
                        std::hint::spin_loop();
                    }
                    for map in [&maps[0], &maps[2]] {
                        let seen = map.load(index * p + 8).unwrap();
                        assert!(seen == 0 || seen == index + 1, "{seen:#x}");
                    }
                }
            });
            for index in 0..pages {
                turn.store(index, Ordering::Release);
                let map = &maps[if index % 2 == 0 { 0 } else { 1 }];
                map.store(index * p + 8, index + 1).unwrap();
                for map in &maps {
                    assert_eq!(map.load(index * p + 8), Ok(index + 1), "the store to page {index} was done");
                }
            }
            turn.store(pages, Ordering::Release);
            join(loader);
        });
        for index in 0..pages {
            maps.iter().for_each(|map| assert_eq!(map.load(index * p + 8), Ok(index + 1)));
        }
        drop((maps, file));
        rig.volume.remove("a").unwrap();
    }
}

/// Point 13: `write_at` over a hole is visible in every mapping when it returns: zero pages are zapped (generic/428).
#[test]
fn p13_write_at_over_a_hole_shows_in_every_mapping() {
    for start in [Start::LoadedHole, Start::LoadedUnwritten, Start::LoadedWritten, Start::Hole] {
        let rig = Rig::new(16);
        let p = rig.page;
        let file = rig.file("a");
        file.truncate(6 * p).unwrap();
        let mut want: Vec<u8> = (0..6).flat_map(|index| start.make(&file, p, index)).collect();
        let maps = rig.maps(&file, 6);
        (0..6).for_each(|index| start.touch(&maps, p, index));
        // A whole page; parts of two; a single byte.
        for (offset, len) in [(p, p), (2 * p + 100, p), (5 * p + 77, 1)] {
            file.write_at(&pattern(len, 6), offset).unwrap();
            want[offset as usize..][..len as usize].copy_from_slice(&pattern(len, 6));
            assert_everywhere(&file, &maps, 0, &want);
        }
        assert_eq!(file.len(), 6 * p);
    }
}

/// Point 13: reads, writes and mappings see one copy, with no msync. Each of the four ways to change a byte is
/// seen at once in each of the ways to look at it.
#[test]
fn p13_reads_writes_and_mappings_see_one_copy() {
    let rig = Rig::new(16);
    let p = rig.page;
    let file = rig.file("a");
    file.truncate(4 * p).unwrap();
    let maps = rig.maps(&file, 4);
    let mut want = zeros(4 * p);
    assert_everywhere(&file, &maps, 0, &want);
    for round in 0..40_u64 {
        let at = (round * 1237 % (4 * p - 16)).next_multiple_of(8);
        let value = (round + 1) * 0x0101_0101_0101_0101;
        let map = &maps[round as usize % 3];
        match round % 4 {
            0 => put(&file, &value.to_ne_bytes(), at),
            1 => map.store(at, value).unwrap(),
            2 => map.write_at(&value.to_ne_bytes(), at).unwrap(),
            _ => map.copy_in(at, &value.to_ne_bytes()).unwrap(),
        }
        want[at as usize..][..8].copy_from_slice(&value.to_ne_bytes());
        assert_everywhere(&file, &maps, 0, &want);
    }
}

/// Point 13, against loads that put zero pages there all the time: when write_at has returned, the reader's
/// next load shows it.
#[test]
fn p13_write_at_over_holes_beside_a_loading_thread() {
    let rig = Rig::new(16);
    let p = rig.page;
    let file = rig.file("a");
    file.truncate(p).unwrap();
    let maps = rig.maps(&file, 1);
    let written = AtomicU64::new(0);
    let rounds = 600;
    thread::scope(|s| {
        let _end = at_end(|| written.store(2 * rounds, Ordering::Release));
        let readers: Vec<_> = maps[..2]
            .iter()
            .map(|map| {
                let written = &written;
                s.spawn(move || {
                    loop {
                        let before = written.load(Ordering::Acquire);
                        let seen = map.load(64).unwrap();
                        let after = written.load(Ordering::Acquire);
                        // Odd: the value has been written, and is not punched before the number changes.
                        if before == after && before % 2 == 1 {
                            assert_eq!(seen, before, "write_at had returned");
                        }
                        if before == 2 * rounds {
                            return;
                        }
                    }
                })
            })
            .collect();
        for round in 0..rounds {
            let value: u64 = 2 * round + 1;
            file.write_at(&value.to_ne_bytes(), 64).unwrap();
            written.store(value, Ordering::Release);
            assert_eq!(maps[2].load(64), Ok(value));
            written.store(value + 1, Ordering::Release);
            file.punch_hole(0, p).unwrap();
        }
        written.store(2 * rounds, Ordering::Release);
        readers.into_iter().for_each(join);
    });
}

/// Point 14: punch frees whole blocks and zeroes the edges in place; the size stays; in every mapping, touched or not.
#[test]
fn p14_punch_frees_whole_blocks_and_zeroes_the_edges() {
    let rig = Rig::new(16);
    let p = rig.page;
    let size = 6 * p - 100;
    // offset, length, pages freed
    let punches = [
        (0, p, 0..1),
        (p, 2 * p, 1..3),
        (p + 1, 2 * p, 2..3),
        (p - 1, 2 * p + 2, 1..3),
        (p + 10, 20, 0..0),
        (p + 10, p, 0..0),
        (0, size, 0..5),
        (5 * p, p, 5..6),
        (5 * p, 8 * p, 5..6),
        (4 * p + 7, 1 << 40, 5..6),
        (0, i64::MAX as u64, 0..6),
        (size - 1, 1, 0..0),
    ];
    for (offset, len, freed) in punches {
        for start in [Start::Written, Start::LoadedWritten, Start::LoadedUnwritten, Start::LoadedHole] {
            let file = rig.file("a");
            file.truncate(size).unwrap();
            let mut want: Vec<u8> = (0..6).flat_map(|index| start.make(&file, p, index)).collect();
            file.truncate(6 * p).unwrap();
            file.truncate(size).unwrap();
            want.truncate(size as usize);
            let maps = rig.maps(&file, 7);
            (0..6).for_each(|index| start.touch(&maps, p, index));
            if start == Start::LoadedWritten {
                (0..6).for_each(|index| maps[0].store(index * p, u64::MAX).unwrap());
                (0..6).for_each(|index| want[(index * p) as usize..][..8].fill(0xff));
            }
            let blocks = file.blocks();

            file.punch_hole(offset, len).unwrap();

            let context = format!("punch {offset}+{len}, {start:?}");
            want[offset as usize..((offset + len).min(size)) as usize].fill(0);
            assert_eq!(file.len(), size, "{context}");
            assert_everywhere(&file, &maps, 0, &want);
            let gone = if blocks == 0 { 0 } else { freed.end - freed.start };
            // A punch to the very end of the file may free the block that it covers as far as the file goes, or not.
            let may = u64::from(blocks > 0 && offset == 0 && len == size);
            assert!(file.blocks() == blocks - gone || file.blocks() == blocks - gone - may, "{context}");
            assert_eq!(rig.volume.free_blocks(), rig.blocks - file.blocks(), "{context}");
            let holes = file.extents().into_iter().filter(|info| info.kind == ExtentKind::Hole);
            let in_hole =
                |page: u64| holes.clone().any(|hole| (hole.offset..hole.offset + hole.len).contains(&(page * p)));
            assert!(freed.clone().all(in_hole), "{context}: {:?}", file.extents());
            maps.iter().for_each(|map| assert_all_bus(map, 6 * p));
            drop((maps, file));
            rig.volume.remove("a").unwrap();
        }
    }
}

/// Point 14: past the end a punch is a successful no-op, but for blocks that were allocated there; length 0 is refused.
#[test]
fn p14_punch_past_the_end_and_of_nothing() {
    let rig = Rig::new(16);
    let p = rig.page;
    let file = rig.file("a");
    file.write_at(&pattern(p + 100, 1), 0).unwrap();
    file.allocate(4 * p, 4 * p, true).unwrap();
    let maps = rig.maps(&file, 8);
    let extents = file.extents();
    for (offset, len) in [(2 * p, p), (2 * p + 5, 17), (9 * p, 1 << 50), (4 * p + 1, p), (i64::MAX as u64 - 1, 1)] {
        assert_eq!(file.punch_hole(offset, len), Ok(()));
        assert_eq!(file.extents(), extents);
        assert_eq!(file.len(), p + 100);
        assert_everywhere(&file, &maps, 0, &pattern(p + 100, 1));
    }
    assert_eq!(file.punch_hole(5 * p, 2 * p), Ok(()));
    assert_eq!(file.blocks(), 4);
    assert_eq!(file.len(), p + 100);
    for offset in [0, 50, p, 3 * p] {
        assert_eq!(file.punch_hole(offset, 0), Err(Error::EmptyRange { offset }));
    }
    assert_everywhere(&file, &maps, 0, &pattern(p + 100, 1));
}

/// What was stored past the end of the file, within its last page, is zeroed as far as the punch covers it. tmpfs does the same, XFS
/// leaves it until the file is as long as that.
#[test]
fn p14_punch_zeroes_what_was_stored_past_the_end() {
    let rig = Rig::new(16);
    let file = rig.file("a");
    put(&file, &pattern(100, 1), 0);
    let maps = rig.maps(&file, 1);
    let mut want = pattern(100, 1);
    want.resize(rig.page as usize, 0);
    for offset in [200, 304, 400] {
        maps[0].store(offset, u64::MAX).unwrap();
        want[offset as usize..][..8].fill(0xff);
    }
    assert_in_maps(&maps, 0, &want);
    file.punch_hole(204, 104).unwrap();
    want[204..308].fill(0);
    assert_in_maps(&maps, 0, &want);
    file.punch_hole(50, rig.page).unwrap();
    want[50..].fill(0);
    assert_in_maps(&maps, 0, &want);
    assert_eq!(file.len(), 100);
}

/// Point 16: zero range looks the same as a punch from outside, in every mapping, and leaves blocks under all of it; without
/// keep-size it grows the file.
#[test]
fn p16_zero_range_reads_as_zeros_and_has_blocks() {
    let rig = Rig::new(16);
    let p = rig.page;
    let size = 5 * p + 100;
    let ranges =
        [(p, p), (p + 1, 2 * p), (p - 1, 2 * p + 2), (10, 20), (0, size), (5 * p, 50), (5 * p, 3 * p), (7 * p + 5, p)];
    for (offset, len) in ranges {
        for keep_size in [true, false] {
            for start in STARTS {
                let file = rig.file("a");
                file.truncate(size).unwrap();
                let mut want: Vec<u8> = (0..6).flat_map(|index| start.make(&file, p, index)).collect();
                file.truncate(size).unwrap();
                want.truncate(size as usize);
                let maps = rig.maps(&file, 10);
                (0..6).for_each(|index| start.touch(&maps, p, index));

                file.zero_range(offset, len, keep_size).unwrap();

                let context = format!("zero {offset}+{len}, keep size {keep_size}, {start:?}");
                let end = offset + len;
                let grown = if keep_size { size } else { size.max(end) };
                assert_eq!(file.len(), grown, "{context}");
                want[offset.min(size) as usize..end.min(size) as usize].fill(0);
                want.resize(grown as usize, 0);
                assert_everywhere(&file, &maps, 0, &want);
                maps.iter().for_each(|map| assert_all_bus(map, grown.next_multiple_of(p)));
                for info in file.extents().iter().filter(|info| info.kind == ExtentKind::Hole) {
                    let apart = info.offset + info.len <= offset || info.offset >= end.next_multiple_of(p);
                    assert!(apart, "{context}: a hole is left: {info:?}");
                }
                // So a store there never finds the volume full.
                let filler = rig.file("filler");
                let free = rig.volume.free_blocks();
                if free > 0 {
                    filler.allocate(0, free * p, false).unwrap();
                }
                for index in offset / p..end.min(grown).div_ceil(p) {
                    maps[1].store(index * p, 1).unwrap();
                }
                drop((filler, maps, file));
                rig.volume.remove("filler").unwrap();
                rig.volume.remove("a").unwrap();
                rig.assert_blocks_add_up();
            }
        }
    }
}

/// What happens to page 1 of a file of three while a store to it is on its way.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Change {
    Punch,
    PunchEdge,
    ZeroRange,
    TruncateAway,
    TruncateDownAndUp,
}

const CHANGES: [Change; 5] =
    [Change::Punch, Change::PunchEdge, Change::ZeroRange, Change::TruncateAway, Change::TruncateDownAndUp];

impl Change {
    fn make(self, file: &File, p: u64) -> Result<()> {
        match self {
            Change::Punch => file.punch_hole(p, p),
            // Freed are the blocks of page 2; page 1 is zeroed from byte 8 on.
            Change::PunchEdge => file.punch_hole(p + 8, 2 * p - 8),
            Change::ZeroRange => file.zero_range(p, p, false),
            Change::TruncateAway => file.truncate(p),
            Change::TruncateDownAndUp => file.truncate(p).and_then(|()| file.truncate(3 * p)),
        }
    }
}

/// Point 18: a store concurrent with a change acts wholly on the old layout, and is discarded with its block, or wholly on
/// the new; it never reaches a block that is free or somebody else's. The store's fault is held at each point that it passes;
/// the change is made, and the freed blocks are another file's, full of its bytes, before the fault goes on.
#[test]
fn p18_a_store_held_up_acts_on_the_old_layout_or_the_new() {
    for change in CHANGES {
        for start in STARTS {
            let points = LOCK_FREE.into_iter().chain([Point::Decided]);
            for (point, reader_answers) in points.flat_map(|point| [(point, true), (point, false)]) {
                let rig = Rig::with_reader(12, reader_answers);
                let p = rig.page;
                let file = rig.written("a", 3);
                let first_bytes = start.make(&file, p, 1)[..8].to_vec();
                let maps = rig.maps(&file, 3);
                start.touch(&maps, p, 1);
                let thief = rig.file("b");
                let context = format!("{change:?} at {point:?} of a store on {start:?}");
                let trap = rig.park.trap(point, 1);
                let (stored, stolen) = thread::scope(|s| {
                    let store = s.spawn(|| maps[0].store(p + 16, 0x57));
                    if trap.wait_or(|| store.is_finished()).is_none() {
                        assert!(!matches!(point, Point::FaultRead | Point::Decided), "{context}: not reached");
                        join(store).unwrap();
                        return (None, vec![]);
                    }
                    let changed = s.spawn(|| change.make(&file, p));
                    let held_off = point == Point::Decided && !give_a_chance(&changed);
                    let trap = if held_off {
                        trap.release();
                        None
                    } else {
                        Some(trap)
                    };
                    assert_eq!(join(changed), Ok(()), "{context}");
                    // Two are left: one for the store, one for a fault that holds another.
                    let stolen = pattern(rig.volume.free_blocks().saturating_sub(2) * p, 8);
                    thief.write_at(&stolen, 0).unwrap();
                    let new_layout_only = trap.is_some();
                    trap.into_iter().for_each(Trap::release);
                    (Some((join(store), new_layout_only)), stolen)
                });
                let Some((stored, new_layout_only)) = stored else { continue };
                assert_bytes(&read(&thief, 0, stolen.len() as u64), &stolen, &context);
                if change == Change::TruncateAway {
                    assert!(!new_layout_only || stored.is_err(), "{context}");
                    if stored.is_err() {
                        assert_bus(stored, &maps[0], p + 16);
                    }
                    maps.iter().for_each(|map| assert_all_bus(map, p + 16));
                    assert_eq!(file.len(), p);
                } else {
                    let new = maps[1].load(p + 16).unwrap();
                    match stored {
                        Ok(()) if new_layout_only => assert_eq!(new, 0x57, "{context}: a store that was done is lost"),
                        Ok(()) => assert!(new == 0x57 || new == 0, "{context}: {new:#x}"),
                        // Only while there was nothing there at all.
                        Err(_) => {
                            assert!(change == Change::TruncateDownAndUp && !new_layout_only, "{context}");
                            assert_bus(stored, &maps[0], p + 16);
                        }
                    }
                    let mut want = zeros(p);
                    if change == Change::PunchEdge {
                        want[..8].copy_from_slice(&first_bytes);
                    }
                    want[16..24].copy_from_slice(&new.to_ne_bytes());
                    assert_everywhere(&file, &maps, p, &want);
                }
                assert_bytes(&read(&file, 0, p), &pattern(p, 1), "page 0");
                rig.assert_blocks_add_up();
                // Still so when all of it has been touched again.
                for map in &maps {
                    match change {
                        Change::TruncateAway => assert_bus(map.store(p + 24, 1), map, p + 24),
                        _ => assert_eq!(map.store(p + 24, 1), Ok(()), "{context}"),
                    }
                }
                assert_bytes(&read(&thief, 0, stolen.len() as u64), &stolen, &context);
            }
        }
    }
}

/// Point 18, with threads and no help: one file's page is stored to and watched while it is punched, zeroed or truncated,
/// and its block goes to another file, which is mapped too, and back. What a writer loads after its store is
/// that store or zero, never an older one: an older one is a block that was free. The other file's bytes are its own.
#[test]
fn p18_stores_race_with_changes_and_blocks_change_hands() {
    for change in ["punch", "zero range", "truncate"] {
        let rig = Rig::new(4);
        let p = rig.page;
        let file = rig.file("a");
        file.truncate(p).unwrap();
        let maps = rig.maps(&file, 1);
        let thief = rig.file("b");
        thief.truncate(3 * p).unwrap();
        let thiefs = rig.maps(&thief, 3);
        let stop = AtomicBool::new(false);
        let gone = |result: &Result<u64>| matches!(result, Err(Error::Bus(_))) && change == "truncate";
        thread::scope(|s| {
            let _end = at_end(|| stop.store(true, Ordering::Relaxed));
            let writer = s.spawn(|| {
                let _end = at_end(|| stop.store(true, Ordering::Relaxed));
                for value in 1..=2500_u64 {
                    // Both through a fresh fault and beside one.
                    let map = &maps[value as usize % 2];
                    match map.store(8, value) {
                        Ok(()) => {}
                        Err(Error::Bus(_)) if change == "truncate" => continue,
                        // The thief has all four blocks for a moment.
                        Err(Error::Bus(_)) => continue,
                        Err(error) => panic!("{error}"),
                    }
                    for map in &maps {
                        let seen = map.load(8);
                        assert!(gone(&seen) || seen == Ok(0) || seen == Ok(value), "{change}: {seen:x?} after {value}");
                    }
                }
                stop.store(true, Ordering::Relaxed);
            });
            let watcher = s.spawn(|| {
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    let seen = maps[2].load(8);
                    match seen {
                        Ok(0) => {}
                        Ok(value) => {
                            assert!((last..=2500).contains(&value), "{change}: {value:#x} after {last}");
                            last = value;
                        }
                        seen => assert!(gone(&seen), "{change}: {seen:?}"),
                    }
                    let elsewhere = maps[2].load(p - 8);
                    assert!(gone(&elsewhere) || elsewhere == Ok(0), "{change}: {elsewhere:x?}, which nobody stored");
                }
            });
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                match change {
                    "punch" => file.punch_hole(0, p).unwrap(),
                    "zero range" => file.zero_range(0, p, true).or_else(no_space).unwrap(),
                    _ => file.truncate(0).unwrap(),
                }
                round += 1;
                let pages = 1 + round % 3;
                let mine = pattern(pages * p, round);
                if thief.write_at(&mine, 0).is_ok() {
                    assert_everywhere(&thief, &thiefs, 0, &mine);
                    thief.punch_hole(0, 3 * p).unwrap();
                }
                if change == "truncate" {
                    file.truncate(p).unwrap();
                }
            }
            join(writer);
            join(watcher);
        });
        rig.assert_blocks_add_up();
    }
}

/// A full volume is no failure where another file is taking blocks on purpose.
fn no_space(error: Error) -> Result<()> {
    match error {
        Error::NoSpace { .. } => Ok(()),
        error => Err(error),
    }
}

/// Point 20: a system call given mapped addresses past the end gets EFAULT, or a short count after the valid part, and never a
/// signal: the process would die of it. Reads and writes, of pages touched and not, and after a truncate.
#[test]
fn p20_system_calls_past_the_end_get_efault_or_a_short_count() {
    let rig = Rig::new(16);
    let p = rig.page;
    let pager = Pager::builder().require_kernel_faults().start().unwrap();
    for start in STARTS {
        let file = rig.file("a");
        file.truncate(4 * p).unwrap();
        let want = start.make(&file, p, 0);
        file.truncate(p - 10).unwrap();
        let map = pager.map(&file, 0..4 * p).unwrap();
        start.touch(std::slice::from_ref(&map), p, 0);
        let mut valid = want[..p as usize - 10].to_vec();
        valid.resize(p as usize, 0);

        for (offset, len) in [(0, 4 * p), (p - 100, 200), (p, p), (p + 8, 8), (3 * p + 1, p - 1)] {
            let left = p.saturating_sub(offset);
            let context = format!("{start:?}: {offset}+{len}");
            // write(2): the kernel loads.
            let mut outside = memfd();
            match outside.write(raw::slice(&map, offset, len)) {
                Ok(written) => {
                    assert!(written > 0 && written as u64 <= left, "{context}: {written} written");
                    let mut got = vec![0; written];
                    outside.read_exact_at(&mut got, 0).unwrap();
                    assert_bytes(&got, &valid[offset as usize..][..written], &context);
                }
                Err(error) => assert_eq!(error.raw_os_error(), Some(Errno::EFAULT as i32), "{context}"),
            }
            // read(2): the kernel stores.
            let mut outside = memfd();
            outside.write_all_at(&pattern(len, 3), 0).unwrap();
            match outside.read(raw::slice_mut(&map, offset, len)) {
                Ok(read) => {
                    assert!(read > 0 && read as u64 <= left, "{context}: {read} read");
                    valid[offset as usize..][..read].copy_from_slice(&pattern(len, 3)[..read]);
                }
                Err(error) => assert_eq!(error.raw_os_error(), Some(Errno::EFAULT as i32), "{context}"),
            }
            // What was not counted may have been stored all the same, within the page: stores past
            // the end of the file are nobody's, those before it are not tested past `read`.
            assert_bytes(&seen(&map, 0, p - 100), &valid[..p as usize - 100], &context);
            valid = seen(&map, 0, p);
        }

        // Touched, writable, and then truncated away.
        file.truncate(4 * p).unwrap();
        (0..4).for_each(|index| map.store(index * p, 1).unwrap());
        file.truncate(0).unwrap();
        let efault = Some(Errno::EFAULT as i32);
        assert_eq!(memfd().write(raw::slice(&map, 0, 4 * p)).unwrap_err().raw_os_error(), efault);
        let mut outside = memfd();
        outside.write_all_at(&pattern(p, 3), 0).unwrap();
        assert_eq!(outside.read(raw::slice_mut(&map, p, p)).unwrap_err().raw_os_error(), efault);
        // A pipe, whose copy takes another way through the kernel.
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        assert_eq!(writer.write(raw::slice(&map, 0, p)).unwrap_err().raw_os_error(), efault);
        writer.write_all(&[1; 64]).unwrap();
        assert_eq!(reader.read(raw::slice_mut(&map, 0, 64)).unwrap_err().raw_os_error(), efault);
        assert_eq!(file.blocks(), 0);
        // And when the file is back, so is the system call.
        file.truncate(p).unwrap();
        assert_eq!(memfd().write(raw::slice(&map, 0, p)).unwrap() as u64, p);
        drop((map, file));
        rig.volume.remove("a").unwrap();
        rig.assert_blocks_add_up();
    }
}

/// Point 20: the same from inside system calls while the file is truncated and grows again: a short count, EFAULT or
/// all of it, and the bytes counted are right.
#[test]
fn p20_system_calls_race_with_truncate() {
    let rig = Rig::new(16);
    let p = rig.page;
    let pager = Pager::builder().require_kernel_faults().start().unwrap();
    let file = rig.file("a");
    let map = pager.map(&file, 0..3 * p).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        let _end = at_end(|| stop.store(true, Ordering::Relaxed));
        let truncater = s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                file.write_at(&vec![0x77; 3 * p as usize], 0).unwrap();
                file.truncate(p).unwrap();
                file.truncate(0).unwrap();
            }
        });
        let mut outside = memfd();
        for _ in 0..1500 {
            outside.set_len(0).unwrap();
            outside = { outside }.into_fresh();
            match outside.write(raw::slice(&map, 0, 3 * p)) {
                Ok(count) => {
                    let mut got = vec![0xee; count];
                    outside.read_exact_at(&mut got, 0).unwrap();
                    let odd = got.iter().find(|byte| ![0, 0x77].contains(*byte));
                    assert_eq!(odd, None, "bytes that were never in the file");
                }
                Err(error) => assert_eq!(error.raw_os_error(), Some(Errno::EFAULT as i32)),
            }
        }
        stop.store(true, Ordering::Relaxed);
        join(truncater);
    });
    rig.assert_blocks_add_up();
}

trait Fresh {
    /// The same file from its start.
    fn into_fresh(self) -> Self;
}

impl Fresh for fs::File {
    fn into_fresh(mut self) -> Self {
        std::io::Seek::rewind(&mut self).unwrap();
        self
    }
}

/// Point 23: no space in a store fault is SIGBUS, and the hole stays readable as zeros: for the thread that stored, too,
/// and through every mapping. Pages that have blocks are stored to as ever.
#[test]
fn p23_no_space_in_a_store_fault_is_sigbus_and_the_hole_stays_readable() {
    for loaded in [false, true] {
        let rig = Rig::new(4);
        let p = rig.page;
        let file = rig.file("a");
        file.truncate(8 * p).unwrap();
        file.write_at(&pattern(2 * p, 1), 0).unwrap();
        file.allocate(2 * p, 2 * p, true).unwrap();
        assert_eq!(rig.volume.free_blocks(), 0);
        let maps = rig.maps(&file, 8);
        if loaded {
            assert_in_maps(&maps, 4 * p, &zeros(4 * p));
        }
        let extents = file.extents();
        for _ in 0..3 {
            for map in &maps {
                assert_bus(map.store(5 * p + 8, 1), map, 5 * p + 8);
                assert_bus(map.compare_exchange(5 * p + 8, 0, 1), map, 5 * p + 8);
                assert_everywhere(&file, &maps, 4 * p, &zeros(4 * p));
            }
        }
        assert_eq!(file.extents(), extents);
        // Written and allocated pages need no block.
        maps[0].store(0, 7).unwrap();
        maps[1].store(3 * p, 8).unwrap();
        assert_eq!(maps[2].load(0), Ok(7));
        assert_eq!(maps[2].load(3 * p), Ok(8));
        // Once there is a block again the same store is done.
        file.punch_hole(p, p).unwrap();
        maps[0].store(5 * p + 8, 9).unwrap();
        maps.iter().for_each(|map| assert_eq!(map.load(5 * p + 8), Ok(9)));
        assert_bus(maps[0].store(p, 1), &maps[0], p);
        rig.assert_blocks_add_up();
    }
}

/// Point 25: closing or removing a file does not end its mappings. They load, store and share as before, keep the
/// blocks, and do not meet a new file of the same name. The last one to go gives the blocks back.
#[test]
fn p25_closing_and_removing_a_file_leaves_its_mappings() {
    let rig = Rig::new(16);
    let p = rig.page;
    let file = rig.written("a", 2);
    file.truncate(3 * p).unwrap();
    let [first, second, third] = rig.maps(&file, 4);
    first.load(0).unwrap();
    drop(file);
    assert_bytes(&seen(&second, 0, 2 * p), &pattern(2 * p, 1), "after close");
    rig.volume.remove("a").unwrap();
    assert_eq!(rig.volume.list(), []);
    assert_eq!(rig.volume.used_blocks(), 2);

    let namesake = rig.file("a");
    namesake.write_at(&pattern(4 * p, 9), 0).unwrap();
    let mut want = pattern(2 * p, 1);
    want.resize(3 * p as usize, 0);
    first.store(2 * p + 8, 1).unwrap(); // a hole: allocates still
    want[2 * p as usize + 8] = 1;
    for map in [&first, &second, &third] {
        assert_bytes(&seen(map, 0, 3 * p), &want, "after removal");
        assert_all_bus(map, 3 * p);
    }
    assert_bytes(&read(&namesake, 0, 4 * p), &pattern(4 * p, 9), "the namesake");
    assert_eq!(rig.volume.used_blocks(), 3 + 4);

    drop(first);
    drop(third);
    assert_eq!(rig.volume.used_blocks(), 3 + 4);
    assert_bytes(&seen(&second, 0, 3 * p), &want, "with one mapping left");
    drop(second);
    rig.assert_blocks_add_up();
    assert_eq!(rig.volume.used_blocks(), 4);
}

/// Point 26, its second half (there are no times here): allocated size and extents show a mapped store at once, page by page,
/// also a store to an allocated page that was not written before; and again after dirty pages have been taken.
#[test]
fn p26_allocated_size_and_extents_show_mapped_stores() {
    use ExtentKind::{Hole, Unwritten, Written};
    let rig = Rig::new(16);
    let p = rig.page;
    let file = rig.file("a");
    file.truncate(8 * p).unwrap();
    file.allocate(4 * p, 2 * p, false).unwrap();
    let maps = rig.maps(&file, 8);
    assert_in_maps(&maps, 0, &zeros(8 * p));
    assert_eq!(kinds(&file, p), [(Hole, 0, 4), (Unwritten, 4, 2), (Hole, 6, 2)]);

    maps[0].store(p, 1).unwrap();
    assert_eq!(kinds(&file, p), [(Hole, 0, 1), (Written, 1, 1), (Hole, 2, 2), (Unwritten, 4, 2), (Hole, 6, 2)]);
    assert_eq!(file.blocks(), 3);
    assert_eq!(maps[0].take_dirty(), Ok(vec![p..2 * p]));

    maps[1].store(5 * p + 8, 1).unwrap();
    let with_five = [(Hole, 0, 1), (Written, 1, 1), (Hole, 2, 2), (Unwritten, 4, 1), (Written, 5, 1), (Hole, 6, 2)];
    assert_eq!(kinds(&file, p), with_five);
    assert_eq!(file.blocks(), 3);

    // After the page has been protected again a store changes nothing here, and after a punch it does.
    maps[0].store(p, 2).unwrap();
    assert_eq!(maps[0].take_dirty(), Ok(vec![p..2 * p]));
    assert_eq!(kinds(&file, p), with_five);
    file.punch_hole(0, 8 * p).unwrap();
    assert_eq!(kinds(&file, p), [(Hole, 0, 8)]);
    maps[2].store(7 * p, 1).unwrap();
    maps[2].store(2 * p, 1).unwrap();
    assert_eq!(kinds(&file, p), [(Hole, 0, 2), (Written, 2, 1), (Hole, 3, 4), (Written, 7, 1)]);
    assert_eq!(rig.volume.list().iter().map(|info| (info.len, info.blocks)).collect::<Vec<_>>(), [(8 * p, 2)]);
    assert_eq!(rig.volume.used_blocks(), 2);
}

/// Point 27: a new unwritten block never shows old device bytes: not by load, not by read, not beside a store or
/// a write to a part of it, not where the file grows over it, not at the edge of a range that is zeroed.
#[test]
fn p27_unwritten_blocks_never_show_old_bytes() {
    type Touch = fn(&File, &[Mapping], u64, &mut Vec<u8>);
    let ways: [(&str, Touch); 9] = [
        ("look", |_, _, _, _| {}),
        ("store", |_, maps, p, want| {
            maps[1].store(p + 8, u64::MAX).unwrap();
            want[p as usize + 8..][..8].fill(0xff);
        }),
        ("write", |file, _, p, want| {
            file.write_at(&[3; 100], 2 * p - 50).unwrap();
            want[2 * p as usize - 50..][..100].fill(3);
        }),
        ("mapping write", |_, maps, p, want| {
            maps[0].write_at(&[3; 100], 2 * p - 50).unwrap();
            want[2 * p as usize - 50..][..100].fill(3);
        }),
        ("zero the edge", |file, _, p, _| file.zero_range(p + 100, p, true).unwrap()),
        ("punch the edge", |file, _, p, _| file.punch_hole(p + 100, p).unwrap()),
        ("truncate into it and up", |file, _, p, _| {
            file.truncate(p + 100).unwrap();
            file.truncate(4 * p).unwrap();
        }),
        ("store past the end and grow", |file, maps, p, _| {
            file.truncate(p + 100).unwrap();
            maps[0].store(p + 200, 7).unwrap();
            file.truncate(4 * p).unwrap();
        }),
        ("allocate past the end and grow", |file, _, p, _| {
            file.truncate(0).unwrap();
            file.allocate(0, 4 * p, true).unwrap();
            file.truncate(4 * p).unwrap();
        }),
    ];
    for (way, touch) in ways {
        for loaded in [false, true] {
            let rig = Rig::new(8);
            let p = rig.page;
            let file = rig.file("a");
            file.allocate(0, 4 * p, false).unwrap();
            assert_eq!(kinds(&file, p), [(ExtentKind::Unwritten, 0, 4)], "{way}");
            let maps = rig.maps(&file, 4);
            let mut want = zeros(4 * p);
            if loaded {
                assert_everywhere(&file, &maps, 0, &want);
                assert_eq!(kinds(&file, p), [(ExtentKind::Unwritten, 0, 4)], "{way}");
            }
            touch(&file, &maps, p, &mut want);
            assert_everywhere(&file, &maps, 0, &want);
            rig.assert_blocks_add_up();
        }
    }
}

/// Point 27, across the ways by which a file gets a block: whatever way, a new block shows none of the old bytes around what was put in.
#[test]
fn p27_a_partial_write_to_a_new_block_shows_nothing_old() {
    let rig = Rig::new(8);
    let p = rig.page;
    for offset in [0, 1, p - 1, p / 2, p - 5] {
        let file = rig.file("a");
        let maps = rig.maps(&file, 3);
        file.write_at(&[9; 10], offset).unwrap();
        let mut want = zeros(offset);
        want.extend([9; 10]);
        assert_everywhere(&file, &maps, 0, &want);
        want.resize(((offset + 10).div_ceil(p) * p) as usize, 0);
        assert_in_maps(&maps, 0, &want);
        drop((file, maps));
        rig.volume.remove("a").unwrap();
        rig.soil();
    }
}

/// The rig itself: a device really is full of old bytes when a test begins, or half of the tests above prove nothing.
#[test]
fn the_device_is_soiled() {
    let page = host_page();
    let path = format!("/dev/shm/daxpager-spec-{}", std::process::id());
    let volume = Volume::format(Device::open(&path, 4 * page).unwrap());
    let soil = volume.create("soil").unwrap();
    soil.write_at(&vec![SOIL; 4 * page as usize], 0).unwrap();
    drop(soil);
    volume.remove("soil").unwrap();
    assert_eq!(volume.free_blocks(), 4);
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_bytes(&bytes, &vec![SOIL; 4 * page as usize], "the device after its files are gone");
}
