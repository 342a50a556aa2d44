//! The device's memory, and what other processes do to it: a file on tmpfs that is cut short and punched behind the library's back, a
//! memfd that is punched, limits on files, and paths at which there is no file to be had. Where a death is possible, the
//! test runs in a child process.

mod blackbox;

use std::fs::{self, File as HostFile, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use blackbox::child::{self, assert_is_child};
use blackbox::*;
use daxpager::{Access, Allocation, Device, Error, MapOptions, Mapping, Pager, Resolve, Result, Tracking, Volume};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;

const BLOCKS: u64 = 64;

/// A path on tmpfs that no other test uses, free again in the end.
struct Shm(PathBuf);

impl Shm {
    fn new(name: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(PathBuf::from(format!("/dev/shm/daxpager-device-{}-{next}-{name}", std::process::id())))
    }

    /// The file, as somebody else has it.
    fn foreign(&self) -> HostFile {
        OpenOptions::new().read(true).write(true).open(&self.0).unwrap()
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn punch(file: &HostFile, offset: u64, len: u64) {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, offset as i64, len as i64).unwrap();
}

/// The device's block under a page of a file.
fn block_of(file: &daxpager::File, page: u64) -> u64 {
    let p = host_page();
    let extents = file.fiemap();
    let extent = extents.iter().find(|extent| (extent.offset..extent.offset + extent.len).contains(&(page * p)));
    extent.map(|extent| (extent.device_offset + page * p - extent.offset) / p).unwrap()
}

#[track_caller]
fn assert_lost<T: std::fmt::Debug + PartialEq>(result: Result<T>, path: &Path, lost: u64) {
    match result {
        Err(Error::DeviceLost { device, block, offset }) => {
            assert_eq!((device.as_path(), block, offset / host_page()), (path, lost, lost));
        }
        other => panic!("{other:?}"),
    }
}

/// The descriptor of a memfd of this process, opened anew by its link in /proc.
fn memfd_named(name: &str) -> HostFile {
    let wanted = format!("/memfd:{name} (deleted)");
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        if fs::read_link(&path).is_ok_and(|link| link == Path::new(&wanted)) {
            return OpenOptions::new().read(true).write(true).open(path).unwrap();
        }
    }
    panic!("no {wanted}");
}

macro_rules! in_a_child {
    ($($(#[doc = $doc:literal])* $name:ident)*) => { $(
        $(#[doc = $doc])*
        #[test]
        fn $name() {
            child::run(concat!("inside::", stringify!($name))).assert_success();
        }
    )* };
}

in_a_child! {
    /// Calls and loads agree on a block that is gone: an error with the file and the block, a SIGBUS, in both ways of serving faults. What
    /// is next to it is whole. To write all of the page, or to punch it, mends it.
    a_block_that_somebody_has_punched
    /// The file is cut short: errors, no death, and it is not made longer again by us. When it is as long again, what was cut off is lost
    /// all the same.
    a_file_that_somebody_has_cut_short
    /// Its limit on the length of files is lowered below the device: writes fail, nothing raises SIGXFSZ, and what needs no writing
    /// works, truncates to the middle of a page included.
    a_limit_on_files_that_is_lowered
    /// The limit is below the device from the beginning: refused, and nothing is left or changed.
    a_limit_on_files_refuses_a_device
    /// No descriptor is left: the error says so.
    no_descriptor_left
    /// Another process cuts, punches and overwrites the device at random while threads use every call there is and load and store. Nobody dies, nobody
    /// panics, and nobody sees what only another file has had.
    another_process_at_random
}

mod inside {
    use super::*;

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_block_that_somebody_has_punched() {
        assert_is_child();
        for resolve in [Resolve::PagerThread, Resolve::FaultingThread] {
            let p = host_page();
            let shm = Shm::new("punched");
            let volume = Volume::format(Device::open(&shm.0, BLOCKS * p).unwrap());
            let file = volume.create("a").unwrap();
            put(&file, &pattern(4 * p, 1), 0);
            let pager = Pager::builder().start().unwrap();
            let map = pager.map_with(&file, 0..8 * p, &MapOptions::new().resolve(resolve)).unwrap();
            touch(&map, p);
            let lost = block_of(&file, 1);
            punch(&shm.foreign(), lost * p, p);
            let mut bytes = zeros(p);
            assert_lost(file.read_at(&mut bytes, p), &shm.0, lost);
            assert_lost(file.read_at(&mut zeros(4 * p), 0), &shm.0, lost);
            assert_lost(file.read_at(&mut [0], p + 7), &shm.0, lost);
            assert_lost(map.read_at(&mut bytes, p), &shm.0, lost);
            assert_bus(map.load(p), &map, p);
            assert_bus(map.store(p + 8, 1), &map, p + 8);
            assert_lost(map.populate(0..4 * p, Access::Load), &shm.0, lost);
            assert_lost(file.write_at(b"part", p + 8), &shm.0, lost);
            assert_lost(map.write_at(b"part", p + 8), &shm.0, lost);
            assert_lost(file.punch_hole(p + 8, 8), &shm.0, lost);
            assert_lost(file.zero_range(p + 8, 8, true), &shm.0, lost);
            assert_lost(file.truncate(p + 100), &shm.0, lost);
            // The size is what was asked for, and the page is still lost, not zeros.
            assert_eq!(file.len(), p + 100);
            assert_lost(file.read_at(&mut bytes, p), &shm.0, lost);
            assert_bus(map.load(p), &map, p);
            assert_bytes(&read(&file, 0, p), &pattern(p, 1), "the page before");
            let error = file.read_at(&mut bytes, p).unwrap_err().to_string();
            assert!(error.contains(shm.0.to_str().unwrap()) && error.contains(&format!("block {lost}")), "{error}");
            assert!(pager.describe().contains("lost_pages"), "{}", pager.describe());
            assert!(pager.stats().lost_pages > 0);
            // Written anew as a whole it is there again, for calls and for loads.
            put(&file, &pattern(p, 2), p);
            assert_bytes(&seen(&map, p, p), &pattern(p, 2), "loads of what has been written anew");
            assert_bytes(&read(&file, p, p), &pattern(p, 2), "what has been written anew");
            punch(&shm.foreign(), lost * p, p);
            assert_bus(map.load(p), &map, p);
            map.write_at(&pattern(p, 3), p).unwrap();
            assert_bytes(&seen(&map, p, p), &pattern(p, 3), "loads of what has been written anew by the mapping");
            // And so it is when it is punched here.
            punch(&shm.foreign(), lost * p, p);
            assert_bus(map.load(p), &map, p);
            file.punch_hole(p, p).unwrap();
            assert_eq!(map.load(p), Ok(0));
            // Free blocks that have been punched are as good as others.
            punch(&shm.foreign(), 8 * p, (BLOCKS - 8) * p);
            file.truncate(8 * p).unwrap();
            map.store(5 * p, 5).unwrap();
            put(&file, &pattern(100, 5), 6 * p + 100);
            assert_eq!(map.load(5 * p), Ok(5));
            assert_eq!(read(&file, 5 * p + 8, p - 8), zeros(p - 8));
            assert_bytes(&seen(&map, 6 * p + 100, 100), &pattern(100, 5), "a part of a new block");
            assert_eq!(map.load(6 * p), Ok(0));
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_file_that_somebody_has_cut_short() {
        assert_is_child();
        let p = host_page();
        let shm = Shm::new("short");
        let volume = Volume::format(Device::open(&shm.0, BLOCKS * p).unwrap());
        let file = volume.create("a").unwrap();
        put(&file, &pattern(4 * p, 1), 0);
        file.allocate(8 * p, 2 * p, false).unwrap();
        let pager = Pager::builder().start().unwrap();
        let map = pager.map(&file, 0..16 * p).unwrap();
        let direct = pager.map_with(&file, 0..16 * p, &MapOptions::new().resolve(Resolve::FaultingThread)).unwrap();
        touch(&map, 2 * p);
        let foreign = shm.foreign();
        let short = |what: &str| assert_eq!(foreign.metadata().unwrap().len(), p, "{what} has made the file longer");
        foreign.set_len(p).unwrap();
        let mut bytes = zeros(p);
        let lost = block_of(&file, 2);
        assert_lost(file.read_at(&mut bytes, 2 * p), &shm.0, lost);
        assert_lost(map.read_at(&mut bytes, 2 * p), &shm.0, lost);
        assert_lost(file.write_at(b"part", 2 * p + 8), &shm.0, lost);
        assert_lost(file.write_at(&bytes, 2 * p), &shm.0, lost);
        assert_lost(map.write_at(b"part", 2 * p + 8), &shm.0, lost);
        assert_lost(map.write_at(&bytes, 2 * p), &shm.0, lost);
        for map in [&map, &direct] {
            assert_bus(map.load(2 * p), map, 2 * p);
            // A hole: there is no block that could be zeroed.
            assert_bus(map.store(5 * p, 1), map, 5 * p);
            // Unwritten.
            assert_eq!(map.load(8 * p), Ok(0));
            assert_bus(map.store(8 * p, 1), map, 8 * p);
        }
        short("a store");
        let other = volume.create("other").unwrap();
        let wrote = other.write_at(&pattern(10, 1), 0);
        assert!(matches!(wrote, Err(Error::DeviceLost { .. })), "{wrote:?}");
        let wrote = other.write_at(&pattern(4 * p, 1), 0);
        assert!(matches!(wrote, Err(Error::DeviceLost { .. })), "{wrote:?}");
        assert_eq!((other.len(), other.blocks()), (0, 0));
        short("a write");
        assert_lost(file.truncate(2 * p + 100), &shm.0, lost);
        assert_eq!(file.len(), 2 * p + 100);
        short("a truncate");
        assert_bytes(&read(&file, 0, p), &pattern(p, 1), "what is left");
        assert_eq!(map.load(0), Ok(u64::from_ne_bytes(pattern(8, 1).try_into().unwrap())));
        // As long again, and what was there is not.
        foreign.set_len(BLOCKS * p).unwrap();
        assert_lost(file.read_at(&mut bytes, p), &shm.0, block_of(&file, 1));
        assert_bus(map.load(p), &map, p);
        put(&other, &pattern(4 * p, 7), 0);
        assert_bytes(&read(&other, 0, 4 * p), &pattern(4 * p, 7), "a new file");
        file.truncate(0).unwrap();
        drop((map, direct));
        assert_eq!(volume.used_blocks(), 4);
    }

    fn limit_files(bytes: u64) {
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, bytes, hard).unwrap();
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_limit_on_files_that_is_lowered() {
        assert_is_child();
        let p = host_page();
        let shm = Shm::new("lowered");
        let (_, before) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        for device in [Device::memfd("lowered", BLOCKS * p).unwrap(), Device::open(&shm.0, BLOCKS * p).unwrap()] {
            let volume = Volume::format(device);
            let (first, file) = (volume.create("first").unwrap(), volume.create("a").unwrap());
            put(&first, &pattern(p, 1), 0);
            put(&file, &pattern(4 * p, 1), 0);
            file.truncate(8 * p).unwrap();
            file.allocate(7 * p, p, false).unwrap();
            let pager = Pager::builder().start().unwrap();
            let map = pager.map(&file, 0..8 * p).unwrap();
            let firsts = pager.map(&first, 0..p).unwrap();
            touch(&firsts, 0);
            // With standard output to a pipe, the child can still speak.
            limit_files(0);
            let limited = |result: Result<usize>| {
                assert!(matches!(result, Err(Error::Limit { limit: "RLIMIT_FSIZE", allowed: 0, .. })), "{result:?}")
            };
            limited(file.write_at(b"x", 0));
            limited(file.write_at(b"x", 5 * p));
            limited(map.write_at(b"x", 5 * p).map(|()| 0));
            assert_bytes(&read(&file, 0, 4 * p), &pattern(4 * p, 1), "as before");
            map.store(0, 1).unwrap();
            assert_eq!(map.load(5 * p), Ok(0));
            map.store(5 * p, 1).unwrap_or_else(|error| assert!(matches!(error, Error::Bus(_)), "{error:?}"));
            // The block has to be zeroed, by a call; with windows there is a page of zeros.
            assert_eq!(map.store(7 * p, 1).is_ok(), volume.allocation().0 == Allocation::Windows);
            file.truncate(2 * p + 100).unwrap();
            first.truncate(100).unwrap();
            file.punch_hole(p + 8, 8).unwrap();
            limit_files(before);
            assert_bytes(&read(&first, 0, 100), &pattern(100, 1), "the first block");
            file.truncate(8 * p).unwrap();
            first.truncate(p).unwrap();
            assert_eq!(read(&file, 2 * p + 100, p), zeros(p));
            assert_eq!(read(&first, 100, p - 100), zeros(p - 100));
            assert_eq!(map.load(p + 8), Ok(0));
            put(&file, b"x", 5 * p);
            map.store(6 * p, 1).unwrap();
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_limit_on_files_refuses_a_device() {
        assert_is_child();
        let p = host_page();
        let shm = Shm::new("limited");
        limit_files(3 * p);
        let refused = Err(Error::Limit {
            call: "ftruncate or pwrite",
            errno: libc::EFBIG,
            limit: "RLIMIT_FSIZE",
            unit: "bytes",
            allowed: 3 * p,
            wanted: 4 * p,
        });
        assert_eq!(Device::memfd("limited", 4 * p).map(drop), refused);
        assert_eq!(Device::open(&shm.0, 4 * p).map(drop), refused);
        assert!(!shm.0.exists());
        fs::write(&shm.0, b"precious").unwrap();
        assert_eq!(Device::open(&shm.0, 4 * p).map(drop), refused);
        assert_eq!(fs::read(&shm.0).unwrap(), b"precious");
        Device::memfd("small", 3 * p).unwrap();
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn no_descriptor_left() {
        assert_is_child();
        let shm = Shm::new("descriptors");
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let next = HostFile::open("/dev/null").unwrap();
        let next = std::os::fd::AsRawFd::as_raw_fd(&next) as u64;
        setrlimit(Resource::RLIMIT_NOFILE, next, hard).unwrap();
        let errors = [Device::memfd("none", 1 << 20).unwrap_err(), Device::open(&shm.0, 1 << 20).unwrap_err()];
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        for error in errors {
            assert!(
                matches!(error, Error::Limit { errno: libc::EMFILE, limit: "RLIMIT_NOFILE", allowed, .. } if allowed == next),
                "{error:?}"
            );
        }
        assert!(!shm.0.exists());
    }

    /// What the other process does, told its path by the environment.
    #[test]
    #[ignore = "run by another_process_at_random as its child process"]
    fn a_foreign_process() {
        assert_is_child();
        let path = std::env::var("DAXPAGER_TEST_PATH").unwrap();
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let p = host_page();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        println!("ready");
        for _ in 0..3000 {
            match random(4) {
                0 => {
                    file.set_len(random(BLOCKS) * p + random(2) * 100).unwrap();
                    file.set_len(BLOCKS * p).unwrap();
                }
                _ => punch(&file, random(BLOCKS) * p, (1 + random(4)) * p),
            }
            if random(8) == 0 {
                thread::yield_now();
            }
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn another_process_at_random() {
        assert_is_child();
        let p = host_page();
        let shm = Shm::new("random");
        let volume = Volume::format(Device::open(&shm.0, BLOCKS * p).unwrap());
        let pager = Pager::builder().start().unwrap();
        let over = AtomicBool::new(false);
        let done = AtomicUsize::new(0);
        thread::scope(|scope| {
            let workers: Vec<_> = (1..=3u8)
                .map(|own| {
                    let (volume, pager, over, done) = (&volume, &pager, &over, &done);
                    scope.spawn(move || {
                        let file = volume.create(&own.to_string()).unwrap();
                        let resolve = if own == 1 { Resolve::FaultingThread } else { Resolve::PagerThread };
                        let tracking = if own == 2 { Tracking::Coarse } else { Tracking::Exact };
                        let options = MapOptions::new().resolve(resolve).tracking(tracking);
                        let map = pager.map_with(&file, 0..16 * p, &options).unwrap();
                        let ours = |byte: &u8| *byte == 0 || *byte == own;
                        let page = vec![own; p as usize];
                        let word = u64::from_ne_bytes([own; 8]);
                        let mut round = 0u64;
                        while !over.load(Ordering::Relaxed) {
                            round += 1;
                            let at = round * 7 % 16 * p;
                            let mut bytes = zeros(2 * p);
                            // Each of them may be an error at any time.
                            let _ = file.truncate(16 * p);
                            let _ = file.write_at(&page, at);
                            let _ = file.write_at(&page[..100], at + 50);
                            let _ = map.store(at + 8, word).is_ok();
                            let _ = map.write_at(&page[..10], at + 20);
                            if let Ok(read) = file.read_at(&mut bytes, at) {
                                assert!(bytes[..read].iter().all(ours), "file {own} reads another's bytes");
                            }
                            if let Ok(word) = map.load(at + 8) {
                                assert!(word.to_ne_bytes().iter().all(ours), "file {own} shows another's bytes");
                            }
                            if map.read_at(&mut bytes[..100], at).is_ok() {
                                assert!(bytes[..100].iter().all(ours), "mapping {own} reads another's bytes");
                            }
                            match round % 5 {
                                0 => drop(file.truncate(at + 100)),
                                1 => drop(file.punch_hole(at, p)),
                                2 => drop(file.punch_hole(at + 10, 100)),
                                3 => drop(file.zero_range(at, p + 100, false)),
                                _ => drop(file.allocate(at, 2 * p, false)),
                            }
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            let mut foreign = child::command("inside::a_foreign_process");
            foreign.env("DAXPAGER_TEST_PATH", &shm.0);
            let outcome = child::finish(foreign);
            over.store(true, Ordering::Relaxed);
            workers.into_iter().for_each(join);
            outcome.assert_success();
        });
        assert!(done.load(Ordering::Relaxed) > 0);
        println!("{} rounds, {} lost pages", done.load(Ordering::Relaxed), pager.stats().lost_pages);
        drop(pager);
        (1..=3).for_each(|own| volume.remove(&own.to_string()).unwrap());
        assert_eq!(volume.used_blocks(), 0);
    }
}

/// The application gives a page of its mapping up (`MADV_REMOVE`): zeros, for loads and for calls, and stores work, as on tmpfs. Nobody but the
/// process can have done it to a memfd, so a foreign punch by /proc is the same.
#[test]
fn a_page_of_a_memfd_that_is_removed_is_zeros() {
    for (index, resolve) in [Resolve::PagerThread, Resolve::FaultingThread].into_iter().enumerate() {
        for tracking in [Tracking::Exact, Tracking::Coarse, Tracking::Asynchronous] {
            let p = host_page();
            let name = format!("removed-{index}-{tracking:?}");
            let volume = Volume::format_with(Device::memfd(&name, BLOCKS * p).unwrap(), Allocation::Blocks);
            let file = volume.create("a").unwrap();
            put(&file, &pattern(8 * p, 1), 0);
            let pager = Pager::builder().start().unwrap();
            let map = pager.map_with(&file, 0..8 * p, &MapOptions::new().resolve(resolve).tracking(tracking)).unwrap();
            touch(&map, 0);
            map.store(p, 1).unwrap();
            raw::madvise(map.as_ptr() as usize, 3 * p, libc::MADV_REMOVE);
            assert_eq!(seen(&map, 0, 2 * p), zeros(2 * p));
            map.store(2 * p + 8, 7).unwrap();
            assert_eq!((map.load(2 * p), map.load(2 * p + 8)), (Ok(0), Ok(7)));
            assert_eq!(read(&file, 0, 2 * p), zeros(2 * p));
            assert_bytes(&seen(&map, 3 * p, 5 * p), &pattern(8 * p, 1)[3 * p as usize..], "the neighbours");
            punch(&memfd_named(&name), 0, BLOCKS * p);
            assert_eq!(read(&file, 0, 8 * p), zeros(8 * p));
            map.populate(4 * p..6 * p, Access::Store).unwrap();
            map.store(4 * p, 9).unwrap();
            put(&file, &[5; 8], 5 * p + 16);
            assert_eq!((map.load(4 * p), map.load(5 * p + 16)), (Ok(9), Ok(u64::from_ne_bytes([5; 8]))));
            assert_eq!(seen(&map, 6 * p, 2 * p), zeros(2 * p));
            assert!(pager.stats().lost_pages > 0, "{:?}", pager.stats());
            file.truncate(4 * p + 8).unwrap();
            file.truncate(8 * p).unwrap();
            assert_eq!((map.load(4 * p), map.load(4 * p + 8)), (Ok(9), Ok(0)));
        }
    }
}

/// Threads that store to a page which has just been removed: each of them has it refilled, and none wipes what another has stored.
#[test]
fn a_refill_wipes_no_store() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 200;
    let p = host_page();
    let volume = Volume::format_with(Device::memfd("refill", BLOCKS * p).unwrap(), Allocation::Blocks);
    let file = volume.create("a").unwrap();
    put(&file, &pattern(p, 1), 0);
    let pager = Pager::builder().start().unwrap();
    let all = [Resolve::PagerThread, Resolve::FaultingThread];
    let map = |resolve: Resolve| Arc::new(pager.map_with(&file, 0..p, &MapOptions::new().resolve(resolve)).unwrap());
    let maps: Vec<Arc<Mapping>> = all.into_iter().map(map).collect();
    // So that their addresses point at the device: MADV_REMOVE is for that alone.
    maps.iter().for_each(|map| touch(map, 0));
    let barrier = Barrier::new(THREADS as usize + 1);
    let mut gone = Vec::new();
    thread::scope(|scope| {
        let storing: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (map, barrier) = (maps[thread as usize % 2].clone(), &barrier);
                let mut refused = Vec::new();
                scope.spawn(move || {
                    for round in 1..=ROUNDS {
                        barrier.wait();
                        refused.extend(map.store(thread * 64, round).err());
                        barrier.wait();
                    }
                    refused
                })
            })
            .collect();
        for round in 1..=ROUNDS {
            raw::madvise(maps[round as usize % 2].as_ptr() as usize, p, libc::MADV_REMOVE);
            barrier.wait();
            barrier.wait();
            for thread in 0..THREADS {
                let mut word = [0; 8];
                let called = file.read_at(&mut word, thread * 64).map(|_| u64::from_ne_bytes(word));
                let loaded = maps[0].load(thread * 64);
                if (&loaded, &called) != (&Ok(round), &Ok(round)) {
                    gone.push((round, thread, loaded, called));
                }
            }
        }
        storing.into_iter().for_each(|thread| assert_eq!(join(thread), vec![]));
    });
    assert!(gone.is_empty(), "stores that are gone: {gone:?}");
    assert!(pager.stats().lost_pages >= ROUNDS / 2, "{:?}", pager.stats());
}

/// Whoever gets at a memfd by /proc cannot cut it short, and, once it is a volume's, not make it longer either.
#[test]
fn a_memfd_keeps_its_size() {
    let p = host_page();
    for allocation in [Allocation::Blocks, Allocation::Windows] {
        let name = format!("sealed-{allocation:?}");
        let device = Device::memfd(&name, 4 * p).unwrap();
        let foreign = memfd_named(&name);
        let is_refused = |bytes| foreign.set_len(bytes).unwrap_err().raw_os_error() == Some(libc::EPERM);
        assert!(is_refused(0) && is_refused(3 * p));
        let volume = Volume::format_with(device, allocation);
        let bytes = foreign.metadata().unwrap().len();
        assert_eq!(bytes > 4 * p, allocation == Allocation::Windows, "{bytes}");
        assert!([0, bytes - p, bytes + p].into_iter().all(is_refused));
        assert_eq!(foreign.write_at(b"x", bytes).unwrap_err().raw_os_error(), Some(libc::EPERM));
        drop(volume);
    }
}

/// Sizes that no address space has room for. An existing file keeps its length and its bytes, a new one is not made.
#[test]
fn a_size_that_cannot_be_mapped_changes_nothing() {
    let p = host_page();
    let shm = Shm::new("size");
    for bytes in [1 << 47, 1 << 50, (1 << 63) - p, 1 << 63] {
        let refused = Err(Error::DeviceSize { bytes, block_bytes: p });
        assert_eq!(Device::open(&shm.0, bytes).map(drop), refused);
        assert!(!shm.0.exists());
        assert_eq!(Device::memfd("size", bytes).map(drop), refused);
    }
    fs::write(&shm.0, pattern(8192, 1)).unwrap();
    for bytes in [1 << 47, 1 << 50, (1 << 63) - p, 1 << 63] {
        assert_eq!(Device::open(&shm.0, bytes).map(drop), Err(Error::DeviceSize { bytes, block_bytes: p }));
        assert_eq!(fs::read(&shm.0).unwrap(), pattern(8192, 1));
    }
}

/// A path is the file itself or it is nothing: links are not followed, and what is no file is not opened.
#[test]
fn what_is_no_file_is_refused() {
    let p = host_page();
    let refused = |path: &Path, what: &str| match Device::open(path, 4 * p).map(drop) {
        Err(Error::NotAFile { path: named, kind }) => assert_eq!((named.as_path(), kind), (path, what)),
        other => panic!("{}: {other:?}", path.display()),
    };
    // A dangling link from tmpfs to a file system that devices cannot lie on.
    let target = std::env::temp_dir().join(format!("daxpager-device-{}-elsewhere", std::process::id()));
    let (link, to_file, file, fifo) = (Shm::new("link"), Shm::new("link2"), Shm::new("file"), Shm::new("fifo"));
    symlink(&target, &link.0).unwrap();
    refused(&link.0, "a symbolic link");
    assert!(!target.exists(), "a file was made where the link leads");
    fs::write(&file.0, b"precious").unwrap();
    symlink(&file.0, &to_file.0).unwrap();
    refused(&to_file.0, "a symbolic link");
    assert_eq!(fs::read(&file.0).unwrap(), b"precious");
    nix::unistd::mkfifo(&fifo.0, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    refused(&fifo.0, "a FIFO");
    assert!(fs::symlink_metadata(&fifo.0).unwrap().file_type().is_fifo());
    refused(Path::new("/dev/null"), "a device node");
    let socket = Shm::new("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket.0).unwrap();
    refused(&socket.0, "a socket");
    for dir in ["/dev/shm", "/dev/shm/", "/", "/dev/shm/.."] {
        let opened = Device::open(dir, 4 * p).map(drop);
        assert!(matches!(opened, Err(Error::System { errno, .. }) if errno == libc::EISDIR), "{dir}: {opened:?}");
    }
}

/// A new device's file is its owner's alone.
#[test]
fn a_new_file_is_private() {
    let shm = Shm::new("mode");
    let device = Device::open(&shm.0, 1 << 20).unwrap();
    let made = fs::metadata(&shm.0).unwrap();
    assert_eq!(made.permissions().mode() & 0o7177, 0, "{:o}", made.permissions().mode());
    // In use by another: refused, and left alone.
    assert_eq!(Device::open(&shm.0, 1 << 20).map(drop), Err(Error::DeviceBusy { path: shm.0.clone() }));
    assert_eq!(fs::metadata(&shm.0).unwrap().ino(), made.ino());
    drop(device);
    // What is there keeps its mode.
    fs::set_permissions(&shm.0, fs::Permissions::from_mode(0o640)).unwrap();
    drop(Device::open(&shm.0, 1 << 16).unwrap());
    let now = fs::metadata(&shm.0).unwrap();
    assert_eq!((now.permissions().mode() & 0o777, now.len()), (0o640, 1 << 16));
}

/// A device on tmpfs is not mapped as long as no mapping shows it, and what a pager maps of it is in no core dump.
#[test]
fn nothing_of_a_device_is_dumped() {
    let p = host_page();
    let shm = Shm::new("dump");
    let path = shm.0.to_str().unwrap().to_owned();
    let devices = [Device::memfd("dumped", 1 << 30).unwrap(), Device::open(&shm.0, 1 << 30).unwrap()];
    let shown = |line: &str| line.contains("/memfd:dumped ") || line.contains(&path);
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.lines().any(shown), "{maps}");
    let pager = Pager::builder().start().unwrap();
    for device in devices {
        let volume = Volume::format_with(device, Allocation::Blocks);
        let file = volume.create("a").unwrap();
        put(&file, &pattern(4 * p, 1), 0);
        file.truncate(64 * p).unwrap();
        let map = pager.map(&file, 0..64 * p).unwrap();
        touch(&map, 0);
        map.store(9 * p, 1).unwrap();
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut seen = 0;
        let mut ours = false;
        for line in smaps.lines() {
            if let Some(flags) = line.strip_prefix("VmFlags:") {
                assert!(!ours || flags.split_whitespace().any(|flag| flag == "dd"), "{smaps}");
            } else if line.split_whitespace().next().is_some_and(|first| first.contains('-')) {
                ours = shown(line);
                seen += u64::from(ours);
            }
        }
        assert!(seen >= 2, "{seen} mappings of the device");
    }
}
