//! The real core on the fake page table: reader, workers, control calls and mappings, without a kernel.

#[path = "common/guard.rs"]
mod guard;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use daxpager::fake::{FakeFault, FakePageTable};
use daxpager::{Device, Error, Pager, Volume};

const PAGE: u64 = 4096;

fn volume(blocks: u64) -> Volume {
    Volume::format(Device::heap(blocks * PAGE, PAGE).unwrap())
}

#[test]
fn loads_and_stores_punches_and_truncates() {
    let fake = FakePageTable::new();
    let volume = volume(64);
    let file = volume.create("a").unwrap();
    let pager = Pager::builder().start_on_fake(&fake).unwrap();
    let map = pager.map(&file, 0..16 * PAGE).unwrap();
    let base = map.as_ptr() as usize;
    let bus = |offset| Err(FakeFault::Bus { addr: base + offset });

    assert_eq!(fake.load(base), bus(0));
    file.truncate(10_000).unwrap();
    assert_eq!(fake.load(base), Ok(0));
    fake.store(base + 8, 7).unwrap();
    assert_eq!(fake.load(base + 8), Ok(7));
    let mut word = [0; 8];
    file.read_at(&mut word, 8).unwrap();
    assert_eq!(word, 7u64.to_ne_bytes());
    assert_eq!(fake.compare_exchange(base + 8, 7, 8), Ok(7));
    assert_eq!(map.take_dirty().unwrap(), vec![0..PAGE]);
    fake.store(base + 16, 9).unwrap();
    assert_eq!(map.take_dirty().unwrap(), vec![0..PAGE]);

    file.punch_hole(0, PAGE).unwrap();
    assert_eq!(fake.load(base + 8), Ok(0));
    fake.store(base + 2 * 4096, 5).unwrap();
    assert_eq!(fake.load(base + 3 * 4096), bus(3 * 4096));
    file.truncate(PAGE).unwrap();
    assert_eq!(fake.load(base + 2 * 4096), bus(2 * 4096));
    file.truncate(3 * PAGE).unwrap();
    assert_eq!(fake.load(base + 2 * 4096), Ok(0));
    assert_eq!(fake.stray_signals(), 0);
    pager.shutdown().unwrap();
}

/// The library's own accesses do not take made-up addresses for real ones: they go by the extents.
#[test]
fn accesses_of_a_mapping_touch_no_made_up_address() {
    let fake = FakePageTable::new();
    let volume = volume(64);
    let file = volume.create("a").unwrap();
    let pager = Pager::builder().start_on_fake(&fake).unwrap();
    let map = pager.map(&file, 0..16 * PAGE).unwrap();
    let base = map.as_ptr() as usize;
    assert!(matches!(map.load(8), Err(Error::Bus(bus)) if (bus.addr, bus.offset) == (base + 8, 8)));
    file.truncate(2 * PAGE).unwrap();
    assert_eq!((map.load(8), map.store(8, 5), map.load(8)), (Ok(0), Ok(()), Ok(5)));
    assert_eq!(map.compare_exchange(8, 5, 6), Ok(5));
    assert_eq!(fake.load(base + 8), Ok(6));
    map.copy_in(PAGE - 2, b"over").unwrap();
    let mut bytes = [0; 4];
    map.copy_out(PAGE - 2, &mut bytes).unwrap();
    assert_eq!(&bytes, b"over");
    let reader = std::fs::File::open("/dev/zero").unwrap();
    let read = map.read_from(std::os::fd::AsFd::as_fd(&reader), 0, 8);
    assert!(matches!(read, Err(Error::System { .. })), "{read:?}");
    pager.shutdown().unwrap();
}

/// Two writers count up a word each on one page, while a third thread punches it and truncates over it. A
/// writer sees its last number or zero, and never another's.
#[test]
fn two_threads_against_a_puncher() {
    let fake = FakePageTable::new();
    let volume = volume(8);
    let file = volume.create("a").unwrap();
    let pager = Pager::builder().start_on_fake(&fake).unwrap();
    let map = pager.map(&file, 0..4 * PAGE).unwrap();
    let base = map.as_ptr() as usize;
    file.truncate(4 * PAGE).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = guard::at_end(|| done.store(true, Ordering::Relaxed));
        let writers = [0, 1].map(|writer| {
            let fake = &fake;
            scope.spawn(move || {
                let at = base + writer * 8;
                for round in 1..300 {
                    let value = (writer as u64) << 32 | round;
                    fake.store(at, value).unwrap();
                    let seen = fake.load(at).unwrap();
                    assert!(seen == value || seen == 0, "writer {writer} stored {value:#x} and sees {seen:#x}");
                }
            })
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                file.punch_hole(0, PAGE).unwrap();
                file.truncate(PAGE).unwrap();
                file.truncate(4 * PAGE).unwrap();
            }
        });
        writers.into_iter().for_each(guard::join_scoped);
    });
    pager.shutdown().unwrap();
}

