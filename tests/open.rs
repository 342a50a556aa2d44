//! Mappings that are not tracked (`Tracking::Off`), of files with windows: the kernel installs what is present, lets stores through, and only
//! what is absent is a fault of ours. "Open" is what such a mapping is called.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use daxpager::probe::Point;
use daxpager::sabotage::Rule;
use daxpager::{Advice, Backing, Error, File, MapOptions, Mapping, Tracking};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

const MARK: u64 = 0x4f50_454e_4f50_454e;

fn off(options: &MapOptions) -> MapOptions {
    options.tracking(Tracking::Off)
}

fn open(world: &World, file: &File, pages: u64) -> Arc<Mapping> {
    let map = world.map_with(file, pages, &off(&world.options));
    assert!(matches!(map.backing_at(0), Some(Backing::Open(_))), "{:?}", map.backing_at(0));
    map
}

/// Calls on the mapping in a thread that blocks SIGBUS: without a fault.
fn spawn_masked(map: &Arc<Mapping>, calls: impl FnOnce(&Mapping) + Send + 'static) -> Task<()> {
    spawn_on(map, |map| {
        let bus = SigSet::from(Signal::SIGBUS);
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&bus), None).unwrap();
        calls(&map);
    })
}

#[test]
fn what_is_present_is_no_fault() {
    for world in World::each_in_windows(600) {
        let file = world.file("a", 600, 0xaa);
        let map = open(&world, &file, 600);
        let before = world.pager().stats();
        for page in shuffled(600) {
            assert_eq!(map.load(page * PAGE).unwrap(), 0xaaaa_aaaa_aaaa_aaaa);
            map.store(page * PAGE, MARK + page).unwrap();
        }
        let after = world.pager().stats();
        assert_eq!(after.all_faults() - before.all_faults(), 0, "{}", world.pager().describe());
        assert_eq!(after.address_ranges, 1);
        assert!((0..600).all(|page| word_of(&file, page) == MARK + page));
        assert_eq!(map.take_dirty(), Err(Error::NotTracked { addr: map.as_ptr() as usize }));
        assert!(world.pager().describe().contains("open: no store is noticed"), "{}", world.pager().describe());
    }
}

/// A page at a time, whether it is loaded or stored to first.
#[test]
fn holes_are_faults_and_take_pages() {
    for world in World::each_in_windows(100) {
        let file = world.hole("a", 100);
        let map = open(&world, &file, 100);
        for page in shuffled(100) {
            if page % 2 == 0 {
                assert_eq!(map.load(page * PAGE).unwrap(), 0);
            }
            map.store(page * PAGE + 8, MARK + page).unwrap();
            assert_eq!(map.load(page * PAGE + 8).unwrap(), MARK + page);
        }
        assert_eq!((file.blocks(), world.volume.free_blocks()), (100, 0));
        assert!((0..100).all(|page| page_of(&file, page)[8..16] == (MARK + page).to_ne_bytes()));
        file.punch_hole(10 * PAGE, 80 * PAGE).unwrap();
        assert_eq!((file.blocks(), file.resident_bytes()), (20, 20 * PAGE));
        assert!((10..90).all(|page| map.load(page * PAGE + 8).unwrap() == 0));
        assert_eq!(file.blocks(), 100);
    }
}

/// On a full volume a hole is a SIGBUS, for a load as well, and for one through a mapping that is tracked; and it is over when there is room.
#[test]
fn a_full_volume_refuses_loads_of_holes() {
    for world in World::each_in_windows(20) {
        let file = world.hole("a", 8);
        let (map, tracked) = (open(&world, &file, 8), world.map(&file, 8));
        assert_eq!(tracked.load(0).unwrap(), 0);
        let rest = world.file("rest", 19, 1);
        assert_eq!(world.volume.free_blocks(), 0);
        for page in 1..8 {
            assert!(is_bus(&map.load(page * PAGE)), "page {page}");
            assert!(is_bus(&tracked.load(page * PAGE)), "page {page}, tracked");
            assert!(matches!(map.store(page * PAGE, 1), Err(Error::Bus(_))));
        }
        assert_eq!(map.load(0).unwrap(), 0);
        rest.punch_hole(0, 7 * PAGE).unwrap();
        for page in 1..8 {
            assert_eq!(map.load(page * PAGE).unwrap(), 0, "page {page}");
            map.store(page * PAGE, MARK).unwrap();
            assert_eq!(tracked.load(page * PAGE).unwrap(), MARK);
        }
        assert_eq!(tracked.take_dirty().unwrap(), [], "nothing was stored through it");
        // The last of these mappings has gone: zeros are nobody's again.
        drop(map);
        file.punch_hole(0, 8 * PAGE).unwrap();
        let blocks = file.blocks();
        assert_eq!((blocks, tracked.load(PAGE).unwrap(), file.blocks()), (0, 0, 0));
    }
}

