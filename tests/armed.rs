//! Mappings of files with windows, where the kernel installs what is present: first loads that cost no fault of ours, and stores that are
//! noticed all the same. "Armed" is what such a part of a mapping is called.

mod common;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{PAGE, guard, next, shuffled, ways};
use daxpager::{Access, Advice, Allocation, Device, Error, File, MapOptions, Mapping, Pager, Stats, Volume};

const MIB: u64 = 1 << 20;

fn volume(bytes: u64) -> Volume {
    Volume::format_with(Device::memfd("armed", bytes).unwrap(), Allocation::Windows)
}

/// A file whose every page has its number and one in its first word.
fn written(volume: &Volume, pages: u64) -> File {
    let file = volume.create(&format!("{pages} pages")).unwrap();
    let mut bytes = vec![0; (pages * PAGE) as usize];
    for page in 0..pages {
        bytes[(page * PAGE) as usize..][..8].copy_from_slice(&(page + 1).to_ne_bytes());
    }
    assert_eq!(file.write_at(&bytes, 0).unwrap(), bytes.len());
    file
}

/// A written file, and a mapping of it of which all parts are armed.
fn armed(volume: &Volume, pager: &Pager, pages: u64, options: &MapOptions) -> (File, Mapping) {
    let file = written(volume, pages);
    let map = pager.map_with(&file, 0..pages * PAGE, options).unwrap();
    let accesses = map.accesses().unwrap();
    for page in shuffled(pages) {
        assert_eq!(accesses.load(page * PAGE).unwrap(), page + 1);
    }
    assert!((0..pages).all(|page| is_armed(&map, page)), "not all of it is armed: {}", pager.describe());
    (file, map)
}

fn is_armed(map: &Mapping, page: u64) -> bool {
    matches!(map.backing_at(page * PAGE), Some(daxpager::Backing::Armed(_)))
}

fn one(page: u64) -> std::ops::Range<u64> {
    page * PAGE..(page + 1) * PAGE
}

/// What has been done since: installs by us, re-points, zaps, hand-overs.
fn since(pager: &Pager, before: &Stats) -> [u64; 4] {
    let now = pager.stats();
    let calls = now.calls.since(&before.calls);
    [calls.installs, calls.repoints, calls.zaps, now.handed_over - before.handed_over]
}

#[test]
fn random_first_loads_are_the_kernels() {
    const PAGES: u64 = 32 * 512; // 64 MiB
    for options in ways() {
        let volume = volume(PAGES * PAGE);
        let pager = Pager::builder().start().unwrap();
        let file = written(&volume, PAGES);
        let map = pager.map_with(&file, 0..PAGES * PAGE, &options).unwrap();
        let before = pager.stats();
        let accesses = map.accesses().unwrap();
        for page in shuffled(PAGES) {
            assert_eq!(accesses.load(page * PAGE).unwrap(), page + 1);
        }
        let [installs, repoints, ..] = since(&pager, &before);
        assert!(repoints <= 10 && installs <= 60, "{installs} installs, {repoints} re-points: {}", pager.describe());
        let ranges = pager.stats().address_ranges;
        assert!(ranges <= 8, "{ranges} address ranges");
        let described = pager.describe();
        assert!(described.contains(&format!("{} bytes armed", PAGES * PAGE)), "{described}");
        // Another look costs nothing, and nothing is dirty.
        let before = pager.stats();
        assert!((0..PAGES).all(|page| accesses.load(page * PAGE).unwrap() == page + 1));
        assert_eq!(since(&pager, &before), [0; 4]);
        assert_eq!(map.take_dirty().unwrap(), []);
        assert_eq!(volume.resident_bytes(), PAGES * PAGE);
    }
}

