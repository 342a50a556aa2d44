//! Mappings for loads only: what they refuse, that they go on refusing it whatever becomes of the file, and that they show
//! everything that is stored elsewhere.
#![allow(unsafe_code)]

mod blackbox;

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use blackbox::child::assert_is_child;
use blackbox::*;
use daxpager::{Access, Advice, Error, MapOptions, Mapping, Resolve, Tracking};
use nix::errno::Errno;

const ALL: [Resolve; 2] = [Resolve::PagerThread, Resolve::FaultingThread];

fn options(resolve: Resolve) -> MapOptions {
    MapOptions::new().resolve(resolve).read_only(true)
}

fn base(map: &Mapping) -> usize {
    map.as_ptr() as usize
}

/// What the kernel allows at an address, as /proc/self/maps says it: "rw-s" and the like.
fn rights_at(addr: usize) -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (start, rest) = line.split_once('-').unwrap();
        let end = rest.split_once(' ').unwrap().0;
        let parse = |text| usize::from_str_radix(text, 16).unwrap();
        (parse(start)..parse(end)).contains(&addr)
    });
    line.unwrap_or_else(|| panic!("{addr:#x} is not mapped")).split_whitespace().nth(1).unwrap().to_owned()
}

/// Whether the kernel would let the CPU store there: a system call that does gets EFAULT if not, and no signal.
#[track_caller]
fn assert_takes_no_stores(map: &Mapping, pages: u64, page: u64) {
    for index in 0..pages {
        let addr = base(map) + (index * page) as usize;
        let (out, mut into) = nix::unistd::pipe().map(|(out, into)| (out, fs::File::from(into))).unwrap();
        into.write_all(&[9; 8]).unwrap();
        // SAFETY: the kernel writes there if it may, to the test's own mapping.
        let read = unsafe { libc::read(std::os::fd::AsRawFd::as_raw_fd(&out), addr as *mut libc::c_void, 8) };
        assert_eq!((read, Errno::last()), (-1, Errno::EFAULT), "page {index}");
        assert!(rights_at(addr).starts_with("r--"), "page {index}: {}", rights_at(addr));
    }
}

#[test]
fn calls_that_would_store_are_refused_and_change_nothing() {
    for resolve in ALL {
        let rig = Rig::new(16);
        let p = rig.page;
        let file = rig.written("a", 2);
        file.truncate(6 * p).unwrap();
        let map = rig.pager.map_with(&file, 0..8 * p, &options(resolve)).unwrap();
        let (before, free) = (read(&file, 0, 6 * p), rig.volume.free_blocks());
        let (zero, _into) = nix::unistd::pipe().unwrap();
        // Written, a hole, past the end.
        for index in [0, 3, 7] {
            let refused = |len| Err(Error::ReadOnlyMapping { offset: index * p, len });
            assert_eq!(map.store(index * p, 1), refused(8));
            assert_eq!(map.compare_exchange(index * p, 0, 1).map(drop), refused(8));
            assert_eq!(map.copy_in(index * p, &[1; 3]), refused(3));
            assert_eq!(map.write_at(&[1; 3], index * p), refused(3));
            assert_eq!(map.read_from(zero.as_fd(), index * p, 5).map(drop), refused(5));
            assert_eq!(map.populate(index * p..index * p + 5, Access::Store), refused(5));
        }
        // What is wrong otherwise is told as ever.
        assert!(matches!(map.store(8 * p, 1), Err(Error::OutsideMapping { .. })));
        assert!(matches!(map.store(3, 1), Err(Error::Misaligned { .. })));
        assert_eq!(rig.volume.free_blocks(), free);
        assert_bytes(&read(&file, 0, 6 * p), &before, "the file");
        assert_eq!(map.take_dirty(), Ok(vec![]));
        rig.assert_blocks_add_up();
    }
}

#[test]
fn loads_show_what_is_stored_elsewhere() {
    for resolve in ALL {
        for tracking in [Tracking::Exact, Tracking::Coarse, Tracking::Asynchronous] {
            let rig = Rig::new(16);
            let p = rig.page;
            let file = rig.written("a", 2);
            file.truncate(6 * p).unwrap();
            let map = rig.pager.map_with(&file, 0..8 * p, &options(resolve).tracking(tracking)).unwrap();
            let writer = rig.pager.map(&file, 0..8 * p).unwrap();
            let mut want = pattern(2 * p, 1);
            want.resize(6 * p as usize, 0);
            let same = |want: &[u8]| assert_in_maps(std::slice::from_ref(&map), 0, want);
            same(&want);
            assert_bus(map.load(6 * p), &map, 6 * p);
            assert_takes_no_stores(&map, 8, p);
            // Through the other: to a block, and to holes, under which this one is pointed elsewhere.
            for index in [1, 3, 4] {
                writer.store(index * p, 0x0101_0101_0101_0101).unwrap();
                want[(index * p) as usize..][..8].fill(1);
            }
            same(&want);
            assert_takes_no_stores(&map, 8, p);
            map.populate(0..6 * p, Access::Load).unwrap();
            map.advise(0..6 * p, Advice::DontNeed).unwrap();
            map.advise(0..6 * p, Advice::WillNeed).unwrap();
            same(&want);
            file.punch_hole(0, 4 * p).unwrap();
            want[..4 * p as usize].fill(0);
            same(&want);
            assert_takes_no_stores(&map, 8, p);
            file.truncate(8 * p).unwrap();
            want.resize(8 * p as usize, 0);
            put(&file, &[7; 16], 7 * p);
            want[7 * p as usize..][..16].fill(7);
            same(&want);
            assert_takes_no_stores(&map, 8, p);
            assert_eq!(map.take_dirty(), Ok(vec![]));
            // Two of one file, one of each kind: each keeps its own.
            assert!(rights_at(base(&writer) + 7 * p as usize).starts_with("rw-"));
            rig.assert_blocks_add_up();
        }
    }
}

