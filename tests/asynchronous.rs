//! `Tracking::Asynchronous` on the kernel's page table: the stores that a mapping was used for are reported, each once, and
//! nothing else is, whatever takes entries away meanwhile; and the pager hears of none of them.

#![allow(unsafe_code, reason = "madvise(2) on a mapping")]

mod common;

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::*;
use daxpager::probe::Point;
use daxpager::sabotage::Rule;
use daxpager::{Access, Advice, Allocation, Device, File, Kind, MapOptions, Mapping, Pager, Resolve, Tracking, Volume};

fn asynchronous() -> MapOptions {
    MapOptions::new().tracking(Tracking::Asynchronous)
}

fn map(pager: &Pager, file: &File, pages: u64) -> Arc<Mapping> {
    map_with(pager, file, pages, Resolve::PagerThread)
}

fn map_with(pager: &Pager, file: &File, pages: u64, resolve: Resolve) -> Arc<Mapping> {
    Arc::new(pager.map_with(file, 0..pages * PAGE, &asynchronous().resolve(resolve)).unwrap())
}

fn load_all(map: &Mapping) {
    for page in 0..map.len() / PAGE {
        map.load(page * PAGE).unwrap();
    }
}

/// A file of written pages, with single blocks and with windows.
fn worlds_of(pages: u64) -> [(Volume, Pager, File); 2] {
    [Allocation::Blocks, Allocation::Windows].map(|allocation| world_of(pages, allocation))
}

fn world_of(pages: u64, allocation: Allocation) -> (Volume, Pager, File) {
    let volume = Volume::format_with(Device::memfd("asynchronous", 4 * pages * PAGE).unwrap(), allocation);
    let pager = Pager::builder().start().unwrap();
    let file = volume.create("file").unwrap();
    file.write_at(&vec![1; (pages * PAGE) as usize], 0).unwrap();
    (volume, pager, file)
}

/// A file whose every other page lies elsewhere, so that each is an address range of its own.
fn fragmented(volume: &Volume, pages: u64) -> File {
    let (file, other) = (volume.create("fragmented").unwrap(), volume.create("other").unwrap());
    for page in 0..pages {
        file.write_at(&[page as u8 + 1; PAGE as usize], page * PAGE).unwrap();
        other.write_at(&[0xee; PAGE as usize], page * PAGE).unwrap();
    }
    file
}

fn drop_entries(map: &Mapping, pages: std::ops::Range<u64>) {
    let at = map.as_ptr() as u64 + pages.start * PAGE;
    let bytes = ((pages.end - pages.start) * PAGE) as usize;
    // SAFETY: takes page-table entries of a mapping that is there, which the library allows.
    let dropped = unsafe { libc::madvise(at as *mut _, bytes, libc::MADV_DONTNEED) };
    assert_eq!(dropped, 0);
}

#[test]
fn each_store_is_reported_once_and_no_load_is() {
    for (_volume, pager, file) in worlds_of(64) {
        let map = map(&pager, &file, 64);
        load_all(&map);
        assert_eq!(take(&map), vec![]);
        map.store(3 * PAGE, 7).unwrap();
        map.store(3 * PAGE + 8, 8).unwrap();
        map.compare_exchange(63 * PAGE, 0, 0).unwrap();
        load_all(&map);
        assert_eq!(take(&map), vec![3, 63]);
        assert_eq!(take(&map), vec![]);
        load_all(&map);
        assert_eq!(take(&map), vec![]);
        // The next store to a page that was taken is found again.
        map.store(3 * PAGE, 9).unwrap();
        assert_eq!(take(&map), vec![3]);
        // Without a load before, so installed for the store.
        let fresh = self::map(&pager, &file, 64);
        fresh.store(5 * PAGE, 1).unwrap();
        fresh.write_at(&[1; 8], 9 * PAGE).unwrap();
        assert_eq!(take(&fresh), vec![5, 9]);
        fresh.store(5 * PAGE, 1).unwrap();
        assert_eq!(take(&fresh), vec![5]);
        assert_eq!(take(&map), vec![], "stored to through another mapping");
    }
}

