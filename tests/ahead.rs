//! Pages that are taken ahead of stores, of files with windows and asynchronous tracking, and pages that loads take: nobody has asked for
//! them. The kernel takes first stores to them by itself; they are given back while they are zeros; and no store is lost by that.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use daxpager::probe::Point;
use daxpager::sabotage::Rule;
use daxpager::{Advice, Error, ExtentKind, File, MapOptions, Mapping, Tracking};

const MARK: u64 = 0x4148_4541_4441_4845;
/// Pages of a chunk: what one table is for.
const CHUNK: u64 = 512;

fn asynchronous(options: &MapOptions) -> MapOptions {
    options.tracking(Tracking::Asynchronous)
}

fn map(world: &World, file: &File, pages: u64) -> Arc<Mapping> {
    world.map_with(file, pages, &asynchronous(&world.options))
}

fn faults(world: &World) -> u64 {
    world.pager().stats().all_faults()
}

#[test]
fn stores_in_order_are_a_few_faults_and_each_is_reported() {
    for world in World::each_in_windows(4 * CHUNK) {
        let file = world.hole("a", CHUNK);
        let map = map(&world, &file, CHUNK);
        let accesses = map.accesses().unwrap();
        let before = faults(&world);
        (0..300).for_each(|page| accesses.store(page * PAGE, MARK + page).unwrap());
        let taken = faults(&world) - before;
        assert!(taken <= 30, "{taken} faults for 300 stores in order: {}", world.pager().describe());
        assert!(world.pager().stats().ahead >= 250);
        assert_eq!(take(&map), (0..300).collect::<Vec<_>>(), "what is taken ahead has not been stored to");
        assert!((0..CHUNK).all(|page| word_of(&file, page) == if page < 300 { MARK + page } else { 0 }));
        assert!(file.blocks() > 300);
        let written: Vec<_> = file.extents().into_iter().filter(|extent| extent.kind == ExtentKind::Written).collect();
        assert_eq!(
            (written.len(), written[0].offset, written[0].len),
            (1, 0, 300 * PAGE),
            "zeros are as good as holes"
        );
        drop(map);
        assert_eq!((file.blocks(), world.volume.resident_bytes()), (300, 300 * PAGE), "the rest is given back");
    }
}

#[test]
fn stores_in_no_order_are_few_faults_once_a_part_is_dense() {
    for world in World::each_in_windows(8 * CHUNK) {
        let file = world.hole("a", 2 * CHUNK);
        let map = map(&world, &file, 2 * CHUNK);
        let accesses = map.accesses().unwrap();
        let order = shuffled(2 * CHUNK);
        let (first, rest) = order.split_at(CHUNK as usize);
        let before = faults(&world);
        first.iter().for_each(|page| accesses.store(page * PAGE, MARK + page).unwrap());
        let taken = faults(&world) - before;
        assert!(taken <= 80, "{taken} faults for {CHUNK} stores");
        let stored: BTreeSet<u64> = first.iter().copied().collect();
        assert_eq!(take(&map), stored.iter().copied().collect::<Vec<_>>());
        assert_eq!(take(&map), []);
        let before = faults(&world);
        rest.iter().for_each(|page| accesses.store(page * PAGE, MARK + page).unwrap());
        assert_eq!(faults(&world), before, "all of it is there");
        assert_eq!(take(&map).len() as u64, CHUNK);
        assert!((0..2 * CHUNK).all(|page| word_of(&file, page) == MARK + page));
    }
}

/// Of one page in 64 nothing else is taken, in any order.
#[test]
fn sparse_stores_take_nothing_ahead() {
    for world in World::each_in_windows(64 * CHUNK) {
        let file = world.hole("a", 32 * CHUNK);
        let map = map(&world, &file, 32 * CHUNK);
        let accesses = map.accesses().unwrap();
        shuffled(32 * CHUNK / 64).iter().for_each(|page| accesses.store(page * 64 * PAGE, MARK).unwrap());
        assert_eq!(file.blocks(), 32 * CHUNK / 64);
        assert_eq!(world.pager().stats().ahead, 0);
    }
}

