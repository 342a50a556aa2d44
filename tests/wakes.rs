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

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use daxpager::sabotage::Rule;

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

#[test]
fn a_wake_lost_after_eexist_is_noticed() {
    // A matter of luck: as many rounds as it takes, within reason.
    broken(Rule::WakeAfterEexist, |world| meet_past_the_end(world, 2_000_000, std::time::Duration::from_secs(5)), 2);
}
