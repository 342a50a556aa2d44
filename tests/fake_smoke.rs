//! The real core on the fake page table: reader, workers, control calls and mappings, without a kernel.

#[path = "common/guard.rs"]
mod guard;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use daxpager::fake::{FakeFault, FakePageTable};
use daxpager::{Device, Error, File, Mapping, Pager, Volume};

/// What machines have: 4 KiB on x86-64, any of these on aarch64. Under Miri each word of a device
/// takes time, so it is the smallest alone.
const PAGES: &[u64] = if cfg!(miri) { &[4 << 10] } else { &[4 << 10, 16 << 10, 64 << 10] };

fn volume(blocks: u64, page: u64) -> Volume {
    Volume::format(Device::heap(blocks * page, page).unwrap())
}

/// A volume with one file that has no pages yet, and a mapping of it.
struct World {
    fake: FakePageTable,
    _volume: Volume,
    file: File,
    pager: Pager,
    map: Mapping,
    base: usize,
}

impl World {
    fn new(page: u64, blocks: u64, pages: u64) -> Self {
        let fake = FakePageTable::with_base_page(page);
        let volume = volume(blocks, page);
        let file = volume.create("a").unwrap();
        let pager = Pager::builder().start_on_fake(&fake).unwrap();
        let map = pager.map(&file, 0..pages * page).unwrap();
        let base = map.as_ptr() as usize;
        Self { fake, _volume: volume, file, pager, map, base }
    }
}

#[test]
fn loads_and_stores_punches_and_truncates() {
    for &page in PAGES {
        let World { fake, file, pager, map, base, .. } = World::new(page, 64, 16);
        let bus = |offset| Err(FakeFault::Bus { addr: base + offset });

        assert_eq!(fake.load(base), bus(0));
        file.truncate(page * 5 / 2).unwrap();
        assert_eq!(fake.load(base), Ok(0));
        fake.store(base + 8, 7).unwrap();
        assert_eq!(fake.load(base + 8), Ok(7));
        let mut word = [0; 8];
        file.read_at(&mut word, 8).unwrap();
        assert_eq!(word, 7u64.to_ne_bytes());
        assert_eq!(fake.compare_exchange(base + 8, 7, 8), Ok(7));
        assert_eq!(map.take_dirty().unwrap(), vec![0..page]);
        fake.store(base + 16, 9).unwrap();
        assert_eq!(map.take_dirty().unwrap(), vec![0..page]);

        file.punch_hole(0, page).unwrap();
        assert_eq!(fake.load(base + 8), Ok(0));
        fake.store(base + 2 * page as usize, 5).unwrap();
        assert_eq!(fake.load(base + 3 * page as usize), bus(3 * page as usize));
        file.truncate(page).unwrap();
        assert_eq!(fake.load(base + 2 * page as usize), bus(2 * page as usize));
        file.truncate(3 * page).unwrap();
        assert_eq!(fake.load(base + 2 * page as usize), Ok(0));
        assert_eq!(fake.stray_signals(), 0);
        pager.shutdown().unwrap();
    }
}

/// The library's own accesses do not take made-up addresses for real ones: they go by the extents.
#[test]
fn accesses_of_a_mapping_touch_no_made_up_address() {
    for &page in PAGES {
        let World { fake, file, pager, map, base, .. } = World::new(page, 64, 16);
        assert!(matches!(map.load(8), Err(Error::Bus(bus)) if (bus.addr, bus.offset) == (base + 8, 8)));
        file.truncate(2 * page).unwrap();
        assert_eq!((map.load(8), map.store(8, 5), map.load(8)), (Ok(0), Ok(()), Ok(5)));
        assert_eq!(map.compare_exchange(8, 5, 6), Ok(5));
        assert_eq!(fake.load(base + 8), Ok(6));
        map.copy_in(page - 2, b"over").unwrap();
        let mut bytes = [0; 4];
        map.copy_out(page - 2, &mut bytes).unwrap();
        assert_eq!(&bytes, b"over");
        let reader = std::fs::File::open("/dev/zero").unwrap();
        let read = map.read_from(std::os::fd::AsFd::as_fd(&reader), 0, 8);
        assert!(matches!(read, Err(Error::System { .. })), "{read:?}");
        pager.shutdown().unwrap();
    }
}