#[test]
fn nothing_is_taken_ahead_where_it_is_not_wanted() {
    let world = World::in_windows(8 * CHUNK, None);
    let file = world.hole("a", CHUNK);
    let random = map(&world, &file, CHUNK);
    random.advise(0..CHUNK * PAGE, Advice::Random).unwrap();
    (0..CHUNK / 2).for_each(|page| random.store(page * PAGE, MARK).unwrap());
    assert_eq!((file.blocks(), world.pager().stats().ahead), (CHUNK / 2, 0));
    drop(random);
    let file = world.hole("b", CHUNK);
    let one_by_one = world.map_with(&file, CHUNK, &asynchronous(&world.options).fault_around(PAGE));
    (0..CHUNK / 2).for_each(|page| one_by_one.store(page * PAGE, MARK).unwrap());
    assert_eq!((file.blocks(), world.pager().stats().ahead), (CHUNK / 2, 0));
    drop(one_by_one);
    // Beside a mapping that keeps no record of stores nothing could be given back.
    let file = world.hole("c", CHUNK);
    let (map, open) = (map(&world, &file, CHUNK), world.map_with(&file, CHUNK, &world.options.tracking(Tracking::Off)));
    (0..CHUNK / 2).for_each(|page| map.store(page * PAGE, MARK).unwrap());
    assert_eq!((file.blocks(), world.pager().stats().ahead), (CHUNK / 2, 0));
    assert_eq!(open.load((CHUNK - 1) * PAGE), Ok(0));
    drop((map, open));
    assert_eq!(file.blocks(), CHUNK / 2 + 1);
}

/// Neither the end of the file nor that of the mapping is passed.
#[test]
fn the_end_is_the_end() {
    for world in World::each_in_windows(8 * CHUNK) {
        let file = world.hole("a", 100);
        let map = map(&world, &file, 2 * CHUNK);
        (0..100).for_each(|page| map.store(page * PAGE, MARK + page).unwrap());
        assert!(is_bus(&map.load(100 * PAGE)));
        file.truncate(50 * PAGE).unwrap();
        assert_eq!((file.blocks(), world.volume.resident_bytes()), (50, 50 * PAGE));
        file.truncate(2 * CHUNK * PAGE).unwrap();
        assert!((50..100).all(|page| map.load(page * PAGE) == Ok(0)));
        assert_eq!(take(&map), (0..50).collect::<Vec<_>>());
    }
}

/// A volume is full when it is full of what has been stored and written, and not before.
#[test]
fn a_full_volume_takes_back_what_nobody_has_asked_for() {
    for world in World::each_in_windows(2 * CHUNK) {
        let file = world.hole("a", CHUNK);
        let [map, other] = [(); 2].map(|()| map(&world, &file, CHUNK));
        (0..40).for_each(|page| map.store(page * PAGE, MARK + page).unwrap());
        (300..400).for_each(|page| assert_eq!(map.load(page * PAGE), Ok(0)));
        // The kernel installs in the other mapping what is there, and lets stores through.
        other.advise(0..CHUNK * PAGE, Advice::Random).unwrap();
        (0..CHUNK).rev().step_by(2).for_each(|page| _ = other.load(page * PAGE).unwrap());
        (300..310).for_each(|page| other.store(page * PAGE, MARK + page).unwrap());
        let asked = 50;
        assert!(file.blocks() > asked + 100);
        let rest = world.volume.create("rest").unwrap();
        let pages = 2 * CHUNK - asked;
        rest.write_at(&vec![7; (pages * PAGE) as usize], 0).unwrap();
        assert_eq!((world.volume.free_blocks(), file.blocks()), (0, asked));
        assert!(matches!(rest.write_at(&[7], pages * PAGE), Err(Error::NoSpace { .. })));
        let expected = |page| if page < 40 || (300..310).contains(&page) { MARK + page } else { 0 };
        assert!((0..CHUNK).all(|page| word_of(&file, page) == expected(page)));
        assert_eq!(take(&map), (0..40).collect::<Vec<_>>());
        assert_eq!(take(&other), (300..310).collect::<Vec<_>>());
        assert!(is_bus(&map.load(200 * PAGE)) && is_bus(&other.load(350 * PAGE)), "there is no page for a load");
        rest.punch_hole(0, 200 * PAGE).unwrap();
        assert_eq!((map.load(200 * PAGE), other.load(350 * PAGE)), (Ok(0), Ok(0)));
        map.store(200 * PAGE, MARK).unwrap();
        other.store(350 * PAGE, MARK).unwrap();
        assert_eq!((take(&map), take(&other)), (vec![200], vec![350]));
    }
}

