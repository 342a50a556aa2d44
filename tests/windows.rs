//! Files with windows (`Allocation::Windows`): page N at place N of a sparse device. What is theirs alone: memory that goes back as it is
//! given up, a store into a hole that nobody else has a part in, mappings of a few address ranges, zeros that are counted.
#![allow(unsafe_code, reason = "madvise on a mapping")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{PAGE, guard, next, shuffled, ways};
use daxpager::{Access, Allocation, Device, Error, File, MapOptions, Mapping, Pager, Stats, Tracking, Volume};

const MARK: u64 = 0x5745_4544_5745_4544;
const MIB: u64 = 1 << 20;

fn volume(bytes: u64) -> Volume {
    let volume = Volume::format_with(Device::memfd("windows", bytes).unwrap(), Allocation::Windows);
    assert_eq!(volume.allocation(), (Allocation::Windows, None));
    volume
}

fn mapped(volume: &Volume, pager: &Pager, pages: u64, options: &MapOptions) -> (File, Mapping) {
    let file = volume.create(&format!("{pages}-{options:?}")).unwrap();
    file.truncate(pages * PAGE).unwrap();
    let map = pager.map_with(&file, 0..pages * PAGE, options).unwrap();
    (file, map)
}

/// What has been done since: allocations, installs, re-points, zaps and what else takes entries away, hand-overs.
fn since(pager: &Pager, before: &Stats) -> [u64; 5] {
    let now = pager.stats();
    let calls = now.calls.since(&before.calls);
    let more = |of: fn(&Stats) -> u64| of(&now) - of(before);
    let zaps = calls.zaps + more(|stats| stats.evictions);
    [more(|stats| stats.allocations), calls.installs, calls.repoints, zaps, more(|stats| stats.handed_over)]
}

#[test]
fn a_store_into_a_hole_is_one_call_and_nobody_elses_work() {
    const PAGES: u64 = 512;
    for options in ways() {
        let volume = volume(8 * MIB);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = mapped(&volume, &pager, PAGES, &options);
        let before = pager.stats();
        let order = shuffled(PAGES);
        let accesses = map.accesses().unwrap();
        for page in &order {
            accesses.store(page * PAGE, page + 1).unwrap();
        }
        // Faults that meet a lock that is taken go to a worker; nobody takes one here.
        assert_eq!(since(&pager, &before), [PAGES, PAGES, 0, 0, 0], "{:?}", pager.stats());
        assert_eq!(file.blocks(), PAGES);
        assert_eq!(volume.resident_bytes(), PAGES * PAGE);
        assert!(order.iter().all(|page| accesses.load(page * PAGE).unwrap() == page + 1));
        assert!(pager.stats().address_ranges <= 2, "{} address ranges", pager.stats().address_ranges);
        assert_eq!(file.fiemap().len(), 1, "page N lies at place N");
    }
}

#[test]
fn memory_goes_back_as_it_is_given_up() {
    let volume = volume(64 * MIB);
    let pager = Pager::builder().start().unwrap();
    let file = volume.create("given up").unwrap();
    file.write_at(&vec![7; 16 * MIB as usize], 0).unwrap();
    let map = pager.map(&file, 0..16 * MIB).unwrap();
    map.populate(0..16 * MIB, Access::Store).unwrap();
    assert_eq!(volume.resident_bytes(), 16 * MIB);
    file.punch_hole(MIB, 4 * MIB).unwrap();
    assert_eq!(volume.resident_bytes(), 12 * MIB);
    file.zero_range(0, MIB, true).unwrap();
    assert_eq!(
        (volume.resident_bytes(), file.blocks() * PAGE),
        (11 * MIB, 12 * MIB),
        "the blocks stay, the memory goes"
    );
    file.truncate(8 * MIB + 1).unwrap();
    assert_eq!(volume.resident_bytes(), 3 * MIB + PAGE);
    assert_eq!(file.resident_bytes(), 3 * MIB + PAGE);
    let other = volume.create("beside").unwrap();
    assert_eq!((other.write_at(&[1], 5 * PAGE), other.resident_bytes()), (Ok(1), PAGE));
    other.allocate(0, 5 * PAGE, true).unwrap();
    assert_eq!((other.resident_bytes(), other.blocks(), file.resident_bytes()), (PAGE, 6, 3 * MIB + PAGE));
    volume.remove("beside").unwrap();
    drop(other);
    assert_eq!(map.load(5 * MIB).unwrap(), u64::from_ne_bytes([7; 8]));
    assert_eq!(map.load(MIB).unwrap(), 0);
    assert_eq!(file.resident_bytes(), 3 * MIB + 2 * PAGE, "the zeros that the load has left");
    volume.remove("given up").unwrap();
    drop((file, map));
    assert_eq!((volume.resident_bytes(), volume.used_blocks()), (0, 0));
}

