//! A store that finds no block: SIGBUS for the thread that stores, and for nobody else; an error, and no
//! hang, for a system call. Everything else goes on.
#![allow(unsafe_code, reason = "system calls with a buffer in a mapping")]

mod common;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::*;
use daxpager::probe::Point;
use daxpager::{Error, File, Mapping};

/// A volume with no block left, and a file of holes.
fn full() -> (World, File, File, Arc<Mapping>) {
    let world = World::with_reader(4, None, true);
    let hog = world.volume.create("hog").unwrap();
    hog.allocate(0, 4 * PAGE, false).unwrap();
    let a = world.volume.create("a").unwrap();
    a.truncate(16 * PAGE).unwrap();
    let map = world.map(&a, 16);
    (world, hog, a, map)
}

#[test]
fn the_hole_stays_readable_and_takes_a_store_once_there_is_a_block() {
    let (world, hog, a, map) = full();
    for _ in 0..50 {
        assert!(matches!(map.store(0, 1), Err(Error::Bus(bus)) if bus.offset == 0));
        assert_eq!(map.load(0), Ok(0));
        // exactly the address, also in the middle of a page
        assert!(matches!(map.store(PAGE + 24, 1), Err(Error::Bus(bus)) if bus.offset == PAGE + 24));
    }
    assert_eq!((a.blocks(), hog.blocks(), world.volume.free_blocks()), (0, 4, 0));
    hog.truncate(PAGE).unwrap();
    map.store(0, 1).unwrap();
    assert_eq!((map.load(0), a.blocks()), (Ok(1), 1));
}

/// Stores that fail, loads of the same page that succeed, and punches that take the zeros away, all at once: a
/// thread may be woken, and fault again, while its first message is being answered. One SIGBUS for
/// each store, none for anybody else (one that hits a thread elsewhere ends the process).
#[test]
fn each_store_gets_one_sigbus_and_loads_none() {
    let (_world, _hog, a, map) = full();
    let stop = Arc::new(AtomicBool::new(false));
    let storers: Vec<_> = (0..2)
        .map(|thread| {
            let (map, stop) = (map.clone(), stop.clone());
            spawn(move || {
                for store in 0..800 {
                    let stored = map.store(8 * thread, 1);
                    assert!(matches!(stored, Err(Error::Bus(_))), "store {store} on a full volume: {stored:?}");
                }
                stop.store(true, Ordering::Relaxed);
            })
        })
        .collect();
    let loader = {
        let (map, stop, a) = (map.clone(), stop.clone(), a.clone());
        spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(map.load(16), Ok(0));
                a.punch_hole(0, PAGE).unwrap();
            }
        })
    };
    storers.iter().for_each(|storer| storer.join("a store on a full volume").unwrap());
    loader.join("the loads").unwrap();
    assert_eq!((a.blocks(), map.load(0)), (0, Ok(0)));
}

fn pipe_with(bytes: &[u8]) -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd) {
    let (read, write) = nix::unistd::pipe().unwrap();
    nix::unistd::write(&write, bytes).unwrap();
    (read, write)
}

/// read(2) into a hole: EFAULT. A signal would not end that fault, and the kernel would spin.
#[test]
fn a_system_call_gets_an_error() {
    let (_world, hog, a, map) = full();
    let (read, _write) = pipe_with(b"hello");
    let at = map.as_ptr() as usize;
    let call = spawn(move || {
        // SAFETY: within the mapping.
        let got = unsafe { libc::read(read.as_raw_fd(), at as *mut libc::c_void, 5) };
        (got, nix::errno::Errno::last(), read)
    });
    let (got, errno, read) = call.join("read(2) into a hole on a full volume").unwrap();
    assert_eq!((got, errno), (-1, nix::errno::Errno::EFAULT));
    // The page is poisoned for a moment only.
    until("the hole reads as zeros again", || (map.load(0) == Ok(0)).then_some(()));
    hog.truncate(0).unwrap();
    // SAFETY: as above.
    let got = unsafe { libc::read(read.as_raw_fd(), at as *mut libc::c_void, 5) };
    assert_eq!((got, a.blocks()), (5, 1));
    assert_eq!(page_of(&a, 0)[..5], *b"hello");
}

/// The same from another process, into this one: its thread is none of ours.
#[test]
fn another_process_gets_an_error() {
    let (_world, _hog, _a, map) = full();
    let at = map.as_ptr() as usize;
    let mine = std::process::id();
    let script = format!(
        "import ctypes,sys\nlibc=ctypes.CDLL(None,use_errno=True)\nclass V(ctypes.Structure):\n _fields_=[('b',ctypes.c_void_p),('n',ctypes.c_size_t)]\n\
         b=ctypes.create_string_buffer(8)\nl=V(ctypes.addressof(b),8)\nr=V({at},8)\n\
         sys.exit(0 if libc.process_vm_writev({mine},ctypes.byref(l),1,ctypes.byref(r),1,0)==-1 else 1)"
    );
    let mut python = std::process::Command::new("python3");
    if python.arg("--version").output().is_err() {
        println!("LEFT OUT: there is no python3 to make a second process with");
        return;
    }
    let mut python = std::process::Command::new("python3");
    python.args(["-c", &script]);
    let output = guard::output(python);
    assert!(output.status.success(), "{}\n{}", output.status, guard::text(&output));
    until("the hole reads as zeros again", || (map.load(0) == Ok(0)).then_some(()));
}