#[test]
fn a_reader_from_the_start_is_a_stream_and_a_few_pages_are_not_worth_it() {
    const PAGES: u64 = 8 * 512;
    for options in ways() {
        let volume = volume(PAGES * PAGE);
        let pager = Pager::builder().start().unwrap();
        let file = written(&volume, PAGES);
        let map = pager.map_with(&file, 0..PAGES * PAGE, &options).unwrap();
        let before = pager.stats();
        assert!((0..PAGES).all(|page| map.load(page * PAGE).unwrap() == page + 1));
        assert_eq!(since(&pager, &before)[1], 0, "a stream needs no re-point");
        let other = pager.map_with(&file, 0..PAGES * PAGE, &options).unwrap();
        let before = pager.stats();
        assert!((0..8).all(|i| other.load((7 * i + 3) * PAGE).unwrap() == 7 * i + 4));
        assert_eq!(since(&pager, &before)[1], 0);
        // Said beforehand, it is believed at once.
        let random = pager.map_with(&file, 0..PAGES * PAGE, &options).unwrap();
        random.advise(0..PAGES * PAGE, Advice::Random).unwrap();
        assert_eq!(random.load(512 * PAGE).unwrap(), 513);
        assert!(is_armed(&random, 600) && !is_armed(&random, 0));
        let sequential = pager.map_with(&file, 0..PAGES * PAGE, &options).unwrap();
        sequential.advise(0..PAGES * PAGE, Advice::Sequential).unwrap();
        assert!((0..100).all(|i| sequential.load((37 * i + 3) * PAGE).unwrap() == 37 * i + 4));
        assert!((0..PAGES).all(|page| !is_armed(&sequential, page)));
    }
}

