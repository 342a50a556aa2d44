//! Stores, write calls, punches and collections on one page.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use daxpager::sabotage::Rule;
use shuttle::sync::atomic::AtomicBool;
use shuttle::thread;

use crate::world::{OLD, PAGE, Plan, View, join};

/// A store to a page that has been loaded, against a punch, and nobody else whose answer could wake its thread by chance.
pub fn mkwrite(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let view = world.map(&world.file("a", 1), 1);
    let writer = view.spawn(|view| {
        let seen = view.load(0, 2);
        assert!(matches!(seen, Ok(0 | OLD)), "{seen:?}");
        view.store(0, 0, 0x10).unwrap();
    });
    view.file.punch_hole(0, PAGE).unwrap();
    join([writer]);
    drop(view);
    world.end();
}

/// Two writers, each with a word of its own, against a punch. What was in the page before is gone once the punch has
/// returned, for everybody and for good.
pub fn punch(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let view = world.map(&world.file("a", 1), 1);
    let puncher = view.spawn(|view| {
        view.file.punch_hole(0, PAGE).unwrap();
        assert_eq!(view.load(0, 2), Ok(0), "the punch is undone");
    });
    let threads = [view.writer(0, 0, 0x10), view.writer(0, 1, 0x20), puncher];
    join(threads);
    assert_eq!(view.load(0, 2), Ok(0));
    drop(view);
    world.end();
}

/// Two writers store to one hole, and a third thread has its zeros mapped; two workers, so that both find no block. No
/// store is lost, and who has mapped zeros sees the block.
pub fn two_stores(broken: Option<Rule>) {
    let world = Plan { workers: 2, ..Plan::blocks(4) }.build(broken);
    let file = world.volume.create("a").unwrap();
    file.truncate(PAGE).unwrap();
    let (view, other) = (world.map(&file, 1), world.map(&file, 1));
    let writer = |view: &View, word, value| {
        view.spawn(move |view| {
            view.store(0, word, value).unwrap();
            assert_eq!(view.load(0, word), Ok(value), "the store is lost");
        })
    };
    let reader = other.spawn(|other| {
        assert!(matches!(other.load(0, 0), Ok(0 | 7)));
    });
    let first = writer(&view, 0, 7);
    join([first, writer(&other, 1, 8), reader]);
    for view in [&view, &other] {
        assert_eq!((view.load(0, 0), view.load(0, 1)), (Ok(7), Ok(8)));
    }
    drop((view, other));
    world.end();
}

/// A store through the mapping, a write call and a punch on one page. What the call has written is there, or a hole.
pub fn write_at(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let view = world.map(&world.file("a", 1), 1);
    let caller = view.spawn(|view| {
        view.file.write_at(&0x30u64.to_ne_bytes(), 8).unwrap();
        let seen = view.load(0, 1);
        assert!(matches!(seen, Ok(0 | 0x30)), "{seen:?}");
    });
    let puncher = view.spawn(|view| {
        view.file.punch_hole(0, PAGE).unwrap();
        assert_eq!(view.load(0, 2), Ok(0), "the punch is undone");
    });
    join([view.writer(0, 0, 0x10), caller, puncher]);
    drop(view);
    world.end();
}

/// A store and a write call to one page of a hole: the one that comes second leaves the first alone.
pub fn store_and_write(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let view = world.map(&world.volume.create("a").unwrap(), 1);
    view.file.truncate(PAGE).unwrap();
    let storer = view.spawn(|view| {
        view.store(0, 0, 0x10).unwrap();
        assert_eq!(view.load(0, 0), Ok(0x10), "a store is gone");
    });
    let caller = view.spawn(|view| {
        view.file.write_at(&0x30u64.to_ne_bytes(), 8).unwrap();
        assert_eq!(view.load(0, 1), Ok(0x30), "a write is gone");
    });
    join([storer, caller]);
    assert_eq!((view.load(0, 0), view.load(0, 1)), (Ok(0x10), Ok(0x30)));
    drop(view);
    world.end();
}

/// Dirty pages are collected while a thread stores. At any moment a page to which a store would go unnoticed is
/// dirty already.
pub fn dirty(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let view = world.map(&world.file("a", 1), 1);
    let collector = view.spawn(|view| {
        view.map.take_dirty().unwrap();
        view.map.take_dirty().unwrap();
    });
    join([view.writer(0, 0, 0x10), collector]);
    drop(view);
    world.end();
}

/// A thread that stores and loads gets there though another punches its page in a loop.
pub fn progress(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let view = world.map(&world.file("a", 1), 1);
    let stop = Arc::new(AtomicBool::new(false));
    let going = stop.clone();
    let puncher = view.spawn(move |view| {
        while !going.load(Ordering::SeqCst) {
            view.file.punch_hole(0, PAGE).unwrap();
            thread::yield_now();
        }
    });
    join([view.writer(0, 0, 0x10)]);
    stop.store(true, Ordering::SeqCst);
    join([puncher]);
    drop(view);
    world.end();
}
