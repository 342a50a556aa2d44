//! What happens to input that cannot be served: each error is exactly the one that is documented, with
//! exactly its numbers, and nothing has changed for having tried: no byte, no size, no block.

mod blackbox;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use blackbox::*;
use daxpager::{BusError, Calls, Device, Error, ExtentInfo, File, FileInfo, Mapping, Pager, Volume};
use nix::errno::Errno;

/// The largest file, and the largest offset.
const MAX: u64 = i64::MAX as u64;

/// All that a volume shows of itself.
#[derive(PartialEq, Debug)]
struct Snapshot {
    list: Vec<FileInfo>,
    free: u64,
    used: u64,
    files: Vec<(u64, Vec<ExtentInfo>, Vec<u8>)>,
}

fn snapshot(rig: &Rig, files: &[&File]) -> Snapshot {
    let file = |file: &&File| {
        let mut bytes = vec![0; file.len().min(1 << 20) as usize];
        assert_eq!(file.read_at(&mut bytes, 0), Ok(bytes.len()));
        (file.len(), file.extents(), bytes)
    };
    Snapshot {
        list: rig.volume.list(),
        free: rig.volume.free_blocks(),
        used: rig.volume.used_blocks(),
        files: files.iter().map(file).collect(),
    }
}

/// A file with a bit of everything, and all of its mappings touched.
fn mixed(rig: &Rig) -> (File, [Mapping; 3]) {
    let p = rig.page;
    let file = rig.file("mixed");
    file.write_at(&pattern(2 * p, 1), 0).unwrap();
    file.allocate(3 * p, p, false).unwrap();
    file.truncate(5 * p + 100).unwrap();
    let maps = rig.maps(&file, 8);
    maps.iter().for_each(|map| drop(seen(map, 0, 6 * p)));
    (file, maps)
}

/// A loop's arithmetic came out at zero: the range operations of fallocate(2) refuse a length of nothing, wherever it lies,
/// and it is "empty" before it is "too far". read_at and write_at of nothing do nothing and succeed.
#[test]
fn empty_ranges_are_refused_and_change_nothing() {
    let rig = Rig::new(16);
    let p = rig.page;
    let (file, maps) = mixed(&rig);
    let before = snapshot(&rig, &[&file]);
    for offset in [0, 1, p, 5 * p + 100, 9 * p, MAX, MAX + 1, u64::MAX] {
        let empty = Err(Error::EmptyRange { offset });
        assert_eq!(file.punch_hole(offset, 0), empty);
        for keep_size in [true, false] {
            assert_eq!(file.zero_range(offset, 0, keep_size), empty);
            assert_eq!(file.allocate(offset, 0, keep_size), empty);
        }
        assert_eq!(rig.pager.map(&file, offset..offset).map(drop), empty);
        assert_eq!(file.read_at(&mut [], offset), Ok(0));
    }
    for offset in [0, 1, p, 9 * p, MAX] {
        assert_eq!(file.write_at(&[], offset), Ok(0));
    }
    // A range that ends before it begins is as empty.
    let reversed = 2 * p..p;
    assert_eq!(rig.pager.map(&file, reversed).map(drop), Err(Error::EmptyRange { offset: 2 * p }));
    // In a mapping nothing is nothing, as long as it begins in there.
    for offset in [0, 7, 8 * p] {
        assert_eq!(maps[0].read_at(&mut [], offset), Ok(()));
        assert_eq!(maps[0].write_at(&[], offset), Ok(()));
        assert_eq!(maps[0].copy_out(offset, &mut []), Ok(()));
        assert_eq!(maps[0].copy_in(offset, &[]), Ok(()));
    }
    assert_eq!(rig.pager.mappings(), 2);
    assert_eq!(snapshot(&rig, &[&file]), before);
    assert_everywhere(&file, &maps, 0, &before.files[0].2);
}

/// Offsets come out of a damaged index and add up to more than a file can have, or wrap around.
#[test]
fn ranges_past_the_largest_file_are_refused_and_change_nothing() {
    let rig = Rig::new(16);
    let p = rig.page;
    let (file, maps) = mixed(&rig);
    let before = snapshot(&rig, &[&file]);
    let ranges = [
        (MAX, 1),
        (MAX - 9, 11),
        (1, MAX),
        (0, MAX + 1),
        (MAX + 1, 1),
        (u64::MAX, 1),
        (u64::MAX, u64::MAX),
        (p, u64::MAX - p + 1),
        (p, u64::MAX),
    ];
    for (offset, len) in ranges {
        let overflow = Err(Error::RangeOverflow { offset, len });
        assert_eq!(file.punch_hole(offset, len), overflow);
        for keep_size in [true, false] {
            assert_eq!(file.zero_range(offset, len, keep_size), overflow);
            assert_eq!(file.allocate(offset, len, keep_size), overflow);
        }
        if let Ok(len) = usize::try_from(len).map_err(drop).and_then(|len| if len < 100 { Ok(len) } else { Err(()) }) {
            assert_eq!(file.write_at(&vec![1; len], offset), Err(Error::RangeOverflow { offset, len: len as u64 }));
        }
        if let Some(end) = offset.checked_add(len) {
            assert_eq!(rig.pager.map(&file, offset..end).map(drop), overflow);
        }
        // Reading there is reading past the end.
        assert_eq!(file.read_at(&mut [0; 16], offset.max(6 * p)), Ok(0));
    }
    for size in [MAX + 1, MAX + p, u64::MAX] {
        assert_eq!(file.truncate(size), Err(Error::RangeOverflow { offset: 0, len: size }));
    }
    assert_eq!(rig.pager.mappings(), 2);
    assert_eq!(snapshot(&rig, &[&file]), before);
    assert_everywhere(&file, &maps, 0, &before.files[0].2);
}

