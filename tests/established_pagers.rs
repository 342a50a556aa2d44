//! What an established user-space pager gets wrong, a test each: what was reproduced there must not happen here. Those
//! that take a child process to see (madvise, fork, mremap) are in `children.rs`.

mod blackbox;

use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use blackbox::child::assert_is_child;
use blackbox::*;
use daxpager::probe::Point;
use daxpager::{Allocation, Device, Error, File, Pager, Volume};

/// Reads past the end showed another page's bytes, and a later write saved them into the file. Here: pages are touched in
/// an order that would leave buffers of all sorts behind, the file is cut and grown, and neither loads nor
/// the file show a byte that is not its own.
#[test]
fn past_the_end_is_never_another_pages_bytes() {
    let rig = Rig::new(32);
    let p = rig.page;
    let file = rig.written("a", 4);
    file.write_at(&pattern(100, 9), 4 * p).unwrap();
    let maps = rig.maps(&file, 8);
    let mut want = pattern(4 * p, 1);
    want.extend(pattern(100, 9));
    want.resize(5 * p as usize, 0);
    for index in [3, 0, 4, 1, 2] {
        maps[0].load(index * p).unwrap();
        maps.iter().for_each(|map| assert_all_bus(map, 5 * p));
    }
    assert_in_maps(&maps, 0, &want);
    // A write in the middle of what was past the end, through each door.
    maps[0].store(4 * p + 2048, u64::MAX).unwrap();
    assert_bus(maps[1].store(6 * p, 1), &maps[1], 6 * p);
    file.truncate(8 * p).unwrap();
    want.resize(8 * p as usize, 0);
    assert_everywhere(&file, &maps, 0, &want);
    maps[1].store(6 * p, 1).unwrap();
    want[6 * p as usize] = 1;
    file.truncate(2 * p + 8).unwrap();
    file.truncate(8 * p).unwrap();
    want[2 * p as usize + 8..].fill(0);
    assert_everywhere(&file, &maps, 0, &want);
    rig.assert_blocks_add_up();
}

/// A page that was punched in the file stayed in the mapping as it was, and came back into the file with the next flush.
#[test]
fn a_punched_page_does_not_stay_in_the_mapping() {
    let rig = Rig::new(32);
    let p = rig.page;
    let file = rig.written("a", 4);
    let maps = rig.maps(&file, 4);
    let mut want = pattern(4 * p, 1);
    for round in 0..4 {
        maps.iter().for_each(|map| map.store(round * p + 8, 5).unwrap());
        file.punch_hole(round * p, p).unwrap();
        want[(round * p) as usize..][..p as usize].fill(0);
        assert_everywhere(&file, &maps, 0, &want);
        // What was stored before the punch is not dirty: there is nothing to save.
        maps.iter().for_each(|map| assert_eq!(map.take_dirty(), Ok(vec![])));
        assert_everywhere(&file, &maps, 0, &want);
    }
    assert_eq!(file.blocks(), 0);
}

/// Unmapping one of several regions crashed. Here: mappings come and go in all orders, at the ends and in the
/// middle, while those that stay are used by threads.
#[test]
fn unmapping_one_of_several_leaves_the_others() {
    let rig = Rig::new(32);
    let p = rig.page;
    let file = rig.written("a", 8);
    let stop = AtomicBool::new(false);
    let stays = rig.maps(&file, 8);
    thread::scope(|s| {
        let _end = at_end(|| stop.store(true, Ordering::Relaxed));
        let users: Vec<_> = stays[..2]
            .iter()
            .map(|map| {
                let stop = &stop;
                s.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        assert_bytes(&seen(map, p, 7 * p), &pattern(8 * p, 1)[p as usize..], "a mapping that stays");
                        map.store(0, 0).unwrap();
                    }
                })
            })
            .collect();
        for round in 0..40_usize {
            let mut maps: Vec<_> = (0..6).map(|start| rig.pager.map(&file, start * p..8 * p).unwrap()).collect();
            for (start, map) in maps.iter().enumerate() {
                assert_bytes(
                    &seen(map, 2 * p, 8),
                    &pattern(8 * p, 1)[(start + 2) * p as usize..][..8],
                    "a new mapping",
                );
            }
            while !maps.is_empty() {
                drop(maps.remove(round * 7 % maps.len()));
                for map in &maps {
                    map.load(map.len() - 8).unwrap();
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        users.into_iter().for_each(join);
    });
    assert_eq!(rig.pager.mappings(), 2);
    file.punch_hole(0, p).unwrap();
    stays.iter().for_each(|map| assert_eq!(map.load(0), Ok(0)));
}