/// Zeros that a load has left, before the mapping was made or after, are not stored to unnoticed, and taken back.
///
/// ```text
/// load of X, tracked                                store to X, through the open mapping
///   X is a hole: zeros of nobody's
///                                                     present: lands
/// zeros are taken back: the store is lost
/// ```
fn zeros_and_stores(world: &mut World) -> Verdict {
    let file = world.hole("a", 16);
    file.allocate(12 * PAGE, 4 * PAGE, true).unwrap();
    let tracked = world.map(&file, 16);
    (0..16).step_by(2).for_each(|page| assert_eq!(tracked.load(page * PAGE), Ok(0)));
    let map = open_or_not(world, &file, 16);
    (1..16).step_by(2).for_each(|page| assert_eq!(tracked.load(page * PAGE), Ok(0)));
    (0..16).for_each(|page| map.store(page * PAGE, MARK + page).unwrap());
    // All zeros are taken back that may be.
    world.volume.set_zeros_max(0);
    let other = world.hole("b", 8);
    let loads = world.map(&other, 8);
    (0..8).for_each(|page| assert_eq!(loads.load(page * PAGE), Ok(0)));
    for page in 0..16 {
        let (seen, read) = (map.load(page * PAGE), word_of(&file, page));
        check(seen == Ok(MARK + page) && read == MARK + page, || {
            format!("a store to page {page} is lost: {seen:x?}, and read_at has {read:#x}")
        })?;
    }
    check(file.blocks() == 16, || format!("{} blocks, and 16 pages are stored to", file.blocks()))
}

/// Where the rule is broken, it is as open.
fn open_or_not(world: &World, file: &File, pages: u64) -> Arc<Mapping> {
    world.map_with(file, pages, &off(&world.options))
}

windows_tests!(zeros_are_not_stored_to_unnoticed, Rule::PresentIsWritten, 64, zeros_and_stores);

/// A load has looked, and is about to leave zeros; an open mapping is made.
///
/// ```text
/// load of X, tracked                                an open mapping is made
///   L2 shared: none is open; parked
///                                                     L2 exclusive: waits
///   zeros are installed
///   unlock
///                                                     X is punched
///                                                     store to X: takes a page
/// ```
fn load_against_map(world: &mut World) -> Verdict {
    let file = world.hole("a", 8);
    let tracked = world.map(&file, 8);
    let parked = world.park.at_page(Point::Decided, 3);
    let load = spawn_on(&tracked, |map| map.load(3 * PAGE));
    parked.wait();
    let (pager, options, own) = (world.pager.take().unwrap(), off(&world.options), file.clone());
    let mapping = spawn(move || {
        let map = pager.map_with(&own, 0..8 * PAGE, &options).unwrap();
        map.store(3 * PAGE, MARK).unwrap();
        (pager, map)
    });
    let waits = mapping.within(WATCH).is_none();
    parked.release();
    check(waits, || "the mapping was made while a load was being answered".to_owned())?;
    load.join("the load")?.map_err(|error| error.to_string())?;
    let (pager, map) = mapping.join("the mapping")?;
    world.pager = Some(pager);
    world.volume.set_zeros_max(0);
    check(tracked.load(4 * PAGE) == Ok(0), || "a hole is not zeros".to_owned())?;
    check(word_of(&file, 3) == MARK && map.load(3 * PAGE) == Ok(MARK), || "the store is lost".to_owned())?;
    check(file.blocks() == 2, || format!("{} blocks for a store and a load", file.blocks()))
}

#[test]
fn a_mapping_waits_for_a_load_that_leaves_zeros() {
    intact_in(World::in_windows(64, None), load_against_map);
}

#[test]
fn the_end_of_the_file_moves() {
    for world in World::each_in_windows(64) {
        let file = world.file("a", 8, 0xaa);
        let map = open(&world, &file, 32);
        map.store(7 * PAGE + 512, MARK).unwrap();
        for page in 8..32 {
            assert!(is_bus(&map.load(page * PAGE)), "page {page} is past the end");
        }
        file.truncate(7 * PAGE + 256).unwrap();
        // As the kernel has it: in the last page, and gone when the file grows.
        map.store(7 * PAGE + 1024, MARK).unwrap();
        assert!(matches!(map.store(8 * PAGE, 1), Err(Error::Bus(_))));
        file.truncate(32 * PAGE).unwrap();
        assert_eq!((map.load(7 * PAGE + 512), map.load(7 * PAGE + 1024)), (Ok(0), Ok(0)));
        assert_eq!(map.load(7 * PAGE + 248), Ok(0xaaaa_aaaa_aaaa_aaaa));
        (8..32).for_each(|page| map.store(page * PAGE, MARK + page).unwrap());
        file.truncate(4 * PAGE).unwrap();
        assert!((4..32).all(|page| is_bus(&map.load(page * PAGE))));
        // A write makes it longer, over what has been a SIGBUS here.
        file.write_at(&[0xcc; 3 * PAGE as usize], 9 * PAGE).unwrap();
        assert_eq!((map.load(8 * PAGE), map.load(9 * PAGE)), (Ok(0), Ok(0xcccc_cccc_cccc_cccc)));
        assert!((4..8).all(|page| map.load(page * PAGE) == Ok(0)));
        assert!(is_bus(&map.load(12 * PAGE)));
        assert_eq!(map.load(0), Ok(0xaaaa_aaaa_aaaa_aaaa));
    }
}

