//! A pager ends where the kernel has no room for anything to put in the place of its mappings: they are made inaccessible. An access
//! through the library that is under way then is an error, and what SIGSEGV is for others stays as it was.

mod blackbox;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blackbox::child::{self, assert_is_child};
use blackbox::raw::{self, BUS_ADDR, BUS_COUNT, PATCH};
use blackbox::{Park, Trap, host_page, join};
use daxpager::probe::Point;
use daxpager::{Allocation, Device, Error, MapOptions, Mapping, Pager, Resolve, Volume};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::Resource;
use nix::sys::signal::{SigSet, Signal};

const PAGES: u64 = 256;
/// The user nobody.
const NOBODY: nix::unistd::Uid = nix::unistd::Uid::from_raw(65534);

child::children! {
    /// A load, a store, an exchange and a copy each way wait for their fault, the pager ends, and each is an error.
    accesses_under_way_are_errors;
    /// The same with threads that resolve their own faults.
    accesses_under_way_are_errors_in_the_faulting_thread;
    /// Through the pointer it is what it is: a SIGSEGV, which ends the process.
    an_access_through_the_pointer_is_a_sigsegv => "about to load", libc::SIGSEGV;
    /// The application had a SIGSEGV handler: it is called for what is not the library's, with the address, and with the signals blocked that it
    /// asked for and no others.
    the_handler_that_was_there_before_has_the_others;
    /// Rust's own says who has overflowed its stack.
    a_stack_that_overflows_is_still_told => "has overflowed its stack", libc::SIGABRT;
}

struct Held {
    _volume: Volume,
    pager: Pager,
    map: Mapping,
    park: Arc<Park>,
}

/// A mapping for which there is no room to be replaced, once [`nothing_fits`].
fn held(resolve: Resolve, allocation: Allocation) -> Held {
    let page = host_page();
    let volume = Volume::format_with(Device::memfd("revoked", 2 * PAGES * page).unwrap(), allocation);
    let file = volume.create("file").unwrap();
    file.write_at(&vec![7; (PAGES * page) as usize], 0).unwrap();
    let park = Park::new();
    let pager = Pager::builder().workers(7).probe(park.clone()).reader_answers(false).start().unwrap();
    let map = pager.map_with(&file, 0..PAGES * page, &MapOptions::new().resolve(resolve)).unwrap();
    blackbox::scarce::limit(Resource::RLIMIT_MEMLOCK, PAGES * page * 3 / 4);
    // Before anybody waits for a fault: it interrupts every thread.
    nix::unistd::setresuid(NOBODY, NOBODY, NOBODY).unwrap();
    Held { _volume: volume, pager, map, park }
}

fn nothing_fits() {
    mlockall(MlockAllFlags::MCL_FUTURE).unwrap();
    assert!(!blackbox::scarce::may_map((PAGES * host_page()) as usize), "memory may be mapped: the test tests nothing");
}

/// What /proc/self/maps says of the range that begins where the mapping does.
fn rights(map: &Mapping) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let begin = format!("{:x}-", map.as_ptr() as usize);
    let line = maps.lines().find(|line| line.starts_with(&begin)).expect("the addresses stay the mapping's");
    line.split_whitespace().nth(1).unwrap().to_owned()
}

/// A mapping that has been made inaccessible.
fn revoked() -> Held {
    let Held { _volume, pager, map, park } = held(Resolve::PagerThread, Allocation::Windows);
    let other = Pager::builder().start().unwrap();
    nothing_fits();
    pager.shutdown().unwrap();
    assert_eq!(rights(&map), "---s");
    Held { _volume, pager: other, map, park }
}

mod inside {
    use super::*;

    fn under_way(resolve: Resolve) {
        assert_is_child();
        let page = host_page();
        // Each of them waits for a worker.
        let Held { _volume, pager, map, park } = held(resolve, Allocation::Blocks);
        let traps: Vec<Trap> = (0..5).map(|page| park.trap_thread(Point::FaultTaken, page, "dax-worker")).collect();
        let (go, gone) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let map = &map;
            let ending = scope.spawn(move || {
                gone.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
                pager.shutdown().map(drop)
            });
            let accesses = [
                scope.spawn(|| map.load(0).map(drop)),
                scope.spawn(|| map.store(page, 1)),
                scope.spawn(|| map.compare_exchange(2 * page, 7, 1).map(drop)),
                scope.spawn(|| map.copy_out(3 * page, &mut [0; 100])),
                scope.spawn(|| map.copy_in(4 * page, &[1; 100])),
            ];
            for trap in &traps {
                trap.wait();
            }
            nothing_fits();
            go.send(()).unwrap();
            for (at, access) in accesses.into_iter().enumerate() {
                let ended = join(access);
                assert!(matches!(ended, Err(Error::MappingLost { .. } | Error::Bus(_))), "access {at}: {ended:?}");
            }
            traps.into_iter().for_each(Trap::release);
            join(ending).unwrap();
        });
        assert_eq!(rights(&map), "---p", "{resolve:?}");
        assert!(matches!(map.load(0), Err(Error::MappingLost { .. })));
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn accesses_under_way_are_errors() {
        under_way(Resolve::PagerThread);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn accesses_under_way_are_errors_in_the_faulting_thread() {
        under_way(Resolve::FaultingThread);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn an_access_through_the_pointer_is_a_sigsegv() {
        assert_is_child();
        let held = revoked();
        println!("about to load");
        raw::load(held.map.as_ptr() as usize);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn the_handler_that_was_there_before_has_the_others() {
        assert_is_child();
        raw::install_handler(libc::SIGSEGV, raw::patching_handler);
        let held = revoked();
        assert!(matches!(held.map.load(8), Err(Error::MappingLost { .. })));
        assert_eq!(BUS_COUNT.load(Ordering::SeqCst), 0);
        // A page of the mapping itself: patched, it goes on.
        let at = held.map.as_ptr() as usize + 24;
        assert_eq!(raw::load(at), u64::from_ne_bytes([PATCH; 8]));
        assert_eq!((BUS_COUNT.load(Ordering::SeqCst), BUS_ADDR.load(Ordering::SeqCst)), (1, at));
        let blocked = SigSet::thread_get_mask().unwrap();
        assert!(!blocked.contains(Signal::SIGSEGV) && !blocked.contains(Signal::SIGUSR1), "{blocked:?}");
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_stack_that_overflows_is_still_told() {
        #[expect(unconditional_recursion, reason = "what the test is about")]
        fn deeper(at: &[u8; 256]) -> u64 {
            let here = std::hint::black_box([at[0]; 256]);
            deeper(&here) + u64::from(std::hint::black_box(here)[7])
        }
        assert_is_child();
        let _held = revoked();
        println!("{}", deeper(&[1; 256]));
    }
}
