//! A reader that is slow, and a page table that makes trouble.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use daxpager::Injection;
use daxpager::fake::FakeFault;
use daxpager::probe::{Event, Point, Probe};
use daxpager::sabotage::Rule;
use shuttle::sync::{Condvar, Mutex};

use crate::world::{OLD, PAGE, Plan, join};

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
pub fn slow_reader(broken: Option<Rule>) {
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
    drop(view);
    world.end();
}

/// A thread that the kernel does not let sleep in its fault stores to a hole, beside one that stores there and a punch; and then to a
/// hole for which there is no block. It gets there, and it gets its SIGBUS; nobody else gets one.
pub fn restless(broken: Option<Rule>) {
    let world = Plan::blocks(1).build(broken);
    let file = world.volume.create("a").unwrap();
    file.truncate(2 * PAGE).unwrap();
    let view = world.map(&file, 2);
    let storer = view.spawn(|view| assert_eq!(view.fake.store_restlessly(view.base, 7), Ok(())));
    let threads = [storer, view.writer(0, 1, 0x10)];
    view.file.punch_hole(0, PAGE).unwrap();
    join(threads);
    // There is a block under page 0, or the punch has taken it.
    view.store(0, 2, 1).unwrap();
    let loader = view.spawn(|view| assert!(matches!(view.load(0, 2), Ok(1))));
    assert_eq!(view.fake.store_restlessly(view.base + PAGE as usize, 7), view.bus(1, 0));
    join([loader]);
    drop(view);
    world.end();
}

/// How many installs and protects have been refused in all schedules of [`moved`].
pub static REFUSED: AtomicU64 = AtomicU64::new(0);

/// The application moves a mapping away (mremap) while threads fault on another. Until it has run again everything is
/// refused, with EAGAIN; then the other mapping is served as if nothing had been, and what was moved ends in SIGBUS.
pub fn moved(broken: Option<Rule>) {
    let world = Plan { moves: true, ..Plan::blocks(4) }.build(broken);
    let (gone, stays) = (world.map(&world.file("a", 1), 1), world.map(&world.file("b", 2), 2));
    // Pointed at their blocks, so that the reader itself answers the stores.
    assert_eq!((stays.load(0, 2), stays.load(1, 2)), (Ok(OLD), Ok(OLD)));
    let mover = gone.spawn(|view| {
        let to = view.fake.move_away(view.base, PAGE).unwrap();
        let seen = view.fake.load(to + 16);
        assert!(matches!(seen, Ok(OLD)) || seen == Err(FakeFault::Bus { addr: to + 16 }), "{seen:?}");
    });
    let loader = gone.spawn(|view| {
        // A SIGBUS if a worker that has not heard of the move has pointed the range at its block once more.
        let seen = view.load(0, 2);
        assert!(matches!(seen, Ok(OLD) | Err(FakeFault::Segv { .. })) || seen == view.bus(0, 2), "{seen:?}");
    });
    join([mover, loader, stays.writer(0, 0, 0x10), stays.writer(1, 0, 0x20)]);
    assert_eq!(stays.load(0, 2), Ok(OLD));
    // At the address that was moved away, most likely, and not to be taken for what was there: however late a worker hears.
    let heir = world.map(&world.file("c", 1), 1);
    for _ in 0..50 {
        assert_eq!(heir.load(0, 2), Ok(OLD));
        shuttle::thread::yield_now();
    }
    drop(heir);
    REFUSED.fetch_add(world.fake.refused(), Ordering::Relaxed);
    drop((gone, stays));
    world.end();
}

/// The page table refuses now and then, is beaten to an entry, and delivers messages late or twice.
pub fn injected(broken: Option<Rule>) {
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
    drop(view);
    world.end();
}
