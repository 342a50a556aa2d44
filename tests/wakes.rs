//! Rule 6: everything ends in a wake, also EEXIST.
//!
//! ```text
//! thread 1                 thread 2                        pager
//!   load past the end        load past the end
//!   message, asleep          no entry
//!                                                            poison; wake thread 1
//!                            message; one last look: poison
//!                            is no entry; asleep
//!                                                            poison: EEXIST. Nobody is woken
//! ```

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use common::*;
use daxpager::fake::FakePageTable;
use daxpager::sabotage::Rule;
use daxpager::{Device, Pager, Volume};

/// On the kernel, by luck: with the rule broken a thread slept for good in rounds 5,981 to 166,255 of four runs on two CPUs.
/// Rounds in each of which all threads load the same page past the end at the same moment.
fn meet_past_the_end(world: &World, rounds: u64, hang: std::time::Duration) -> Verdict {
    const THREADS: u64 = 3;
    let a = world.file("a", 1, 1);
    let map = world.map(&a, 2);
    let (go, back) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (map, go, back) = (map.clone(), go.clone(), back.clone());
            spawn(move || {
                for round in 1..=rounds {
                    while go.load(Ordering::Acquire) < round {
                        std::thread::yield_now();
                    }
                    assert!(is_bus(&map.load(PAGE)), "a load past the end");
                    back.fetch_add(1, Ordering::AcqRel);
                }
            })
        })
        .collect();
    for round in 1..=rounds {
        go.store(round, Ordering::Release);
        let begun = std::time::Instant::now();
        while back.load(Ordering::Acquire) < round * THREADS {
            if begun.elapsed() > hang {
                return Err(format!("hang: in round {round} a thread sleeps on a page that is poisoned"));
            }
            std::thread::yield_now();
        }
        // Takes the poison away, and changes nothing.
        a.truncate(PAGE).unwrap();
    }
    threads.iter().try_for_each(|thread| thread.join("a thread that loads past the end"))
}

#[test]
fn threads_that_meet_past_the_end_are_all_woken() {
    intact(|world| meet_past_the_end(world, 3_000, HANG), 2);
}

/// The same step by step, on the fake page table, which keeps the kernel's rule: the last look before a thread falls
/// asleep takes poison for no entry.
fn asleep_on_a_poisoned_page(broken: bool) -> Verdict {
    let fake = FakePageTable::new();
    let volume = Volume::format(Device::heap(2 * PAGE, PAGE).unwrap());
    volume.sabotage(Rule::WakeAfterEexist, broken);
    // Not dropped where a thread hangs in it.
    let pager = std::mem::ManuallyDrop::new(Pager::builder().start_on_fake(&fake).unwrap());
    let a = volume.create("a").unwrap();
    let map = pager.map(&a, 0..PAGE).unwrap();
    let at = map.as_ptr() as usize;
    let held = Arc::new((Mutex::new((false, false)), Condvar::new()));
    fake.before_sleep({
        let held = held.clone();
        move |address| {
            // The first word is the thread's that is held.
            if address == at {
                let mut state = held.0.lock().unwrap();
                state.0 = true;
                held.1.notify_all();
                drop(held.1.wait_while(state, |state| !state.1).unwrap());
            }
        }
    });
    let load = |address: usize| {
        let fake = fake.clone();
        spawn(move || fake.load(address))
    };
    let second = load(at);
    let (state, late) = held.1.wait_timeout_while(held.0.lock().unwrap(), HANG, |state| !state.0).unwrap();
    drop(state);
    assert!(!late.timed_out(), "nobody falls asleep");
    let first = load(at + 8).join("the first load")?;
    check(first.is_err(), || format!("a load past the end: {first:?}"))?;
    held.0.lock().unwrap().1 = true;
    held.1.notify_all();
    let second = second.join("a thread that sleeps on a page that is poisoned")?;
    check(second.is_err(), || format!("a load past the end: {second:?}"))?;
    drop(std::mem::ManuallyDrop::into_inner(pager));
    Ok(())
}

#[test]
fn a_thread_that_falls_asleep_on_poison_is_woken() {
    assert_eq!(asleep_on_a_poisoned_page(false), Ok(()));
}

#[test]
fn a_wake_lost_after_eexist_is_noticed() {
    let verdict = breaking(|| asleep_on_a_poisoned_page(true));
    assert!(verdict.as_ref().is_err_and(|violation| violation.contains("sleeps on a page")), "{verdict:?}");
}
