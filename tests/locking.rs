//! mlock(2), mlockall(2), and MADV_POPULATE_READ and _WRITE by the application on its mappings: what each gives and what it
//! costs, by what the pages are. The table is in the documentation of `Mapping::as_ptr`.
#![allow(unsafe_code)]

mod blackbox;

use std::fs;

use blackbox::child::assert_is_child;
use blackbox::*;
use daxpager::{File, MapOptions, Mapping, Resolve};
use nix::errno::Errno;

/// A system call on a range: 0 or its errno.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Call {
    Lock,
    LockOnFault,
    LockAll,
    PopulateRead,
    PopulateWrite,
}

impl Call {
    fn make(self, addr: usize, len: u64) -> Errno {
        let (addr, len) = (addr as *mut libc::c_void, len as usize);
        let done = match self {
            // SAFETY: each of these changes how the test's own mapping is held in memory, and nothing that is stored in it.
            Call::Lock => unsafe { libc::mlock(addr, len) },
            // SAFETY: as above.
            Call::LockOnFault => unsafe { libc::mlock2(addr, len, libc::MLOCK_ONFAULT) },
            // SAFETY: as above.
            Call::LockAll => unsafe { libc::mlockall(libc::MCL_CURRENT) },
            // SAFETY: as above.
            Call::PopulateRead => unsafe { libc::madvise(addr, len, libc::MADV_POPULATE_READ) },
            // SAFETY: as above.
            Call::PopulateWrite => unsafe { libc::madvise(addr, len, libc::MADV_POPULATE_WRITE) },
        };
        if done == 0 { Errno::UnknownErrno } else { Errno::last() }
    }
}

const DONE: Errno = Errno::UnknownErrno;
/// Four pages of each kind.
const WRITTEN: u64 = 0;
const HOLES: u64 = 4;
const PAST_END: u64 = 8;

/// What a call on four pages came to: its errno, and how many blocks it took.
fn outcome(call: Call, first: u64, options: &MapOptions) -> (Errno, u64) {
    outcome_on(Rig::new(32), call, first, options)
}

fn outcome_on(rig: Rig, call: Call, first: u64, options: &MapOptions) -> (Errno, u64) {
    let p = rig.page;
    let file = rig.written("a", 4);
    file.truncate(8 * p).unwrap();
    let map = rig.pager.map_with(&file, 0..12 * p, options).unwrap();
    let free = rig.volume.free_blocks();
    let errno = call.make(map.as_ptr() as usize + (first * p) as usize, 4 * p);
    let taken = free - rig.volume.free_blocks();
    let dirty: u64 = map.take_dirty().unwrap().iter().map(|range| (range.end - range.start) / p).sum();
    assert!(dirty >= taken, "{call:?} at {first}: {dirty} pages dirty, {taken} blocks taken");
    assert_goes_on(&rig, &file, &map);
    // SAFETY: the locks of this test.
    assert_eq!(unsafe { libc::munlockall() }, 0);
    assert_goes_on(&rig, &file, &map);
    (errno, taken)
}

/// Whatever a lock has done, everything is as promised.
fn assert_goes_on(rig: &Rig, file: &File, map: &Mapping) {
    let p = rig.page;
    let mut want = pattern(4 * p, 1);
    want.resize(8 * p as usize, 0);
    assert_everywhere(file, std::slice::from_ref(map), 0, &want);
    assert_bus(map.load(9 * p), map, 9 * p);
    file.truncate(10 * p).unwrap();
    assert_eq!(map.load(9 * p), Ok(0));
    file.truncate(8 * p).unwrap();
    assert_bus(map.load(9 * p), map, 9 * p);
    file.punch_hole(4 * p, 4 * p).unwrap();
    assert_everywhere(file, std::slice::from_ref(map), 0, &want);
    rig.assert_blocks_add_up();
}

child::children! {
    locks_of_a_mapping_served_by_the_pager;
    locks_of_a_mapping_served_by_its_threads;
    locks_of_a_read_only_mapping_take_no_block;
    a_lock_is_not_kept_where_the_mapping_is_pointed_elsewhere;
    /// Holes that are locked want blocks, and there are none: the call ends, and so does everything else.
    a_lock_of_more_holes_than_there_are_blocks_ends;
}

