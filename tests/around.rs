//! Fault-around: how many faults sequential and random accesses take, what is installed along with a page and what
//! never is, and truncates and punches that race with a window.

mod common;

use std::sync::Arc;

use common::*;
use daxpager::probe::Point;
use daxpager::sabotage::Rule;
use daxpager::{Access, Advice, File, Injection, MapOptions, Mapping, Tracking};

const MARK: u64 = 0x4d41_524b_4d41_524b;
/// Pages in 2 MiB.
const WINDOW: u64 = 512;

/// The faults that `body` takes.
fn faults(world: &World, body: impl FnOnce()) -> u64 {
    let before = world.pager().stats().all_faults();
    body();
    world.pager().stats().all_faults() - before
}

fn coarse(world: &World, file: &File, pages: u64) -> Arc<Mapping> {
    world.map_with(file, pages, &MapOptions::new().tracking(Tracking::Coarse))
}

/// A mapping of a file of written blocks, its first page loaded: so the address points at them.
fn pointed(world: &World, pages: u64, options: &MapOptions) -> (File, Arc<Mapping>) {
    let file = world.file("a", pages, 0xaa);
    let map = world.map_with(&file, pages, options);
    map.load((pages - 1) * PAGE).unwrap();
    (file, map)
}

fn load_all(map: &Mapping, pages: impl IntoIterator<Item = u64>) {
    pages.into_iter().for_each(|page| assert_eq!(map.load(page * PAGE).unwrap(), 0xaaaa_aaaa_aaaa_aaaa, "page {page}"));
}

fn store_all(map: &Mapping, pages: impl IntoIterator<Item = u64>) {
    pages.into_iter().for_each(|page| map.store(page * PAGE, MARK + page).unwrap());
}

/// Pages in an order in which none follows another: every fault is a surprise.
fn shuffled(pages: u64) -> impl Iterator<Item = u64> {
    (0..pages).map(move |i| i * 389 % pages)
}

#[test]
fn sequential_loads_take_a_fault_for_2_mib() {
    let world = World::with_reader(8 * WINDOW, None, true);
    let (_file, map) = pointed(&world, 8 * WINDOW, &MapOptions::new());
    let before = world.pager().stats();
    let taken = faults(&world, || load_all(&map, 0..8 * WINDOW));
    let calls = world.pager().stats().calls.since(&before.calls);
    println!("{taken} faults, {calls:?}");
    assert!(taken <= 12, "{taken} faults: 1, 8 and 64 pages, then eight windows, and a page that was there");
    assert!(calls.installs + calls.wakes <= taken && calls.reads <= taken + 1, "{calls:?}");
}

#[test]
fn random_loads_take_a_fault_for_each_page() {
    let world = World::with_reader(1000, None, true);
    let (_file, map) = pointed(&world, 1000, &MapOptions::new());
    assert_eq!(faults(&world, || load_all(&map, shuffled(999))), 999);
}

#[test]
fn a_page_at_most_is_one_page() {
    let world = World::with_reader(200, None, true);
    for bytes in [0, 1, PAGE] {
        let (_file, map) = pointed(&world, 100, &MapOptions::new().fault_around(bytes));
        assert_eq!(faults(&world, || load_all(&map, 0..99)), 99, "{bytes} bytes");
        drop(map);
        world.volume.remove("a").unwrap();
    }
    let (_file, map) = pointed(&world, 100, &MapOptions::new().fault_around(4 * PAGE));
    let taken = faults(&world, || load_all(&map, 0..99));
    assert!((99 / 4..99 / 4 + 6).contains(&taken), "{taken} faults of up to four pages");
}

/// As memcpy from one part of a mapping to another, with something else in between.
#[test]
fn several_streams_in_one_thread() {
    let world = World::with_reader(6 * WINDOW, None, true);
    let (_file, map) = pointed(&world, 6 * WINDOW, &MapOptions::new());
    let taken = faults(&world, || {
        for page in 0..2 * WINDOW {
            load_all(&map, [page, 2 * WINDOW + page]);
            if page % 64 == 63 {
                load_all(&map, [4 * WINDOW + page * 389 % WINDOW]);
            }
        }
    });
    assert!(taken <= 2 * 8 + 16, "{taken} faults");
}