/// And the last byte that there can be is a byte like any other.
#[test]
fn the_largest_file_works() {
    let rig = Rig::new(16);
    let p = rig.page;
    let file = rig.written("a", 2);
    file.truncate(MAX).unwrap();
    assert_eq!(file.len(), MAX);
    assert_eq!(file.blocks(), 2);
    assert_eq!(file.write_at(&[7], MAX - 1), Ok(1));
    assert_eq!(file.len(), MAX);
    let mut bytes = [9; 5];
    assert_eq!(file.read_at(&mut bytes, MAX - 4), Ok(4));
    assert_eq!(bytes, [0, 0, 0, 7, 9]);
    // The last whole page that can be mapped, and a hole before it.
    let last = MAX / p * p;
    let map = rig.pager.map(&file, last - 4 * p..last).unwrap();
    map.store(4 * p - 8, 5).unwrap();
    assert_eq!(map.load(4 * p - 8), Ok(5));
    assert_eq!(map.load(0), Ok(0));
    assert_eq!(file.blocks(), 4);
    assert_eq!(file.extents().last().map(|info| info.offset + info.len >= MAX), Some(true));
    file.allocate(MAX - 1, 1, false).unwrap();
    file.zero_range(MAX - p, p, false).unwrap();
    assert_eq!(read(&file, MAX - 4, 4), [0; 4]);
    file.punch_hole(1, MAX - 1).unwrap();
    assert_eq!(file.len(), MAX);
    assert_eq!(map.load(4 * p - 8), Ok(0));
    file.truncate(0).unwrap();
    assert_bus(map.load(0), &map, 0);
    rig.assert_blocks_add_up();
}

/// Reads past the end are short, as pread(2)'s are, and leave the rest of the buffer alone.
#[test]
fn reads_past_the_end_are_short() {
    let rig = Rig::new(16);
    let p = rig.page;
    let file = rig.file("a");
    file.write_at(&pattern(p + 10, 1), 0).unwrap();
    for (offset, want) in [(0, p + 10), (p, 10), (p + 9, 1), (p + 10, 0), (p + 11, 0), (MAX, 0), (u64::MAX, 0)] {
        let mut bytes = vec![0xee; 3 * p as usize];
        assert_eq!(file.read_at(&mut bytes, offset), Ok(want as usize));
        assert_bytes(&bytes[..want as usize], &pattern(p + 10, 1)[(p + 10 - want) as usize..], "what was read");
        assert!(bytes[want as usize..].iter().all(|byte| *byte == 0xee), "the rest of the buffer was written to");
    }
}

/// Mappings are made of whole pages: an offset or a length that is not is refused with all three numbers.
#[test]
fn misaligned_mappings_are_refused() {
    let rig = Rig::new(16);
    let p = rig.page;
    let file = rig.written("a", 2);
    for (offset, len) in [(1, p), (0, 1), (0, p - 1), (p, p + 1), (p - 1, 1), (8, 8), (0, 2 * p + 8)] {
        let misaligned = Err(Error::Misaligned { offset, len, page_bytes: p });
        assert_eq!(rig.pager.map(&file, offset..offset + len).map(drop), misaligned);
    }
    assert_eq!(rig.pager.mappings(), 0);
    // More than the device has offsets, and than the address space has: the system call's own error.
    let error = Error::NoPlaces { pages: (1 << 62) / p - 512 };
    assert_eq!(rig.pager.map(&file, 0..1 << 62).map(drop), Err(error));
    let single_blocks = Rig::on_single_blocks(16);
    let error = Error::System { call: "mmap", errno: Errno::ENOMEM as i32 };
    assert_eq!(single_blocks.pager.map(&single_blocks.written("a", 2), 0..1 << 62).map(drop), Err(error));
    assert_eq!((rig.pager.mappings(), single_blocks.pager.mappings()), (0, 0));
    let map = rig.pager.map(&file, 0..p).unwrap();
    assert_eq!(map.as_ptr() as u64 % p, 0);
    for offset in [1, 4, 7, p - 4] {
        let misaligned = Error::Misaligned { offset, len: 8, page_bytes: 8 };
        assert_eq!(map.load(offset), Err(misaligned.clone()));
        assert_eq!(map.store(offset, 1), Err(misaligned.clone()));
        assert_eq!(map.compare_exchange(offset, 0, 1), Err(misaligned));
    }
    assert_bytes(&read(&file, 0, 2 * p), &pattern(2 * p, 1), "the file");
}

