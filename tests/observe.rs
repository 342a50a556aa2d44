//! What can be seen from outside: where a file lies, which file an event is about, what a pager is doing.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use daxpager::probe::{Event, Point, Probe};
use daxpager::{Allocation, Device, ExtentKind, File, Kind, MapOptions, Pager, Volume};

fn physical(file: &File) -> Vec<(u64, u64, u64, ExtentKind)> {
    file.fiemap().iter().map(|extent| (extent.offset, extent.len, extent.device_offset, extent.kind)).collect()
}

/// Blocks are handed out in order, and the last one freed first.
#[test]
fn fiemap_names_the_bytes_on_the_device() {
    let volume = Volume::format_with(Device::memfd("fiemap", 16 * PAGE).unwrap(), Allocation::Blocks);
    let (a, b) = (volume.create("a").unwrap(), volume.create("b").unwrap());
    assert_eq!(a.fiemap(), []);
    a.write_at(&[1; 2 * PAGE as usize], 0).unwrap();
    b.write_at(&[2; PAGE as usize], 3 * PAGE).unwrap();
    let written = ExtentKind::Written;
    assert_eq!(physical(&a), [(0, 2 * PAGE, 0, written)], "neighbours are one");
    assert_eq!(physical(&b), [(3 * PAGE, PAGE, 2 * PAGE, written)], "a hole is not listed");
    // Neighbours in the file, and not on the device; then neighbours on the device, of another kind.
    a.write_at(&[1; PAGE as usize], 2 * PAGE).unwrap();
    a.allocate(3 * PAGE, PAGE, true).unwrap();
    let unwritten = (3 * PAGE, PAGE, 4 * PAGE, ExtentKind::Unwritten);
    assert_eq!(physical(&a), [(0, 2 * PAGE, 0, written), (2 * PAGE, PAGE, 3 * PAGE, written), unwritten]);
    a.punch_hole(0, PAGE).unwrap();
    assert_eq!(physical(&a)[0], (PAGE, PAGE, PAGE, written));
    a.truncate(0).unwrap();
    assert_eq!(a.fiemap(), []);
}

#[test]
fn events_name_their_file() {
    let world = World::new(8, None);
    let (a, b) = (world.file("a", 1, 1), world.file("b", 1, 2));
    assert_eq!((a.number(), b.number(), world.volume.open("b").unwrap().number()), (1, 2, 2));
    world.volume.remove("a").unwrap();
    assert_eq!(world.volume.create("a").unwrap().number(), 3);
    let map = world.map(&b, 2);
    let points =
        [Point::FaultRead, Point::FaultTaken, Point::Repointing, Point::Prepared, Point::Decided, Point::Answered];
    let on_the_way = points.map(|point| world.park.at(point, |_| true));
    let load = spawn({
        let map = map.clone();
        move || map.load(0)
    });
    for trap in on_the_way {
        let event = trap.wait();
        assert_eq!((event.file, event.page.0), (Some(b.number()), 0), "{event:?}");
        trap.release();
    }
    load.join("the load").unwrap().unwrap();
    let points = [Point::BeforeInvalidate, Point::Published, Point::Invalidated, Point::Freed];
    let on_the_way = points.map(|point| world.park.at(point, |_| true));
    let punch = spawn({
        let a = a.clone();
        move || a.punch_hole(0, PAGE)
    });
    for trap in on_the_way {
        assert_eq!(trap.wait().file, Some(a.number()));
        trap.release();
    }
    punch.join("the punch").unwrap().unwrap();
}

#[test]
fn a_histogram_has_as_many_faults_as_the_summary() {
    let volume = Volume::format(Device::memfd("histogram", 8 * PAGE).unwrap());
    let a = volume.create("a").unwrap();
    a.truncate(8 * PAGE).unwrap();
    let pager = Pager::builder().measure_latencies().start().unwrap();
    let map = pager.map_with(&a, 0..8 * PAGE, &MapOptions::new().fault_around(PAGE)).unwrap();
    (0..8).for_each(|page| assert_eq!(map.load(page * PAGE), Ok(0)));
    let kind = Kind::MissingLoad;
    // The last one's time is taken after its thread has been woken.
    let histogram = until("the eighth fault", || {
        let histogram = pager.latency_histogram(kind).unwrap();
        (histogram.iter().map(|(_, count)| count).sum::<u64>() == 8).then_some(histogram)
    });
    assert!(histogram.is_sorted_by(|one, next| one.0 < next.0), "{histogram:?}");
    assert!(pager.latency(kind).unwrap().max_ns <= histogram.last().unwrap().0);
    assert_eq!(Pager::builder().start().unwrap().latency_histogram(kind), None);
}