/// A thread that stores to a hole faults on it twice, as a re-point wakes it. The second message may be read when its store is
/// done and reported.
#[test]
fn a_store_to_a_hole_is_reported_once() {
    const PAGES: u64 = 1000;
    for round in 0..guard::repeats(2, 20) {
        let volume = Volume::format(Device::memfd("asynchronous", PAGES * PAGE).unwrap());
        let pager = Pager::builder().start().unwrap();
        let file = volume.create("file").unwrap();
        file.truncate(PAGES * PAGE).unwrap();
        let map = map(&pager, &file, PAGES);
        let again: Vec<_> = (0..PAGES)
            .filter(|page| {
                if page % 2 == 1 {
                    // Zeros are in the way, so that the store is a write-protect fault.
                    map.load(page * PAGE).unwrap();
                }
                map.store(page * PAGE, 7).unwrap();
                assert_eq!(take(&map), vec![*page], "round {round}");
                !take(&map).is_empty()
            })
            .collect();
        assert!(again.is_empty(), "round {round}: nobody has stored to {again:?} since they were reported");
    }
}

#[test]
fn the_pager_hears_of_no_store_to_what_is_loaded() {
    for (_volume, pager, file) in worlds_of(64) {
        let map = map(&pager, &file, 64);
        load_all(&map);
        let before = pager.stats();
        for _ in 0..3 {
            (0..64).for_each(|page| map.store(page * PAGE, 7).unwrap());
            assert_eq!(take(&map), (0..64).collect::<Vec<_>>());
        }
        let after = pager.stats();
        assert_eq!(after.all_faults(), before.all_faults());
        assert_eq!(after.faults_of(Kind::WriteProtect), 0);
        // The reader may have been on its way to the next poll when it was asked before.
        assert_eq!(after.calls.reads, before.calls.reads);
        // The same stores through a mapping with exact tracking.
        let exact = pager.map(&file, 0..64 * PAGE).unwrap();
        load_all(&exact);
        (0..64).for_each(|page| exact.store(page * PAGE, 7).unwrap());
        assert_eq!(pager.stats().faults_of(Kind::WriteProtect), 64);
    }
}

/// Faults are left only for what has no entry, and those are resolved in their threads.
#[test]
fn faulting_threads_resolve_what_is_left() {
    for (_volume, pager, file) in worlds_of(64) {
        let map = map_with(&pager, &file, 64, Resolve::FaultingThread);
        load_all(&map);
        assert!(pager.stats().in_thread > 0);
        let before = pager.stats();
        for _ in 0..3 {
            (0..64).for_each(|page| map.store(page * PAGE, 7).unwrap());
            assert_eq!(take(&map), (0..64).collect::<Vec<_>>());
        }
        assert_eq!(pager.stats().all_faults(), before.all_faults());
        map.store(9 * PAGE, 8).unwrap();
        // What has become of an entry is looked up by a worker: a signal handler takes no lock for it.
        drop_entries(&map, 8..11);
        load_all(&map);
        assert!(pager.stats().handed_over > before.handed_over);
        assert_eq!(take(&map), vec![9]);
        drop_entries(&map, 8..11);
        map.store(8 * PAGE, 8).unwrap();
        assert_eq!(take(&map), vec![8]);
        assert_eq!(map.compare_exchange(8 * PAGE, 8, 9), Ok(8));
        map.advise(0..64 * PAGE, Advice::DontNeed).unwrap();
        load_all(&map);
        assert_eq!(take(&map), vec![8]);
    }
}