#[test]
fn it_stays_read_only_while_the_file_changes_under_it() {
    for resolve in ALL {
        let rig = Rig::new(8);
        let p = rig.page;
        let file = rig.file("a");
        file.truncate(4 * p).unwrap();
        let map = rig.pager.map_with(&file, 0..4 * p, &options(resolve)).unwrap();
        let writer = rig.other.map(&file, 0..4 * p).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|s| {
            let _end = at_end(|| stop.store(true, Ordering::Relaxed));
            let readers: Vec<_> = (0..2)
                .map(|reader: u64| {
                    let (map, stop) = (&map, &stop);
                    s.spawn(move || {
                        while !stop.load(Ordering::Relaxed) {
                            for index in 0..4 {
                                let seen = map.load(index * p + 8 * reader).unwrap();
                                assert!(seen == 0 || seen % 4 == index, "{seen:#x} in page {index}");
                            }
                        }
                    })
                })
                .collect();
            for round in 1..400 {
                for index in 0..4 {
                    writer.store(index * p, 4 * round + index).unwrap();
                    writer.store(index * p + 8, 4 * round + index).unwrap();
                }
                assert_eq!(map.store(round % 4 * p, 1), Err(Error::ReadOnlyMapping { offset: round % 4 * p, len: 8 }));
                file.punch_hole(round % 3 * p, 2 * p).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            readers.into_iter().for_each(join);
        });
        assert_takes_no_stores(&map, 4, p);
        rig.assert_blocks_add_up();
    }
}

/// The CPU's own store, in each state that a page can be in: SIGSEGV, as of mmap(2) without PROT_WRITE.
#[test]
fn a_plain_store_is_a_sigsegv() {
    for resolve in ["pager", "faulting"] {
        for case in CASES {
            let mut command = child::command("inside::a_plain_store_is_a_sigsegv");
            command.env("DAXPAGER_TEST_CASE", format!("{resolve} {case}"));
            child::finish(command).assert_killed_after("the page is loaded", libc::SIGSEGV);
        }
    }
}

const CASES: [&str; 6] = ["hole", "written", "untouched", "past the end", "was a hole", "punched"];

child::children! {
    /// mprotect(2) by the application is for a moment only; it harms nobody.
    mprotect_by_the_application_lasts_until_the_next_change;
}

mod inside {
    use super::*;

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_plain_store_is_a_sigsegv() {
        assert_is_child();
        let case = std::env::var("DAXPAGER_TEST_CASE").unwrap();
        let (resolve, case) = case.split_once(' ').unwrap();
        let resolve = if resolve == "pager" { Resolve::PagerThread } else { Resolve::FaultingThread };
        let rig = Rig::new(8);
        let p = rig.page;
        let file = rig.written("a", 1);
        file.truncate(4 * p).unwrap();
        let map = rig.pager.map_with(&file, 0..8 * p, &options(resolve)).unwrap();
        let writer = rig.pager.map(&file, 0..8 * p).unwrap();
        let page = match case {
            "written" | "untouched" | "punched" => 0,
            "past the end" => 6,
            _ => 2,
        };
        if case == "was a hole" {
            touch(&map, page * p);
            writer.store(page * p, 5).unwrap();
        }
        match case {
            "untouched" => {}
            "past the end" => assert_bus(map.load(page * p), &map, page * p),
            _ => touch(&map, page * p),
        }
        if case == "punched" {
            file.punch_hole(0, p).unwrap();
            assert_eq!(map.load(0), Ok(0));
        }
        println!("the page is loaded");
        raw::store(base(&map) + (page * p) as usize, 1);
        println!("and stored to");
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn mprotect_by_the_application_lasts_until_the_next_change() {
        assert_is_child();
        let rig = Rig::on_single_blocks(8);
        let p = rig.page;
        let file = rig.written("a", 1);
        file.truncate(4 * p).unwrap();
        let maps = rig.maps(&file, 4);
        let mut want = pattern(p, 1);
        want.resize(4 * p as usize, 0);
        assert_everywhere(&file, &maps, 0, &want);
        let second = base(&maps[0]) + p as usize;
        // SAFETY: a range of the test's own mapping.
        let done = unsafe { libc::mprotect(second as *mut libc::c_void, p as usize, libc::PROT_READ) };
        assert_eq!(done, 0);
        assert!(rights_at(second).starts_with("r--"));
        assert_everywhere(&file, &maps, 0, &want);
        // The page gets a block, and the address is pointed at that: as the mapping was made.
        maps[1].store(p, 0x0101_0101_0101_0101).unwrap();
        want[p as usize..][..8].fill(1);
        assert_everywhere(&file, &maps, 0, &want);
        assert!(rights_at(second).starts_with("rw-"), "{}", rights_at(second));
        maps[0].store(p, 0).unwrap();
        want[p as usize..][..8].fill(0);
        assert_everywhere(&file, &maps, 0, &want);
        rig.assert_blocks_add_up();
    }
}
