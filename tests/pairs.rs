//! Pairs that no switch stands for: which of two comes first does not matter, as long as one of them does.

mod common;

use common::*;
use daxpager::probe::Point;
use daxpager::{ExtentKind, File, MapOptions, Pager, Tracking};

const A: u8 = 0xaa;
const MARK: u64 = 0x4d41_524b_4d41_524b;

/// A change zaps by address, so a mapping must not go, and its address be somebody else's, before that is done.
///
/// ```text
/// punch                                     unmap
///   L2 exclusive: publish (parked)
///                                             the window leaves its file: waits for L2
///   zap: the address is ours still
///                                             munmap
/// ```
#[test]
fn an_unmap_waits_for_a_punch_that_is_about_to_zap() {
    let world = World::new(2, None);
    let a = world.file("a", 1, A);
    let map = world.map(&a, 1);
    map.load(0).unwrap();
    let published = world.park.at_page(Point::Published, 0);
    let punch = spawn({
        let a = a.clone();
        move || a.punch_hole(0, PAGE)
    });
    published.wait();
    let unmap = spawn(move || drop(map));
    assert_eq!(unmap.within(WATCH), None, "unmapped while a punch is about to zap there");
    published.release();
    punch.join("the punch").unwrap().unwrap();
    unmap.join("the unmap").unwrap();
    assert_eq!(world.volume.used_blocks(), 0);
}

/// A store has a block ready for a hole, and `allocate` puts one there first. The store goes into that one, which is
/// zeroed and written now, and gives its own back.
#[test]
fn a_store_that_an_allocate_overtakes_takes_its_block() {
    let world = World::new(4, None);
    // What the blocks held before must not show.
    world.file("old", 4, A).truncate(0).unwrap();
    let a = world.volume.create("a").unwrap();
    a.truncate(PAGE).unwrap();
    let map = world.map(&a, 1);
    let allocated = world.park.at_page(Point::Allocated, 0);
    let store = spawn({
        let map = map.clone();
        move || map.store(0, MARK)
    });
    allocated.wait();
    a.allocate(0, PAGE, false).unwrap();
    let theirs = a.fiemap()[0].device_offset;
    allocated.release();
    store.join("the store").unwrap().unwrap();
    let mut expected = vec![0; PAGE as usize];
    expected[..8].copy_from_slice(&MARK.to_ne_bytes());
    assert_eq!(page_of(&a, 0), expected);
    let extents = a.fiemap();
    assert_eq!((extents.len(), extents[0].device_offset, extents[0].kind), (1, theirs, ExtentKind::Written));
    assert_eq!(world.volume.used_blocks(), 1);
}

/// Blocks are being moved together. A store that needs no fault lands in the old block, and is copied with it.
///
/// ```text
/// gather                                    store
///   L2 exclusive: publish (parked)
///                                             lands in the old block
///   zap, copy, free the old blocks
/// ```
#[test]
fn a_store_while_blocks_are_moved_is_copied() {
    const PAGES: u64 = 32;
    let world = World::new(4 * PAGES, None);
    // Written in turns, so that no two pages of a file are neighbours on the device.
    let (a, between) = (world.volume.create("a").unwrap(), world.volume.create("between").unwrap());
    for page in 0..PAGES {
        a.write_at(&[A; PAGE as usize], page * PAGE).unwrap();
        between.write_at(&[A; PAGE as usize], page * PAGE).unwrap();
    }
    let pager = Pager::builder().address_ranges_max(16).gather_blocks().start().unwrap();
    let map = std::sync::Arc::new(pager.map(&a, 0..PAGES * PAGE).unwrap());
    map.store(0, 1).unwrap();
    let before = a.fiemap();
    let number = a.number();
    // Nothing but a move of blocks is published here: there is no hole.
    let published = world.park.at(Point::Published, move |event| event.file == Some(number));
    let loads = spawn({
        let map = map.clone();
        move || (0..PAGES).try_for_each(|page| map.load(page * PAGE).map(drop))
    });
    published.wait();
    let store = spawn({
        let map = map.clone();
        move || map.store(0, MARK)
    });
    store.join("a store that needs no fault").unwrap().unwrap();
    published.release();
    loads.join("the loads").unwrap().unwrap();
    assert_ne!(a.fiemap(), before, "no block has been moved");
    assert_eq!(map.load(0), Ok(MARK));
    assert_eq!(page_of(&a, 0)[..8], MARK.to_ne_bytes());
    drop(map);
    pager.shutdown().unwrap();
}

/// A control call reserves blocks for the holes that it has counted. What was allocated ahead of a store, and is given
/// back before the call fills them, is one more hole.
#[test]
fn holes_that_come_back_have_been_counted() {
    const PAGES: u64 = 64;
    let fill: [fn(&File); 3] = [
        |file| file.zero_range(0, PAGES * PAGE, true).unwrap(),
        |file| file.allocate(0, PAGES * PAGE, true).unwrap(),
        |file| assert_eq!(file.write_at(&vec![A; (PAGES * PAGE) as usize], 0), Ok((PAGES * PAGE) as usize)),
    ];
    for fill in fill {
        let world = World::with_reader(4 * PAGES, None, true);
        let file = world.volume.create("a").unwrap();
        file.truncate(PAGES * PAGE).unwrap();
        let map = world.map_with(&file, PAGES, &MapOptions::new().tracking(Tracking::Coarse));
        (0..10).for_each(|page| map.store(page * PAGE, page + 1).unwrap());
        assert_eq!(file.blocks(), PAGES);
        let counted = world.park.at(Point::BeforeInvalidate, |_| true);
        let task = spawn({
            let file = file.clone();
            move || fill(&file)
        });
        counted.wait();
        drop(map);
        assert_eq!(file.blocks(), 10);
        counted.release();
        task.join("a call that fills holes").unwrap();
        assert_eq!(file.blocks(), PAGES);
    }
}