/// What a pager can tell of itself while one of its threads, or of the application's, holds every lock there is.
#[test]
fn a_pager_describes_itself_while_its_locks_are_held() {
    let world = World::new(8, None);
    let a = world.file("a", 2, 1);
    let map = world.map(&a, 2);
    let idle = world.pager().describe();
    for part in [
        "pager: alive",
        "map of regions: free; 1 mappings",
        "8192 bytes: file 1",
        "alive; L1 free, L2 free, grace none",
    ] {
        assert!(idle.contains(part), "{part:?} is not in\n{idle}");
    }
    let world = std::sync::Arc::new(world);
    let describe = || {
        let world = world.clone();
        let described = spawn(move || world.pager().describe());
        described.within(HANG).expect("it waits for something")
    };
    let repointing = world.park.at_page(Point::Repointing, 0);
    let load = spawn({
        let map = map.clone();
        move || map.load(0)
    });
    repointing.wait();
    let text = describe();
    assert!(text.contains("map of regions: held exclusively; mappings not known"), "{text}");
    repointing.release();
    load.join("the load").unwrap().unwrap();
    let published = world.park.at_page(Point::Published, 1);
    let punch = spawn({
        let a = a.clone();
        move || a.punch_hole(PAGE, PAGE)
    });
    published.wait();
    let text = describe();
    assert!(text.contains("L1 held exclusively, L2 held exclusively"), "{text}");
    published.release();
    punch.join("the punch").unwrap().unwrap();
    let unmapped = world.park.at(Point::Unmapped, |_| true);
    let unmap = spawn(move || drop(map));
    unmapped.wait();
    let text = describe();
    assert!(text.contains("map of regions: held exclusively"), "{text}");
    unmapped.release();
    unmap.join("the unmap").unwrap();
}

/// An observer that panics at the next so many events of a change.
#[derive(Default)]
struct Panics(AtomicU64);

impl Probe for Panics {
    fn at(&self, event: Event) {
        let of_a_change = matches!(event.point, Point::Published | Point::Invalidated | Point::Freed);
        let one_less = |left: u64| left.checked_sub(1);
        if of_a_change && self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
            panic!("an observer that panics");
        }
    }
}

/// The panic reaches who made the call, when the change is done: entries are gone before their blocks are another file's, and
/// every lock is free.
#[test]
fn an_observer_that_panics_skips_no_zap() {
    for events in 1..=3 {
        let panics = Arc::new(Panics::default());
        let volume = Volume::format_with_probe(Device::memfd("panics", 4 * PAGE).unwrap(), panics.clone());
        let file = volume.create("a").unwrap();
        file.write_at(&[7; 4 * PAGE as usize], 0).unwrap();
        let pager = Pager::builder().start().unwrap();
        let map = pager.map(&file, 0..4 * PAGE).unwrap();
        (0..4).for_each(|page| map.store(page * PAGE, 8).unwrap());
        panics.0.store(events, Ordering::SeqCst);
        let punched = catch_unwind(AssertUnwindSafe(|| file.punch_hole(0, 2 * PAGE + 8)));
        assert!(punched.is_err(), "{punched:?}");
        assert_eq!(panics.0.load(Ordering::SeqCst), 0, "fewer events than meant");
        assert_eq!(volume.used_blocks(), 2);
        let other = volume.create("other").unwrap();
        other.write_at(&[9; 2 * PAGE as usize], 0).unwrap();
        assert_eq!((map.load(0), map.load(PAGE), map.load(2 * PAGE), map.load(3 * PAGE)), (Ok(0), Ok(0), Ok(0), Ok(8)));
        file.truncate(PAGE).unwrap();
        assert!(is_bus(&map.load(3 * PAGE)));
    }
}