#[test]
fn what_has_been_given_up_is_zeros_when_it_is_there_again() {
    for options in ways() {
        let volume = volume(MIB);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = mapped(&volume, &pager, 8, &options);
        for round in 1..50 {
            map.store(2 * PAGE + 8, round).unwrap();
            match round % 3 {
                0 => file.punch_hole(2 * PAGE, PAGE).unwrap(),
                1 => file.zero_range(2 * PAGE, PAGE, true).unwrap(),
                _ => {
                    file.truncate(PAGE).unwrap();
                    assert!(matches!(map.load(2 * PAGE + 8), Err(Error::Bus(_))));
                    file.truncate(8 * PAGE).unwrap();
                }
            }
            if round % 2 == 0 {
                assert_eq!(map.load(2 * PAGE + 8).unwrap(), 0, "round {round}");
            }
            map.store(2 * PAGE, round).unwrap();
            assert_eq!((map.load(2 * PAGE).unwrap(), map.load(2 * PAGE + 8).unwrap()), (round, 0), "round {round}");
        }
    }
}

#[test]
fn it_is_full_exactly_when_it_is_full() {
    for options in ways() {
        let volume = volume(16 * PAGE);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = mapped(&volume, &pager, 32, &options);
        for page in 0..16 {
            map.store(page * PAGE, 1).unwrap();
        }
        assert_eq!((volume.free_blocks(), file.blocks()), (0, 16));
        assert!(matches!(map.store(16 * PAGE, 1), Err(Error::Bus(_))));
        assert!(matches!(file.write_at(&[1], 17 * PAGE), Err(Error::NoSpace { wanted: 1, free: 0 })));
        assert!(matches!(file.allocate(0, 17 * PAGE, true), Err(Error::NoSpace { .. })));
        // The holes are readable, and one page that comes free is one page.
        assert!((16..32).all(|page| map.load(page * PAGE).unwrap() == 0));
        assert!(matches!(map.store(16 * PAGE, 1), Err(Error::Bus(_))), "zeros are there, and no page for them");
        file.punch_hole(3 * PAGE, PAGE).unwrap();
        map.store(20 * PAGE, 2).unwrap();
        assert!(matches!(map.store(3 * PAGE, 1), Err(Error::Bus(_))));
        assert_eq!((map.load(3 * PAGE).unwrap(), map.load(20 * PAGE).unwrap(), file.blocks()), (0, 2, 16));
        file.truncate(0).unwrap();
        assert_eq!((volume.free_blocks(), volume.resident_bytes()), (16, 0));
    }
}

