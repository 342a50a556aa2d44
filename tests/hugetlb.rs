//! Devices of huge pages: blocks of 2 MiB on hugetlbfs, with everything that pages do.
//!
//! Needs a mounted or mountable hugetlbfs and free huge pages; `make test` reserves some where it may.
//! Without, these tests fail, unless `DAXPAGER_WITHOUT_HUGEPAGES=1` leaves them out.

mod common;

use std::path::PathBuf;

use common::*;
use daxpager::{Device, Error, ExtentKind, MapOptions, Pager, Tracking, Volume};
use nix::fcntl::{FallocateFlags, fallocate};

const HUGE: u64 = 2 << 20;

/// A hugetlbfs to make files on: one that is mounted, or one of our own in a private place.
struct HugeDir {
    path: PathBuf,
    _turn: std::sync::MutexGuard<'static, ()>,
}

/// One test at a time: one of them takes every huge page there is.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

impl HugeDir {
    fn new(name: &str) -> Option<Self> {
        if std::env::var_os("DAXPAGER_WITHOUT_HUGEPAGES").is_some_and(|value| value == "1") {
            println!("LEFT OUT: DAXPAGER_WITHOUT_HUGEPAGES=1");
            return None;
        }
        let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        let free: u64 = free.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        assert!(free >= 8, "{free} free huge pages: run `make test` as root, or echo 32 > /proc/sys/vm/nr_hugepages");
        let path = std::env::temp_dir().join(format!("daxpager-huge-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("none"), &path, Some("hugetlbfs"), flags, None::<&str>)
            .expect("mounting a hugetlbfs needs root");
        Some(Self { path, _turn: turn })
    }
}

impl Drop for HugeDir {
    fn drop(&mut self) {
        // Lazily: a device that a failed test has left open must not keep it.
        let _ = nix::mount::umount2(&self.path, nix::mount::MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir(&self.path);
    }
}

#[test]
fn everything_on_huge_pages() {
    let Some(dir) = HugeDir::new("all") else { return };
    let device = Device::open(dir.path.join("device"), 6 * HUGE).unwrap();
    assert_eq!(device.block_bytes(), HUGE);
    let volume = Volume::format(device);
    let pager = Pager::builder().start().unwrap();
    let a = volume.create("a").unwrap();
    let map = pager.map(&a, 0..8 * HUGE).unwrap();
    assert_eq!(map.as_ptr() as u64 % HUGE, 0);
    assert!(is_bus(&map.load(0)));
    a.truncate(3 * HUGE + 100).unwrap();
    // Holes read as zeros, at both ends of a page, and take no block.
    for offset in [0, HUGE - 8, HUGE, 3 * HUGE, 4 * HUGE - 8] {
        assert_eq!(map.load(offset), Ok(0));
    }
    assert_eq!(a.blocks(), 0);
    assert!(is_bus(&map.load(4 * HUGE)));
    // A store over zeros that have been read: the whole page becomes a block.
    map.store(HUGE - 8, 1).unwrap();
    map.store(HUGE + 8, 2).unwrap();
    assert_eq!((map.load(0), map.load(HUGE - 8), map.load(HUGE + 8)), (Ok(0), Ok(1), Ok(2)));
    assert_eq!(map.take_dirty().unwrap(), vec![0..2 * HUGE]);
    map.store(HUGE + 16, 3).unwrap();
    assert_eq!(map.take_dirty().unwrap(), vec![HUGE..2 * HUGE]);
    // A punch in the middle of a page zeroes, a whole page goes away.
    a.punch_hole(HUGE + 8, 8).unwrap();
    assert_eq!((map.load(HUGE + 8), map.load(HUGE + 16)), (Ok(0), Ok(3)));
    a.punch_hole(HUGE, HUGE).unwrap();
    assert_eq!((map.load(HUGE + 16), a.blocks()), (Ok(0), 1));
    // Another file gets the block at once, and its own bytes.
    let b = volume.create("b").unwrap();
    b.write_at(&[0xbb; 4096], 0).unwrap();
    map.store(HUGE, 5).unwrap();
    let mut bytes = [0; 4096];
    b.read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0xbb; 4096]);
    // Unwritten pages, and the tail.
    a.allocate(2 * HUGE, HUGE, true).unwrap();
    assert_eq!(map.load(2 * HUGE), Ok(0));
    assert_eq!(a.extents().iter().filter(|extent| extent.kind == ExtentKind::Unwritten).count(), 1);
    map.store(2 * HUGE + 4096, 6).unwrap();
    a.truncate(2 * HUGE + 8).unwrap();
    assert_eq!(map.load(2 * HUGE + 4096), Ok(0));
    assert!(is_bus(&map.load(3 * HUGE)));
    a.truncate(8 * HUGE).unwrap();
    assert_eq!(map.load(3 * HUGE), Ok(0));
    // Six blocks: a has three, b one.
    assert_eq!((volume.used_blocks(), volume.free_blocks()), (4, 2));
    assert!(matches!(a.allocate(0, 8 * HUGE, false), Err(Error::NoSpace { wanted: 5, free: 2 })));
    drop(map);
    drop(pager);
    volume.remove("a").unwrap();
    drop(a);
    assert_eq!(volume.used_blocks(), 1);
}

/// Huge pages that are promised and not there: an error, no SIGBUS in the library.
#[test]
fn too_few_huge_pages_is_an_error() {
    let Some(dir) = HugeDir::new("few") else { return };
    let volume = Volume::format(Device::open(dir.path.join("device"), 4096 * HUGE).unwrap());
    let a = volume.create("a").unwrap();
    let wanted = a.allocate(0, 4096 * HUGE, false);
    assert!(matches!(wanted, Err(Error::DeviceMemory { .. })), "{wanted:?}");
    assert_eq!((a.len(), a.blocks(), volume.used_blocks()), (0, 0, 0));
}

/// Huge pages are few: a store into a hole takes one, and those behind it stay free for others.
#[test]
fn a_store_takes_one_huge_page() {
    let Some(dir) = HugeDir::new("one") else { return };
    let volume = Volume::format(Device::open(dir.path.join("device"), 6 * HUGE).unwrap());
    let file = volume.create("file").unwrap();
    file.truncate(6 * HUGE).unwrap();
    let pager = Pager::builder().start().unwrap();
    let map = pager.map(&file, 0..6 * HUGE).unwrap();
    map.store(3 * HUGE, 1).unwrap();
    assert_eq!((volume.resident_bytes(), file.blocks()), (HUGE, 1));
    map.store(0, 2).unwrap();
    assert_eq!((volume.resident_bytes(), file.blocks()), (2 * HUGE, 2));
}

#[test]
fn sizes_are_multiples_of_a_huge_page() {
    let Some(dir) = HugeDir::new("sizes") else { return };
    let path = dir.path.join("device");
    let error = Device::open(&path, HUGE + 4096).unwrap_err();
    assert_eq!(error, Error::DeviceNotWholeBlocks { bytes: HUGE + 4096, block_bytes: HUGE });
    let error = Device::open(&path, 4096).unwrap_err();
    assert_eq!(error, Error::DeviceSize { bytes: 4096, block_bytes: HUGE });
}

#[test]
fn stores_tracked_by_the_kernel() {
    let Some(dir) = HugeDir::new("asynchronous") else { return };
    let volume = Volume::format(Device::open(dir.path.join("device"), 6 * HUGE).unwrap());
    let pager = Pager::builder().start().unwrap();
    let a = volume.create("a").unwrap();
    a.write_at(&[7; 8], 0).unwrap();
    a.write_at(&[7; 8], 2 * HUGE).unwrap();
    a.truncate(4 * HUGE).unwrap();
    let map = pager.map_with(&a, 0..4 * HUGE, &MapOptions::new().tracking(Tracking::Asynchronous)).unwrap();
    let load_all = || (0..4).for_each(|page| assert!(map.load(page * HUGE).is_ok()));
    load_all();
    assert_eq!(map.take_dirty(), Ok(vec![]));
    map.store(2 * HUGE + 8, 1).unwrap();
    map.store(3 * HUGE, 1).unwrap();
    assert_eq!(map.take_dirty(), Ok(vec![2 * HUGE..4 * HUGE]));
    load_all();
    assert_eq!(map.take_dirty(), Ok(vec![]));
    map.store(0, 1).unwrap();
    map.store(3 * HUGE, 2).unwrap();
    // The tail of page 3 is zapped, and its start is kept.
    a.truncate(3 * HUGE + 100).unwrap();
    a.punch_hole(0, HUGE).unwrap();
    assert_eq!(map.take_dirty(), Ok(vec![3 * HUGE..4 * HUGE]));
    load_all();
    a.truncate(2 * HUGE + 100).unwrap();
    assert_eq!(map.take_dirty(), Ok(vec![]));
    assert_eq!(pager.stats().faults_of(daxpager::Kind::WriteProtect), 1, "the store to zeros alone");
}

/// Somebody else punches the file, and cuts it short: calls and loads agree, and nobody dies.
#[test]
fn what_somebody_has_taken_away_is_an_error() {
    let Some(dir) = HugeDir::new("lost") else { return };
    let path = dir.path.join("device");
    let volume = Volume::format(Device::open(&path, 6 * HUGE).unwrap());
    let pager = Pager::builder().start().unwrap();
    let a = volume.create("a").unwrap();
    a.write_at(&vec![7; 2 * HUGE as usize], 0).unwrap();
    // Of zeros, and there.
    a.write_at(&vec![0; HUGE as usize], 2 * HUGE).unwrap();
    let map = pager.map(&a, 0..3 * HUGE).unwrap();
    assert_eq!((map.load(HUGE), map.load(2 * HUGE)), (Ok(u64::from_ne_bytes([7; 8])), Ok(0)));
    let lost = |result: Result<(), Error>| {
        assert!(matches!(&result, Err(Error::DeviceLost { device, .. }) if *device == path), "{result:?}");
    };
    let block = a.fiemap()[0].device_offset / HUGE + 1;
    let foreign = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&foreign, flags, (block * HUGE) as i64, HUGE as i64).unwrap();
    let mut bytes = vec![1; HUGE as usize];
    lost(a.read_at(&mut bytes[..4096], HUGE + 4096).map(drop));
    lost(map.read_at(&mut bytes[..8], HUGE));
    lost(a.write_at(&[1; 100], HUGE + 100).map(drop));
    lost(map.write_at(&[1; 100], HUGE + 100));
    lost(a.punch_hole(HUGE + 100, 100));
    assert!(is_bus(&map.load(HUGE)));
    lost(a.read_at(&mut bytes[..4096], HUGE + 4096).map(drop));
    a.read_at(&mut bytes, 2 * HUGE).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    // Written anew, it is there again.
    a.write_at(&vec![9; HUGE as usize], HUGE).unwrap();
    assert_eq!(map.load(2 * HUGE - 8), Ok(u64::from_ne_bytes([9; 8])));
    a.write_at(&[8; 8], HUGE + 8).unwrap();
    assert_eq!(map.load(HUGE + 8), Ok(u64::from_ne_bytes([8; 8])));
    foreign.set_len(0).unwrap();
    lost(a.read_at(&mut bytes, 0).map(drop));
    lost(a.write_at(&[1; 100], 100).map(drop));
    lost(a.write_at(&bytes, 0).map(drop));
    lost(a.truncate(100));
    assert!(is_bus(&map.load(0)));
    let b = volume.create("b").unwrap();
    let wrote = b.write_at(&[1; 100], 0);
    assert!(wrote.is_err(), "{wrote:?}");
    assert_eq!(foreign.metadata().unwrap().len(), 0);
}

