//! Zeros that loads leave in holes of files with windows, and that are taken back.

use daxpager::Tracking;
use daxpager::sabotage::Rule;

use crate::world::{PAGE, Plan, join, loads_take_pages};

/// There may be one page of zeros. A load of another hole takes it back, while its own reader stores to it.
pub fn zeros(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    world.volume.set_zeros_max_even_one(PAGE);
    let file = world.volume.create("a").unwrap();
    file.truncate(3 * PAGE).unwrap();
    let view = world.map(&file, 3);
    assert_eq!(view.load(0, 0), Ok(0));
    let storer = view.spawn(|view| {
        view.store(0, 0, 0x10).unwrap();
        assert_eq!(view.load(0, 0), Ok(0x10), "the store is lost");
    });
    let loader = view.spawn(|view| {
        assert_eq!(view.load(1, 0), Ok(0));
        assert_eq!(view.load(2, 0), Ok(0));
    });
    join([storer, loader]);
    let mut word = [0; 8];
    file.read_at(&mut word, 0).unwrap();
    assert_eq!((u64::from_ne_bytes(word), view.load(0, 0)), (0x10, Ok(0x10)), "the store is lost");
    // What a load has taken is taken back as zeros are.
    let blocks = file.blocks();
    assert!(blocks == 1 || loads_take_pages() && blocks == 2, "{blocks} blocks");
    drop((view, file));
    world.end();
}

/// A page becomes one that the kernel installs by itself, while it is stored to, punched, written and collected. What is there in the end
/// without a dirty bit is protected: `hunt` asks that of every entry at every step.
pub fn armed(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let file = world.volume.create("a").unwrap();
    file.write_at(&vec![1; 3 * PAGE as usize], 0).unwrap();
    let view = world.map(&file, 3);
    let old = u64::from_ne_bytes([1; 8]);
    let storer = view.spawn(move |view| {
        // Not the first page: that may be the beginning of a stream.
        let seen = view.load(1, 0).unwrap();
        assert!(seen == old || seen == 0, "another's bytes: {seen:#x}");
        view.store(1, 0, 0x10).unwrap();
        let seen = view.load(1, 0).unwrap();
        assert!(seen == 0x10 || seen == 0, "stored 0x10, and sees {seen:#x}");
    });
    let churner = view.spawn(|view| {
        view.file.punch_hole(PAGE, PAGE).unwrap();
        assert_eq!(view.file.write_at(&0x20_u64.to_ne_bytes(), PAGE + 8), Ok(8));
        let seen = view.load(1, 1).unwrap();
        assert_eq!(seen, 0x20);
    });
    let collector = view.spawn(|view| _ = view.map.take_dirty().unwrap());
    join([storer, churner, collector]);
    view.map.take_dirty().unwrap();
    view.store(1, 2, 0x30).unwrap();
    assert_eq!(view.map.take_dirty().unwrap(), [PAGE..2 * PAGE], "a store is in no collection");
    assert_eq!(view.load(1, 1), Ok(0x20));
    drop((view, file));
    world.end();
}

/// A mapping is made that lets stores through to what is present, while loads of a tracked one leave zeros in holes and a page is punched and
/// written. `hunt` asks of every entry, at every step, that a store to what is no page of the file's would be noticed.
pub fn open(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let file = world.volume.create("a").unwrap();
    file.truncate(3 * PAGE).unwrap();
    let tracked = world.map(&file, 3);
    let loader = tracked.spawn(|view| {
        for page in 0..2 {
            let seen = view.load(page, 0).unwrap();
            assert!(seen == 0 || seen == 0x10 + page, "another's bytes: {seen:#x}");
        }
    });
    let churner = tracked.spawn(|view| {
        view.file.punch_hole(2 * PAGE, PAGE).unwrap();
        assert_eq!(view.file.write_at(&0x20_u64.to_ne_bytes(), 2 * PAGE + 8), Ok(8));
        assert_eq!(view.load(2, 1), Ok(0x20));
    });
    let open = world.map_tracked(&file, 3, Tracking::Off);
    for page in 0..2 {
        open.store(page, 0, 0x10 + page).unwrap();
        assert_eq!(open.load(page, 0), Ok(0x10 + page), "the store is lost");
    }
    join([loader, churner]);
    world.volume.set_zeros_max(0);
    let mut word = [0; 8];
    for page in 0..2 {
        file.read_at(&mut word, page * PAGE).unwrap();
        assert_eq!(
            (u64::from_ne_bytes(word), tracked.load(page, 0)),
            (0x10 + page, Ok(0x10 + page)),
            "the store is lost"
        );
    }
    assert_eq!(open.load(2, 1), Ok(0x20));
    assert_eq!(file.blocks(), 3);
    drop((open, tracked, file));
    world.end();
}

/// Pages are taken ahead of stores, and taken back when another file is written that needs them, while they are stored to through a mapping
/// in which the kernel installs what is present and lets stores through.
pub fn ahead(broken: Option<Rule>) {
    let world = Plan::blocks(6).build(broken);
    let (file, other) = (world.volume.create("a").unwrap(), world.volume.create("b").unwrap());
    file.truncate(4 * PAGE).unwrap();
    let [first, second] = [(); 2].map(|()| world.map_tracked(&file, 4, Tracking::Asynchronous));
    (0..2).for_each(|page| first.store(page, 0, 0x10 + page).unwrap());
    // Not the first page: that may be the beginning of a stream.
    assert_eq!(second.load(1, 0), Ok(0x11));
    let storer = second.spawn(|view| {
        for page in 2..4 {
            // There may be no page for it.
            if view.store(page, 0, 0x10 + page).is_ok() {
                assert_eq!(view.load(page, 0), Ok(0x10 + page), "the store is lost");
            }
        }
    });
    let loader = first.spawn(|view| {
        let seen = view.load(3, 0);
        assert!(seen.is_err() || [0, 0x13].contains(&seen.unwrap()), "another's bytes: {seen:x?}");
    });
    let written = other.write_at(&vec![1; 4 * PAGE as usize], 0);
    join([storer, loader]);
    let dirty = [&first, &second].map(|view| view.map.take_dirty().unwrap());
    for page in 0..4 {
        let mut word = [0; 8];
        file.read_at(&mut word, page * PAGE).unwrap();
        let word = u64::from_ne_bytes(word);
        let is_dirty = dirty.iter().flatten().any(|range| range.contains(&(page * PAGE)));
        if word != 0 {
            assert_eq!(word, 0x10 + page, "another's bytes");
            assert!(is_dirty, "a store is in no collection");
        }
        assert!(page >= 2 || word != 0, "the store is lost");
        if written.is_err() {
            assert_eq!(word, 0x10 + page, "the store is lost: there was a page for it");
        }
    }
    assert!(written.is_ok() || file.blocks() > 2, "pages that nobody has asked for are not given back");
    drop((first, second, file, other));
    world.end();
}