/// What is installed along with a page, by a fault or by populate, is not dirty until it is stored to.
#[test]
fn neighbours_are_write_protected() {
    const PAGES: u64 = 2048;
    for (_volume, pager, file) in worlds_of(PAGES) {
        for resolve in [Resolve::PagerThread, Resolve::FaultingThread] {
            let map = map_with(&pager, &file, PAGES, resolve);
            map.load((PAGES - 1) * PAGE).unwrap();
            let before = pager.stats();
            (0..100).for_each(|page| map.store(page * PAGE, 7).unwrap());
            assert!(pager.stats().installs - before.installs > 100, "neighbours were installed");
            assert_eq!(take(&map), (0..100).collect::<Vec<_>>());
            (100..PAGES).for_each(|page| map.store(page * PAGE, 7).unwrap());
            let taken = pager.stats().all_faults() - before.all_faults();
            assert!(taken < 40, "{taken} faults");
            assert_eq!(take(&map), (100..PAGES).collect::<Vec<_>>());
            map.store(5 * PAGE, 7).unwrap();
            map.advise(0..64 * PAGE, Advice::DontNeed).unwrap();
            map.populate(0..PAGES * PAGE, Access::Load).unwrap();
            drop_entries(&map, 64..128);
            map.populate(0..PAGES * PAGE, Access::Load).unwrap();
            map.store(70 * PAGE, 7).unwrap();
            assert_eq!(take(&map), vec![5, 70]);
            map.advise(0..64 * PAGE, Advice::DontNeed).unwrap();
            map.populate(16 * PAGE..32 * PAGE, Access::Store).unwrap();
            assert_eq!(take(&map), (16..32).collect::<Vec<_>>());
        }
    }
}

#[test]
fn stores_from_inside_system_calls() {
    for (_volume, pager, file) in worlds_of(16) {
        let map = map(&pager, &file, 16);
        if !pager.serves_kernel_faults() {
            println!("LEFT OUT: faults from kernel mode are not served");
            return;
        }
        load_all(&map);
        let source = nix::sys::memfd::memfd_create("source", nix::sys::memfd::MFdFlags::empty()).unwrap();
        nix::unistd::write(&source, &[9; 2 * PAGE as usize]).unwrap();
        nix::unistd::lseek(&source, 0, nix::unistd::Whence::SeekSet).unwrap();
        assert_eq!(map.read_from(source.as_fd(), 4 * PAGE + 100, PAGE), Ok(PAGE as usize));
        assert_eq!(take(&map), vec![4, 5]);
        assert_eq!(map.write_to(source.as_fd(), 7 * PAGE, PAGE), Ok(PAGE as usize));
        assert_eq!(take(&map), vec![]);
        // Pages that have not been touched.
        let fresh = self::map(&pager, &file, 16);
        nix::unistd::lseek(&source, 0, nix::unistd::Whence::SeekSet).unwrap();
        assert_eq!(fresh.read_from(source.as_fd(), 4 * PAGE, PAGE), Ok(PAGE as usize));
        assert_eq!(take(&fresh), vec![4]);
        assert_eq!(pager.stats().faults_of(Kind::WriteProtect), 0);
    }
}

#[test]
fn holes_are_exact() {
    for (volume, pager, _) in worlds_of(16) {
        // Where the file has windows the loads have taken it: a store to what they leave would not be noticed.
        let of_a_hole = u64::from(volume.allocation().0 == Allocation::Blocks);
        let sparse = volume.create("sparse").unwrap();
        sparse.truncate(16 * PAGE).unwrap();
        sparse.allocate(8 * PAGE, 4 * PAGE, false).unwrap();
        let map = map(&pager, &sparse, 16);
        load_all(&map);
        assert_eq!(take(&map), vec![]);
        let used = volume.used_blocks();
        map.store(2 * PAGE, 7).unwrap();
        map.store(9 * PAGE, 7).unwrap();
        assert_eq!(
            volume.used_blocks(),
            used + of_a_hole,
            "a store into a hole takes a block, one to an unwritten page has it"
        );
        assert_eq!(take(&map), vec![2, 9]);
        assert_eq!(map.load(2 * PAGE).unwrap(), 7);
        load_all(&map);
        assert_eq!(take(&map), vec![]);
        map.store(2 * PAGE, 8).unwrap();
        assert_eq!(take(&map), vec![2]);
        let mut bytes = [0; 8];
        sparse.read_at(&mut bytes, 2 * PAGE).unwrap();
        assert_eq!(bytes, 8u64.to_ne_bytes());
    }
}