/// The application has touched every third page before.
#[test]
fn pages_that_are_there_are_skipped() {
    let world = World::with_reader(600, None, true);
    let (_file, map) = pointed(&world, 600, &MapOptions::new());
    load_all(&map, (0..599).filter(|page| page % 3 == 2));
    let taken = faults(&world, || load_all(&map, 0..600));
    assert!((100..=300).contains(&taken), "{taken} faults for 400 pages with gaps between");
}

/// The first store to each page is noticed, whatever has been loaded or stored before.
#[test]
fn exact_tracking_never_has_a_writable_neighbour() {
    let world = World::with_reader(600, None, true);
    let (_file, map) = pointed(&world, 600, &MapOptions::new());
    load_all(&map, 0..300);
    store_all(&map, [7, 100, 101, 102, 103, 104, 299]);
    assert_eq!(take(&map), [7, 100, 101, 102, 103, 104, 299]);
    // No entries here yet.
    store_all(&map, 300..320);
    assert_eq!(take(&map), (300..320).collect::<Vec<_>>());
    assert_eq!(faults(&world, || store_all(&map, 320..599)), 279);
    store_all(&map, [320, 7]);
    assert_eq!(take(&map), [7].into_iter().chain(320..599).collect::<Vec<_>>());
}

#[test]
fn coarse_tracking_never_loses_a_dirty_page() {
    let world = World::with_reader(2 * WINDOW, None, true);
    let (file, map) = pointed(&world, 2 * WINDOW, &MapOptions::new().tracking(Tracking::Coarse));
    let all: Vec<u64> = (0..2 * WINDOW).collect();
    // No entries, then write-protected ones, then those of loads.
    let taken = faults(&world, || store_all(&map, all.iter().copied()));
    assert!(taken <= 8, "{taken} faults");
    assert_eq!(take(&map), all);
    let taken = faults(&world, || store_all(&map, all.iter().copied()));
    assert!(taken <= 8, "{taken} write-protect faults");
    assert_eq!(take(&map), all);
    let fresh = coarse(&world, &file, 2 * WINDOW);
    fresh.load(0).unwrap();
    assert_eq!(take(&fresh), [0u64; 0], "loads make nothing dirty");
    for page in 0..2 * WINDOW {
        assert_eq!(fresh.load(page * PAGE).unwrap(), MARK + page);
    }
    assert_eq!(take(&fresh), [0u64; 0], "loads make nothing dirty");
    store_all(&fresh, shuffled(300));
    let got = take(&fresh);
    assert!((0..300).all(|page| got.contains(&page)), "{got:?}");
}

/// The end of the file, of an extent, and of the mapping, each in the middle of a window.
#[test]
fn a_window_ends_where_the_blocks_do() {
    let world = World::with_reader(400, None, true);
    let file = world.file("a", 100, 0xaa);
    // Blocks past the end of the file, and a file that ends within a page.
    file.allocate(0, 120 * PAGE, true).unwrap();
    file.write_at(&[0xaa; 8], 100 * PAGE).unwrap();
    let map = world.map(&file, 300);
    load_all(&map, 0..101);
    for page in 101..103 {
        assert!(is_bus(&map.load(page * PAGE)), "page {page} is past the end");
    }
    // A hole, and behind it other blocks.
    file.punch_hole(50 * PAGE, 3 * PAGE).unwrap();
    let other = world.file("other", 3, 0xbb);
    file.write_at(&[0xaa; PAGE as usize], 52 * PAGE).unwrap();
    let part = Arc::new(world.pager().map(&file, 10 * PAGE..90 * PAGE).unwrap());
    load_all(&part, 0..40);
    assert_eq!(part.load(40 * PAGE), Ok(0));
    assert_eq!(part.load(41 * PAGE), Ok(0));
    load_all(&part, 42..80);
    drop(part);
    assert_eq!(page_of(&other, 2), vec![0xbb; PAGE as usize]);
}