#[test]
fn a_full_volume_ends_the_store_and_not_the_load() {
    let fake = FakePageTable::new();
    let volume = volume(1);
    let file = volume.create("a").unwrap();
    let pager = Pager::builder().start_on_fake(&fake).unwrap();
    let map = pager.map(&file, 0..2 * PAGE).unwrap();
    let base = map.as_ptr() as usize;
    file.truncate(2 * PAGE).unwrap();
    fake.store(base, 1).unwrap();
    assert_eq!(fake.store(base + 4096, 1), Err(FakeFault::Bus { addr: base + 4096 }));
    assert_eq!(fake.load(base + 4096), Ok(0));
    file.punch_hole(0, PAGE).unwrap();
    assert_eq!(fake.store(base + 4096, 2), Ok(()));
    assert_eq!(fake.stray_signals(), 0);
}

#[test]
fn huge_blocks_hold_as_many_base_pages_as_they_do() {
    let block = 16 * PAGE;
    let fake = FakePageTable::new();
    let volume = Volume::format(Device::heap(4 * block, block).unwrap());
    let file = volume.create("a").unwrap();
    let pager = Pager::builder().start_on_fake(&fake).unwrap();
    let map = pager.map(&file, 0..2 * block).unwrap();
    let base = map.as_ptr() as usize;
    file.truncate(2 * block).unwrap();
    assert_eq!(fake.load(base + 5 * 4096), Ok(0));
    fake.store(base + 3 * 4096, 3).unwrap();
    assert!(fake.is_mapped(base + 15 * 4096) && !fake.is_mapped(base + 16 * 4096));
    file.punch_hole(0, block).unwrap();
    assert_eq!(fake.load(base + 3 * 4096), Ok(0));
}

#[test]
fn an_unmapped_address_is_handed_out_again() {
    let fake = FakePageTable::new();
    let volume = volume(8);
    let (first, second) = (volume.create("a").unwrap(), volume.create("b").unwrap());
    first.write_at(&1u64.to_ne_bytes(), 0).unwrap();
    second.write_at(&2u64.to_ne_bytes(), 0).unwrap();
    let pager = Pager::builder().start_on_fake(&fake).unwrap();
    let map = pager.map(&first, 0..PAGE).unwrap();
    let base = map.as_ptr() as usize;
    assert_eq!(fake.load(base), Ok(1));
    drop(map);
    assert_eq!(fake.load(base), Err(FakeFault::Segv { addr: base }));
    let map = pager.map(&second, 0..PAGE).unwrap();
    assert_eq!(map.as_ptr() as usize, base);
    assert_eq!(fake.load(base), Ok(2));
}

/// A thread is asleep on a fault that the pager never gets to serve, because it is told to end first: it ends
/// in SIGBUS, and so does every access after that.
#[test]
fn shutdown_takes_waiting_threads_out_of_their_faults() {
    let fake = FakePageTable::new();
    let volume = volume(8);
    let file = volume.create("a").unwrap();
    file.write_at(&[1; 4096], 0).unwrap();
    let pager = Pager::builder().start_on_fake(&fake).unwrap();
    let map = pager.map(&file, 0..2 * PAGE).unwrap();
    let base = map.as_ptr() as usize;
    let going = AtomicBool::new(true);
    thread::scope(|scope| {
        let loads: Vec<_> = (0..4)
            .map(|_| {
                let (fake, file, going) = (&fake, &file, &going);
                scope.spawn(move || {
                    // Faults again and again, until there is nobody to serve them.
                    while fake.load(base).is_ok() {
                        file.punch_hole(0, PAGE).unwrap();
                        going.store(false, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        while going.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        pager.shutdown().unwrap();
        loads.into_iter().for_each(guard::join_scoped);
    });
    assert_eq!(fake.waiting(), 0);
    assert_eq!(fake.load(base), Err(FakeFault::Bus { addr: base }));
    assert!(matches!(map.take_dirty(), Err(Error::PagerGone { .. })));
}