/// An access outside the mapping is refused before anything is touched, whatever the arithmetic: it may not reach a neighbour.
#[test]
fn accesses_outside_the_mapping_are_refused() {
    let rig = Rig::new(16);
    let p = rig.page;
    let file = rig.written("a", 8);
    let map = rig.pager.map(&file, 2 * p..5 * p).unwrap();
    let outside = |offset, len| Error::OutsideMapping { offset, len, mapping_bytes: 3 * p };
    for offset in [3 * p, 3 * p + 8, 1 << 40, u64::MAX - 7] {
        assert_eq!(map.load(offset), Err(outside(offset, 8)));
        assert_eq!(map.store(offset, 1), Err(outside(offset, 8)));
        assert_eq!(map.compare_exchange(offset, 0, 1), Err(outside(offset, 8)));
    }
    for (offset, len) in [(3 * p, 1), (3 * p - 1, 2), (0, 3 * p + 1), (u64::MAX, 1), (u64::MAX - 3, 8), (3 * p + 1, 0)]
    {
        let mut bytes = vec![0xee; len as usize];
        assert_eq!(map.copy_out(offset, &mut bytes), Err(outside(offset, len)));
        assert_eq!(map.read_at(&mut bytes, offset), Err(outside(offset, len)));
        assert!(bytes.iter().all(|byte| *byte == 0xee));
        assert_eq!(map.copy_in(offset, &bytes), Err(outside(offset, len)));
        assert_eq!(map.write_at(&bytes, offset), Err(outside(offset, len)));
    }
    assert_bytes(&read(&file, 0, 8 * p), &pattern(8 * p, 1), "the file");
    assert_eq!(map.take_dirty(), Ok(vec![]));
}

/// The mapping's own calls say where the file ends instead of raising a signal: the page is the file's, not the mapping's, and
/// what lies before it has been done.
#[test]
fn calls_past_the_end_say_which_page_and_how_long_the_file_is() {
    let rig = Rig::new(16);
    let p = rig.page;
    let file = rig.file("a");
    file.write_at(&pattern(4 * p + 10, 1), 0).unwrap();
    let map = rig.pager.map(&file, 2 * p..9 * p).unwrap();
    let past = |page| Error::PastEnd { page, file_bytes: 4 * p + 10 };
    // Offset in the mapping, length, the first page past the end, bytes before it.
    let accesses =
        [(3 * p, 1, 5, 0), (3 * p - 1, 2, 5, 1), (0, 7 * p, 5, 3 * p), (5 * p + 9, 100, 7, 0), (7 * p - 1, 1, 8, 0)];
    for (offset, len, page, valid) in accesses {
        let mut bytes = vec![0xee; len as usize];
        assert_eq!(map.read_at(&mut bytes, offset), Err(past(page)));
        let mut want = vec![0xee; len as usize];
        want[..valid as usize].copy_from_slice(&seen(&map, offset.min(3 * p - 1), valid));
        assert_bytes(&bytes, &want, "read up to the end");

        assert_eq!(map.write_at(&pattern(len, 8), offset), Err(past(page)));
        if valid > 0 {
            assert_bytes(&seen(&map, offset, valid), &pattern(len, 8)[..valid as usize], "written up to the end");
        }
        assert_eq!(file.len(), 4 * p + 10);
        // The CPU's own way to say it: the first byte that is not there.
        let mut bytes = vec![0xee; len as usize];
        let Err(Error::Bus(BusError { addr, offset: at })) = map.copy_out(offset, &mut bytes) else { panic!() };
        assert_eq!(at / p, page - 2);
        assert_eq!(addr, map.as_ptr() as usize + at as usize);
        let Err(Error::Bus(BusError { offset: at, .. })) = map.copy_in(offset, &bytes) else { panic!() };
        assert_eq!(at / p, page - 2);
    }
    // An empty file has no page at all.
    file.truncate(0).unwrap();
    assert_eq!(map.read_at(&mut [0], 0), Err(Error::PastEnd { page: 2, file_bytes: 0 }));
    assert_eq!(map.write_at(&[0], p), Err(Error::PastEnd { page: 3, file_bytes: 0 }));
    rig.assert_blocks_add_up();
}