/// Every store is noticed once it has to be, whatever has been done to the page before.
#[test]
fn stores_are_noticed_whatever_was_there() {
    const PAGES: u64 = 512;
    type Step = (&'static str, fn(&File, &Mapping, u64));
    let steps: [Step; 9] = [
        ("nothing", |_, _, _| {}),
        ("loaded", |_, map, page| _ = map.load(page * PAGE).unwrap()),
        ("punched", |file, _, page| file.punch_hole(page * PAGE, PAGE).unwrap()),
        ("punched and loaded", |file, map, page| {
            file.punch_hole(page * PAGE, PAGE).unwrap();
            assert_eq!(map.load(page * PAGE).unwrap(), 0);
        }),
        ("punched and written", |file, _, page| {
            file.punch_hole(page * PAGE, PAGE).unwrap();
            file.write_at(&[1; PAGE as usize], page * PAGE).unwrap();
        }),
        ("zeroed and written", |file, _, page| {
            file.zero_range(page * PAGE, PAGE, true).unwrap();
            file.write_at(&[1; 8], page * PAGE).unwrap();
        }),
        ("cut off and written", |file, map, page| {
            file.truncate(page * PAGE).unwrap();
            assert!(matches!(map.load(page * PAGE), Err(Error::Bus(_))));
            file.write_at(&[1; 8], PAGES * PAGE - 8).unwrap();
            file.write_at(&[1; 8], page * PAGE).unwrap();
        }),
        ("not needed", |_, map, page| map.advise(one(page), Advice::DontNeed).unwrap()),
        ("taken and not needed", |_, map, page| {
            map.take_dirty().unwrap();
            map.advise(one(page), Advice::DontNeed).unwrap();
        }),
    ];
    for options in ways() {
        let volume = volume(4 * MIB);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = armed(&volume, &pager, PAGES, &options);
        for (number, (name, step)) in steps.iter().enumerate() {
            let page = 10 + number as u64 * 3;
            for dirty_before in [false, true] {
                if dirty_before {
                    map.store(page * PAGE, 7).unwrap();
                }
                step(&file, &map, page);
                if dirty_before && matches!(number, 0 | 1 | 5 | 7) {
                    assert_eq!(map.take_dirty().unwrap(), [one(page)], "{name}");
                } else {
                    assert_eq!(map.take_dirty().unwrap(), [], "{name}, dirty before: {dirty_before}");
                }
                map.store(page * PAGE + 16, 9).unwrap();
                assert_eq!(map.take_dirty().unwrap(), [one(page)], "{name}, dirty before: {dirty_before}");
                map.store(page * PAGE + 24, 9).unwrap();
                assert_eq!(map.take_dirty().unwrap(), [one(page)], "{name}, and once more");
            }
            assert!(is_armed(&map, page));
        }
    }
}

/// A page past the end is poisoned; when it is there, stores to it are noticed.
#[test]
fn what_was_past_the_end_is_armed_when_it_is_not() {
    const PAGES: u64 = 512;
    type Growth = (&'static str, fn(&File, u64));
    let growths: [Growth; 4] = [
        ("written", |file, page| _ = file.write_at(&[3; PAGE as usize], page * PAGE).unwrap()),
        ("truncate, then written", |file, page| {
            file.truncate((page + 1) * PAGE).unwrap();
            file.write_at(&[3; 8], page * PAGE).unwrap();
        }),
        ("allocated, then written", |file, page| {
            file.allocate(page * PAGE, PAGE, false).unwrap();
            file.write_at(&[3; 8], page * PAGE).unwrap();
        }),
        ("zeroed, then written", |file, page| {
            file.zero_range(page * PAGE, PAGE, false).unwrap();
            file.write_at(&[3; 8], page * PAGE).unwrap();
        }),
    ];
    for options in ways() {
        let volume = volume(4 * MIB);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = armed(&volume, &pager, PAGES, &options);
        for (name, grow) in growths {
            file.truncate(100 * PAGE).unwrap();
            for page in [100, 101, 105] {
                assert!(matches!(map.load(page * PAGE), Err(Error::Bus(_))), "{name}");
                assert!(matches!(map.store(page * PAGE, 1), Err(Error::Bus(_))), "{name}");
            }
            grow(&file, 100);
            grow(&file, 105);
            assert_eq!(
                (map.load(100 * PAGE).unwrap() & 0xff, map.load(105 * PAGE + 8).unwrap() & 0xfe),
                (3, if name == "written" { 2 } else { 0 }),
                "{name}"
            );
            assert_eq!(map.take_dirty().unwrap(), [], "{name}");
            map.store(105 * PAGE, 9).unwrap();
            map.store(100 * PAGE + 8, 9).unwrap();
            assert_eq!(map.take_dirty().unwrap(), [one(100), one(105)], "{name}");
        }
    }
}

/// A store for which there is no page is refused, for a thread that cannot be signalled by poison; and nothing is left of that.
#[test]
fn what_was_refused_is_armed_again() {
    const PAGES: u64 = 512;
    let volume = volume((PAGES + 1) * PAGE);
    let pager = Pager::builder().start().unwrap();
    let (file, map) = armed(&volume, &pager, PAGES, &MapOptions::new());
    let other = volume.create("takes the room").unwrap();
    other.write_at(&[1], 0).unwrap();
    for (loaded, loaded_after) in [(false, false), (true, false), (false, true), (true, true)] {
        file.punch_hole(7 * PAGE, PAGE).unwrap();
        other.write_at(&[1], PAGE).unwrap();
        if loaded {
            assert_eq!(map.load(7 * PAGE).unwrap(), 0);
        }
        // A system call faults there: no signal ends that.
        let zeros = std::fs::File::open("/dev/zero").unwrap();
        let before = pager.stats().poisoned;
        let refused = map.read_from(zeros.as_fd(), 7 * PAGE, 64);
        assert!(refused.is_err(), "{refused:?}");
        assert!(pager.stats().poisoned > before, "the test is about a page that is poisoned");
        if loaded_after {
            assert_eq!(map.load(7 * PAGE).unwrap(), 0, "the hole is readable");
        }
        other.punch_hole(PAGE, PAGE).unwrap();
        assert_eq!(map.take_dirty().unwrap(), []);
        file.write_at(&[5; 8], 7 * PAGE).unwrap();
        map.store(7 * PAGE + 8, 6).unwrap();
        assert_eq!(map.take_dirty().unwrap(), [one(7)], "loaded before: {loaded}, after: {loaded_after}");
        assert_eq!((file.blocks(), volume.free_blocks()), (PAGES, 0));
    }
}

/// The poison that a refused store has left for a moment is over when another mapping's store gives the page bytes.
#[test]
fn a_store_through_another_mapping_ends_a_refusal() {
    let volume = volume(513 * PAGE);
    let pager = Pager::builder().start().unwrap();
    let (file, map) = armed(&volume, &pager, 512, &MapOptions::new());
    let through = pager.map(&file, 0..512 * PAGE).unwrap();
    let other = volume.create("takes the room").unwrap();
    other.write_at(&[1], 0).unwrap();
    let zeros = std::fs::File::open("/dev/zero").unwrap();
    for round in 0..guard::repeats(1_000, 4_000) {
        file.punch_hole(7 * PAGE, PAGE).unwrap();
        other.write_at(&[1], PAGE).unwrap();
        assert!(map.read_from(zeros.as_fd(), 7 * PAGE, 64).is_err());
        other.punch_hole(PAGE, PAGE).unwrap();
        through.store(7 * PAGE, round).unwrap();
        map.store(7 * PAGE + 8, round).unwrap();
        assert_eq!((map.load(7 * PAGE).unwrap(), through.load(7 * PAGE + 8).unwrap()), (round, round));
        assert_eq!(map.take_dirty().unwrap(), [one(7)], "round {round}");
    }
}

/// A mapping that is armed shows what is done through one that is not, and by calls, at once.
#[test]
fn armed_or_not_it_is_one_page() {
    for options in ways() {
        let volume = volume(4 * MIB);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = armed(&volume, &pager, 512, &options);
        let other = pager.map_with(&file, 0..512 * PAGE, &options).unwrap();
        file.punch_hole(0, 512 * PAGE).unwrap();
        assert_eq!(volume.resident_bytes(), 0);
        for page in shuffled(512) {
            assert_eq!((map.load(page * PAGE).unwrap(), other.load(page * PAGE).unwrap()), (0, 0));
            other.store(page * PAGE, page).unwrap();
            assert_eq!(map.load(page * PAGE).unwrap(), page);
            map.store(page * PAGE + 8, page).unwrap();
            assert_eq!(other.load(page * PAGE + 8).unwrap(), page);
        }
        assert_eq!(map.take_dirty().unwrap(), std::iter::once(0..512 * PAGE).collect::<Vec<_>>());
        map.populate(0..512 * PAGE, Access::Store).unwrap();
        assert_eq!((file.blocks(), volume.resident_bytes()), (512, 512 * PAGE));
    }
}

/// What is zeroed stays dirty, and the file says unwritten: a store to it is to be told, though another mapping has the page there.
#[test]
fn a_store_to_what_was_zeroed_is_kept() {
    for options in ways() {
        let volume = volume(4 * MIB);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = armed(&volume, &pager, 512, &options);
        let other = pager.map_with(&file, 0..512 * PAGE, &options).unwrap();
        for page in [5, 6, 7] {
            map.store(page * PAGE, 1).unwrap();
            match page {
                5 => file.zero_range(page * PAGE, PAGE, true).unwrap(),
                6 => file.punch_hole(page * PAGE, PAGE).unwrap(),
                _ => {
                    file.zero_range(page * PAGE, PAGE, true).unwrap();
                    map.take_dirty().unwrap();
                }
            }
            assert_eq!(other.load(page * PAGE).unwrap(), 0);
            map.store(page * PAGE + 8, 2).unwrap();
            let mut word = [0; 8];
            file.read_at(&mut word, page * PAGE + 8).unwrap();
            assert_eq!((u64::from_ne_bytes(word), other.load(page * PAGE + 8).unwrap()), (2, 2), "page {page}");
        }
        assert_eq!((file.blocks(), volume.resident_bytes()), (512, 512 * PAGE));
    }
}

/// A store beside punches, writes and other threads' stores is in the next collection.
#[test]
fn no_store_is_missed_beside_everything() {
    const PAGES: u64 = 512;
    for options in ways() {
        let volume = volume(8 * MIB);
        let pager = Pager::builder().start().unwrap();
        let (file, map) = armed(&volume, &pager, PAGES, &options);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Odd pages, punched, written, stored to and dropped all the time.
            let churning = scope.spawn(|| {
                let mut state = 3;
                while !done.load(Ordering::Relaxed) {
                    let page = (next(&mut state) % PAGES) | 1;
                    file.punch_hole(page * PAGE, PAGE).unwrap();
                    file.write_at(&[1; PAGE as usize], page * PAGE).unwrap();
                    map.store(page * PAGE, 5).unwrap();
                    map.advise(one(page), Advice::DontNeed).unwrap();
                }
            });
            let storing = scope.spawn(|| {
                let accesses = map.accesses().unwrap();
                let mut state = 9;
                for round in 0..guard::repeats(500, 3_000) {
                    let page = next(&mut state) % (PAGES / 2) * 2;
                    if round % 3 > 0 {
                        file.punch_hole(page * PAGE, PAGE).unwrap();
                        file.write_at(&[1; 8], page * PAGE).unwrap();
                    }
                    accesses.store(page * PAGE + 8, round).unwrap();
                    let dirty = map.take_dirty().unwrap();
                    let found = dirty.iter().any(|range| range.contains(&(page * PAGE)));
                    assert!(found, "round {round}: page {page} is not dirty: {dirty:?}");
                    assert_eq!(accesses.load(page * PAGE + 8).unwrap(), round);
                }
            });
            let stored = storing.join();
            done.store(true, Ordering::Relaxed);
            churning.join().unwrap();
            stored.unwrap();
        });
    }
}