/// A load of a hole takes a page. Past the budget they are taken back, and no store is lost by that.
#[test]
fn zeros_that_loads_leave_are_counted_and_taken_back() {
    const PAGES: u64 = 40 * 512; // 80 MiB
    for options in ways() {
        let volume = volume(256 * MIB);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = mapped(&volume, &pager, PAGES, &options);
        let other = pager.map_with(&file, 0..PAGES * PAGE, &options).unwrap();
        let accesses = map.accesses().unwrap();
        let mut stored = 0;
        for page in 0..PAGES {
            assert_eq!(accesses.load(page * PAGE).unwrap(), 0);
            if page % 64 == 0 {
                accesses.store(page * PAGE + 8, page).unwrap();
                stored += 1;
            }
        }
        assert_eq!(file.blocks(), stored, "a load takes no page of the file's");
        let limit = 64 * MIB + stored * PAGE;
        assert!(volume.resident_bytes() <= limit, "{} bytes of {limit}", volume.resident_bytes());
        assert!(volume.resident_bytes() > limit / 2, "hardly any zeros are left: {}", volume.resident_bytes());
        // One page for both mappings.
        let resident = volume.resident_bytes();
        let others = other.accesses().unwrap();
        (PAGES - 512..PAGES).for_each(|page| assert_eq!(others.load(page * PAGE).unwrap(), 0));
        assert_eq!(volume.resident_bytes(), resident);
        for page in (0..PAGES).step_by(64) {
            assert_eq!((accesses.load(page * PAGE).unwrap(), accesses.load(page * PAGE + 8).unwrap()), (0, page));
        }
        assert_eq!(
            file.extents().iter().filter(|extent| extent.kind == daxpager::ExtentKind::Written).count() as u64,
            stored
        );
        file.truncate(0).unwrap();
        assert_eq!(volume.resident_bytes(), 0, "zeros go with the pages around them");
    }
}

/// A stream of loads leaves zeros ahead: a few faults, no page of the file's, never more than the budget, and each first store is noticed.
#[test]
fn holes_are_loaded_in_streams() {
    const PAGES: u64 = 4 * 512;
    for options in ways() {
        let volume = volume(64 * MIB);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = mapped(&volume, &pager, PAGES, &options);
        let other = pager.map_with(&file, 0..PAGES * PAGE, &options).unwrap();
        (0..PAGES).for_each(|page| assert_eq!(map.load(page * PAGE).unwrap(), 0));
        let faults = pager.stats().all_faults();
        assert!(faults <= 20, "{faults} faults for {PAGES} loads in order");
        assert_eq!((file.blocks(), volume.resident_bytes()), (0, PAGES * PAGE));
        assert_eq!(map.take_dirty().unwrap(), []);
        for page in [0, 7, 512, PAGES - 1] {
            map.store(page * PAGE, MARK).unwrap();
            assert_eq!(other.load(page * PAGE), Ok(MARK));
        }
        let dirty: Vec<u64> = map.take_dirty().unwrap().into_iter().map(|range| range.start / PAGE).collect();
        assert_eq!((dirty, file.blocks()), (vec![0, 7, 512, PAGES - 1], 4));
        assert_eq!(other.take_dirty().unwrap(), []);
        file.punch_hole(0, PAGES * PAGE).unwrap();
        assert_eq!(volume.resident_bytes(), 0);
        // Few at a time: there is room for no more.
        volume.set_zeros_max(64 * PAGE);
        (0..PAGES).for_each(|page| assert_eq!(map.load(page * PAGE).unwrap(), 0));
        assert!(volume.resident_bytes() <= 64 * PAGE, "{}", volume.resident_bytes());
    }
}

