//! Files, mappings and pagers that end, or grow.

use std::sync::atomic::{AtomicU64, Ordering};

use daxpager::fake::{FakeFault, FakePageTable};
use daxpager::sabotage::Rule;
use shuttle::thread;

use crate::world::{OLD, PAGE, Plan, View, join};

/// A file is cut to one page and grown again, while a writer and a reader are on the second. In the end that is a
/// hole inside the file, and never shows what was in it before.
pub fn truncate(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let view = world.map(&world.file("a", 2), 2);
    let cutter = view.spawn(|view| {
        view.file.truncate(PAGE).unwrap();
        view.file.truncate(2 * PAGE).unwrap();
        assert_eq!(view.load(1, 2), Ok(0), "the truncate is undone");
    });
    let writer = view.spawn(|view| {
        for value in [0x10, 0x11] {
            let stored = view.store(1, 0, value);
            assert!(stored.is_ok() || stored == view.bus(1, 0), "{stored:?}");
            let seen = view.load(1, 0);
            assert!(matches!(seen, Ok(0 | 0x10 | 0x11)) || seen == view.bus(1, 0), "{seen:?}");
        }
    });
    let reader = view.spawn(|view| {
        let seen = [view.load(1, 2), view.load(1, 2)];
        assert!(seen != [Ok(0), Ok(OLD)], "the old bytes are back");
    });
    join([cutter, writer, reader]);
    assert_eq!(view.load(1, 2), Ok(0));
    drop(view);
    world.end();
}

/// A file grows while threads fault past its end: once it has grown, no access to the new page is a SIGBUS.
pub fn past_the_end(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let view = world.map(&world.file("a", 1), 2);
    let early = |view: &View| {
        view.spawn(|view| {
            let seen = view.load(1, 0);
            assert!(seen == Ok(0) || seen == view.bus(1, 0), "{seen:?}");
        })
    };
    let grower = view.spawn(|view| {
        view.file.truncate(2 * PAGE).unwrap();
        assert_eq!(view.load(1, 0), Ok(0), "the file has grown, and the page is past its end");
    });
    let threads = [early(&view), early(&view), grower];
    join(threads);
    assert_eq!(view.load(1, 0), Ok(0));
    drop(view);
    world.end();
}

/// How often the second mapping has come to the address of the first.
pub static AGAIN: AtomicU64 = AtomicU64::new(0);

/// A mapping goes while threads load through it, and another file's comes to the same address, unless a worker that serves a
/// late fault still keeps that. From then on it is what everybody sees there.
pub fn unmap(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let (first, second) = (world.file("a", 1), world.file("b", 1));
    second.write_at(&0xb0u64.to_ne_bytes(), 0).unwrap();
    first.write_at(&0xa0u64.to_ne_bytes(), 0).unwrap();
    let map = world.mapping(&first, 1);
    let (base, fake) = (map.as_ptr() as usize, world.fake.clone());
    let loader = |fake: FakePageTable| {
        thread::spawn(move || {
            let seen = [fake.load(base), fake.load(base)];
            // A thread that resolves its own fault may find that nobody resolves any there, before the range has gone.
            let fine = |one: &_| matches!(one, Ok(0xa0 | 0xb0) | Err(FakeFault::Segv { .. } | FakeFault::Bus { .. }));
            assert!(seen.iter().all(fine) && seen != [Ok(0xb0), Ok(0xa0)], "{seen:?}");
        })
    };
    let threads = [loader(fake.clone()), loader(fake.clone())];
    drop(map);
    let view = world.map(&second, 1);
    AGAIN.fetch_add(u64::from(view.base == base), Ordering::Relaxed);
    assert_eq!(view.load(0, 0), Ok(0xb0), "the file that was mapped here before");
    join(threads);
    assert_eq!(view.load(0, 0), Ok(0xb0));
    drop(view);
    world.end();
}

/// The pager ends while threads load, store and punch. Everybody gets out, and every later access is a SIGBUS.
pub fn shutdown(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let view = world.map(&world.file("a", 1), 1);
    let loader = view.spawn(|view| {
        let seen = view.load(0, 2);
        assert!(matches!(seen, Ok(0 | OLD)) || seen == view.bus(0, 2), "{seen:?}");
    });
    let storer = view.spawn(|view| {
        let stored = view.store(0, 0, 0x10);
        assert!(stored.is_ok() || stored == view.bus(0, 0), "{stored:?}");
    });
    let puncher = view.spawn(|view| view.file.punch_hole(0, PAGE).unwrap());
    world.pager.shutdown().unwrap();
    assert_eq!(view.load(0, 0), view.bus(0, 0));
    join([loader, storer, puncher]);
    assert_eq!(view.load(0, 1), view.bus(0, 1));
    assert_eq!(world.fake.stray_signals(), 0);
}
