//! `Mapping::populate` and `Mapping::advise`: what is installed without a fault, and what is not.

mod common;

use std::sync::Arc;

use common::*;
use daxpager::{Access, Advice, Error, ExtentKind, File, MapOptions, Mapping, Tracking};

const MARK: u64 = 0x4d41_524b_4d41_524b;

fn faults(world: &World, body: impl FnOnce()) -> u64 {
    let before = world.pager().stats().all_faults();
    body();
    world.pager().stats().all_faults() - before
}

fn load_all(map: &Mapping, pages: std::ops::Range<u64>) {
    pages.for_each(|page| assert!(map.load(page * PAGE).is_ok()));
}

fn store_all(map: &Mapping, pages: std::ops::Range<u64>) {
    pages.for_each(|page| map.store(page * PAGE, MARK + page).unwrap());
}

/// Blocks, a hole, unwritten pages, blocks again.
fn mixed(world: &World) -> (File, Arc<Mapping>) {
    let file = world.file("a", 400, 0xaa);
    file.punch_hole(100 * PAGE, 100 * PAGE).unwrap();
    file.allocate(150 * PAGE, 50 * PAGE, true).unwrap();
    let map = world.map(&file, 500);
    (file, map)
}

#[test]
fn loads_find_everything_there() {
    let world = World::with_reader(500, None, true);
    let (file, map) = mixed(&world);
    let before = world.pager().stats().calls;
    map.populate(0..400 * PAGE, Access::Load).unwrap();
    let calls = world.pager().stats().calls.since(&before);
    assert_eq!(faults(&world, || load_all(&map, 0..400)), 0);
    assert!(calls.installs <= 100 + 8, "zeros one by one, blocks by the run: {calls:?}");
    assert_eq!(file.blocks(), 350, "nothing is allocated");
    assert_eq!((map.load(99 * PAGE), map.load(100 * PAGE)), (Ok(0xaaaa_aaaa_aaaa_aaaa), Ok(0)));
    map.store(99 * PAGE, MARK).unwrap();
    assert_eq!(take(&map), [99], "every first store is noticed");
    map.populate(0..400 * PAGE, Access::Load).unwrap();
}

#[test]
fn stores_find_everything_there() {
    let world = World::with_reader(500, None, true);
    let (file, map) = mixed(&world);
    // Some entries are there already, zeros and write-protected blocks among them.
    load_all(&map, 95..105);
    map.populate(0..400 * PAGE, Access::Store).unwrap();
    assert_eq!(faults(&world, || store_all(&map, 0..400)), 0);
    assert_eq!(file.blocks(), 400);
    assert_eq!(take(&map), (0..400).collect::<Vec<_>>(), "populated for stores is as good as stored to");
    assert!(file.extents().iter().all(|extent| extent.kind == ExtentKind::Written));
    for page in 0..400 {
        assert_eq!(page_of(&file, page)[..8], (MARK + page).to_ne_bytes());
    }
}

/// Under coarse tracking too, and blocks that were allocated ahead are asked for by it.
#[test]
fn what_is_populated_for_stores_stays() {
    let world = World::with_reader(600, None, true);
    let file = world.volume.create("a").unwrap();
    file.truncate(64 * PAGE).unwrap();
    let map = world.map_with(&file, 64, &MapOptions::new().tracking(Tracking::Coarse));
    store_all(&map, 0..10);
    map.populate(0..64 * PAGE, Access::Store).unwrap();
    drop(map);
    assert_eq!(file.blocks(), 64);
}

#[test]
fn errors_come_after_what_is_before_them() {
    let world = World::with_reader(64, None, true);
    let file = world.file("a", 10, 0xaa);
    let map = world.map(&file, 200);
    let past = map.populate(5 * PAGE..20 * PAGE, Access::Load).unwrap_err();
    assert!(matches!(past, Error::PastEnd { page: 10, .. }), "{past:?}");
    assert_eq!(faults(&world, || load_all(&map, 5..10)), 0);
    file.truncate(200 * PAGE).unwrap();
    let full = map.populate(0..200 * PAGE, Access::Store).unwrap_err();
    assert!(matches!(full, Error::NoSpace { .. }), "{full:?}");
    assert_eq!(world.volume.free_blocks(), 0);
    assert_eq!(faults(&world, || store_all(&map, 0..63)), 0);
    let outside = map.populate(199 * PAGE..201 * PAGE, Access::Load).unwrap_err();
    assert!(matches!(outside, Error::OutsideMapping { .. }), "{outside:?}");
    map.populate(7..7, Access::Store).unwrap();
    let (whole, part) = (0..200 * PAGE, 0..PAGE);
    let mut world = world;
    drop(world.pager.take());
    for result in [map.populate(whole, Access::Load), map.advise(part, Advice::Random)] {
        assert!(matches!(result, Err(Error::PagerGone { .. })), "{result:?}");
    }
}

#[test]
fn will_need_installs_what_is_there() {
    let world = World::with_reader(500, None, true);
    let (file, map) = mixed(&world);
    map.advise(0..500 * PAGE, Advice::WillNeed).unwrap();
    assert_eq!(world.pager().stats().zeros, 0, "holes are left alone");
    assert_eq!(file.blocks(), 350);
    assert_eq!(faults(&world, || load_all(&map, 0..100)), 0);
    assert_eq!(faults(&world, || load_all(&map, 200..400)), 0);
}

#[test]
fn not_needed_entries_go_and_nothing_else() {
    let world = World::with_reader(64, None, true);
    let file = world.file("a", 64, 0xaa);
    let (map, other) = (world.map(&file, 64), world.map(&file, 64));
    for map in [&map, &other] {
        map.populate(0..64 * PAGE, Access::Load).unwrap();
    }
    store_all(&map, 0..4);
    map.advise(2 * PAGE..32 * PAGE, Advice::DontNeed).unwrap();
    assert_eq!(faults(&world, || load_all(&other, 0..64)), 0);
    assert_eq!(faults(&world, || load_all(&map, 0..2)), 0);
    assert_eq!(map.load(3 * PAGE).unwrap(), MARK + 3);
    assert!(faults(&world, || load_all(&map, 4..32)) > 0);
    assert_eq!(take(&map), [0, 1, 2, 3]);
}

#[test]
fn sequential_begins_with_the_largest_window_and_random_has_none() {
    let world = World::with_reader(2048, None, true);
    let file = world.file("a", 2048, 0xaa);
    let map = world.map(&file, 2048);
    map.load(2047 * PAGE).unwrap();
    map.advise(0..1024 * PAGE, Advice::Sequential).unwrap();
    map.advise(1024 * PAGE..1536 * PAGE, Advice::Random).unwrap();
    assert_eq!(faults(&world, || load_all(&map, 0..1024)), 2);
    assert_eq!(faults(&world, || load_all(&map, 1024..1536)), 512);
    assert!(faults(&world, || load_all(&map, 1536..2048)) < 8);
    map.advise(0..2048 * PAGE, Advice::DontNeed).unwrap();
    map.advise(0..2048 * PAGE, Advice::Normal).unwrap();
    assert!((4..12).contains(&faults(&world, || load_all(&map, 0..2048))));
}