/// Zeros are taken back all the time, while threads store to those very pages.
#[test]
fn no_store_is_lost_when_zeros_are_taken_back() {
    const PAGES: u64 = 40 * 512;
    const THREADS: u64 = 3;
    let volume = volume(512 * MIB);
    let pager = Pager::builder().start().unwrap();
    let (file, map) = mapped(&volume, &pager, PAGES, &MapOptions::new());
    let done = AtomicBool::new(false);
    let reading = std::thread::scope(|scope| {
        let storing: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (map, volume) = (&map, &volume);
                scope.spawn(move || {
                    let accesses = map.accesses().unwrap();
                    let mut state = thread + 1;
                    let mut stored = std::collections::BTreeMap::new();
                    while stored.len() < guard::repeats(3_000, 12_000) as usize {
                        // Loaded first, so that there are zeros to be taken away from under the store.
                        let (page, value) = (next(&mut state) % PAGES, next(&mut state));
                        assert!(volume.resident_bytes() < 400 * MIB);
                        let before = accesses.load(page * PAGE + 8 * thread).unwrap();
                        assert_eq!(before, stored.get(&page).copied().unwrap_or(0));
                        accesses.store(page * PAGE + 8 * thread, value).unwrap();
                        stored.insert(page, value);
                    }
                    stored
                })
            })
            .collect();
        // Leaves zeros everywhere.
        let sweeping = scope.spawn(|| {
            let accesses = map.accesses().unwrap();
            loop {
                for page in 0..PAGES {
                    accesses.load(page * PAGE + 256).unwrap();
                }
                if done.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let stored: Vec<_> = storing.into_iter().map(|thread| thread.join()).collect();
        done.store(true, Ordering::Relaxed);
        sweeping.join().unwrap();
        stored.into_iter().map(|stored| stored.unwrap()).collect::<Vec<_>>()
    });
    let mut word = [0; 8];
    for (thread, stored) in reading.iter().enumerate() {
        for (page, value) in stored {
            file.read_at(&mut word, page * PAGE + 8 * thread as u64).unwrap();
            assert_eq!(u64::from_ne_bytes(word), *value, "thread {thread}, page {page}");
        }
    }
}

#[test]
fn a_file_that_grows_has_a_handful_of_windows() {
    let volume = volume(64 * MIB);
    let pager = Pager::builder().start().unwrap();
    let file = volume.create("log").unwrap();
    let mut at = 0;
    while at < 32 * MIB {
        at += file.write_at(&[3; 60_000], at).unwrap() as u64;
    }
    let extents = file.fiemap();
    assert!((1..=6).contains(&extents.len()), "{} extents", extents.len());
    let before = pager.stats().address_ranges;
    let map = pager.map(&file, 0..64 * MIB).unwrap();
    assert!(pager.stats().address_ranges - before <= 7, "{}", pager.stats().address_ranges);
    for page in shuffled(at / PAGE) {
        assert_eq!(map.load(page * PAGE).unwrap(), u64::from_ne_bytes([3; 8]));
    }
    assert!(pager.stats().address_ranges - before <= 7);
    // Far from all of them.
    let far = 1 << 50;
    assert_eq!(file.write_at(&[5; 10], far).unwrap(), 10);
    let there = pager.map(&file, far..far + PAGE).unwrap();
    assert_eq!(there.load(0).unwrap(), u64::from_ne_bytes([5; 8]));
    file.punch_hole(far, PAGE).unwrap();
    assert_eq!(there.load(0).unwrap(), 0);
}

#[test]
fn a_terabyte_of_holes_costs_what_is_touched() {
    let volume = volume(64 * MIB);
    let pager = Pager::builder().start().unwrap();
    let file = volume.create("sparse").unwrap();
    file.truncate(1 << 40).unwrap();
    let map = pager.map(&file, 0..1 << 40).unwrap();
    let accesses = map.accesses().unwrap();
    for at in (0..1u64 << 40).step_by(1 << 32) {
        assert_eq!(accesses.load(at).unwrap(), 0);
        accesses.store(at + (1 << 31), at + 1).unwrap();
    }
    for at in (0..1u64 << 40).step_by(1 << 32) {
        assert_eq!(accesses.load(at + (1 << 31)).unwrap(), at + 1);
    }
    assert_eq!((volume.resident_bytes(), file.blocks()), (512 * PAGE, 256));
    assert!(pager.stats().address_ranges <= 4);
    file.punch_hole(1 << 31, 1 << 39).unwrap();
    assert_eq!((volume.resident_bytes(), file.blocks()), (256 * PAGE, 128));
}

#[test]
fn dirty_ranges_are_of_stores_whatever_was_there() {
    for options in ways() {
        let volume = volume(8 * MIB);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = mapped(&volume, &pager, 64, &options);
        let one = |page: u64| page * PAGE..(page + 1) * PAGE;
        file.write_at(&[1; 4 * PAGE as usize], 0).unwrap();
        (0..8).for_each(|page| _ = map.load(page * PAGE).unwrap());
        assert_eq!(map.take_dirty().unwrap(), []);
        // A page that is written, zeros, a hole, an unwritten page.
        file.allocate(12 * PAGE, PAGE, true).unwrap();
        for page in [2, 6, 10, 12] {
            map.store(page * PAGE, 9).unwrap();
        }
        assert_eq!(map.take_dirty().unwrap(), [one(2), one(6), one(10), one(12)]);
        assert_eq!(map.take_dirty().unwrap(), []);
        map.store(6 * PAGE + 8, 9).unwrap();
        // Punched: clean, and noticed when it is stored to again, written or not in between.
        map.store(10 * PAGE + 8, 9).unwrap();
        file.punch_hole(10 * PAGE, PAGE).unwrap();
        assert_eq!(map.take_dirty().unwrap(), [one(6)]);
        file.write_at(&[4; 8], 10 * PAGE).unwrap();
        map.store(10 * PAGE + 16, 9).unwrap();
        assert_eq!(map.take_dirty().unwrap(), [one(10)]);
    }
}

#[test]
fn populate_and_advice_are_as_they_are() {
    for options in ways() {
        let volume = volume(8 * MIB);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = mapped(&volume, &pager, 256, &options);
        map.populate(0..64 * PAGE, Access::Load).unwrap();
        assert_eq!((file.blocks(), volume.resident_bytes()), (0, 64 * PAGE));
        map.populate(32 * PAGE..96 * PAGE, Access::Store).unwrap();
        assert_eq!((file.blocks(), volume.resident_bytes()), (64, 96 * PAGE));
        let before = pager.stats();
        (0..96).for_each(|page| assert_eq!(map.load(page * PAGE).unwrap(), 0));
        (32..96).for_each(|page| map.store(page * PAGE, 1).unwrap());
        assert_eq!(since(&pager, &before), [0; 5], "{:?}", pager.stats());
        map.advise(0..256 * PAGE, daxpager::Advice::DontNeed).unwrap();
        map.advise(0..256 * PAGE, daxpager::Advice::WillNeed).unwrap();
        (32..96).for_each(|page| assert_eq!(map.load(page * PAGE).unwrap(), 1));
        assert_eq!(file.blocks(), 64);
    }
}

/// The application may take its pages away (`MADV_REMOVE`): they read as zeros, and work.
#[test]
fn what_the_application_removes_is_zeros() {
    let volume = volume(8 * MIB);
    let pager = Pager::builder().start().unwrap();
    let (file, map) = mapped(&volume, &pager, 64, &MapOptions::new());
    (0..64).for_each(|page| map.store(page * PAGE, 5).unwrap());
    let at = std::ptr::NonNull::new(map.as_ptr().cast()).unwrap();
    // SAFETY: the mapping's own range, of which this thread has no reference.
    unsafe { nix::sys::mman::madvise(at, 32 * PAGE as usize, nix::sys::mman::MmapAdvise::MADV_REMOVE) }.unwrap();
    assert_eq!((map.load(0).unwrap(), map.load(40 * PAGE).unwrap()), (0, 5));
    map.store(8, 6).unwrap();
    map.store(PAGE, 6).unwrap();
    assert_eq!((map.load(0).unwrap(), map.load(8).unwrap(), map.load(PAGE).unwrap()), (0, 6, 6));
    let mut word = [1; 8];
    file.read_at(&mut word, 2 * PAGE).unwrap();
    assert_eq!(word, [0; 8]);
}

#[test]
fn two_mappings_and_calls_show_one_page() {
    for options in ways() {
        let volume = volume(8 * MIB);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = mapped(&volume, &pager, 64, &options);
        let other = pager.map(&file, 16 * PAGE..64 * PAGE).unwrap();
        assert_eq!((map.load(20 * PAGE).unwrap(), other.load(4 * PAGE).unwrap()), (0, 0));
        map.store(20 * PAGE, 1).unwrap();
        assert_eq!(other.load(4 * PAGE).unwrap(), 1, "no zeros are left behind");
        other.store(5 * PAGE, 2).unwrap();
        assert_eq!(map.load(21 * PAGE).unwrap(), 2);
        file.write_at(&3u64.to_ne_bytes(), 22 * PAGE).unwrap();
        assert_eq!((map.load(22 * PAGE).unwrap(), other.load(6 * PAGE).unwrap()), (3, 3));
        file.write_at(&4u64.to_ne_bytes(), 22 * PAGE + 8).unwrap();
        assert_eq!((map.load(22 * PAGE + 8).unwrap(), other.load(6 * PAGE).unwrap()), (4, 3));
        map.write_at(&5u64.to_ne_bytes(), 23 * PAGE).unwrap();
        assert_eq!((map.load(23 * PAGE).unwrap(), other.load(7 * PAGE).unwrap()), (5, 5));
    }
}

/// Threads store to the same holes at one time: each hole gets one page, and no word is lost.
#[test]
fn of_stores_to_one_hole_none_is_lost() {
    const PAGES: u64 = 64;
    const THREADS: u64 = 4;
    for options in ways() {
        let volume = volume(MIB);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = mapped(&volume, &pager, PAGES, &options);
        let map = Arc::new(map);
        for round in 1..=guard::repeats(30, 200) {
            let barrier = std::sync::Barrier::new(THREADS as usize);
            std::thread::scope(|scope| {
                for thread in 0..THREADS {
                    let (map, barrier) = (&map, &barrier);
                    scope.spawn(move || {
                        let accesses = map.accesses().unwrap();
                        barrier.wait();
                        for page in 0..PAGES {
                            accesses.store(page * PAGE + thread * 8, round).unwrap();
                        }
                    });
                }
            });
            assert_eq!((file.blocks(), volume.used_blocks()), (PAGES, PAGES), "round {round}");
            let accesses = map.accesses().unwrap();
            for (page, thread) in (0..PAGES).flat_map(|page| (0..THREADS).map(move |thread| (page, thread))) {
                assert_eq!(accesses.load(page * PAGE + thread * 8).unwrap(), round);
            }
            file.punch_hole(0, PAGES * PAGE).unwrap();
            assert_eq!((file.blocks(), volume.resident_bytes()), (0, 0), "round {round}");
        }
    }
}

#[test]
fn a_device_that_cannot_have_them_has_single_blocks_and_says_why() {
    let path = std::path::Path::new("/dev/shm").join(format!("daxpager-windows-{}", std::process::id()));
    let device = Device::open(&path, 16 * PAGE).unwrap();
    std::fs::remove_file(&path).unwrap();
    let volume = Volume::format_with(device, Allocation::Windows);
    let (allocation, why) = volume.allocation();
    assert_eq!(allocation, Allocation::Blocks);
    assert!(why.unwrap().contains("name"), "{why:?}");
    let file = volume.create("file").unwrap();
    file.write_at(b"works", 0).unwrap();
    let memfd = || Device::memfd("blocks", 16 * PAGE).unwrap();
    assert_eq!(Volume::format(memfd()).allocation(), (Allocation::Windows, None), "unless somebody says otherwise");
    assert_eq!(Volume::format_with(memfd(), Allocation::Blocks).allocation(), (Allocation::Blocks, None));
}

/// Of what a mapping asks for that the allocation cannot do, the promise is kept in another way.
#[test]
fn asynchronous_tracking_is_exact() {
    let volume = volume(8 * MIB);
    let pager = Pager::builder().start().unwrap();
    let (_file, map) = mapped(&volume, &pager, 64, &MapOptions::new().tracking(Tracking::Asynchronous));
    map.load(PAGE).unwrap();
    map.store(3 * PAGE, 1).unwrap();
    assert_eq!(map.take_dirty().unwrap(), [3 * PAGE..4 * PAGE]);
    map.store(3 * PAGE, 2).unwrap();
    assert_eq!(map.take_dirty().unwrap(), [3 * PAGE..4 * PAGE]);
    assert_eq!(map.take_dirty().unwrap(), []);
}

/// Files come and go, and the offsets of those that have gone are the next ones'.
#[test]
fn windows_are_handed_on_empty() {
    let volume = volume(8 * MIB);
    let pager = Pager::builder().start().unwrap();
    let mut places = std::collections::BTreeSet::new();
    for round in 0..200u64 {
        let name = format!("file-{round}");
        let file = volume.create(&name).unwrap();
        let map = pager.map(&file, 0..16 * PAGE).unwrap();
        file.truncate(16 * PAGE).unwrap();
        assert!((0..16).all(|page| map.load(page * PAGE).unwrap() == 0), "round {round}: another file's bytes");
        (0..16).for_each(|page| map.store(page * PAGE, round + 1).unwrap());
        places.insert(file.fiemap()[0].device_offset);
        volume.remove(&name).unwrap();
        drop((file, map));
        assert_eq!((volume.resident_bytes(), volume.used_blocks()), (0, 0), "round {round}");
    }
    assert!(places.len() < 10, "{} windows for one file at a time", places.len());
}

#[test]
fn the_end_of_the_pager_is_the_end_of_the_mapping() {
    let volume = volume(8 * MIB);
    let pager = Pager::builder().start().unwrap();
    let (file, map) = mapped(&volume, &pager, 16, &MapOptions::new());
    map.store(0, 1).unwrap();
    pager.shutdown().unwrap();
    assert!(map.load(0).is_err() && map.load(8 * PAGE).is_err());
    let mut word = [0; 8];
    file.read_at(&mut word, 0).unwrap();
    assert_eq!(u64::from_ne_bytes(word), 1);
}

/// A thread that punches other pages of the file all the time keeps nobody from the holes.
#[test]
fn stores_get_there_beside_a_puncher() {
    const PAGES: u64 = 1024;
    for options in ways() {
        let volume = volume(16 * MIB);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = mapped(&volume, &pager, 2 * PAGES, &options);
        let (done, punched) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let punching = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let page = PAGES + punched.load(Ordering::Relaxed) % PAGES;
                    file.write_at(&[1], page * PAGE).unwrap();
                    file.punch_hole(page * PAGE, PAGE).unwrap();
                    punched.fetch_add(1, Ordering::Relaxed);
                }
            });
            while punched.load(Ordering::Relaxed) == 0 && !punching.is_finished() {
                std::thread::yield_now();
            }
            let accesses = map.accesses().unwrap();
            let stored = (0..PAGES).try_for_each(|page| accesses.store(page * PAGE, page + 1));
            done.store(true, Ordering::Relaxed);
            punching.join().unwrap();
            stored.unwrap();
            assert!((0..PAGES).all(|page| accesses.load(page * PAGE).unwrap() == page + 1));
        });
    }
}