/// Devices that cannot be: none at all, less than a block, more than the address space, half a block too much.
#[test]
fn devices_of_impossible_sizes_are_refused() {
    let p = host_page();
    let memfd = |bytes| Device::memfd("bad", bytes).map(drop);
    for bytes in [0, 1, p - 1] {
        assert_eq!(memfd(bytes), Err(Error::DeviceSize { bytes, block_bytes: p }));
    }
    for bytes in [p + 1, 3 * p - 8, (1 << 30) + 512] {
        assert_eq!(memfd(bytes), Err(Error::DeviceNotWholeBlocks { bytes, block_bytes: p }));
    }
    for bytes in [u64::MAX / p * p, 1 << 63] {
        assert_eq!(memfd(bytes), Err(Error::DeviceSize { bytes, block_bytes: p }));
    }
    assert!(matches!(Device::memfd("nul\0nul", p), Err(Error::System { .. })));
    assert!(matches!(Device::memfd(&"n".repeat(300), p), Err(Error::System { .. })));
    assert_eq!(Device::memfd("", p).unwrap().len_bytes(), p);

    // A file on tmpfs that holds somebody's data is not emptied for it.
    let path = shm_path("sizes");
    fs::write(&path, b"precious").unwrap();
    assert_eq!(Device::open(&path, 0).map(drop), Err(Error::DeviceSize { bytes: 0, block_bytes: p }));
    let half = Err(Error::DeviceNotWholeBlocks { bytes: p + 1, block_bytes: p });
    assert_eq!(Device::open(&path, p + 1).map(drop), half);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();
    assert_eq!(Device::open(&path, p + 1).map(drop), half);
    assert!(!path.exists(), "a device that was refused has left a file");
}

/// A path on tmpfs that no other test uses.
fn shm_path(name: &str) -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(format!("/dev/shm/daxpager-{name}-{}-{number}", std::process::id()))
}

/// The user put the device on an ordinary disk: the error names the path and the file system, nothing has been
/// created there, and a file that was there has not been emptied.
#[test]
fn a_device_on_an_ordinary_file_system_is_refused() {
    let p = host_page();
    let is_memory = |dir: &Path| {
        let kind = nix::sys::statfs::statfs(dir).unwrap().filesystem_type();
        kind == nix::sys::statfs::TMPFS_MAGIC || kind == nix::sys::statfs::HUGETLBFS_MAGIC
    };
    let candidates =
        [Path::new(env!("CARGO_TARGET_TMPDIR")), Path::new("/var/tmp"), Path::new(env!("CARGO_MANIFEST_DIR"))];
    let dir = candidates.into_iter().find(|dir| dir.is_dir() && !is_memory(dir));
    let dir = dir.expect("this test needs a directory on a disk: none of its candidates is on one");
    let path = dir.join(format!("daxpager-device-{}", std::process::id()));
    let refused = |path: &Path| match Device::open(path, 4 * p).map(drop) {
        Err(Error::UnsupportedFileSystem { path: named, file_system }) => {
            assert_eq!(named, path);
            file_system
        }
        other => panic!("{other:?}"),
    };
    let file_system = refused(&path);
    if nix::sys::statfs::statfs(dir).unwrap().filesystem_type() == nix::sys::statfs::EXT4_SUPER_MAGIC {
        assert!(file_system.contains("ext"), "{file_system:?} is no name for ext4");
    }
    assert!(!path.exists(), "a device that was refused has left a file");
    fs::write(&path, b"precious").unwrap();
    refused(&path);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();
    // Whatever comes before it: a bad size on a bad file system creates nothing either.
    assert!(Device::open(&path, 17).is_err());
    assert!(!path.exists());
    assert_eq!(refused(Path::new("/proc/self/comm")), "proc");
}

/// Paths at which there can be no file.
#[test]
fn a_device_that_cannot_be_opened_gives_the_system_calls_error() {
    let p = host_page();
    let errno = |path: &str| match Device::open(path, p).map(drop) {
        Err(Error::System { errno, .. }) => Errno::from_raw(errno),
        other => panic!("{other:?}"),
    };
    assert_eq!(errno("/dev/shm/there/is/no/such/directory"), Errno::ENOENT);
    assert_eq!(errno("/dev/shm"), Errno::EISDIR);
    assert!(Device::open("", p).is_err());
    let long = format!("/dev/shm/{}", "n".repeat(300));
    assert_eq!(errno(&long), Errno::ENAMETOOLONG);
}

/// Two volumes on one device would hand out the same blocks. The second one is refused, and the first one's bytes, which
/// opening would have emptied, are still there. When the first is gone, with all that hangs on it, the device is free.
#[test]
fn a_device_in_use_is_busy() {
    let p = host_page();
    let path = shm_path("busy");
    let device = Device::open(&path, 4 * p).unwrap();
    assert_eq!(device.len_bytes(), 4 * p);
    assert_eq!(device.block_bytes(), p);
    let busy = || assert_eq!(Device::open(&path, 2 * p).map(drop), Err(Error::DeviceBusy { path: path.clone() }));
    busy();
    let volume = Volume::format(device);
    let file = volume.create("a").unwrap();
    file.write_at(&pattern(3 * p, 1), 0).unwrap();
    busy();
    let pager = Pager::builder().start().unwrap();
    let map = pager.map(&file, 0..4 * p).unwrap();
    assert_bytes(&read(&file, 0, 3 * p), &pattern(3 * p, 1), "the file, after somebody tried its device");
    assert_bytes(&seen(&map, 0, 3 * p), &pattern(3 * p, 1), "the mapping, after somebody tried its device");
    assert_eq!(fs::metadata(&path).unwrap().len(), 4 * p);
    drop((volume, file));
    busy();
    drop(map);
    let again = Device::open(&path, 2 * p).unwrap();
    assert_eq!(again.len_bytes(), 2 * p);
    let volume = Volume::format(again);
    assert_eq!(volume.free_blocks(), 2);
    fs::remove_file(&path).unwrap();
}