/// Two threads that map and unmap crashed. Here: four, on two pagers and on the same two files, one of which is changed all the time.
/// Addresses are used again at once; what is seen through a mapping is its own file's.
#[test]
fn threads_map_and_unmap_side_by_side() {
    let rig = Rig::new(64);
    let p = rig.page;
    let file = rig.written("a", 8);
    let other = rig.file("b");
    other.write_at(&vec![0xbb; 8 * p as usize], 0).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        let _end = at_end(|| stop.store(true, Ordering::Relaxed));
        let mappers: Vec<_> = (0..4_u64)
            .map(|number| {
                let (rig, file, other) = (&rig, &file, &other);
                s.spawn(move || {
                    let pager = if number % 2 == 0 { &rig.pager } else { &rig.other };
                    for round in 0..200 {
                        let start = (round + number) % 4;
                        let first = pager.map(file, start * p..8 * p).unwrap();
                        let second = pager.map(other, start * p..8 * p).unwrap();
                        let at = 3 * p;
                        let want = &pattern(8 * p, 1)[((start + 3) * p) as usize..][..p as usize];
                        assert_bytes(&seen(&first, at, p), want, "the file that nobody changes");
                        for word in seen(&second, at, p).chunks(8) {
                            assert!(word == [0; 8] || word == [0xbb; 8], "{word:x?} in the other file");
                        }
                        match round % 3 {
                            0 => drop((first, second)),
                            1 => drop((second, first)),
                            // Dropped by another thread.
                            _ => drop(thread::spawn(move || drop(first)).join()),
                        }
                    }
                })
            })
            .collect();
        let changer = s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                other.punch_hole(2 * p, 6 * p).unwrap();
                other.write_at(&vec![0xbb; 6 * p as usize], 2 * p).unwrap();
            }
        });
        mappers.into_iter().for_each(join);
        stop.store(true, Ordering::Relaxed);
        join(changer);
    });
    assert_eq!(rig.pager.mappings() + rig.other.mappings(), 0);
    assert_bytes(&read(&file, 0, 8 * p), &pattern(8 * p, 1), "the file that nobody changed");
    rig.assert_blocks_add_up();
}

/// A file whose neighbouring pages never lie side by side on the device: two files were written in turns.
fn fragmented(volume: &Volume, pages: u64, p: u64) -> File {
    let file = volume.create("fragmented").unwrap();
    let other = volume.create("between").unwrap();
    file.truncate(pages * p).unwrap();
    for index in 0..pages {
        file.write_at(&(index + 1).to_ne_bytes(), index * p).unwrap();
        other.write_at(&[1], index * p).unwrap();
    }
    file
}

/// A flush during eviction deadlocked. Here eviction is of address ranges: a fragmented file and a pager that may have sixteen.
/// One thread stores all over it, one takes dirty ranges, one loads: all come to an end, no store is lost, and each was noticed.
#[test]
fn taking_dirty_pages_during_eviction_comes_to_an_end() {
    let rig = Rig::new(600);
    let p = rig.page;
    let pages = 200;
    let file = fragmented(&rig.volume, pages, p);
    let pager = Pager::builder().address_ranges_max(16).start().unwrap();
    let map = pager.map(&file, 0..pages * p).unwrap();
    let stop = AtomicBool::new(false);
    let dirty = thread::scope(|s| {
        let _end = at_end(|| stop.store(true, Ordering::Relaxed));
        let flusher = s.spawn(|| {
            let mut dirty = vec![0; pages as usize];
            while !stop.load(Ordering::Relaxed) {
                for range in map.take_dirty().unwrap() {
                    (range.start / p..range.end / p).for_each(|index| dirty[index as usize] += 1);
                }
            }
            dirty
        });
        let loader = s.spawn(|| {
            for index in (0..pages).chain(0..pages) {
                assert_eq!(map.load(index * p), Ok(index + 1));
            }
        });
        for step in 0..2 * pages {
            let index = step * 73 % pages;
            map.store(index * p + 8, step).unwrap();
            assert_eq!(map.load(index * p + 8), Ok(step));
        }
        join(loader);
        stop.store(true, Ordering::Relaxed);
        join(flusher)
    });
    let mut dirty: Vec<u64> = dirty;
    for range in map.take_dirty().unwrap() {
        (range.start / p..range.end / p).for_each(|index| dirty[index as usize] += 1);
    }
    for index in 0..pages {
        assert_ne!(dirty[index as usize], 0, "page {index} was stored to and never dirty");
        assert_eq!(map.load(index * p), Ok(index + 1));
    }
    let ranges = pager.stats().address_ranges;
    assert!(ranges <= 16, "{ranges} address ranges, and 16 were allowed");
}