/// On hugetlbfs a range is made anew and moved, and not duplicated: read-only as well.
#[test]
fn a_read_only_mapping_of_huge_pages() {
    let Some(dir) = HugeDir::new("read-only") else { return };
    let volume = Volume::format(Device::open(dir.path.join("device"), 4 * HUGE).unwrap());
    let pager = Pager::builder().start().unwrap();
    let file = volume.create("a").unwrap();
    file.write_at(&[5; 8], 0).unwrap();
    file.truncate(2 * HUGE).unwrap();
    let map = pager.map_with(&file, 0..3 * HUGE, &MapOptions::new().read_only(true)).unwrap();
    let writer = pager.map(&file, 0..3 * HUGE).unwrap();
    let same = |first: u64, second: u64| {
        assert_eq!((map.load(0), map.load(HUGE)), (Ok(first), Ok(second)));
        assert!(matches!(map.load(2 * HUGE), Err(Error::Bus(_))));
        assert_eq!(map.store(HUGE, 1), Err(Error::ReadOnlyMapping { offset: HUGE, len: 8 }));
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        for page in 0..2 {
            let at = map.as_ptr() as u64 + page * HUGE;
            let range = maps.lines().find(|line| {
                let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
                let parse = |text| u64::from_str_radix(text, 16).unwrap();
                (parse(start)..parse(end)).contains(&at)
            });
            assert!(range.is_some_and(|line| line.contains(" r--")), "page {page}: {range:?}");
        }
    };
    let five = u64::from_ne_bytes([5; 8]);
    same(five, 0);
    writer.store(HUGE, 7).unwrap();
    same(five, 7);
    file.punch_hole(0, HUGE).unwrap();
    same(0, 7);
    assert_eq!(map.take_dirty(), Ok(vec![]));
}
