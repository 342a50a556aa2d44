//! Buffers of calls that lie in a mapping, and are not there: past the end of its file a call is an error, as write(2) and read(2) have
//! `EFAULT`, and no death. Each test runs this program again with one ignored test of `inside`.

mod blackbox;

use blackbox::child::{self, assert_is_child};
use blackbox::raw::{slice, slice_mut};
use blackbox::*;
use daxpager::{Error, File, MapOptions, Mapping, Resolve};
use nix::sys::signal::{SigSet, Signal};

child::children! {
    /// Writes from such a buffer change nothing, wherever in it the end lies.
    a_write_from_past_the_end_changes_nothing;
    /// Reads into such a buffer fill what is there.
    a_read_to_past_the_end_is_an_error;
    /// Buffers that are there work, also where a SIGBUS would not be caught.
    buffers_in_a_mapping_work;
    /// The end comes and goes while buffers are read and written.
    an_end_that_moves_meanwhile_is_an_error_or_nothing;
}

/// Pages of the file with the buffer, of its mapping, and of the file that is read and written.
const THERE: u64 = 40;
const MAPPED: u64 = 64;
const OTHER: u64 = 50;

struct World {
    rig: Rig,
    buffer_file: File,
    buffer: Mapping,
    file: File,
    map: Mapping,
}

fn world(resolve: Resolve) -> World {
    let rig = Rig::new(2 * MAPPED);
    let buffer_file = rig.written("buffer", THERE);
    let file = rig.written("file", OTHER);
    let options = MapOptions::new().resolve(resolve);
    let buffer = rig.pager.map_with(&buffer_file, 0..MAPPED * rig.page, &options).unwrap();
    let map = rig.other.map(&file, 0..MAPPED * rig.page).unwrap();
    World { rig, buffer_file, buffer, file, map }
}

impl World {
    /// The first byte of the buffer that is not there.
    fn bad<T>(&self) -> Result<T, Error> {
        Err(Error::BadBuffer { addr: self.buffer.as_ptr() as usize + (THERE * self.rig.page) as usize })
    }
}

mod inside {
    use super::*;

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_write_from_past_the_end_changes_nothing() {
        assert_is_child();
        for resolve in [Resolve::PagerThread, Resolve::FaultingThread] {
            let world = world(resolve);
            let (p, end) = (world.rig.page, THERE * world.rig.page);
            let before = (world.file.len(), world.file.blocks(), read(&world.file, 0, OTHER * p));
            // All of it; some pages; one byte too many; one past the end alone.
            for (from, len) in [(0, MAPPED * p), (end - p, 2 * p), (end - 9, 10), (end, 1)] {
                let from = slice(&world.buffer, from, len);
                for offset in [0, 17, OTHER * p, (OTHER + 3) * p + 5] {
                    assert_eq!(world.file.write_at(from, offset), world.bad(), "{resolve:?}: {len} at {offset}");
                }
                assert_eq!(world.map.write_at(from, 0), world.bad(), "{resolve:?}: {len}");
                assert_eq!((world.file.len(), world.file.blocks()), (before.0, before.1), "{resolve:?}: {len}");
                assert_bytes(&read(&world.file, 0, OTHER * p), &before.2, "after a write that is refused");
                assert_eq!(world.map.take_dirty(), Ok(vec![]), "{resolve:?}: {len}");
            }
            world.rig.assert_blocks_add_up();
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_read_to_past_the_end_is_an_error() {
        assert_is_child();
        for resolve in [Resolve::PagerThread, Resolve::FaultingThread] {
            let world = world(resolve);
            let (p, end) = (world.rig.page, THERE * world.rig.page);
            for (to, len) in [(0, (OTHER - 1) * p), (end - p, 2 * p), (end - 9, 10), (end, 1)] {
                let into = slice_mut(&world.buffer, to, len);
                assert_eq!(world.file.read_at(into, 3), world.bad(), "{resolve:?}: {len} to {to}");
                assert_eq!(world.map.read_at(into, 3), world.bad(), "{resolve:?}: {len} to {to}");
            }
            // What is there has been filled.
            assert_bytes(&read(&world.buffer_file, 0, p), &read(&world.file, 3, p), "the first page");
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn buffers_in_a_mapping_work() {
        assert_is_child();
        for resolve in [Resolve::PagerThread, Resolve::FaultingThread] {
            for masked in [false, true] {
                let world = world(resolve);
                let p = world.rig.page;
                // A thread that blocks SIGBUS has no fault resolved in it.
                if masked && resolve == Resolve::FaultingThread {
                    (0..THERE).for_each(|page| touch(&world.buffer, page * p));
                    (0..THERE).for_each(|page| world.buffer.store(page * p, 5).unwrap());
                }
                if masked {
                    SigSet::from(Signal::SIGBUS).thread_block().unwrap();
                }
                let from = slice(&world.buffer, 5, THERE * p - 5);
                assert_eq!(world.file.write_at(from, 7), Ok(from.len()), "{resolve:?} {masked}");
                assert_eq!(read(&world.file, 7, THERE * p - 5), from);
                world.map.write_at(from, 9).unwrap();
                let into = slice_mut(&world.buffer, 0, THERE * p - 1);
                assert_eq!(world.file.read_at(into, 11), Ok(into.len()));
                assert_bytes(&read(&world.file, 11, THERE * p - 1), into, "read");
                world.map.read_at(into, 13).unwrap();
                SigSet::from(Signal::SIGBUS).thread_unblock().unwrap();
            }
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn an_end_that_moves_meanwhile_is_an_error_or_nothing() {
        assert_is_child();
        let world = world(Resolve::PagerThread);
        let p = world.rig.page;
        let rounds = guard::repeats(2000, 20_000);
        let done = std::sync::atomic::AtomicBool::new(false);
        let errors = std::thread::scope(|scope| {
            let (world, done) = (&world, &done);
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    world.buffer_file.truncate(p).unwrap();
                    world.buffer_file.truncate(4 * p).unwrap();
                }
            });
            let _stop = at_end(|| done.store(true, std::sync::atomic::Ordering::Relaxed));
            let (mut errors, mut round) = (0, 0);
            let since = std::time::Instant::now();
            // Until the end has been in the way: that is up to the scheduler.
            while round < rounds || errors == 0 {
                assert!(since.elapsed() < guard::HANG, "the end was never in the way: the test tests nothing");
                round += 1;
                let ended = match round % 2 {
                    0 => world.file.write_at(slice(&world.buffer, 0, 4 * p), 0),
                    _ => world.file.read_at(slice_mut(&world.buffer, 0, 4 * p), 0),
                };
                match ended {
                    Ok(bytes) => assert_eq!(bytes as u64, 4 * p),
                    Err(Error::BadBuffer { addr }) => {
                        assert!(addr >= world.buffer.as_ptr() as usize + p as usize, "{addr:#x}");
                        errors += 1;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            errors
        });
        println!("{errors} errors in {rounds} calls or more");
    }
}