/// A volume with two files and not a block left.
struct Full {
    rig: Rig,
    file: File,
    maps: [Mapping; 3],
    other: File,
    other_map: Mapping,
}

fn full() -> Full {
    let rig = Rig::new(8);
    let p = rig.page;
    let file = rig.file("file");
    file.write_at(&pattern(2 * p, 1), 0).unwrap();
    file.truncate(8 * p + 100).unwrap();
    file.allocate(3 * p, p, false).unwrap();
    let other = rig.file("other");
    other.write_at(&pattern(5 * p, 2), 0).unwrap();
    assert_eq!(rig.volume.free_blocks(), 0);
    let maps = rig.maps(&file, 12);
    let other_map = rig.pager.map(&other, 0..5 * p).unwrap();
    Full { rig, file, maps, other, other_map }
}

impl Full {
    /// Tries something that must fail and change nothing.
    #[track_caller]
    fn refuses(&self, attempt: impl FnOnce()) {
        let before = snapshot(&self.rig, &[&self.file, &self.other]);
        attempt();
        assert_eq!(snapshot(&self.rig, &[&self.file, &self.other]), before);
        assert_everywhere(&self.file, &self.maps, 0, &before.files[0].2);
        assert_bytes(&seen(&self.other_map, 0, 5 * self.rig.page), &pattern(5 * self.rig.page, 2), "the other file");
    }

    /// Makes room for one block and sees that the same thing works now.
    fn works_with_a_block_free(self, attempt: impl FnOnce(&Full)) {
        self.other.punch_hole(4 * self.rig.page, self.rig.page).unwrap();
        assert_eq!(self.rig.volume.free_blocks(), 1);
        attempt(&self);
        assert_eq!(self.rig.volume.free_blocks(), 0);
        self.rig.assert_blocks_add_up();
        let p = self.rig.page;
        assert_bytes(&read(&self.other, 0, 4 * p), &pattern(5 * p, 2)[..4 * p as usize], "the other file");
    }
}

/// The volume is full and a thread stores into a hole: SIGBUS for that thread alone. Another thread that loads the
/// same hole all the while reads zeros and is not disturbed.
#[test]
fn a_full_volume_kills_only_the_store() {
    let full = full();
    let p = full.rig.page;
    full.refuses(|| {
        thread::scope(|s| {
            let loader = s.spawn(|| {
                for _ in 0..300 {
                    assert_eq!(full.maps[1].load(2 * p + 8), Ok(0));
                    assert_eq!(full.maps[2].load(2 * p + 8), Ok(0));
                }
            });
            for _ in 0..100 {
                let map = &full.maps[0];
                assert_bus(map.store(2 * p + 8, 1), map, 2 * p + 8);
                assert_eq!(map.load(2 * p + 8), Ok(0), "the hole stays readable");
                let mut bytes = [1; 16];
                assert!(matches!(map.copy_in(2 * p, &bytes), Err(Error::Bus(_))));
                assert_eq!(map.copy_out(2 * p, &mut bytes), Ok(()));
                assert_eq!(bytes, [0; 16]);
            }
            join(loader);
        });
    });
    // Pages with a block, written or not, need none.
    full.maps[0].store(3 * p, 1).unwrap();
    full.works_with_a_block_free(|full| {
        full.maps[0].store(2 * p + 8, 1).unwrap();
        full.maps.iter().for_each(|map| assert_eq!(map.load(2 * p + 8), Ok(1)));
    });
}

/// The volume is full, a store gets its SIGBUS, then a block is freed: the very next store to that page works, and so
/// does every one after it. A SIGBUS belongs to the access that it was for, and may not come late.
#[test]
fn a_sigbus_for_a_full_volume_does_not_meet_a_later_store() {
    let full = full();
    let p = full.rig.page;
    let map = &full.maps[0];
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        let _end = at_end(|| stop.store(true, Ordering::Relaxed));
        let loader = s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let seen = full.maps[1].load(2 * p + 4000).unwrap();
                assert_eq!(seen, 0, "nobody stores to this word");
            }
        });
        for round in 0..800 {
            // At different places of the page, so that a late one is known by its address.
            let at = 2 * p + 8 * (round % 100);
            assert_bus(map.store(at, 1), map, at);
            if round % 3 == 0 {
                assert_bus(map.compare_exchange(at + 1000, 0, 1), map, at + 1000);
            }
            full.other.punch_hole(4 * p, p).unwrap();
            assert_eq!(map.store(at, round), Ok(()), "there was a block, round {round}");
            assert_eq!(map.load(at), Ok(round));
            full.file.punch_hole(2 * p, p).unwrap();
            // A fault whose access is done may hold a block for a moment, but not for good.
            let since = Instant::now();
            while let Err(error) = full.other.write_at(&pattern(5 * p, 2)[4 * p as usize..], 4 * p) {
                assert_eq!(error, Error::NoSpace { wanted: 1, free: 0 });
                let file = full.file.extents();
                assert!(since.elapsed() < guard::HANG, "nobody stored, round {round}: {file:?}");
            }
        }
        stop.store(true, Ordering::Relaxed);
        join(loader);
    });
}