/// Two writers count up a word each on one page, while a third thread punches it and truncates over it. A
/// writer sees its last number or zero, and never another's.
#[test]
fn two_threads_against_a_puncher() {
    for &page in PAGES {
        let World { fake, file, pager, map: _map, base, .. } = World::new(page, 8, 4);
        file.truncate(4 * page).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = guard::at_end(|| done.store(true, Ordering::Relaxed));
            let writers = [0, 1].map(|writer| {
                let fake = &fake;
                scope.spawn(move || {
                    let at = base + writer * 8;
                    for round in 1..if cfg!(miri) { 15 } else { 300 } {
                        let value = (writer as u64) << 32 | round;
                        fake.store(at, value).unwrap();
                        let seen = fake.load(at).unwrap();
                        assert!(seen == value || seen == 0, "writer {writer} stored {value:#x} and sees {seen:#x}");
                    }
                })
            });
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    file.punch_hole(0, page).unwrap();
                    file.truncate(page).unwrap();
                    file.truncate(4 * page).unwrap();
                }
            });
            writers.into_iter().for_each(guard::join_scoped);
        });
        pager.shutdown().unwrap();
    }
}

#[test]
fn a_full_volume_ends_the_store_and_not_the_load() {
    for &page in PAGES {
        let World { fake, file, pager: _pager, map: _map, base, .. } = World::new(page, 1, 2);
        file.truncate(2 * page).unwrap();
        fake.store(base, 1).unwrap();
        assert_eq!(fake.store(base + page as usize, 1), Err(FakeFault::Bus { addr: base + page as usize }));
        assert_eq!(fake.load(base + page as usize), Ok(0));
        file.punch_hole(0, page).unwrap();
        assert_eq!(fake.store(base + page as usize, 2), Ok(()));
        assert_eq!(fake.stray_signals(), 0);
    }
}

#[test]
fn huge_blocks_hold_as_many_base_pages_as_they_do() {
    for &page in PAGES {
        let block = 16 * page;
        let fake = FakePageTable::with_base_page(page);
        let volume = Volume::format(Device::heap(4 * block, block).unwrap());
        let file = volume.create("a").unwrap();
        let pager = Pager::builder().start_on_fake(&fake).unwrap();
        let map = pager.map(&file, 0..2 * block).unwrap();
        let base = map.as_ptr() as usize;
        file.truncate(2 * block).unwrap();
        assert_eq!(fake.load(base + 5 * page as usize), Ok(0));
        fake.store(base + 3 * page as usize, 3).unwrap();
        assert!(fake.is_mapped(base + 15 * page as usize) && !fake.is_mapped(base + 16 * page as usize));
        file.punch_hole(0, block).unwrap();
        assert_eq!(fake.load(base + 3 * page as usize), Ok(0));
    }
}

#[test]
fn an_unmapped_address_is_handed_out_again() {
    for &page in PAGES {
        let fake = FakePageTable::with_base_page(page);
        let volume = volume(8, page);
        let (first, second) = (volume.create("a").unwrap(), volume.create("b").unwrap());
        first.write_at(&1u64.to_ne_bytes(), 0).unwrap();
        second.write_at(&2u64.to_ne_bytes(), 0).unwrap();
        let pager = Pager::builder().start_on_fake(&fake).unwrap();
        let map = pager.map(&first, 0..page).unwrap();
        let base = map.as_ptr() as usize;
        assert_eq!(fake.load(base), Ok(1));
        drop(map);
        assert_eq!(fake.load(base), Err(FakeFault::Segv { addr: base }));
        let map = pager.map(&second, 0..page).unwrap();
        assert_eq!(map.as_ptr() as usize, base);
        assert_eq!(fake.load(base), Ok(2));
    }
}

/// A thread is asleep on a fault that the pager never gets to serve, because it is told to end first: it ends
/// in SIGBUS, and so does every access after that.
#[test]
fn shutdown_takes_waiting_threads_out_of_their_faults() {
    for &page in PAGES {
        let fake = FakePageTable::with_base_page(page);
        let volume = volume(8, page);
        let file = volume.create("a").unwrap();
        file.write_at(&vec![1; page as usize], 0).unwrap();
        let pager = Pager::builder().start_on_fake(&fake).unwrap();
        let map = pager.map(&file, 0..2 * page).unwrap();
        let base = map.as_ptr() as usize;
        let going = AtomicBool::new(true);
        thread::scope(|scope| {
            let loads: Vec<_> = (0..4)
                .map(|_| {
                    let (fake, file, going) = (&fake, &file, &going);
                    scope.spawn(move || {
                        // Faults again and again, until there is nobody to serve them.
                        while fake.load(base).is_ok() {
                            file.punch_hole(0, page).unwrap();
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
}