/// A fault on page 8 is worth all that is behind it. What a stream is worth is a hint, and can be lost: its thread runs on, and
/// faults again, before the worker that has answered it writes down what it expects.
fn ask_for_a_window_at_8(map: &Mapping) {
    map.advise(8 * PAGE..64 * PAGE, Advice::Sequential).unwrap();
}

/// A window reaches to a page that is about to be taken away and given to another file.
///
/// ```text
/// load of page 8                            punch of page 20
///   L2 shared: pages 8 to 63; parked
///                                             L2 exclusive: waits
///   install all of them
///   unlock
///                                             zap, free; B takes the block
/// load of page 20: faults
/// ```
fn window_against_punch(world: &mut World) -> Verdict {
    let a = world.file("a", 64, 0xaa);
    let map = world.map(&a, 64);
    map.load(63 * PAGE).unwrap();
    ask_for_a_window_at_8(&map);
    let parked = world.park.at_page(Point::Decided, 8);
    let load = spawn({
        let map = map.clone();
        move || (0..63).try_for_each(|page| map.load(page * PAGE).map(drop))
    });
    parked.wait();
    let punch = spawn({
        let a = a.clone();
        move || a.punch_hole(20 * PAGE, PAGE)
    });
    let waits = punch.within(watch()).is_none();
    if waits {
        parked.release();
        punch.join("the punch")?.unwrap();
    }
    let b = world.file("b", 1, 0xbb);
    parked.release();
    load.join("the loads")?.map_err(|error| error.to_string())?;
    check(map.load(20 * PAGE) == Ok(0), || "a punched page shows another file's bytes".to_owned())?;
    map.store(20 * PAGE, MARK).unwrap();
    check(page_of(&b, 0) == vec![0xbb; PAGE as usize], || "a store went into another file".to_owned())
}

rule_test!(window_parked_while_a_page_of_it_is_punched, Rule::GuardThroughInstall, 66, window_against_punch);

/// The same with a truncate, and stores that would go into another file's blocks.
fn window_against_truncate(world: &mut World) -> Verdict {
    let a = world.file("a", 64, 0xaa);
    let map = coarse(world, &a, 64);
    map.load(0).unwrap();
    ask_for_a_window_at_8(&map);
    let parked = world.park.at_page(Point::Decided, 8);
    let store = spawn({
        let map = map.clone();
        move || (0..9).try_for_each(|page| map.store(page * PAGE, MARK))
    });
    parked.wait();
    let truncate = spawn({
        let a = a.clone();
        move || a.truncate(9 * PAGE)
    });
    if truncate.within(watch()).is_none() {
        parked.release();
        truncate.join("the truncate")?.unwrap();
    }
    let b = world.file("b", 55, 0xbb);
    parked.release();
    store.join("the store")?.map_err(|error| error.to_string())?;
    for page in 9..64 {
        check(map.store(page * PAGE, MARK).is_err(), || format!("a store past the end, to page {page}, got through"))?;
    }
    check((0..55).all(|page| page_of(&b, page) == vec![0xbb; PAGE as usize]), || "B has changed".to_owned())?;
    check(take(&map) == (0..9).collect::<Vec<_>>(), || "a page past the end is dirty".to_owned())
}

rule_test!(window_parked_while_its_file_is_truncated, Rule::GuardThroughInstall, 64, window_against_truncate);

/// What is marked late would be lost.
fn stores_beside_a_window(world: &mut World) -> Verdict {
    let a = world.file("a", 64, 0xaa);
    let map = coarse(world, &a, 64);
    store_all(&map, 0..64);
    let got = take(&map);
    check(got == (0..64).collect::<Vec<_>>(), || format!("of 64 pages stored to these are dirty: {got:?}"))
}
rule_test!(neighbours_are_marked_dirty, Rule::MarkDirty, 64, stores_beside_a_window);

/// A file that is one hole, and a mapping of it with coarse tracking.
fn hole(world: &World, name: &str, pages: u64) -> (File, Arc<Mapping>) {
    let file = world.hole(name, pages);
    let map = coarse(world, &file, pages);
    (file, map)
}

