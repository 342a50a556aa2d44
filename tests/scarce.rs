//! A process that is short of address ranges (VMAs): faults wait for a while, say what was short, and the mapping is as it was
//! once there is room again. Each test runs this program again with one ignored test of `inside`.

mod blackbox;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use blackbox::child::{self, assert_is_child};
use blackbox::scarce::Hoard;
use daxpager::{Allocation, Device, Error, File, MapOptions, Mapping, Pager, Resolve, Tracking, Volume};

const PAGE: u64 = 4096;
const PAGES: u64 = 64;
/// The user nobody.
const NOBODY: nix::unistd::Uid = nix::unistd::Uid::from_raw(65534);

child::children! {
    /// Not one address range is left, and a page that has been punched is loaded.
    with_none_left_a_load_ends_and_says_why;
    /// The same with threads that resolve their own faults.
    with_none_left_a_load_in_the_faulting_thread_ends_and_says_why;
    /// Some are left: too few for a re-point, or enough for one and not for the next.
    with_two_left_every_access_ends;
    /// See above.
    with_five_left_every_access_ends;
    /// See above.
    with_eight_left_every_access_ends;
    /// The pager ends while no address range is left: no hang, and the addresses are nobody else's.
    a_pager_ends_with_none_left;
    /// The pager ends while a call is about to fill a mapping, and neither may memory be mapped nor locked: no byte of anybody else's
    /// is touched, the call fails, and so do later ones.
    a_call_beside_the_end_harms_nobody;
    /// Two pagers, each with files in more pieces than the process may have: threads can be started all the time, and every
    /// load ends well.
    two_pagers_leave_the_application_a_quarter;
}

/// A file whose every page has a block, and a byte for each.
fn filled(volume: &Volume, name: &str, pages: u64) -> File {
    let file = volume.create(name).unwrap();
    let bytes: Vec<u8> = (0..pages * PAGE).map(|at| ((at / PAGE) as u8).wrapping_add(1)).collect();
    file.write_at(&bytes, 0).unwrap();
    file
}

fn expected(page: u64) -> u64 {
    u64::from_ne_bytes([(page as u8).wrapping_add(1); 8])
}

fn load_all(map: &Mapping) {
    for page in 0..map.len() / PAGE {
        assert_eq!(map.load(page * PAGE).unwrap(), expected(page), "page {page}");
    }
}

/// Every kind of mapping, on a pager and a file of its own.
fn kinds(resolve: Resolve, trackings: &[Tracking], mut run: impl FnMut(&Pager, &File, &Mapping, &str)) {
    for &tracking in trackings {
        let what = format!("{resolve:?}, {tracking:?}");
        println!("{what}");
        let volume = Volume::format_with(Device::memfd("scarce", 4 << 20).unwrap(), Allocation::Blocks);
        let pager = Pager::builder().start().unwrap();
        let file = filled(&volume, "file", PAGES);
        let map =
            pager.map_with(&file, 0..PAGES * PAGE, &MapOptions::new().resolve(resolve).tracking(tracking)).unwrap();
        load_all(&map);
        run(&pager, &file, &map, &what);
    }
}

/// A load, tried until there is room, for at most ten seconds.
fn load_in_the_end(map: &Mapping, offset: u64) -> u64 {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match map.load(offset) {
            Ok(word) => return word,
            Err(error) => assert!(Instant::now() < until, "still {error}"),
        }
    }
}

mod inside {
    use super::*;