#[test]
fn a_file_that_grows_downwards_has_a_handful_too() {
    let volume = volume(64 * MIB);
    let pager = Pager::builder().start().unwrap();
    let file = volume.create("downwards").unwrap();
    let top = 1 << 34;
    for granule in 1..=512u64 {
        assert_eq!(file.write_at(&granule.to_ne_bytes(), top - granule * 2 * MIB).unwrap(), 8);
    }
    let map = pager.map(&file, top - 1024 * MIB..top).unwrap();
    assert!(pager.stats().address_ranges <= 13, "{} address ranges", pager.stats().address_ranges);
    assert!((1..=512).all(|granule| map.load(1024 * MIB - granule * 2 * MIB).unwrap() == granule));
}

/// Windows that are neighbours in the file, and on the device as well.
#[test]
fn ranges_over_two_windows_are_as_others() {
    let volume = volume(16 * MIB);
    let pager = Pager::builder().start().unwrap();
    let file = volume.create("two").unwrap();
    file.write_at(&[7; PAGE as usize], 2 * MIB - PAGE).unwrap();
    file.write_at(&[8; PAGE as usize], 2 * MIB).unwrap();
    let map = pager.map(&file, 0..4 * MIB).unwrap();
    let both = |map: &Mapping| (map.load(2 * MIB - 8).unwrap() & 0xff, map.load(2 * MIB).unwrap() & 0xff);
    assert_eq!(both(&map), (7, 8));
    file.zero_range(2 * MIB - PAGE, 2 * PAGE, true).unwrap();
    assert_eq!((both(&map), file.blocks()), ((0, 0), 2));
    file.write_at(&[9; 2 * PAGE as usize], 2 * MIB - PAGE).unwrap();
    assert_eq!(both(&map), (9, 9));
    let mut bytes = [0; 64];
    file.read_at(&mut bytes, 2 * MIB - 32).unwrap();
    assert_eq!(bytes, [9; 64]);
    file.write_at(&[6; 64], 2 * MIB - 32).unwrap();
    assert_eq!(both(&map), (6, 6));
    file.punch_hole(2 * MIB - PAGE, 2 * PAGE).unwrap();
    assert_eq!((both(&map), volume.resident_bytes()), ((0, 0), 2 * PAGE));
}