#[test]
fn sequential_stores_into_a_hole_take_few_faults() {
    let world = World::with_reader(16 * WINDOW, None, true);
    let (file, map) = hole(&world, "a", 4 * WINDOW);
    let before = world.pager().stats();
    let taken = faults(&world, || store_all(&map, 0..4 * WINDOW));
    let after = world.pager().stats();
    assert!(taken <= 10, "{taken} faults");
    assert!(after.repoints - before.repoints <= taken, "one re-point for a run");
    assert_eq!(file.fiemap().len(), 1, "in one piece: {:?}", file.fiemap());
    assert_eq!(take(&map), (0..4 * WINDOW).collect::<Vec<_>>());
    for page in 0..4 * WINDOW {
        let bytes = page_of(&file, page);
        assert_eq!(bytes[..8], (MARK + page).to_ne_bytes(), "page {page}");
        assert!(bytes[8..].iter().all(|byte| *byte == 0), "page {page} shows what the block held");
    }
}

/// Blocks that another file has had: zeroed before anybody can see them.
fn secrets_in_a_run(world: &mut World) -> Verdict {
    drop(world.file("secret", 256, 0x5e));
    world.volume.remove("secret").unwrap();
    let (file, map) = hole(world, "a", 200);
    store_all(&map, 0..20);
    let shows = (0..200).find(|page| (8..PAGE).step_by(8).any(|at| map.load(page * PAGE + at) != Ok(0)));
    check(shows.is_none(), || format!("page {shows:?} shows another file's bytes"))?;
    check((0..200).all(|page| page_of(&file, page)[8..].iter().all(|byte| *byte == 0)), || "read shows them".to_owned())
}
rule_test!(a_run_is_zeroed, Rule::ZeroNewBlock, 256, secrets_in_a_run);

/// Another mapping has loaded the hole before: its zeros must go when the run is published.
fn zeros_over_a_run(world: &mut World) -> Verdict {
    let (file, map) = hole(world, "a", 64);
    let other = world.map(&file, 64);
    (0..64).for_each(|page| assert_eq!(other.load(page * PAGE), Ok(0)));
    store_all(&map, 0..64);
    let lost = (0..64).find(|page| other.load(page * PAGE) != Ok(MARK + page));
    check(lost.is_none(), || format!("the other mapping still shows zeros on page {lost:?}"))
}
rule_test!(a_run_takes_zeros_away, Rule::ZapZerosOnAllocate, 256, zeros_over_a_run);

#[test]
fn exact_tracking_allocates_what_is_stored_to() {
    let world = World::with_reader(200, None, true);
    let file = world.volume.create("a").unwrap();
    file.truncate(100 * PAGE).unwrap();
    let map = world.map(&file, 100);
    store_all(&map, 0..20);
    assert_eq!(file.blocks(), 20);
    assert_eq!(take(&map), (0..20).collect::<Vec<_>>());
}

/// What nobody has stored to is given back when the mapping goes, and when the file is truncated to the size it has.
#[test]
fn blocks_ahead_are_given_back() {
    let world = World::with_reader(1000, None, true);
    let give_back: [fn(&File, Arc<Mapping>); 2] = [|_, map| drop(map), |file, _map| file.truncate(file.len()).unwrap()];
    for give_back in give_back {
        let (file, map) = hole(&world, "a", 200);
        store_all(&map, 0..20);
        // One in the middle of what has been allocated ahead.
        map.store(40 * PAGE, MARK).unwrap();
        assert!(file.blocks() > 21, "{} blocks", file.blocks());
        give_back(&file, map);
        let kept = file.blocks();
        assert!(kept == 21, "{kept} blocks");
        assert_eq!(page_of(&file, 19)[..8], (MARK + 19).to_ne_bytes());
        assert_eq!(page_of(&file, 40)[..8], MARK.to_ne_bytes());
        let again = world.map(&file, 200);
        assert_eq!((again.load(39 * PAGE), again.load(40 * PAGE)), (Ok(0), Ok(MARK)));
        again.store(39 * PAGE, 1).unwrap();
        drop(again);
        world.volume.remove("a").unwrap();
    }
}