/// The volume is full and somebody writes: all or nothing, with the number of blocks that the holes among the pages need.
#[test]
fn a_full_volume_refuses_write_at() {
    let full = full();
    let p = full.rig.page;
    for (offset, len, wanted) in [
        (2 * p, 1, 1),
        (2 * p - 10, 20, 1),
        (0, 4 * p, 1),
        (2 * p, 4 * p, 3),
        (8 * p + 50, 100, 1), // grows the file within its last page
        (20 * p, 3 * p, 3),   // grows it far
        (0, 100 * p, 97),
    ] {
        full.refuses(|| {
            let error = Error::NoSpace { wanted, free: 0 };
            assert_eq!(full.file.write_at(&vec![0xbb; len as usize], offset), Err(error), "{offset}+{len}");
        });
    }
    // Where there are blocks there is room.
    assert_eq!(full.file.write_at(&[0xbb; 8], 3 * p + 8), Ok(8));
    full.works_with_a_block_free(|full| {
        let error = Err(Error::NoSpace { wanted: 2, free: 1 });
        assert_eq!(full.file.write_at(&vec![0xbb; 2 * p as usize], 4 * p), error);
        assert_eq!(full.file.write_at(&[0xbb], 2 * p), Ok(1));
        assert_eq!(full.maps[0].load(2 * p), Ok(0xbb));
    });
}

/// The volume is full and somebody allocates, or zeroes a range, which needs blocks as well.
#[test]
fn a_full_volume_refuses_allocate_and_zero_range() {
    let full = full();
    let p = full.rig.page;
    let ranges = [
        (2 * p, 1, 1),
        (2 * p, 4 * p, 3),
        (0, 8 * p, 5),
        (p + 10, p, 1), // its first page is written: no byte of that may be zeroed
        (8 * p, 200, 1),
        (100 * p, 10 * p, 10),
        (4 * p, 1 << 50, (1 << 50) / p),
        (0, MAX, (MAX).div_ceil(p) - 3),
    ];
    for (offset, len, wanted) in ranges {
        for keep_size in [true, false] {
            full.refuses(|| {
                let error = Err(Error::NoSpace { wanted, free: 0 });
                assert_eq!(full.file.allocate(offset, len, keep_size), error, "{offset}+{len}");
                assert_eq!(full.file.zero_range(offset, len, keep_size), error, "{offset}+{len}");
            });
        }
    }
    // What has blocks already needs none, and growing alone needs none.
    full.file.allocate(0, 2 * p, false).unwrap();
    full.file.truncate(9 * p).unwrap();
    full.works_with_a_block_free(|full| {
        let error = Err(Error::NoSpace { wanted: 3, free: 1 });
        assert_eq!(full.file.allocate(2 * p, 4 * p, true), error);
        assert_eq!(full.file.allocate(2 * p, p, true), Ok(()));
        assert_eq!(full.file.zero_range(2 * p, 2 * p, true), Ok(()));
    });
}

/// The volume is full and somebody stores through `Mapping::write_at`: what comes before the hole has been written, the
/// rest has not, and it is an error and no signal.
#[test]
fn a_full_volume_refuses_mapping_write_at() {
    let full = full();
    let p = full.rig.page;
    let error = Err(Error::NoSpace { wanted: 1, free: 0 });
    full.refuses(|| {
        assert_eq!(full.maps[0].write_at(&[0xbb; 8], 2 * p), error);
        assert_eq!(full.maps[0].write_at(&vec![0xbb; 3 * p as usize], 4 * p), error);
    });
    assert_eq!(full.maps[0].write_at(&vec![0xbb; 2 * p as usize], p), error);
    let mut want = pattern(2 * p, 1)[..p as usize].to_vec();
    want.resize(2 * p as usize, 0xbb);
    want.resize(8 * p as usize + 100, 0);
    assert_everywhere(&full.file, &full.maps, 0, &want);
    full.works_with_a_block_free(|full| {
        assert_eq!(full.maps[0].write_at(&vec![0xcc; 2 * p as usize], p), Ok(()));
        assert_bytes(&seen(&full.maps[1], p, 2 * p), &vec![0xcc; 2 * p as usize], "written");
    });
}

/// A volume that is full because of a file that goes away is not full any more, however often.
#[test]
fn a_full_volume_gets_its_blocks_back_each_time() {
    let rig = Rig::new(8);
    let p = rig.page;
    for _ in 0..20 {
        let file = rig.file("a");
        file.truncate(16 * p).unwrap();
        let maps = rig.maps(&file, 16);
        for index in 0..16 {
            let stored = maps[index as usize % 3].store(index * p, 1);
            match index < 8 {
                true => assert_eq!(stored, Ok(())),
                false => assert_bus(stored, &maps[index as usize % 3], index * p),
            }
        }
        assert_eq!(rig.volume.free_blocks(), 0);
        drop((maps, file));
        rig.volume.remove("a").unwrap();
        // Whoever is late with a store's second message may have a block in his hand.
        until("all blocks are free", || (rig.volume.free_blocks() == 8).then_some(()));
    }
}

