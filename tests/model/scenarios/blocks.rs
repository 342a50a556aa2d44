//! Blocks that go from one page to another, and too few of them.

use daxpager::sabotage::Rule;
use shuttle::thread;

use crate::world::{PAGE, Plan, join, loads_take_pages};

/// A punch of one file gives its block to anheir. Whoever stores through the old mapping never reaches the new owner,
/// and never sees what that has stored.
pub fn trade(broken: Option<Rule>) {
    let world = Plan::blocks(2).build(broken);
    let (mine, theirs) = (world.map(&world.file("a", 1), 1), world.map(&world.volume.create("b").unwrap(), 1));
    theirs.file.truncate(PAGE).unwrap();
    let owner = mine.writer(0, 0, 0x10);
    let puncher = mine.spawn(|view| {
        view.file.punch_hole(0, PAGE).unwrap();
        assert_eq!(view.load(0, 2), Ok(0), "the punch is undone");
    });
    let heir = theirs.spawn(|view| {
        for value in [0xb0, 0xb1] {
            view.store(0, 0, value).unwrap();
            assert_eq!(view.load(0, 0), Ok(value), "another file's store");
            assert_eq!(view.load(0, 2), Ok(0), "another file's bytes");
        }
    });
    join([owner, puncher, heir]);
    assert_eq!(theirs.load(0, 0), Ok(0xb1));
    drop((mine, theirs));
    world.end();
}

/// How often a write call is tried while the volume is full.
const HEIR_TRIES: u32 = 5;

/// There is one block. A punch takes it from a file whose mapping can be stored to without a fault, and a write call gives
/// it to another file: no store through the mapping gets there.
pub fn one_block(broken: Option<Rule>) {
    let world = Plan::blocks(1).build(broken);
    let (view, heir) = (world.map(&world.file("a", 1), 1), world.volume.create("b").unwrap());
    view.store(0, 0, 0x10).unwrap();
    let owner = view.spawn(|view| {
        for value in [0x11, 0x12] {
            let stored = view.store(0, 0, value);
            assert!(stored.is_ok() || stored == view.bus(0, 0), "{stored:?}");
        }
    });
    let puncher = view.spawn(|view| view.file.punch_hole(0, PAGE).unwrap());
    let caller = thread::spawn(move || {
        // The block may have gone back to the first file, for good.
        for _ in 0..HEIR_TRIES {
            if heir.write_at(&0xb0u64.to_ne_bytes(), 0).is_ok() {
                let mut word = [0; 8];
                heir.read_at(&mut word, 0).unwrap();
                assert_eq!(u64::from_ne_bytes(word), 0xb0, "a store through the mapping of another file");
                return;
            }
            thread::yield_now();
        }
    });
    join([owner, puncher, caller]);
    drop(view);
    world.end();
}

/// Two pages want the only block, and one of them is punched. A store that gets none is a SIGBUS for its thread alone:
/// a load of the hole is not.
pub fn full(broken: Option<Rule>) {
    let world = Plan::blocks(1).build(broken);
    let file = world.volume.create("a").unwrap();
    file.truncate(2 * PAGE).unwrap();
    let view = world.map(&file, 2);
    let storer = |page| {
        view.spawn(move |view| {
            let stored = view.store(page, 0, 0x10 + page);
            assert!(stored.is_ok() || stored == view.bus(page, 0), "{stored:?}");
            let seen = view.load(page, 0);
            let refused = loads_take_pages() && seen == view.bus(page, 0);
            assert!(refused || seen == Ok(0) || seen == Ok(0x10 + page), "{seen:?}");
        })
    };
    let loader = view.spawn(|view| {
        let seen = view.load(1, 1);
        assert!(seen == Ok(0) || loads_take_pages() && seen == view.bus(1, 1), "{seen:?}");
        view.file.punch_hole(0, PAGE).unwrap();
    });
    join([storer(0), storer(1), loader]);
    drop(view);
    world.end();
}