/// A page of which a stream has allocated more than it stored is looked at byte by byte: a store of zeros is not seen, and not dirty
/// once the block is given back. It reads the same.
#[test]
fn a_store_of_zeros_is_not_dirty_once_its_block_is_given_back() {
    let world = World::with_reader(1000, None, true);
    let (file, map) = hole(&world, "a", 200);
    store_all(&map, 0..20);
    assert!(file.blocks() > 25, "{} blocks", file.blocks());
    map.store(24 * PAGE, 0).unwrap();
    map.store(25 * PAGE, MARK).unwrap();
    file.truncate(file.len()).unwrap();
    assert_eq!(file.blocks(), 21);
    assert_eq!(take(&map), (0..20).chain([25]).collect::<Vec<_>>());
    assert_eq!((map.load(24 * PAGE), map.load(25 * PAGE)), (Ok(0), Ok(MARK)));
}

/// Once it has been reported it is not taken back: it has shown other bytes.
#[test]
fn a_store_of_zeros_over_what_was_reported_is_dirty() {
    let world = World::with_reader(1000, None, true);
    let (file, map) = hole(&world, "a", 200);
    store_all(&map, 0..20);
    map.store(24 * PAGE, MARK).unwrap();
    assert!(take(&map).contains(&24));
    map.store(24 * PAGE, 0).unwrap();
    file.truncate(file.len()).unwrap();
    assert_eq!(take(&map), [24]);
}

/// What becomes of a store's mark when its page is zeroed or punched before it is taken.
#[test]
fn what_is_zeroed_stays_dirty_and_what_is_punched_away_does_not() {
    let world = World::with_reader(1000, None, true);
    for tracking in [Tracking::Exact, Tracking::Coarse, Tracking::Asynchronous] {
        let file = world.file("a", 8, 0xaa);
        let options = MapOptions::new().tracking(tracking).fault_around(0);
        let map = world.map_with(&file, 8, &options);
        load_all(&map, 0..8);
        // Not page 1.
        store_all(&map, [0, 2, 3, 4, 5, 7]);
        // Wholly and in part.
        file.zero_range(0, 3 * PAGE, true).unwrap();
        file.zero_range(3 * PAGE + 16, 8, true).unwrap();
        file.punch_hole(4 * PAGE, PAGE).unwrap();
        file.punch_hole(5 * PAGE, 8).unwrap();
        file.truncate(7 * PAGE).unwrap();
        assert_eq!(take(&map), [0, 2, 3, 5], "{tracking:?}");
        assert!(take(&map).is_empty(), "{tracking:?}");
        drop((map, file));
        world.volume.remove("a").unwrap();
    }
}

/// Another mapping's entries of such a page go first: a store through it is kept, or faults anew.
#[test]
fn giving_back_loses_no_store_through_another_mapping() {
    let world = World::with_reader(1000, None, true);
    let (file, map) = hole(&world, "a", 200);
    store_all(&map, 0..20);
    let other = world.map(&file, 200);
    other.store(50 * PAGE, MARK).unwrap();
    assert_eq!(other.load(51 * PAGE), Ok(0));
    drop(map);
    assert_eq!(other.load(50 * PAGE), Ok(MARK));
    other.store(51 * PAGE, MARK + 1).unwrap();
    assert_eq!(page_of(&file, 51)[..8], (MARK + 1).to_ne_bytes());
    assert_eq!(file.blocks(), 22);
}

/// Blocks that somebody has asked for meanwhile stay, zeros or not.
#[test]
fn what_is_asked_for_is_not_given_back() {
    let world = World::with_reader(1000, None, true);
    let (file, map) = hole(&world, "a", 64);
    store_all(&map, 0..10);
    assert_eq!(file.blocks(), 64);
    file.write_at(&[0; PAGE as usize], 20 * PAGE).unwrap();
    file.allocate(30 * PAGE, 2 * PAGE, true).unwrap();
    map.write_at(&[0; 8], 40 * PAGE).unwrap();
    drop(map);
    assert_eq!(file.blocks(), 10 + 1 + 2 + 1);
}