/// A thread that blocks SIGBUS stores by system call while others load: the page is poisoned for a moment and
/// zapped again, and at no time does its page of zeros become writable.
#[test]
fn zeros_never_become_writable() {
    let (_world, _hog, a, map) = full();
    let stop = Arc::new(AtomicBool::new(false));
    let succeeded = Arc::new(AtomicU64::new(0));
    let storer = {
        let (map, stop, succeeded) = (map.clone(), stop.clone(), succeeded.clone());
        spawn(move || {
            nix::sys::signal::SigSet::from(nix::sys::signal::Signal::SIGBUS).thread_block().unwrap();
            for _ in 0..300 {
                let (read, _write) = pipe_with(b"hellohel");
                // SAFETY: within the mapping.
                let got = unsafe { libc::read(read.as_raw_fd(), map.as_ptr().cast(), 8) };
                succeeded.fetch_add(u64::from(got > 0), Ordering::Relaxed);
            }
            stop.store(true, Ordering::Relaxed);
        })
    };
    let loaders: Vec<_> = (0..2)
        .map(|_| {
            let (map, stop, a) = (map.clone(), stop.clone(), a.clone());
            spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // The page is poisoned for a moment now and then, and a load does not notice.
                    assert_eq!(map.load(8), Ok(0));
                    a.punch_hole(0, PAGE).unwrap();
                }
            })
        })
        .collect();
    storer.join("reads into a hole").unwrap();
    loaders.iter().for_each(|loader| loader.join("loads").unwrap());
    assert_eq!((succeeded.load(Ordering::Relaxed), a.blocks()), (0, 0));
}

/// A process that ignores SIGBUS. The kernel ignores that for an access; a signal that is sent it drops. So the
/// store must get a real one, and not be repeated for ever.
#[test]
fn a_process_that_ignores_sigbus_is_ended() {
    use std::os::unix::process::ExitStatusExt;
    let output = guard::output(guard::this_program("stores_with_sigbus_ignored"));
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{}\n{}", output.status, guard::text(&output));
}

#[test]
#[ignore = "run by `a_process_that_ignores_sigbus_is_ended`, in a process of its own"]
fn stores_with_sigbus_ignored() {
    let (_world, _hog, _a, map) = full();
    // SAFETY: no handler.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_IGN) };
    // SAFETY: within the mapping.
    unsafe { map.as_ptr().cast::<u64>().write_volatile(1) };
}

/// The same where the library's handler has come after that: what the pager sends meets its access, and is not ignored either.
#[test]
fn a_process_that_ignored_sigbus_before_the_handler_is_ended() {
    use std::os::unix::process::ExitStatusExt;
    let output = guard::output(guard::this_program("stores_behind_a_handler_that_came_after_sigbus_was_ignored"));
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{}\n{}", output.status, guard::text(&output));
}

#[test]
#[ignore = "run by `a_process_that_ignored_sigbus_before_the_handler_is_ended`, in a process of its own"]
fn stores_behind_a_handler_that_came_after_sigbus_was_ignored() {
    // SAFETY: no handler.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_IGN) };
    let (_world, _hog, _a, map) = full();
    // The first access puts in the handler.
    assert_eq!(map.load(0), Ok(0));
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGBUS).unwrap();
    // SAFETY: within the mapping.
    unsafe { map.as_ptr().cast::<u64>().write_volatile(1) };
}

/// The last block is on its way: from a store that has reserved it to its page. The volume is not full, and nobody gets a SIGBUS.
#[test]
fn a_block_on_its_way_is_waited_for() {
    // Two stores into one hole, and one block.
    let world = World::new(1, None);
    let a = world.volume.create("a").unwrap();
    a.truncate(2 * PAGE).unwrap();
    let map = world.map(&a, 2);
    let store = |word: u64| {
        let map = map.clone();
        spawn(move || map.store(8 * word, 1))
    };
    let reserved = world.park.at_page(Point::Allocated, 0);
    let first = store(0);
    reserved.wait();
    let second_taken = world.park.at_page(Point::FaultTaken, 0);
    let second = store(1);
    second_taken.wait();
    second_taken.release();
    let early = second.within(std::time::Duration::from_millis(20));
    reserved.release();
    assert_eq!(first.join("the first store").unwrap(), Ok(()));
    assert_eq!(early.unwrap_or_else(|| second.join("the second store").unwrap()), Ok(()));
}

/// The same from a punch to the allocator: it has been published and not freed, and there is a store to another page.
#[test]
fn a_block_that_is_about_to_be_freed_is_waited_for() {
    // A world of its own: a worker that waits for a block for a store that is done might take it.
    let world = World::new(1, None);
    let a = world.file("a", 1, 7);
    a.truncate(2 * PAGE).unwrap();
    let map = world.map(&a, 2);
    let freeing = world.park.at(Point::Invalidated, |event| event.block.is_some());
    let punch = spawn({
        let a = a.clone();
        move || a.punch_hole(0, PAGE)
    });
    freeing.wait();
    let store = spawn(move || map.store(PAGE, 1));
    let early = store.within(std::time::Duration::from_millis(20));
    freeing.release();
    punch.join("the punch").unwrap().unwrap();
    assert_eq!(early.unwrap_or_else(|| store.join("the store").unwrap()), Ok(()));
}