/// The numbers of this process's threads of that name.
fn threads_called(name: &str) -> Vec<i32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let called = |task: &std::path::PathBuf| {
        fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end().starts_with(name))
    };
    tasks.filter(called).map(|task| task.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect()
}

/// A handled signal that reached one of the pager's threads (EINTR) aborted the process. Here all of them, and the
/// threads that wait in faults as well, get signals all the time.
#[test]
fn signals_to_the_pagers_threads_do_no_harm() {
    let rig = Rig::new(300);
    let p = rig.page;
    let pages = 250;
    raw::swallow(libc::SIGUSR1);
    let pager = Pager::builder().thread_name("sig").require_kernel_faults().start().unwrap();
    // A reader and two workers, as soon as the last has given itself its name.
    let mut targets = threads_called("sig-");
    while targets.len() < 3 {
        thread::yield_now();
        targets = threads_called("sig-");
    }
    let file = rig.file("a");
    file.truncate(pages * p).unwrap();
    let stop = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    thread::scope(|s| {
        let _end = at_end(|| stop.store(true, Ordering::Relaxed));
        let user = s.spawn(|| {
            let myself = nix::unistd::gettid().as_raw();
            for round in 0..8 {
                let map = pager.map(&file, 0..pages * p).unwrap();
                for index in 0..pages {
                    map.store(index * p + 8, round * pages + index).unwrap();
                    if index % 16 == 0 {
                        raw::signal_thread(myself, libc::SIGUSR1);
                    }
                }
                for index in 0..pages {
                    assert_eq!(map.load(index * p + 8), Ok(round * pages + index));
                }
                let dirty = map.take_dirty().unwrap();
                assert_eq!(dirty.iter().map(|range| range.end - range.start).sum::<u64>(), pages * p);
                file.punch_hole(0, pages / 2 * p).unwrap();
                assert_eq!(map.load(8), Ok(0));
            }
            stop.store(true, Ordering::Relaxed);
        });
        while !stop.load(Ordering::Relaxed) {
            targets.iter().for_each(|thread| raw::signal_thread(*thread, libc::SIGUSR1));
            sent.fetch_add(1, Ordering::Relaxed);
            thread::yield_now();
        }
        join(user);
    });
    assert!(sent.into_inner() > 10);
    assert_eq!(threads_called("sig-"), targets);
    pager.shutdown().unwrap();
    rig.assert_blocks_add_up();
}

/// Any store error aborted the process. Here a store that cannot be done is the storing thread's SIGBUS, and the pager goes on: the same
/// pages, others, other files, and new mappings.
#[test]
fn a_store_error_ends_nothing_but_the_store() {
    let rig = Rig::new(4);
    let p = rig.page;
    let file = rig.written("a", 4);
    file.truncate(8 * p).unwrap();
    let maps = rig.maps(&file, 8);
    thread::scope(|s| {
        let stores: Vec<_> = (0..3)
            .map(|number| {
                let map = &maps[number];
                s.spawn(move || {
                    for round in 0..50 {
                        let at = (4 + (round + number as u64) % 4) * p;
                        assert_bus(map.store(at, 1), map, at);
                        assert_eq!(map.load(at), Ok(0));
                    }
                })
            })
            .collect();
        for round in 0..100 {
            maps[0].store(round % 4 * p, round).unwrap();
            assert_eq!(maps[1].load(round % 4 * p), Ok(round));
        }
        stores.into_iter().for_each(join);
    });
    file.punch_hole(3 * p, p).unwrap();
    maps[2].store(7 * p, 7).unwrap();
    let late = rig.pager.map(&file, 4 * p..8 * p).unwrap();
    assert_eq!(late.load(3 * p), Ok(7));
    rig.pager.shutdown().unwrap();
}

