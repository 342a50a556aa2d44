//! The scenarios: who races whom, and what may come out.

use std::sync::Arc;

use daxpager::Injection;
use daxpager::fake::FakeFault;
use daxpager::probe::{Event, Point, Probe};
use daxpager::sabotage::Rule;
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;

use crate::world::{OLD, PAGE, Plan, View, join};

/// One schedule of a scenario, with a rule broken or none.
pub type Run = fn(Option<Rule>);

pub struct Scenario {
    pub name: &'static str,
    pub run: Run,
}

pub const ALL: &[Scenario] = &[
    Scenario { name: "punch", run: punch },
    Scenario { name: "two stores", run: two_stores },
    Scenario { name: "truncate", run: truncate },
    Scenario { name: "past the end", run: past_the_end },
    Scenario { name: "write_at", run: write_at },
    Scenario { name: "store and write", run: store_and_write },
    Scenario { name: "trade", run: trade },
    Scenario { name: "one block", run: one_block },
    Scenario { name: "unmap", run: unmap },
    Scenario { name: "shutdown", run: shutdown },
    Scenario { name: "full", run: full },
    Scenario { name: "dirty", run: dirty },
    Scenario { name: "slow reader", run: slow_reader },
    Scenario { name: "injected", run: injected },
    Scenario { name: "progress", run: progress },
];

pub fn named(name: &str) -> &'static Scenario {
    ALL.iter().find(|scenario| scenario.name == name).expect("a scenario's name")
}

/// Two writers, each with a word of its own, against a punch. What was in the page before is gone once the punch has
/// returned, for everybody and for good.
fn punch(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let view = world.map(&world.file("a", 1), 1);
    let puncher = view.spawn(|view| {
        view.file.punch_hole(0, PAGE).unwrap();
        assert_eq!(view.load(0, 2), Ok(0), "the punch is undone");
        view.check();
    });
    let threads = [view.writer(0, 0, 0x10), view.writer(0, 1, 0x20), view.watcher(3), puncher];
    join(threads);
    view.check();
    assert_eq!(view.load(0, 2), Ok(0));
    drop(view);
    world.end();
}

/// Two writers store to one hole, and a third thread has its zeros mapped; two workers, so that both find no block. No
/// store is lost, and who has mapped zeros sees the block.
fn two_stores(broken: Option<Rule>) {
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
        view.check();
        assert_eq!((view.load(0, 0), view.load(0, 1)), (Ok(7), Ok(8)));
    }
    drop((view, other));
    world.end();
}

/// A file is cut to one page and grown again, while a writer and a reader are on the second. In the end that is a
/// hole inside the file, and never shows what was in it before.
fn truncate(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let view = world.map(&world.file("a", 2), 2);
    let cutter = view.spawn(|view| {
        view.file.truncate(PAGE).unwrap();
        view.check();
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
    join([cutter, writer, reader, view.watcher(3)]);
    view.check();
    assert_eq!(view.load(1, 2), Ok(0));
    drop(view);
    world.end();
}

/// A file grows while threads fault past its end: once it has grown, no access to the new page is a SIGBUS.
fn past_the_end(broken: Option<Rule>) {
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
    view.check();
    drop(view);
    world.end();
}

/// A store through the mapping, a write call and a punch on one page. What the call has written is there, or a hole.
fn write_at(broken: Option<Rule>) {
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
    join([view.writer(0, 0, 0x10), caller, puncher, view.watcher(2)]);
    view.check();
    drop(view);
    world.end();
}

/// A store and a write call to one page of a hole: the one that comes second leaves the first alone.
fn store_and_write(broken: Option<Rule>) {
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
    view.check();
    drop(view);
    world.end();
}

/// A punch of one file gives its block to another. Whoever stores through the old mapping never reaches the new owner,
/// and never sees what that has stored.
fn trade(broken: Option<Rule>) {
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
            view.check();
        }
    });
    join([owner, puncher, heir]);
    mine.check();
    theirs.check();
    assert_eq!(theirs.load(0, 0), Ok(0xb1));
    drop((mine, theirs));
    world.end();
}

/// There is one block. A punch takes it from a file whose mapping can be stored to without a fault, and a write call gives
/// it to another file: no store through the mapping gets there.
fn one_block(broken: Option<Rule>) {
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
    let (other, fake) = (heir.clone(), world.fake.clone());
    let caller = thread::spawn(move || {
        // The block may have gone back to the first file, for good.
        for _ in 0..HEIR_TRIES {
            if other.write_at(&0xb0u64.to_ne_bytes(), 0).is_ok() {
                let mut word = [0; 8];
                other.read_at(&mut word, 0).unwrap();
                assert_eq!(u64::from_ne_bytes(word), 0xb0, "a store through the mapping of another file");
                other.check(&fake).unwrap();
                return;
            }
            thread::yield_now();
        }
    });
    join([owner, puncher, caller]);
    view.check();
    heir.check(&world.fake).unwrap();
    drop(view);
    world.end();
}

/// How often a write call is tried while the volume is full.
const HEIR_TRIES: u32 = 5;