/// Names that are no names, and names that are taken.
#[test]
fn bad_and_taken_names_are_refused() {
    let rig = Rig::new(8);
    let p = rig.page;
    let file = rig.written("taken", 2);
    let before = snapshot(&rig, &[&file]);
    let long = "n".repeat(256);
    let wide = "ü".repeat(128); // 256 bytes in 128 characters
    for name in ["", "/", "a/b", "/a", "a/", "nul\0", long.as_str(), wide.as_str()] {
        let cut = name.chars().take(64).collect();
        assert_eq!(rig.volume.create(name).map(drop), Err(Error::BadName { name: cut }));
        let missing = Err(Error::NoSuchFile { name: name.to_owned() });
        assert_eq!(rig.volume.open(name).map(drop), missing);
        assert_eq!(rig.volume.remove(name), missing);
    }
    assert_eq!(rig.volume.create("taken").map(drop), Err(Error::NameTaken { name: "taken".to_owned() }));
    assert_eq!(snapshot(&rig, &[&file]), before);
    assert_bytes(&read(&rig.volume.open("taken").unwrap(), 0, 2 * p), &pattern(2 * p, 1), "the one that was there");
    // As long as they can be, and as odd.
    for name in [&long[..255], "ü", ".", "..", " ", "\n"] {
        drop(rig.volume.create(name).unwrap());
        drop(rig.volume.open(name).unwrap());
        rig.volume.remove(name).unwrap();
    }
    assert_eq!(snapshot(&rig, &[&file]), before);
}

/// A file is removed twice: the second time there is none, and what the first removal left alone, files that are open, stays.
#[test]
fn a_file_is_removed_once() {
    let rig = Rig::new(8);
    let p = rig.page;
    let file = rig.written("a", 2);
    let gone = Err(Error::NoSuchFile { name: "a".to_owned() });
    assert_eq!(rig.volume.remove("a"), Ok(()));
    assert_eq!(rig.volume.remove("a"), gone);
    assert_eq!(rig.volume.open("a").map(drop), gone.clone());
    assert_eq!(rig.volume.list(), []);
    assert_eq!(rig.volume.used_blocks(), 2);
    assert_bytes(&read(&file, 0, 2 * p), &pattern(2 * p, 1), "the open file");
    // A namesake is another file, and can be removed in its turn.
    let namesake = rig.file("a");
    assert_eq!(namesake.len(), 0);
    assert_eq!(rig.volume.remove("a"), Ok(()));
    assert_eq!(rig.volume.remove("a"), gone);
    drop(file);
    assert_eq!(rig.volume.free_blocks(), 8);
}

/// A mapped file is removed and closed: its blocks stay until the last mapping goes, and are free then; a pager that is shut down
/// meanwhile does not give them back either, nor does it keep them.
#[test]
fn blocks_of_a_removed_file_stay_until_its_last_mapping_goes() {
    let rig = Rig::new(8);
    let p = rig.page;
    let file = rig.written("a", 3);
    let doomed = Pager::builder().start().unwrap();
    let first = rig.pager.map(&file, 0..3 * p).unwrap();
    let second = doomed.map(&file, p..2 * p).unwrap();
    rig.volume.remove("a").unwrap();
    drop(file);
    assert_eq!(rig.volume.used_blocks(), 3);
    assert_bytes(&seen(&second, 0, p), &pattern(3 * p, 1)[p as usize..2 * p as usize], "the removed file");
    drop(first);
    assert_eq!(rig.volume.used_blocks(), 3);
    second.store(0, 1).unwrap();
    doomed.shutdown().unwrap();
    assert_eq!(rig.volume.used_blocks(), 3);
    drop(second);
    assert_eq!(rig.volume.used_blocks(), 0);
    let all = rig.file("b");
    all.write_at(&pattern(8 * p, 3), 0).unwrap();
    assert_bytes(&read(&all, 0, 8 * p), &pattern(8 * p, 3), "the blocks' next owner");
}

/// A pager without workers would never answer, and one with too many is a mistake.
#[test]
fn worker_counts_out_of_bounds_are_refused() {
    for workers in [0, 1025, usize::MAX] {
        assert_eq!(Pager::builder().workers(workers).start().map(drop), Err(Error::WorkerCount { workers }));
    }
    for workers in [1, 1024] {
        let volume = Volume::format(Device::memfd("workers", 4 * host_page()).unwrap());
        let file = volume.create("a").unwrap();
        file.truncate(host_page()).unwrap();
        let pager = Pager::builder().workers(workers).start().unwrap();
        let map = pager.map(&file, 0..host_page()).unwrap();
        map.store(0, 1).unwrap();
        assert_eq!(map.load(0), Ok(1));
        pager.shutdown().unwrap();
    }
}