/// More than there can be is refused before anything is looked at, and leaves nothing behind.
#[test]
fn a_range_beyond_all_bounds_is_an_error() {
    let volume = volume(MIB);
    let file = volume.create("huge").unwrap();
    for len in [2 * MIB, 1 << 40, 1 << 58, 1 << 62] {
        assert!(matches!(file.allocate(0, len, true), Err(Error::NoSpace { .. })), "{len}");
        assert!(matches!(file.zero_range(0, len, true), Err(Error::NoSpace { .. })), "{len}");
    }
    file.truncate(i64::MAX as u64).unwrap();
    file.write_at(&[1], i64::MAX as u64 - 1).unwrap();
    let mut byte = [0; 4];
    assert_eq!(file.read_at(&mut byte, i64::MAX as u64 - 1).unwrap(), 1);
    assert_eq!((byte[0], file.blocks()), (1, 1));
    file.truncate(0).unwrap();
    assert_eq!(volume.resident_bytes(), 0);
}

/// Words that are changed without a fault, as their thread blocks SIGBUS, and calls that write: in some order. What has been written
/// is there, or what an exchange has made of it.
#[test]
fn exchanges_without_a_fault_and_writes_are_in_some_order() {
    let volume = volume(MIB);
    let pager = Pager::builder().start().unwrap();
    let (file, map) = mapped(&volume, &pager, 4, &MapOptions::new());
    map.store(0, 2).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let exchanging = scope.spawn(|| {
            let mut mask = nix::sys::signal::SigSet::empty();
            mask.add(nix::sys::signal::Signal::SIGBUS);
            mask.thread_block().unwrap();
            while !done.load(Ordering::Relaxed) {
                let seen = map.load(0).unwrap() & !1;
                map.compare_exchange(0, seen, seen | 1).unwrap();
            }
        });
        let writing = scope.spawn(|| {
            (2..guard::repeats(20_000, 100_000)).find_map(|round| {
                file.write_at(&(2 * round).to_ne_bytes(), 0).unwrap();
                let mut word = [0; 8];
                file.read_at(&mut word, 0).unwrap();
                let seen = u64::from_ne_bytes(word);
                if round % 16 == 0 {
                    // The other has its turn.
                    std::thread::sleep(std::time::Duration::from_micros(50));
                }
                (seen & !1 != 2 * round).then(|| format!("wrote {}, and sees {seen}", 2 * round))
            })
        });
        let wrong = writing.join();
        done.store(true, Ordering::Relaxed);
        exchanging.join().unwrap();
        assert_eq!(wrong.unwrap(), None);
    });
}