/// Where the kernel installs what is present: every store is reported once, and no load is, whatever has been done to the page.
#[test]
fn stores_to_what_the_kernel_installs() {
    const PAGES: u64 = 4 * 512;
    for resolve in [Resolve::PagerThread, Resolve::FaultingThread] {
        let (_volume, pager, file) = world_of(PAGES, Allocation::Windows);
        let map = map_with(&pager, &file, PAGES, resolve);
        let accesses = map.accesses().unwrap();
        shuffled(PAGES).into_iter().for_each(|page| _ = accesses.load(page * PAGE).unwrap());
        let armed = |page: u64| matches!(map.backing_at(page * PAGE), Some(daxpager::Backing::Armed(_)));
        assert!((0..PAGES).all(armed), "{}", pager.describe());
        assert_eq!(take(&map), vec![]);
        let before = pager.stats();
        (0..PAGES).step_by(3).for_each(|page| accesses.store(page * PAGE, page).unwrap());
        assert_eq!(pager.stats().all_faults(), before.all_faults(), "the kernel lets these through");
        assert_eq!(take(&map), (0..PAGES).step_by(3).collect::<Vec<_>>());
        assert_eq!(take(&map), vec![]);
        // Dirty, and dropped: installed anew by a load, or not at all.
        (0..64).for_each(|page| map.store(page * PAGE, 7).unwrap());
        drop_entries(&map, 0..64);
        (0..32).for_each(|page| assert_eq!(map.load(page * PAGE).unwrap(), 7));
        assert_eq!(take(&map), (0..64).collect::<Vec<_>>());
        assert_eq!(take(&map), vec![]);
        (16..48).for_each(|page| map.store(page * PAGE, 8).unwrap());
        assert_eq!(take(&map), (16..48).collect::<Vec<_>>());
        map.store(20 * PAGE, 9).unwrap();
        map.advise(0..64 * PAGE, Advice::DontNeed).unwrap();
        assert_eq!(take(&map), vec![20]);
        map.store(20 * PAGE, 9).unwrap();
        assert_eq!(take(&map), vec![20]);
        // Punched pages are not dirty; zeroed ones stay so.
        (100..200).for_each(|page| map.store(page * PAGE, 8).unwrap());
        file.punch_hole(100 * PAGE, 50 * PAGE).unwrap();
        file.zero_range(150 * PAGE, 20 * PAGE, true).unwrap();
        assert_eq!(take(&map), (150..200).collect::<Vec<_>>());
        file.write_at(&[3; 100 * PAGE as usize], 100 * PAGE).unwrap();
        (100..200).for_each(|page| assert_eq!(map.load(page * PAGE).unwrap(), 0x0303_0303_0303_0303));
        assert_eq!(take(&map), vec![]);
        (100..200).step_by(2).for_each(|page| map.store(page * PAGE, 8).unwrap());
        assert_eq!(take(&map), (100..200).step_by(2).collect::<Vec<_>>());
        file.truncate(150 * PAGE + 8).unwrap();
        map.store(150 * PAGE + 64, 8).unwrap();
        assert_eq!(take(&map), vec![150]);
        file.truncate(PAGES * PAGE).unwrap();
        assert_eq!(map.load(150 * PAGE + 64).unwrap(), 0);
        (145..155).for_each(|page| map.store(page * PAGE, 8).unwrap());
        assert_eq!(take(&map), (145..155).collect::<Vec<_>>());
        assert_eq!(map.compare_exchange(146 * PAGE, 8, 9), Ok(8));
        assert_eq!(take(&map), vec![146]);
        // Populated for stores is as stored to; for loads it is nothing.
        map.populate(300 * PAGE..310 * PAGE, Access::Load).unwrap();
        assert_eq!(take(&map), vec![]);
        map.populate(300 * PAGE..310 * PAGE, Access::Store).unwrap();
        assert_eq!(take(&map), (300..310).collect::<Vec<_>>());
        // A hole beside what is written.
        file.punch_hole(304 * PAGE, PAGE).unwrap();
        assert_eq!(map.load(304 * PAGE), Ok(0));
        assert_eq!(take(&map), vec![]);
    }
}