/// After the pager has been shut down, or dropped, its mappings' calls say so, and loads and stores are SIGBUS, also on
/// pages that were there. The file, and another pager's mapping of it, go on.
#[test]
fn after_shutdown_the_pager_is_gone_and_the_file_is_not() {
    for shutdown in [true, false] {
        let rig = Rig::new(8);
        let p = rig.page;
        let file = rig.written("a", 3);
        file.truncate(4 * p).unwrap();
        let doomed = Pager::builder().start().unwrap();
        let map = doomed.map(&file, 0..6 * p).unwrap();
        let survivor = rig.pager.map(&file, 0..6 * p).unwrap();
        map.store(0, 77).unwrap();
        map.load(p).unwrap();
        map.load(3 * p).unwrap();
        let before = snapshot(&rig, &[&file]);
        match shutdown {
            true => drop(doomed.shutdown().unwrap()),
            false => drop(doomed),
        }
        for index in 0..6 {
            assert_all_bus(&map, index * p);
        }
        let mut bytes = [0xee; 8];
        assert!(matches!(map.read_at(&mut bytes, 0), Err(Error::PagerGone { .. })));
        assert!(matches!(map.write_at(&bytes, 0), Err(Error::PagerGone { .. })));
        assert!(matches!(map.take_dirty(), Err(Error::PagerGone { .. })));
        assert_eq!(bytes, [0xee; 8]);
        assert_eq!(snapshot(&rig, &[&file]), before);

        assert_eq!(survivor.load(0), Ok(77));
        file.punch_hole(0, p).unwrap();
        file.write_at(&[5; 8], 3 * p).unwrap();
        assert_eq!(survivor.load(0), Ok(0));
        assert_eq!(survivor.load(3 * p), Ok(0x0505_0505_0505_0505));
        file.truncate(0).unwrap();
        file.truncate(p).unwrap();
        assert_eq!(survivor.load(0), Ok(0));
        assert_all_bus(&map, 0);
        drop(map);
        rig.assert_blocks_add_up();
    }
}

/// The pager goes while threads are in the middle of faults, held before anybody has answered them: they get their SIGBUS
/// and do not wait for ever.
#[test]
fn shutdown_ends_faults_that_are_under_way() {
    use daxpager::probe::Point;
    for point in [Point::FaultTaken, Point::Allocated] {
        let rig = Rig::on_single_blocks(8);
        let p = rig.page;
        let file = rig.file("a");
        file.truncate(4 * p).unwrap();
        let doomed = Pager::builder().probe(rig.park.clone()).start().unwrap();
        let map = doomed.map(&file, 0..4 * p).unwrap();
        let trap = rig.park.trap(point, 1);
        thread::scope(|s| {
            let stores: Vec<_> = (1..4)
                .map(|index| {
                    (
                        index,
                        s.spawn({
                            let map = &map;
                            move || map.store(index * p, 1)
                        }),
                    )
                })
                .collect();
            trap.wait();
            let end = s.spawn(|| doomed.shutdown());
            give_a_chance(&end);
            trap.release();
            assert!(join(end).is_ok());
            for (index, store) in stores {
                match join(store) {
                    Ok(()) => {}
                    other => assert_bus(other, &map, index * p),
                }
            }
        });
        (0..4).for_each(|index| assert_all_bus(&map, index * p));
        drop(map);
        rig.assert_blocks_add_up();
    }
}

/// A name that no thread can have is refused, and nothing is started.
#[test]
fn a_nul_in_the_threads_name_is_refused() {
    let refused = Pager::builder().thread_name("a\0b").start().map(drop);
    assert_eq!(refused, Err(Error::ThreadName { name: "a\0b".to_owned() }));
    Pager::builder().thread_name("").start().unwrap();
}

/// Polling for longer than the clock goes is polling for ever, and ends with the pager.
#[test]
fn a_reader_may_poll_for_ever() {
    let rig = Rig::new(8);
    let file = rig.written("a", 4);
    let pager = Pager::builder().busy_poll(std::time::Duration::MAX).start().unwrap();
    let map = pager.map(&file, 0..5 * rig.page).unwrap();
    assert_everywhere(&file, std::slice::from_ref(&map), 0, &pattern(4 * rig.page, 1));
    assert_bus(map.load(4 * rig.page), &map, 4 * rig.page);
    pager.shutdown().unwrap();
    assert_bus(map.load(0), &map, 0);
}

/// Counts of another pager, or a place past every mapping, are nothing to panic at.
#[test]
fn counts_that_shrink_and_places_that_are_none() {
    let rig = Rig::new(8);
    let file = rig.written("a", 1);
    let map = rig.pager.map(&file, 0..rig.page).unwrap();
    touch(&map, 0);
    let (more, fewer) = (rig.pager.stats().calls, Calls::default());
    assert!(more.installs > 0);
    assert_eq!(fewer.since(&more), Calls::default());
    assert_eq!(more.since(&fewer), more);
    for offset in [rig.page, u64::MAX, u64::MAX - rig.page, 1 << 63] {
        assert_eq!(map.backing_at(offset), None);
    }
    assert!(map.backing_at(0).is_some());
}