/// One slow page held up faults on other pages for seconds. Here the fault on page 0 stands still for good; all other kinds of fault,
/// in the same mapping, in the same file and in others, are answered meanwhile, and so are changes elsewhere.
#[test]
fn a_slow_page_holds_up_no_other() {
    for point in [Point::FaultTaken, Point::Allocated, Point::Prepared] {
        let rig = Rig::on_single_blocks(64);
        let p = rig.page;
        let file = rig.file("a");
        file.truncate(16 * p).unwrap();
        file.write_at(&pattern(4 * p, 1), 8 * p).unwrap();
        file.allocate(12 * p, 2 * p, false).unwrap();
        let other = rig.written("b", 4);
        let map = rig.pager.map(&file, 0..17 * p).unwrap();
        let other_map = rig.pager.map(&other, 0..4 * p).unwrap();
        let trap = rig.park.trap_thread(point, 0, "dax-worker");
        thread::scope(|s| {
            let slow = s.spawn(|| map.store(8, 1));
            if trap.wait_or(|| slow.is_finished()).is_none() {
                assert_eq!(point, Point::Prepared, "a store on a hole is taken by a worker, which allocates");
                return join(slow).unwrap();
            }
            let rest = s.spawn(|| {
                for index in 1..16 {
                    map.load(index * p).unwrap();
                }
                for index in 1..16 {
                    map.store(index * p + 8, index).unwrap();
                }
                assert_bus(map.load(16 * p), &map, 16 * p);
                assert_bytes(&seen(&other_map, 0, 4 * p), &pattern(4 * p, 1), "the other file");
                other_map.store(0, 1).unwrap();
                other.truncate(p).unwrap();
                file.write_at(&[1; 8], 2 * p).unwrap();
                let late = rig.pager.map(&file, p..4 * p).unwrap();
                assert_eq!(late.load(8), Ok(1));
                drop(late);
                assert_eq!(map.take_dirty().unwrap(), std::iter::once(p..16 * p).collect::<Vec<_>>());
            });
            join(rest);
            assert!(trap.is_holding());
            trap.release();
            assert_eq!(join(slow), Ok(()));
        });
        assert_eq!(map.load(8), Ok(1));
    }
}

/// Writes to pinned pages were lost. Here: O_DIRECT reads go by DMA, or what stands in for it, into pages that the kernel has pinned,
/// while the pager gives address ranges up, takes dirty pages and the application drops its entries. Whatever was read is in the file.
#[test]
fn direct_reads_into_a_mapping_during_eviction_are_not_lost() {
    let rig = Rig::new(300);
    let p = rig.page;
    let pages = 64;
    let file = fragmented(&rig.volume, pages, p);
    let pager = Pager::builder().address_ranges_max(16).require_kernel_faults().start().unwrap();
    let map = pager.map(&file, 0..pages * p).unwrap();
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("direct-{}", std::process::id()));
    let disk = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .expect("this test needs a target directory with O_DIRECT");
    fs::write(&path, pattern(8 * p, 3)).unwrap();
    fs::remove_file(&path).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        let _end = at_end(|| stop.store(true, Ordering::Relaxed));
        let evicter = s.spawn(|| {
            let mut index = 0;
            while !stop.load(Ordering::Relaxed) {
                // The second half is loaded only: it drives the first half's address ranges out.
                index = (index + 1) % (pages / 2);
                assert_eq!(map.load((pages / 2 + index) * p), Ok(pages / 2 + index + 1));
                if index % 8 == 0 {
                    map.take_dirty().unwrap();
                    raw::madvise(map.as_ptr() as usize, pages / 2 * p, libc::MADV_DONTNEED);
                }
            }
        });
        for round in 0..200 {
            let at = round * 5 % (pages / 2 - 8) * p;
            file.write_at(&vec![0xee; 8 * p as usize], at).unwrap();
            let count = disk.read_at(raw::slice_mut(&map, at, 8 * p), 0).unwrap();
            assert_eq!(count as u64, 8 * p);
            assert_everywhere(&file, std::slice::from_ref(&map), at, &pattern(8 * p, 3));
        }
        stop.store(true, Ordering::Relaxed);
        join(evicter);
    });
}

child::children! {
    /// Unmapping leaked memory and descriptors. Here, in a process of its own: after thousands of mappings, and after hundreds of pagers, devices
    /// and volumes, there are as many descriptors, threads and address ranges as before, and no more memory.
    mappings_and_pagers_leave_nothing_behind;
    /// More than 900 to 32,000 regions were ENOMEM. Here, in a process of its own because it takes nearly all the address ranges that
    /// there are: 32,000 mappings at once, all seeing the same changes.
    tens_of_thousands_of_mappings;
    /// The same with one mapping of a file that is in more pieces than a process may have address ranges.
    a_file_in_more_pieces_than_there_are_address_ranges;
}

/// What the children do.
mod inside {
    use super::*;

    /// Descriptors, threads, address ranges, and resident memory in KiB.
    fn holdings() -> [u64; 4] {
        let count = |dir: &str| fs::read_dir(dir).unwrap().count() as u64;
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident = line.trim().trim_end_matches(" kB").trim().parse().unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap().lines().count() as u64;
        [count("/proc/self/fd"), count("/proc/self/task"), maps, resident]
    }

