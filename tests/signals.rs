//! Signals that meet a fault. An access by instruction leaves its fault for the handler, and repeats it. A system call
//! does neither: with a signal pending its fault does not even fall asleep, and the kernel tries it again and
//! again until somebody has answered (`fault_signal_pending`: fatal signals only, in kernel mode).

mod common;

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::*;
use daxpager::{Error, File, Mapping};
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::Signal;

/// Runs `body` in a thread that gets one SIGUSR1 after the other, as fast as they can be sent.
fn interrupted<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::new(AtomicBool::new(false))).unwrap();
    let (thread, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let stay = Arc::new(AtomicBool::new(true));
    let task = {
        let (thread, done, stay) = (thread.clone(), done.clone(), stay.clone());
        spawn(move || {
            // With musl it is a pointer.
            thread.store(pthread_self() as u64, Ordering::SeqCst);
            let result = body();
            done.store(true, Ordering::SeqCst);
            // A signal is never sent to a thread that has ended.
            until("the last signal", || (!stay.load(Ordering::SeqCst)).then_some(()));
            result
        })
    };
    until("the end of what is interrupted", || {
        let id = thread.load(Ordering::SeqCst);
        if id != 0 && !done.load(Ordering::SeqCst) {
            pthread_kill(id as Pthread, Signal::SIGUSR1).unwrap();
        }
        done.load(Ordering::SeqCst).then_some(())
    });
    stay.store(false, Ordering::SeqCst);
    task.join("what is interrupted").unwrap()
}

/// read(2) of eight bytes into a page of a mapping.
fn read_into(map: &Mapping, page: u64) -> Result<usize, Error> {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"8 bytes!").unwrap();
    map.read_from(reader.as_fd(), page * PAGE, 8)
}

fn holes(blocks: u64, pages: u64) -> (World, File, Arc<Mapping>) {
    let world = World::with_reader(blocks, None, true);
    let file = world.volume.create("a").unwrap();
    file.truncate(pages * PAGE).unwrap();
    let map = world.map(&file, pages);
    (world, file, map)
}

/// Each read(2) needs a block for its hole. That its thread is never seen asleep does not mean that nobody waits.
#[test]
fn system_calls_into_holes_go_through_while_signals_come() {
    const PAGES: u64 = 300;
    let (_world, file, map) = holes(PAGES + 8, PAGES);
    let through = {
        let map = map.clone();
        interrupted(move || (0..PAGES).filter(|page| read_into(&map, *page) == Ok(8)).count())
    };
    assert_eq!((through as u64, file.blocks()), (PAGES, PAGES));
    assert_eq!(page_of(&file, PAGES - 1)[..8], *b"8 bytes!");
}

/// And on a full volume each of them ends in an error.
#[test]
fn system_calls_fail_on_a_full_volume_while_signals_come() {
    let (world, file, map) = holes(2, 100);
    let hog = world.volume.create("hog").unwrap();
    hog.allocate(0, 2 * PAGE, false).unwrap();
    let failed = {
        let map = map.clone();
        interrupted(move || (0..100).filter(|page| matches!(read_into(&map, *page), Err(Error::System { .. }))).count())
    };
    assert_eq!((failed, file.blocks(), map.load(0)), (100, 0, Ok(0)));
}

/// Loads and stores by instruction: each is repeated after the handler, and done once.
#[test]
fn accesses_go_through_while_signals_come() {
    const PAGES: u64 = 300;
    let (_world, file, map) = holes(PAGES + 8, PAGES);
    let sum = {
        let map = map.clone();
        interrupted(move || {
            (0..PAGES).try_fold(0, |sum, page| {
                map.store(page * PAGE, page)?;
                map.load(page * PAGE).map(|value| sum + value)
            })
        })
    };
    assert_eq!((sum, file.blocks()), (Ok(PAGES * (PAGES - 1) / 2), PAGES));
}