    fn none_left(resolve: Resolve) {
        let trackings = [Tracking::Exact, Tracking::Coarse, Tracking::Asynchronous];
        kinds(resolve, &trackings, |pager, file, map, what| {
            let hoard = Hoard::all_but(0);
            file.punch_hole(7 * PAGE, PAGE).unwrap();
            let loaded = map.load(7 * PAGE);
            let described = pager.describe();
            drop(hoard);
            match loaded {
                Err(Error::AddressRanges { page: 7, .. }) => {
                    assert_eq!(pager.stats().shortages, 1, "{what}");
                    assert!(described.contains("shortages 1"), "{described}");
                }
                other => panic!("{what}: {other:?}\n{described}"),
            }
            assert_eq!(load_in_the_end(map, 7 * PAGE), 0, "{what}");
            map.store(7 * PAGE, 77).unwrap();
            assert_eq!(map.load(7 * PAGE).unwrap(), 77);
            assert_eq!(map.load(8 * PAGE).unwrap(), expected(8));
            let mut word = [0; 8];
            file.read_at(&mut word, 7 * PAGE).unwrap();
            assert_eq!(u64::from_ne_bytes(word), 77, "{what}");
        });
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn with_none_left_a_load_ends_and_says_why() {
        assert_is_child();
        none_left(Resolve::PagerThread);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn with_none_left_a_load_in_the_faulting_thread_ends_and_says_why() {
        assert_is_child();
        none_left(Resolve::FaultingThread);
    }

    fn some_left(left: usize) {
        assert_is_child();
        for resolve in [Resolve::PagerThread, Resolve::FaultingThread] {
            kinds(resolve, &[Tracking::Exact, Tracking::Asynchronous], |_, file, map, what| {
                let hoard = Hoard::all_but(left);
                file.punch_hole(20 * PAGE, PAGE).unwrap();
                let stored = map.store(20 * PAGE, 5);
                drop(hoard);
                assert!(matches!(stored, Ok(()) | Err(Error::AddressRanges { page: 20, .. })), "{what}: {stored:?}");
                let now = load_in_the_end(map, 20 * PAGE);
                assert_eq!(now, if stored.is_ok() { 5 } else { 0 }, "{what}");
                map.store(21 * PAGE, 6).unwrap();
                assert_eq!(map.load(21 * PAGE).unwrap(), 6);
            });
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn with_two_left_every_access_ends() {
        some_left(2);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn with_five_left_every_access_ends() {
        some_left(5);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn with_eight_left_every_access_ends() {
        some_left(8);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_pager_ends_with_none_left() {
        assert_is_child();
        let volume = Volume::format_with(Device::memfd("scarce", 4 << 20).unwrap(), Allocation::Blocks);
        let file = filled(&volume, "file", PAGES);
        let pager = Pager::builder().start().unwrap();
        // Neighbours, so that the kernel joins their ranges: to end one of them takes another range.
        let maps: Vec<Mapping> = (0..3).map(|_| pager.map(&file, PAGES * PAGE..2 * PAGES * PAGE).unwrap()).collect();
        let addresses: Vec<usize> = maps.iter().map(|map| map.as_ptr() as usize).collect();
        let hoard = Hoard::all_but(0);
        pager.shutdown().unwrap();
        let given_out = blackbox::scarce::is_mapped_by_now(&addresses);
        drop(hoard);
        assert_eq!(given_out, vec![true; 3], "the addresses of a mapping stay taken while it lives");
        for map in &maps {
            assert!(map.load(0).is_err());
            assert!(map.store(0, 1).is_err());
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_call_beside_the_end_harms_nobody() {
        assert_is_child();
        const BYTES: u64 = 256 * PAGE;
        let volume = Volume::format(Device::memfd("beside", 4 << 20).unwrap());
        let file = filled(&volume, "file", 256);
        let pager = Pager::builder().start().unwrap();
        let map = pager.map(&file, 0..BYTES).unwrap();
        load_all(&map);
        let (out, into) = nix::unistd::pipe().unwrap();
        let ended = std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let (map, out) = (&map, &out);
            let reading = scope.spawn(move || {
                tell.send(nix::unistd::gettid()).unwrap();
                map.read_from(out.as_fd(), 0, BYTES)
            });
            blackbox::scarce::until_asleep(told.recv().unwrap(), "pipe");
            // Room for the guards, and not for what would take the place of the mapping.
            blackbox::scarce::limit(nix::sys::resource::Resource::RLIMIT_MEMLOCK, 768 << 10);
            nix::unistd::setresuid(NOBODY, NOBODY, NOBODY).unwrap();
            nix::sys::mman::mlockall(nix::sys::mman::MlockAllFlags::MCL_FUTURE).unwrap();
            pager.shutdown().unwrap();
            assert!(!blackbox::scarce::may_map(BYTES as usize), "memory may be mapped: the test tests nothing");
            // With addresses given back these would have them.
            let guards: Vec<Vec<u8>> = (0..8).map(|_| vec![0x5a; 64 << 10]).collect();
            assert_eq!(blackbox::scarce::is_mapped_by_now(&[map.as_ptr() as usize]), [true]);
            nix::unistd::write(&into, &[0xee; 4096]).unwrap();
            let ended = reading.join().unwrap();
            assert!(guards.iter().flatten().all(|byte| *byte == 0x5a), "foreign memory was written to");
            ended
        });
        println!("the call: {ended:?}");
        assert!(ended.is_err(), "{ended:?}");
        assert!(map.load(0).is_err());
        assert!(map.copy_in(0, &[1; 8]).is_err());
        assert!(map.read_at(&mut [0; 8], 0).is_err());
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn two_pagers_leave_the_application_a_quarter() {
        assert_is_child();
        // Every second page of a file has a block: twice as many address ranges as pages with one.
        let max: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
        // Of both pagers together, more than may be, and no more than that: each is a fault.
        let pages = max / 4 - 1000;
        let worlds: Vec<(Pager, File, Mapping)> = (0..2)
            .map(|world| {
                let volume = Volume::format_with(Device::memfd("half", pages * PAGE).unwrap(), Allocation::Blocks);
                let file = volume.create("half").unwrap();
                file.truncate(2 * pages * PAGE).unwrap();
                for page in 0..pages {
                    file.write_at(&(page + world).to_ne_bytes(), 2 * page * PAGE).unwrap();
                }
                let pager = Pager::builder().start().unwrap();
                let map = pager.map(&file, 0..2 * pages * PAGE).unwrap();
                (pager, file, map)
            })
            .collect();
        let mut most = 0;
        for page in 0..pages {
            for (world, (_, _, map)) in worlds.iter().enumerate() {
                let loaded = map.load(2 * page * PAGE);
                assert_eq!(loaded.unwrap(), page + world as u64, "page {page} of {world}");
            }
            if page % 1000 == 0 {
                std::thread::spawn(|| {}).join().unwrap();
                most = most.max(worlds.iter().map(|(pager, ..)| pager.stats().address_ranges).sum());
            }
        }
        let evictions: Vec<u64> = worlds.iter().map(|(pager, ..)| pager.stats().evictions).collect();
        println!("at most {most} address ranges of {max}; evictions {evictions:?}");
        assert!(most <= max / 4 * 3 + 64, "{most} of {max}");
        assert!(evictions.iter().sum::<u64>() > 0, "{evictions:?}");
    }
}