    #[track_caller]
    fn assert_no_more(before: [u64; 4], what: &str) {
        let after = holdings();
        assert_eq!(after[..2], before[..2], "descriptors and threads, {what}");
        // The heap may have got another arena or two.
        assert!(after[2] <= before[2] + 20, "{} address ranges after {}, {what}", after[2], before[2]);
        assert!(after[3] <= before[3] + 8192, "{} KiB after {}, {what}", after[3], before[3]);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn mappings_and_pagers_leave_nothing_behind() {
        assert_is_child();
        let rig = Rig::new(64);
        let p = rig.page;
        let file = rig.written("a", 32);
        file.truncate(64 * p).unwrap();
        let map_and_use = || {
            let map = rig.pager.map(&file, 0..1 << 30).unwrap();
            for index in [0, 5, 31, 40, 63] {
                map.load(index * p).unwrap();
                map.store(index * p, 1).unwrap();
            }
            assert_all_bus(&map, 70 * p);
            file.punch_hole(40 * p, 24 * p).unwrap();
        };
        (0..50).for_each(|_| map_and_use());
        let before = holdings();
        (0..3000).for_each(|_| map_and_use());
        assert_no_more(before, "after 3000 mappings");

        let world = || {
            let volume = Volume::format(Device::memfd("leak", 64 * p).unwrap());
            let file = volume.create("a").unwrap();
            file.write_at(&pattern(64 * p, 1), 0).unwrap();
            let pager = Pager::builder().start().unwrap();
            let map = pager.map(&file, 0..64 * p).unwrap();
            (0..64).for_each(|index| map.store(index * p, 1).unwrap());
            // In every order: the mapping or the pager first.
            file
        };
        (0..20).for_each(|_| drop(world()));
        let before = holdings();
        (0..300).for_each(|_| drop(world()));
        assert_no_more(before, "after 300 pagers");

        for _ in 0..300 {
            let volume = Volume::format(Device::memfd("leak", 64 * p).unwrap());
            let file = volume.create("a").unwrap();
            file.write_at(&pattern(64 * p, 1), 0).unwrap();
            let pager = Pager::builder().start().unwrap();
            let map = pager.map(&file, 0..64 * p).unwrap();
            (0..64).for_each(|index| map.store(index * p, 1).unwrap());
            pager.shutdown().unwrap();
            drop((volume, file));
            drop(map);
        }
        assert_no_more(before, "after 300 pagers that went before their mappings");
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn tens_of_thousands_of_mappings() {
        assert_is_child();
        let rig = Rig::new(16);
        let p = rig.page;
        let file = rig.written("a", 2);
        let maps: Vec<_> = (0..32_000).map(|_| rig.pager.map(&file, 0..2 * p).unwrap()).collect();
        assert_eq!(rig.pager.mappings(), 32_000);
        let first = u64::from_ne_bytes(pattern(8, 1).try_into().unwrap());
        for (index, map) in maps.iter().enumerate().step_by(3) {
            match index % 2 {
                0 => assert_eq!(map.load(0), Ok(first)),
                _ => map.store(p, index as u64).unwrap(),
            }
        }
        file.punch_hole(0, 2 * p).unwrap();
        for map in maps.iter().step_by(97) {
            assert_eq!(map.load(0), Ok(0));
            assert_eq!(map.load(p), Ok(0));
        }
        drop(maps);
        assert_eq!(rig.pager.mappings(), 0);
        rig.assert_blocks_add_up();
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_file_in_more_pieces_than_there_are_address_ranges() {
        assert_is_child();
        let p = host_page();
        let pages = 70_000;
        let limit: u64 = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
        let volume = Volume::format_with(Device::memfd("pieces", (2 * pages + 100) * p).unwrap(), Allocation::Blocks);
        let file = fragmented(&volume, pages, p);
        assert!(pages > limit, "this test needs vm.max_map_count below {pages}");
        let pager = Pager::builder().start().unwrap();
        let map = pager.map(&file, 0..pages * p).unwrap();
        for index in 0..pages {
            // In an order in which neighbours are not touched one after the other.
            let index = index * 7919 % pages;
            assert_eq!(map.load(index * p), Ok(index + 1));
        }
        for index in (0..pages).step_by(50) {
            map.store(index * p + 8, index).unwrap();
            assert_eq!(map.load(index * p), Ok(index + 1));
        }
        assert!(pager.stats().address_ranges < limit);
        assert_eq!(read(&file, 100 * p + 8, 8), 100_u64.to_ne_bytes());
        assert_eq!(
            map.load(pages * p),
            Err(Error::OutsideMapping { offset: pages * p, len: 8, mapping_bytes: pages * p })
        );
    }
}