#[test]
fn what_is_punched_or_truncated_is_not_dirty_and_the_rest_is() {
    for (_volume, pager, file) in worlds_of(16) {
        let map = map(&pager, &file, 16);
        load_all(&map);
        (0..16).for_each(|page| map.store(page * PAGE, 7).unwrap());
        file.punch_hole(2 * PAGE, 3 * PAGE).unwrap();
        // The tail of page 9 is zapped and zeroed; what was stored at its start stays.
        file.truncate(9 * PAGE + 100).unwrap();
        file.truncate(16 * PAGE).unwrap();
        assert_eq!(take(&map), vec![0, 1, 5, 6, 7, 8, 9]);
        load_all(&map);
        assert_eq!(take(&map), vec![]);
        // A tail that has only been loaded.
        file.truncate(8 * PAGE + 100).unwrap();
        assert_eq!(take(&map), vec![]);
        assert!(is_bus(&map.load(12 * PAGE)));
        assert!(is_bus(&map.store(12 * PAGE, 1).map(|()| 0)));
        assert_eq!(take(&map), vec![]);
    }
}

#[test]
fn an_eviction_loses_nothing() {
    const PAGES: u64 = 200;
    let volume = Volume::format_with(Device::memfd("asynchronous", 4 * PAGES * PAGE).unwrap(), Allocation::Blocks);
    let pager = Pager::builder().address_ranges_max(32).start().unwrap();
    let file = fragmented(&volume, PAGES);
    let map = map(&pager, &file, PAGES);
    let mut stored = BTreeSet::new();
    for round in 0..3 {
        for page in 0..PAGES {
            map.load(page * PAGE).unwrap();
            if (page * 7 + round) % 3 == 0 {
                // Loaded before, so that the pager does not hear of it.
                map.store(page * PAGE, round).unwrap();
                stored.insert(page);
            }
        }
        assert_eq!(take(&map), std::mem::take(&mut stored).into_iter().collect::<Vec<_>>());
    }
    assert!(pager.stats().evictions > 10, "address ranges were never short");
}

#[test]
fn blocks_that_are_moved_stay_dirty() {
    const PAGES: u64 = 200;
    let volume = Volume::format_with(Device::memfd("asynchronous", 4 * PAGES * PAGE).unwrap(), Allocation::Blocks);
    let pager = Pager::builder().address_ranges_max(32).gather_blocks().start().unwrap();
    let file = fragmented(&volume, PAGES);
    let map = map(&pager, &file, PAGES);
    for page in 0..PAGES {
        map.load(page * PAGE).unwrap();
        if page % 3 == 0 {
            map.store(page * PAGE, page).unwrap();
        }
    }
    assert_eq!(take(&map), (0..PAGES).step_by(3).collect::<Vec<_>>());
    (0..PAGES).step_by(3).for_each(|page| assert_eq!(map.load(page * PAGE).unwrap(), page));
    assert!(file.extents().len() < PAGES as usize, "no block was moved");
}

#[test]
fn what_the_application_drops_stays_dirty() {
    // More than one page table of pages, so that a whole one is dropped with its entries.
    const PAGES: u64 = 2048;
    for (_volume, pager, file) in worlds_of(PAGES) {
        let map = map(&pager, &file, PAGES);
        load_all(&map);
        let stored: Vec<u64> = (0..PAGES).filter(|page| *page >= 1024 || page % 5 == 0).collect();
        stored.iter().for_each(|page| map.store(page * PAGE, 7).unwrap());
        drop_entries(&map, 0..PAGES);
        assert_eq!(take(&map), stored);
        assert_eq!(take(&map), vec![]);
        // Loaded again before it is asked for.
        load_all(&map);
        stored.iter().for_each(|page| map.store(page * PAGE, 8).unwrap());
        drop_entries(&map, 0..PAGES);
        load_all(&map);
        assert_eq!(take(&map), stored);
        load_all(&map);
        drop_entries(&map, 0..PAGES);
        load_all(&map);
        assert_eq!(take(&map), vec![], "what was dropped had not been stored to");
    }
}