mod inside {
    use super::*;
    use Call::*;

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn locks_of_a_mapping_served_by_the_pager() {
        assert_is_child();
        let options = MapOptions::new();
        for (call, errno, taken, of_single_blocks) in [
            // With single blocks the ranges over holes are private memory that may be stored to, and the kernel locks such by storing.
            (Lock, Errno::ENOMEM, [0, 0, 0], [0, 4, 0]),
            (LockOnFault, DONE, [0, 0, 0], [0, 0, 0]),
            // Of everything, whichever range is asked about; it does not say what it could not do.
            (LockAll, DONE, [0, 0, 0], [4, 4, 4]),
            // A page past the end is poison to the kernel, which says so and not EFAULT.
            (PopulateRead, Errno::EHWPOISON, [0, 0, 0], [0, 0, 0]),
            (PopulateWrite, Errno::EHWPOISON, [0, 4, 0], [0, 4, 0]),
        ] {
            for (place, (first, errno)) in [(WRITTEN, DONE), (HOLES, DONE), (PAST_END, errno)].into_iter().enumerate() {
                let what = format!("{call:?} at page {first}");
                assert_eq!(outcome(call, first, &options), (errno, taken[place]), "{what}");
                let single_blocks = outcome_on(Rig::on_single_blocks(32), call, first, &options);
                assert_eq!(single_blocks, (errno, of_single_blocks[place]), "{what}, single blocks");
            }
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn locks_of_a_mapping_served_by_its_threads() {
        assert_is_child();
        let options = MapOptions::new().resolve(Resolve::FaultingThread);
        // Nobody serves faults from inside system calls.
        for (call, errno) in [
            (Lock, Errno::ENOMEM),
            (LockOnFault, DONE),
            (LockAll, DONE),
            (PopulateRead, Errno::EFAULT),
            (PopulateWrite, Errno::EFAULT),
        ] {
            for first in [WRITTEN, HOLES, PAST_END] {
                assert_eq!(outcome(call, first, &options), (errno, 0), "{call:?} at page {first}");
            }
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn locks_of_a_read_only_mapping_take_no_block() {
        assert_is_child();
        let options = MapOptions::new().read_only(true);
        for (call, inside, past_end) in [
            (Lock, DONE, Errno::ENOMEM),
            (LockOnFault, DONE, DONE),
            (LockAll, DONE, DONE),
            (PopulateRead, DONE, Errno::EHWPOISON),
            (PopulateWrite, Errno::EINVAL, Errno::EINVAL),
        ] {
            for (first, errno) in [(WRITTEN, inside), (HOLES, inside), (PAST_END, past_end)] {
                assert_eq!(outcome(call, first, &options), (errno, 0), "{call:?} at page {first}");
            }
        }
    }

    /// Bytes that the kernel has on record as locked, of this process.
    fn locked_bytes() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_lock_is_not_kept_where_the_mapping_is_pointed_elsewhere() {
        assert_is_child();
        let rig = Rig::on_single_blocks(32);
        let p = rig.page;
        let file = rig.file("a");
        file.truncate(8 * p).unwrap();
        let map = rig.pager.map(&file, 0..8 * p).unwrap();
        assert_eq!(LockOnFault.make(map.as_ptr() as usize, 8 * p), DONE);
        assert_eq!(locked_bytes(), 8 * p);
        // A block under the second half: its range is another one from now on.
        (4..8).for_each(|index| map.store(index * p, 1).unwrap());
        assert_eq!(locked_bytes(), 4 * p);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_lock_of_more_holes_than_there_are_blocks_ends() {
        assert_is_child();
        // In their places holes are locked as zeros.
        for (rig, errno) in [(Rig::on_single_blocks(4), Errno::ENOMEM), (Rig::new(4), DONE)] {
            let p = rig.page;
            let file = rig.file("a");
            file.truncate(16 * p).unwrap();
            let map = rig.pager.map(&file, 0..16 * p).unwrap();
            assert_eq!(Lock.make(map.as_ptr() as usize, 16 * p), errno);
            file.punch_hole(0, 16 * p).unwrap();
            assert_everywhere(&file, std::slice::from_ref(&map), 0, &zeros(16 * p));
            rig.assert_blocks_add_up();
        }
    }
}
