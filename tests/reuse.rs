//! Rule 7, by its race: an address that is given out again. The kernel gives out the addresses of the last mapping first, unless
//! another thread of the process takes them meanwhile: then the test is made again. In a process of its own, one test at a
//! time.

mod common;
#[path = "common/interrupted.rs"]
mod interrupted;

use std::sync::{Mutex, PoisonError};

use common::*;
use daxpager::probe::Point;
use daxpager::sabotage::Rule;
use daxpager::{MapOptions, Resolve};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};

const B: u8 = 0xbb;
/// How often a test is made until the address is used again. It is the first time, nearly always.
const TRIES: u32 = 100;

static ALONE: Mutex<()> = Mutex::new(());

/// Makes `attempt` until it says that the address was used again.
fn until_used_again(mut attempt: impl FnMut() -> Option<Verdict>) -> Verdict {
    let used_again = (0..TRIES).find_map(|_| attempt());
    used_again.unwrap_or_else(|| panic!("in {TRIES} tries the address was never used again: the test proves nothing"))
}

/// A fault of a mapping that is gone must not land in what is mapped at its address now.
///
/// ```text
/// load through the old mapping              unmap, and map another file
///   a hole: zeros (parked)
///                                             the same address
///   install zeros: over a page that
///   has bytes
/// ```
fn late_install(world: &mut World) -> Verdict {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let a = world.volume.create("a").unwrap();
    a.truncate(PAGE).unwrap();
    let b = world.file("b", 1, B);
    until_used_again(|| {
        let old = world.map(&a, 1);
        let at = old.as_ptr() as usize;
        let parked = world.park.at_page(Point::Decided, 0);
        // The mapping is dropped under this load, so it must not be repeated before the new one is there: once
        // its fault is parked, the thread is held in a signal handler.
        let load = interrupted::load(at);
        parked.wait();
        load.interrupt();
        let swap = spawn({
            let (pager, b) = (world.pager.take().unwrap(), b.clone());
            move || {
                drop(old);
                let new = pager.map(&b, 0..PAGE).unwrap();
                (pager, new)
            }
        });
        let swapped = swap.within(watch());
        let answered = world.park.at_page(Point::Answered, 0);
        parked.release();
        answered.wait();
        answered.release();
        let swapped = match swapped {
            Some(swapped) => Ok(swapped),
            None => swap.join("the unmap"),
        };
        let (pager, new) = match swapped {
            Ok(swapped) => swapped,
            Err(hang) => return Some(Err(hang)),
        };
        world.pager = Some(pager);
        if new.as_ptr() as usize != at {
            return None;
        }
        let loaded = new.load(0);
        let wanted = Ok(u64::from_ne_bytes([B; 8]));
        Some(load.finish().and_then(|()| check(loaded == wanted, || format!("the new mapping shows {loaded:x?}"))))
    })
}
rule_test!(no_late_install_after_unmap, Rule::UnmapUnderLock, 2, late_install);

/// A message is served late, when its mapping has gone and one whose threads resolve their own faults is at its address: it
/// is nobody's, and no pager dies of it.
///
/// ```text
/// reader                                            others
///   reads a message (parked)
///                                                     unmap; map at the same address, in the other way
///   the page is past the end: SIGBUS, for a thread
///   that waits at a slot; there is none
/// ```
#[test]
fn a_late_message_is_not_for_a_mapping_that_has_none() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let verdict = until_used_again(|| {
        let world = World::with_reader(16, None, true);
        let file = world.volume.create("a").unwrap();
        let first = world.map(&file, 4);
        let at = first.as_ptr() as usize;
        let read = world.park.at(Point::FaultRead, |_| true);
        // As a thread that does not know that the mapping is about to go: an error where an instruction would end the process.
        let late = spawn(move || {
            let mut word = [0; 8];
            let from = [RemoteIoVec { base: at, len: 8 }];
            process_vm_readv(nix::unistd::getpid(), &mut [std::io::IoSliceMut::new(&mut word)], &from)
        });
        read.wait();
        drop(first);
        let second = world.map_with(&file, 4, &MapOptions::new().resolve(Resolve::FaultingThread));
        let used_again = second.as_ptr() as usize == at;
        read.release();
        let late = late.join("a load whose mapping has gone");
        if !used_again {
            return None;
        }
        assert_eq!(late, Ok(Err(nix::Error::EFAULT)));
        until("the late message", || (world.pager().stats().unknown_addresses > 0).then_some(()));
        assert!(is_bus(&second.load(0)));
        file.truncate(PAGE).unwrap();
        assert_eq!(second.load(0), Ok(0));
        drop(second);
        assert_eq!(world.map(&file, 4).load(0), Ok(0));
        Some(Ok(()))
    });
    assert_eq!(verdict, Ok(()));
}