#[test]
fn each_mapping_has_its_own_tracking() {
    for (_volume, pager, file) in worlds_of(16) {
        let maps = [
            map(&pager, &file, 16),
            Arc::new(pager.map(&file, 0..16 * PAGE).unwrap()),
            map(&pager, &file, 16),
            Arc::new(pager.map_with(&file, 4 * PAGE..16 * PAGE, &asynchronous()).unwrap()),
        ];
        maps.iter().for_each(|map| load_all(map));
        maps[0].store(PAGE, 1).unwrap();
        maps[1].store(2 * PAGE, 1).unwrap();
        maps[3].store(3 * PAGE, 1).unwrap();
        let dirty: Vec<_> = maps.iter().map(|map| take(map)).collect();
        assert_eq!(dirty, [vec![1], vec![2], vec![], vec![3]]);
        file.punch_hole(0, 16 * PAGE).unwrap();
        assert!(maps.iter().all(|map| map.load(PAGE).unwrap() == 0));
        maps[1].store(PAGE, 5).unwrap();
        maps[2].store(8 * PAGE, 5).unwrap();
        assert!(maps[..3].iter().all(|map| map.load(PAGE).unwrap() == 5));
        assert!(maps[..3].iter().all(|map| map.load(8 * PAGE).unwrap() == 5));
        let dirty: Vec<_> = maps.iter().map(|map| take(map)).collect();
        assert_eq!(dirty, [vec![], vec![1], vec![8], vec![]]);
    }
}