/// A mapping goes while threads load through it, and another file's comes to the same address. From then on that is
/// what everybody sees there.
fn unmap(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let (first, second) = (world.file("a", 1), world.file("b", 1));
    second.write_at(&0xb0u64.to_ne_bytes(), 0).unwrap();
    first.write_at(&0xa0u64.to_ne_bytes(), 0).unwrap();
    let map = world.pager.map(&first, 0..PAGE).unwrap();
    let (base, fake) = (map.as_ptr() as usize, world.fake.clone());
    let loader = |fake: daxpager::fake::FakePageTable| {
        thread::spawn(move || {
            let seen = [fake.load(base), fake.load(base)];
            let fine = |one: &_| matches!(one, Ok(0xa0 | 0xb0) | Err(FakeFault::Segv { .. }));
            assert!(seen.iter().all(fine) && seen != [Ok(0xb0), Ok(0xa0)], "{seen:?}");
        })
    };
    let threads = [loader(fake.clone()), loader(fake.clone())];
    drop(map);
    let view = world.map(&second, 1);
    assert_eq!(view.base, base);
    view.check();
    assert_eq!(view.load(0, 0), Ok(0xb0), "the file that was mapped here before");
    join(threads);
    view.check();
    assert_eq!(view.load(0, 0), Ok(0xb0));
    drop(view);
    world.end();
}

/// The pager ends while threads load, store and punch. Everybody gets out, and every later access is a SIGBUS.
fn shutdown(broken: Option<Rule>) {
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

/// Two pages want the only block, and one of them is punched. A store that gets none is a SIGBUS for its thread alone:
/// a load of the hole is not.
fn full(broken: Option<Rule>) {
    let world = Plan::blocks(1).build(broken);
    let file = world.volume.create("a").unwrap();
    file.truncate(2 * PAGE).unwrap();
    let view = world.map(&file, 2);
    let storer = |page| {
        view.spawn(move |view| {
            let stored = view.store(page, 0, 0x10 + page);
            assert!(stored.is_ok() || stored == view.bus(page, 0), "{stored:?}");
            let seen = view.load(page, 0);
            assert!(seen == Ok(0) || seen == Ok(0x10 + page), "{seen:?}");
        })
    };
    let loader = view.spawn(|view| {
        let seen = view.load(1, 1);
        assert_eq!(seen, Ok(0));
        view.file.punch_hole(0, PAGE).unwrap();
    });
    join([storer(0), storer(1), loader]);
    view.check();
    drop(view);
    world.end();
}

/// Dirty pages are collected while a thread stores. At any moment a page to which a store would go unnoticed is
/// dirty already.
fn dirty(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let view = world.map(&world.file("a", 1), 1);
    let collector = view.spawn(|view| {
        view.map.take_dirty().unwrap();
        view.check();
        view.map.take_dirty().unwrap();
    });
    join([view.writer(0, 0, 0x10), collector, view.watcher(3)]);
    view.check();
    drop(view);
    world.end();
}

/// Holds the reader at its second message until it is told to go on.
struct SlowReader {
    messages: Mutex<u32>,
    going: Condvar,
}

/// What the count of messages is set to when the reader may go on.
const GO_ON: u32 = 1000;

impl Probe for SlowReader {
    fn at(&self, event: Event) {
        if event.point == Point::FaultRead {
            let mut messages = self.messages.lock().unwrap();
            *messages += 1;
            while *messages == 2 {
                messages = self.going.wait(messages).unwrap();
            }
        }
    }
}

/// A worker re-points a range, which waits for the reader to read its event; and the reader is held up until a truncate
/// has returned. So whoever re-points must hold no lock that a truncate needs.
fn slow_reader(broken: Option<Rule>) {
    let probe = Arc::new(SlowReader { messages: Mutex::new(0), going: Condvar::new() });
    let world = Plan { probe: Some(probe.clone()), ..Plan::blocks(4) }.build(broken);
    let view = world.map(&world.file("a", 2), 2);
    let loader = |page| {
        view.spawn(move |view| {
            let seen = view.load(page, 2);
            assert!(matches!(seen, Ok(0 | OLD)) || seen == view.bus(page, 2), "{seen:?}");
        })
    };
    let threads = [loader(0), loader(1)];
    view.file.truncate(PAGE).unwrap();
    *probe.messages.lock().unwrap() = GO_ON;
    probe.going.notify_all();
    join(threads);
    view.check();
    drop(view);
    world.end();
}

/// The page table refuses now and then, is beaten to an entry, and delivers messages late or twice.
fn injected(broken: Option<Rule>) {
    let injection = Injection {
        seed: 7,
        again_ppm: 200_000,
        exist_ppm: 200_000,
        duplicate_ppm: 100_000,
        delay_ppm: 100_000,
        ..Injection::default()
    };
    let world = Plan { injection: Some(injection), ..Plan::blocks(4) }.build(broken);
    let view = world.map(&world.file("a", 1), 1);
    let puncher = view.spawn(|view| {
        view.file.punch_hole(0, PAGE).unwrap();
        assert_eq!(view.load(0, 2), Ok(0), "the punch is undone");
    });
    join([view.writer(0, 0, 0x10), view.writer(0, 1, 0x20), puncher]);
    view.check();
    drop(view);
    world.end();
}

/// A thread that stores and loads gets there though another punches its page in a loop.
fn progress(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    let view = world.map(&world.file("a", 1), 1);
    let stop = Arc::new(shuttle::sync::atomic::AtomicBool::new(false));
    let going = stop.clone();
    let puncher = view.spawn(move |view| {
        while !going.load(std::sync::atomic::Ordering::SeqCst) {
            view.file.punch_hole(0, PAGE).unwrap();
            thread::yield_now();
        }
    });
    join([view.writer(0, 0, 0x10)]);
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    join([puncher]);
    drop(view);
    world.end();
}