/// A store does not fail while blocks are held that nobody has asked for, and neither does a write.
#[test]
fn a_full_volume_takes_back_what_is_ahead() {
    let world = World::with_reader(100, None, true);
    let (a, stream) = hole(&world, "a", 64);
    store_all(&stream, 0..10);
    let ahead = a.blocks() - 10;
    assert!(ahead > 0);
    let free = world.volume.free_blocks();
    let b = world.volume.create("b").unwrap();
    b.write_at(&vec![0xbb; ((free + 1) * PAGE) as usize], 0).unwrap();
    assert_eq!(a.blocks(), 10);
    let (_c, map) = hole(&world, "c", 200);
    (0..world.volume.free_blocks()).for_each(|page| map.store(page * 2 % 200 * PAGE, MARK).unwrap());
    assert!((0..10).all(|page| stream.load(page * PAGE) == Ok(MARK + page)));
    assert_eq!(stream.load(11 * PAGE), Ok(0));
    // The stream goes on where it was, as far as there are blocks.
    let full = stream.store(12 * PAGE, MARK).map(|()| 0);
    assert!(is_bus(&full), "{full:?}");
}

/// On a page table that refuses, is beaten to it, and does half of what it is told.
#[test]
fn windows_bear_what_is_put_in() {
    let injection = Injection {
        seed: 7,
        again_ppm: 20_000,
        exist_ppm: 50_000,
        nomem_ppm: 20_000,
        partial_ppm: 300_000,
        ..Injection::default()
    };
    let world = World::injected(8 * WINDOW, None, true, injection);
    for round in 0..8 {
        let name = format!("{round}");
        let (file, map) = hole(&world, &name, WINDOW);
        let all: Vec<u64> = (0..WINDOW).collect();
        store_all(&map, all.iter().copied());
        assert_eq!(take(&map), all, "stores into a hole");
        store_all(&map, all.iter().copied());
        assert_eq!(take(&map), all, "stores to protected pages");
        let other = world.map(&file, WINDOW);
        other.populate(0..WINDOW / 2 * PAGE, Access::Load).unwrap();
        all.iter().for_each(|page| assert_eq!(other.load(page * PAGE), Ok(MARK + page)));
        other.populate(0..WINDOW * PAGE, Access::Store).unwrap();
        assert_eq!(take(&other), all);
    }
    let put_in = world.pager().injected();
    assert!(put_in.iter().all(|(name, count)| *count > 0 || ["delay", "duplicate"].contains(name)), "{put_in:?}");
}

/// A stream goes on behind pages that nobody has stored to. They are given back all the same: to a write and a store that run
/// short, when the mapping goes, and when the file is truncated.
#[test]
fn what_a_stream_has_skipped_is_given_back() {
    type GiveBack = fn(&World, &File, Arc<Mapping>);
    let short: [(&str, GiveBack); 4] = [
        ("a write", |world, _, _map| {
            let other = world.volume.create("other").unwrap();
            assert_eq!(other.write_at(&vec![0xbb; (61 * PAGE) as usize], 0), Ok((61 * PAGE) as usize));
        }),
        ("a store", |world, _, _map| {
            let other = world.volume.create("other").unwrap();
            other.truncate(61 * PAGE).unwrap();
            let stores = world.map(&other, 61);
            store_all(&stores, shuffled(61));
        }),
        ("a mapping that goes", |_, _, map| drop(map)),
        ("a truncate to the same size", |_, file, _map| file.truncate(file.len()).unwrap()),
    ];
    for (what, give_back) in short {
        // What a stream is told by is a hint, which another thread may overwrite.
        let mut worlds = (0..100).map(|_| {
            let world = World::with_reader(64, None, true);
            let (file, map) = hole(&world, "a", 200);
            store_all(&map, [0, 1, 8]);
            (world, file, map)
        });
        let (world, file, map) = worlds.find(|(_, file, _)| file.blocks() > 9).expect("no stream is ever continued");
        give_back(&world, &file, map);
        assert_eq!(file.blocks(), 3, "after {what}");
        assert!([0, 1, 8].iter().all(|page| page_of(&file, *page)[..8] == (MARK + page).to_ne_bytes()), "after {what}");
    }
}