/// Threads that sleep in a fault on zeros are woken when a block of the device comes under them, which is watched by another
/// userfaultfd; and the other way about.
#[test]
fn nobody_sleeps_on_while_ranges_change_hands() {
    for (volume, pager, _) in worlds_of(64) {
        let file = volume.create("changing").unwrap();
        file.truncate(8 * PAGE).unwrap();
        let map = map(&pager, &file, 8);
        let stop = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = (0..4u64)
            .map(|thread| {
                let (map, stop) = (map.clone(), stop.clone());
                spawn(move || {
                    let mut done = 0u64;
                    while done == 0 || !stop.load(Ordering::Relaxed) {
                        let at = (done + thread) % 8 * PAGE + thread * 8;
                        map.load(at).unwrap();
                        map.store(at, done).unwrap();
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        for round in 0..300 {
            file.punch_hole(round % 8 * PAGE, 3 * PAGE).unwrap();
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            assert!(task.join("a thread that loads and stores").unwrap() > 0);
        }
    }
}

/// Counts a thread that has ended.
struct End(Arc<AtomicU64>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// Writers count up in their words, while another thread collects, and notes what it sees in the pages that are reported. When all
/// is done and collected once more, it has seen the last of each word: no store was lost. `disturb` takes entries away.
/// In turn with faults that the pager resolves, and with faults that the writers do. On a machine that has other things to do a part
/// of the stores is enough.
fn nothing_is_lost(pager: &Pager, file: &File, pages: u64, stores: u64, disturb: impl Fn(&Mapping, u64)) {
    for resolve in [Resolve::PagerThread, Resolve::FaultingThread] {
        file.zero_range(0, pages * PAGE, false).unwrap();
        nothing_is_lost_from(&map_with(pager, file, pages, resolve), stores, &disturb);
        println!("{resolve:?}: {:?}", pager.stats());
    }
    assert!(pager.stats().in_thread > 0, "no fault was resolved in its own thread");
}

fn nothing_is_lost_from(map: &Arc<Mapping>, stores: u64, disturb: impl Fn(&Mapping, u64)) {
    const WRITERS: u64 = 2;
    const ENOUGH: Duration = Duration::from_secs(15);
    let pages = map.len() / PAGE;
    let written = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (map, written) = (map.clone(), written.clone());
            spawn(move || {
                let (mut state, begun) = (0x9e37_79b9 + writer, Instant::now());
                // Counted also if it panics.
                let _end = End(written);
                for count in 1..=stores {
                    state = u64::wrapping_add(state.wrapping_mul(6_364_136_223_846_793_005), 1);
                    let page = (state >> 33) % pages;
                    if count % 3 == 0 {
                        map.load(page * PAGE).unwrap();
                    }
                    map.store(page * PAGE + writer * 8, count).unwrap();
                    if count > stores / 20 && begun.elapsed() > ENOUGH {
                        return count;
                    }
                }
                stores
            })
        })
        .collect();
    let mut seen = vec![[0; WRITERS as usize]; pages as usize];
    let mut collect = || {
        for page in take(map) {
            seen[page as usize] = std::array::from_fn(|writer| map.load(page * PAGE + writer as u64 * 8).unwrap());
        }
    };
    collect();
    let mut rounds = 0;
    while written.load(Ordering::Acquire) < WRITERS {
        disturb(map, rounds);
        collect();
        rounds += 1;
    }
    let stores: u64 = writers.iter().map(|writer| writer.join("a writer").unwrap()).sum();
    collect();
    println!("{rounds} collections beside {stores} stores");
    for (page, seen) in (0..).zip(&seen) {
        let last: [u64; WRITERS as usize] =
            std::array::from_fn(|writer| map.load(page * PAGE + writer as u64 * 8).unwrap());
        assert_eq!(*seen, last, "page {page}: collected, and what is there");
    }
    assert!(rounds > 10);
}

#[test]
fn no_store_is_lost_while_collecting() {
    for (_volume, pager, file) in worlds_of(256) {
        nothing_is_lost(&pager, &file, 256, 60_000, |_, _| {});
    }
}

#[test]
fn no_store_is_lost_while_entries_are_taken_away() {
    for (_volume, pager, file) in worlds_of(256) {
        nothing_is_lost(&pager, &file, 256, 60_000, |map, round| {
            let page = round * 37 % 200;
            let bytes = page * PAGE..(page + 50) * PAGE;
            match round % 4 {
                0 => drop_entries(map, page..page + 50),
                1 => map.advise(bytes, Advice::DontNeed).unwrap(),
                2 => map.populate(bytes, Access::Load).unwrap(),
                // The last page is zapped each time: the tail behind the new end is zeroed, where nobody stores.
                _ => {
                    file.truncate(255 * PAGE + 64).unwrap();
                    file.truncate(256 * PAGE).unwrap();
                }
            }
        });
    }
}

#[test]
fn no_store_is_lost_while_address_ranges_are_short() {
    const PAGES: u64 = 64;
    let volume = Volume::format_with(Device::memfd("asynchronous", 4 * PAGES * PAGE).unwrap(), Allocation::Blocks);
    let pager = Pager::builder().address_ranges_max(24).start().unwrap();
    let file = fragmented(&volume, PAGES);
    nothing_is_lost(&pager, &file, PAGES, 6_000, |_, _| std::thread::yield_now());
    assert!(pager.stats().evictions > 10);
}

/// One step for the kernel, so a store that comes during a collection is in it or in the next. Taken in two
/// steps, it is in neither.
fn store_while_collecting(world: &mut World) -> Verdict {
    let file = world.file("file", 2, 1);
    let map = map(world.pager(), &file, 2);
    load_all(&map);
    map.store(0, 1).unwrap();
    let parked = world.park.at_page(Point::Collecting, 0);
    let collect = spawn({
        let map = map.clone();
        move || take(&map)
    });
    // Only the broken one comes here.
    let _ = parked.caught_within(watch());
    map.store(PAGE, 2).unwrap();
    parked.release();
    let first = collect.join("take_dirty")?;
    let second = take(&map);
    check(first == [0], || format!("a store before take_dirty is not in it: {first:?}"))?;
    check(second == [1], || format!("a store during take_dirty is in neither: {second:?}"))
}

rule_test!(taken_and_protected_in_one_step, Rule::ForgetBeforeProtect, 2, store_while_collecting);

/// The mark that the pager sets is not what says that a page is dirty.
#[test]
fn the_page_table_is_the_record() {
    let mut world = World::new(8, None);
    world.volume.sabotage(Rule::MarkDirty, true);
    let file = world.file("file", 4, 1);
    let map = map(world.pager(), &file, 4);
    map.load(PAGE).unwrap();
    (0..2).for_each(|page| map.store(page * PAGE, 7).unwrap());
    assert_eq!(take(&map), vec![0, 1]);
    (0..2).for_each(|page| map.store(page * PAGE, 8).unwrap());
    drop_entries(&map, 0..4);
    assert_eq!(take(&map), vec![0, 1]);
    drop(map);
    drop(world.pager.take());
}

#[test]
fn a_pager_that_ends_leaves_sigbus() {
    for (_volume, pager, file) in worlds_of(8) {
        let map = map(&pager, &file, 8);
        load_all(&map);
        pager.shutdown().unwrap();
        assert!(is_bus(&map.load(0)));
        assert!(map.take_dirty().is_err());
    }
}