/// What loads have taken is within the budget of zeros, and what somebody has asked for stays.
#[test]
fn loads_keep_within_their_budget() {
    for world in World::each_in_windows(16 * CHUNK) {
        world.volume.set_zeros_max(256 * PAGE);
        let file = world.hole("a", 8 * CHUNK);
        let map = map(&world, &file, 8 * CHUNK);
        let accesses = map.accesses().unwrap();
        let mut stored = 0;
        for page in 0..8 * CHUNK {
            assert_eq!(accesses.load(page * PAGE).unwrap(), 0);
            if page % 128 == 5 {
                accesses.store(page * PAGE + 8, MARK + page).unwrap();
                stored += 1;
            }
        }
        assert!(world.pager().stats().ahead > 1000, "loads in order take pages ahead, too");
        assert!(file.blocks() <= 256 + CHUNK + stored, "{} blocks", file.blocks());
        file.write_at(&[0; PAGE as usize], 6 * PAGE).unwrap();
        drop(map);
        assert_eq!(file.blocks(), stored + 1, "a page that was written stays, be it zeros");
        for page in (5..8 * CHUNK).step_by(128) {
            assert_eq!(page_of(&file, page)[8..16], (MARK + page).to_ne_bytes());
        }
    }
}

/// A page that has shown other bytes since somebody asked is dirty, though zeros have been stored to it since, and it is a hole now.
#[test]
fn zeros_that_were_stored_over_bytes_are_reported() {
    for world in World::each_in_windows(4 * CHUNK) {
        let file = world.hole("a", 16);
        let (exact, asynchronous) = (world.map(&file, 16), map(&world, &file, 16));
        assert_eq!((exact.load(3 * PAGE), asynchronous.load(9 * PAGE)), (Ok(0), Ok(0)));
        exact.store(3 * PAGE, MARK).unwrap();
        asynchronous.store(9 * PAGE, MARK).unwrap();
        assert_eq!(take(&exact), [3]);
        let third = map(&world, &file, 16);
        exact.store(3 * PAGE, 0).unwrap();
        third.store(9 * PAGE, 0).unwrap();
        // All that is zeros is given back.
        drop(map(&world, &file, 16));
        assert_eq!(file.blocks(), 1, "what has been reported stays");
        assert_eq!((take(&exact), take(&asynchronous), take(&third)), (vec![3], vec![9], vec![9]));
    }
}

/// Calls that write to pages which nobody has asked for have them kept.
#[test]
fn what_is_written_stays() {
    for world in World::each_in_windows(4 * CHUNK) {
        let file = world.hole("a", CHUNK);
        let map = map(&world, &file, CHUNK);
        (0..100).for_each(|page| map.store(page * PAGE, MARK).unwrap());
        assert!(file.blocks() > 120, "{}", file.blocks());
        file.write_at(&[0; 2 * PAGE as usize], 110 * PAGE).unwrap();
        file.allocate(112 * PAGE, PAGE, true).unwrap();
        map.write_at(&[0; 8], 113 * PAGE).unwrap();
        map.populate(114 * PAGE..115 * PAGE, daxpager::Access::Store).unwrap();
        drop(map);
        assert_eq!(file.blocks(), 105);
    }
}