mod sums {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 40;
    const BLOCKS: u64 = 48;

    #[derive(Clone, Debug)]
    enum Step {
        Store(usize, u64),
        /// Stores to pages that follow each other.
        Stream(usize, u64, u64),
        Write(usize, u64, u64),
        Punch(usize, u64, u64),
        Truncate(usize, u64),
        Remap(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let file = 0..2usize;
        let range = (0..PAGES, 1..16u64);
        prop_oneof![
            3 => (file.clone(), 0..PAGES).prop_map(|(file, page)| Step::Store(file, page)),
            4 => (file.clone(), range.clone()).prop_map(|(file, (start, pages))| Step::Stream(file, start, pages)),
            2 => (file.clone(), range.clone()).prop_map(|(file, (start, pages))| Step::Write(file, start, pages)),
            2 => (file.clone(), range).prop_map(|(file, (start, pages))| Step::Punch(file, start, pages)),
            1 => (file.clone(), 0..=PAGES).prop_map(|(file, pages)| Step::Truncate(file, pages)),
            1 => file.prop_map(Step::Remap),
        ]
    }

    fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
        let world = World::with_reader(BLOCKS, None, true);
        let files = ["a", "b"].map(|name| world.volume.create(name).unwrap());
        files.iter().for_each(|file| file.truncate(PAGES * PAGE).unwrap());
        let mut maps = files.clone().map(|file| Some(coarse(&world, &file, PAGES)));
        // The pages that have been asked for.
        let mut owned = [BTreeSet::new(), BTreeSet::new()];
        let taken = |owned: &[BTreeSet<u64>; 2]| (owned[0].len() + owned[1].len()) as u64;
        for step in steps {
            match step.clone() {
                Step::Store(file, start) | Step::Stream(file, start, _) => {
                    let pages = if let Step::Stream(_, _, pages) = step { pages } else { 1 };
                    for page in start..(start + pages).min(files[file].len() / PAGE) {
                        let fits = owned[file].contains(&page) || taken(&owned) < BLOCKS;
                        let stored = maps[file].as_ref().unwrap().store(page * PAGE, MARK + page);
                        prop_assert_eq!(stored.is_ok(), fits, "{:?}, page {}: {:?}", step, page, stored);
                        if fits {
                            owned[file].insert(page);
                        }
                    }
                }
                Step::Write(file, start, pages) => {
                    let end = (start + pages).min(PAGES);
                    let new = (start..end).filter(|page| !owned[file].contains(page)).count() as u64;
                    let fits = taken(&owned) + new <= BLOCKS;
                    let wrote = files[file].write_at(&vec![0xbb; ((end - start) * PAGE) as usize], start * PAGE);
                    prop_assert_eq!(wrote.is_ok(), fits, "{:?}: {:?}", step, wrote);
                    if fits {
                        owned[file].extend(start..end);
                    }
                }
                Step::Punch(file, start, pages) => {
                    files[file].punch_hole(start * PAGE, pages * PAGE).unwrap();
                    owned[file].retain(|page| !(start..start + pages).contains(page));
                }
                Step::Truncate(file, pages) => {
                    files[file].truncate(pages * PAGE).unwrap();
                    owned[file].retain(|page| *page < pages);
                }
                Step::Remap(file) => {
                    maps[file] = None;
                    maps[file] = Some(coarse(&world, &files[file], PAGES));
                }
            }
        }
        drop(maps);
        for (file, owned) in files.iter().zip(&owned) {
            prop_assert_eq!(file.blocks(), owned.len() as u64);
        }
        prop_assert_eq!(world.volume.free_blocks(), BLOCKS - taken(&owned));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]
        /// At rest, what files own by their bytes and what is free is the volume; and until it is really full, neither a store nor
        /// a write is refused.
        #[test]
        fn owned_and_free_are_the_volume(steps in proptest::collection::vec(step(), 1..40)) {
            run(steps)?;
        }
    }
}