#[test]
fn populate_takes_pages_and_advice_does_no_harm() {
    for world in World::each_in_windows(64) {
        let file = world.hole("a", 64);
        file.write_at(&[0xaa; 4 * PAGE as usize], 4 * PAGE).unwrap();
        let map = open(&world, &file, 64);
        map.populate(0..16 * PAGE, daxpager::Access::Load).unwrap();
        assert_eq!(file.blocks(), 16);
        map.populate(0..32 * PAGE, daxpager::Access::Store).unwrap();
        assert_eq!(file.blocks(), 32);
        let before = world.pager().stats().all_faults();
        (0..32).for_each(|page| map.store(page * PAGE + 8, MARK).unwrap());
        assert_eq!(world.pager().stats().all_faults(), before);
        for advice in [Advice::Random, Advice::Sequential, Advice::WillNeed, Advice::DontNeed, Advice::Normal] {
            map.advise(0..64 * PAGE, advice).unwrap();
            assert_eq!((file.blocks(), map.load(4 * PAGE), map.load(8)), (32, Ok(0xaaaa_aaaa_aaaa_aaaa), Ok(MARK)));
        }
    }
}

/// An exchange without a fault, by a thread that blocks SIGBUS, beside the CPU's own: none is lost.
#[test]
fn exchanges_without_a_fault_add_up_with_others() {
    const ADDITIONS: u64 = 20_000;
    let world = World::in_windows(64, None).directly();
    let file = world.hole("a", 4);
    let map = open(&world, &file, 4);
    fn add(map: &Mapping, times: u64) {
        for _ in 0..times {
            let mut seen = map.load(PAGE).unwrap();
            while let Some(was) = Some(map.compare_exchange(PAGE, seen, seen + 1).unwrap()).filter(|was| *was != seen) {
                seen = was;
            }
        }
    }
    let done = Arc::new(AtomicBool::new(false));
    let masked = spawn_masked(&map, |map| add(map, ADDITIONS / 10));
    let plain = spawn_on(&map, |map| add(&map, ADDITIONS));
    let puncher = spawn({
        let (file, done) = (file.clone(), done.clone());
        move || {
            while !done.load(Ordering::Relaxed) {
                file.punch_hole(2 * PAGE, PAGE).unwrap();
            }
        }
    });
    masked.join("the masked thread").unwrap();
    plain.join("the other").unwrap();
    done.store(true, Ordering::Relaxed);
    puncher.join("the puncher").unwrap();
    assert_eq!((map.load(PAGE), word_of(&file, 1)), (Ok(ADDITIONS + ADDITIONS / 10), ADDITIONS + ADDITIONS / 10));
}

/// A store without a fault is in the dirty set of the mapping that it was made through, whatever mappings there are beside it.
#[test]
fn stores_without_a_fault_are_dirty() {
    let world = World::in_windows(64, None).directly();
    let file = world.hole("a", 8);
    let tracked = world.map(&file, 8);
    let asynchronous = world.map_with(&file, 8, &world.options.tracking(Tracking::Asynchronous));
    let _open = open(&world, &file, 8);
    for (map, page) in [(&tracked, 1), (&asynchronous, 2), (&asynchronous, 3)] {
        if page == 3 {
            map.store(3 * PAGE, 1).unwrap();
            assert_eq!(map.take_dirty().unwrap(), [3 * PAGE..4 * PAGE]);
        }
        let masked = spawn_masked(map, move |map| {
            map.store(page * PAGE, MARK).unwrap();
            assert_eq!(map.compare_exchange(page * PAGE, 1, 2).unwrap(), MARK);
        });
        masked.join("the masked thread").unwrap();
        assert_eq!(map.take_dirty().unwrap(), [page * PAGE..(page + 1) * PAGE], "page {page}");
        assert_eq!(map.take_dirty().unwrap(), []);
        assert_eq!(word_of(&file, page), MARK);
    }
}

/// With single blocks it is as coarse, and says nothing of stores either.
#[test]
fn single_blocks_serve_it_as_coarse() {
    let world = World::new(64, None);
    let file = world.file("a", 8, 0xaa);
    let map = world.map_with(&file, 8, &off(&MapOptions::new()));
    assert!(!matches!(map.backing_at(0), Some(Backing::Open(_))));
    (0..8).for_each(|page| map.store(page * PAGE, MARK + page).unwrap());
    assert!((0..8).all(|page| word_of(&file, page) == MARK + page));
    assert!(matches!(map.take_dirty(), Err(Error::NotTracked { .. })));
    let hole = world.hole("b", 8);
    let map = world.map_with(&hole, 8, &off(&MapOptions::new()));
    assert!((0..8).all(|page| map.load(page * PAGE) == Ok(0)));
    assert_eq!(hole.blocks(), 0, "a load takes no block");
}