/// A page that nobody has asked for is taken back when the volume is full, at the moment of a store that nobody is told of.
///
/// ```text
/// the volume is full                                a store to X, ahead
///   X shows zeros
///   X is a hole: published; parked
///                                                     waits in its fault; broken: lands
///   X is punched
///                                                     a page anew; broken: the store is lost
/// ```
fn taken_back_at_a_store(world: &mut World) -> Verdict {
    let file = world.hole("a", 128);
    let [map, other] = [(); 2].map(|()| map(world, &file, 128));
    other.advise(0..128 * PAGE, Advice::Random).unwrap();
    (0..20).for_each(|page| map.store(page * PAGE, MARK).unwrap());
    check(file.blocks() > 20, || "nothing was taken ahead".to_owned())?;
    let ahead = 20;
    // From here on the kernel installs what is there.
    check(other.load(0) == Ok(MARK) && other.load(ahead * PAGE) == Ok(0), || "not what is there".to_owned())?;
    let rest = world.volume.create("rest").map_err(|error| error.to_string())?;
    let parked = world
        .park
        .at(Point::Published, move |event| event.page.0 >= ahead && event.page.0 < 128 && event.file == Some(1));
    let free = world.volume.free_blocks();
    let writer = spawn(move || rest.write_at(&vec![7; ((free + 1) * PAGE) as usize], 0));
    parked.wait();
    let store = spawn_on(&other, move |map| map.store(ahead * PAGE, MARK + 1));
    let landed = store.within(WATCH);
    parked.release();
    let written = writer.join("the write")?;
    check(written.is_ok(), || format!("pages that nobody has asked for were not given back: {written:?}"))?;
    if let Some(Err(error)) = landed.clone() {
        return Err(format!("the store failed: {error}"));
    }
    if landed.is_none() {
        store.join("the store")?.map_err(|error| error.to_string())?;
    }
    let (seen, read) = (other.load(ahead * PAGE), word_of(&file, ahead));
    check(seen == Ok(MARK + 1) && read == MARK + 1, || {
        format!("a store to page {ahead} is lost: {seen:x?}, and read_at has {read:#x}")
    })?;
    check(take(&other) == [ahead], || "the store is in no collection".to_owned())
}

windows_tests!(no_store_is_lost_that_comes_while_it_is_taken_back, Rule::KeepStoresOut, 256, taken_back_at_a_store);

/// Threads store to a file in no order while another fills the volume and empties it again: what they have stored is there, and
/// reported once it is asked for.
#[test]
fn nothing_is_lost_while_pages_come_and_go() {
    const PAGES: u64 = 4 * CHUNK;
    for world in World::each_in_windows(PAGES + CHUNK) {
        let file = world.hole("a", PAGES);
        let map = map(&world, &file, PAGES);
        let done = Arc::new(AtomicBool::new(false));
        let filler = spawn({
            let (volume, done) = (world.volume.clone(), done.clone());
            move || {
                let other = volume.create("other").unwrap();
                while !done.load(Ordering::Relaxed) {
                    let mut at = 0;
                    while at < PAGES && other.write_at(&[7; PAGE as usize], at * PAGE).is_ok() {
                        at += 1;
                    }
                    other.truncate(0).unwrap();
                }
            }
        });
        let storers: Vec<_> = (0..2)
            .map(|thread| {
                spawn_on(&map, move |map| {
                    let mut state = 77 + thread;
                    let mut stored = std::collections::BTreeMap::new();
                    let stores = guard::repeats(4_000, 20_000);
                    for _ in 0..stores {
                        let (page, value) = (next(&mut state) % PAGES, next(&mut state) | 1);
                        let at = page * PAGE + 8 * thread;
                        match map.store(at, value) {
                            Ok(()) => _ = stored.insert(page, value),
                            // Full for the moment.
                            Err(Error::Bus(_)) => continue,
                            Err(other) => panic!("{other}"),
                        }
                        assert_eq!(map.load(at), Ok(value));
                    }
                    stored
                })
            })
            .collect();
        let mut dirty = BTreeSet::new();
        let mut stored = Vec::new();
        for storer in storers {
            let kept = loop {
                dirty.extend(take(&map));
                if let Some(kept) = storer.within(std::time::Duration::from_millis(5)) {
                    break kept;
                }
            };
            stored.push(kept);
        }
        done.store(true, Ordering::Relaxed);
        filler.join("the filler").unwrap();
        dirty.extend(take(&map));
        for (thread, stored) in stored.iter().enumerate() {
            for (page, value) in stored {
                let bytes = page_of(&file, *page);
                let at = 8 * thread;
                assert_eq!(bytes[at..at + 8], value.to_ne_bytes(), "page {page} of thread {thread}");
                assert!(dirty.contains(page), "a store to page {page} was never reported");
            }
        }
    }
}
