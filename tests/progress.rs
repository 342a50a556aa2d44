//! The thread's three processes: two that store to one page, one that punches it in a loop. The kernel of
//! the thread allowed one retry and then raised SIGBUS. Here there is no such limit, and a promise instead:
//! both writers go on, whatever the puncher does.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::*;

/// For all of it. A machine with many other things to do gives the four threads a twentieth of a CPU.
const LIMIT: Duration = Duration::from_secs(300);

struct Outcome {
    punches: u64,
    longest: Duration,
    took: Duration,
    done: bool,
}

/// `threads` writers store `stores` words each to one page, while one thread punches it as fast as it can.
fn three_parties(world: &World, stores: u64, limit: Duration) -> Outcome {
    let a = world.file("a", 1, 0);
    let stop = Arc::new(AtomicBool::new(false));
    let longest = Arc::new(AtomicU64::new(0));
    let punches = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let map = world.map(&a, 1);
    let writers: Vec<_> = (0..2u64)
        .map(|writer| {
            let map = map.clone();
            let (longest, stop, punches) = (longest.clone(), stop.clone(), punches.clone());
            spawn(move || {
                let (mut done, mut seen) = (0, 0);
                while done < stores && !stop.load(Ordering::Relaxed) {
                    // Every store finds the page punched since the one before: otherwise thousands of
                    // them would go by between two punches, and there would be no contest.
                    while punches.load(Ordering::Relaxed) == seen && !stop.load(Ordering::Relaxed) {
                        std::thread::yield_now();
                    }
                    seen = punches.load(Ordering::Relaxed);
                    let begun = Instant::now();
                    map.store(8 * writer, done).expect("no SIGBUS inside the file");
                    longest.fetch_max(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
                    done += 1;
                }
                done
            })
        })
        .collect();
    let puncher = spawn({
        let (a, stop, punches) = (a.clone(), stop.clone(), punches.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                a.punch_hole(0, PAGE).unwrap();
                punches.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let mut counts = writers.iter().map(|writer| writer.within(limit.saturating_sub(start.elapsed())));
    let in_time: Vec<_> = counts.by_ref().collect();
    let took = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    let done = in_time.iter().all(|done| *done == Some(stores));
    puncher.join("the puncher").unwrap();
    let punches = punches.load(Ordering::Relaxed);
    Outcome { punches, longest: Duration::from_nanos(longest.load(Ordering::Relaxed)), took, done }
}

#[test]
fn two_writers_against_one_puncher_both_finish() {
    guard::allow(LIMIT + guard::HANG);
    let stores = guard::repeats(700, 2_000);
    let world = World::with_reader(4, None, true);
    let outcome = three_parties(&world, stores, LIMIT);
    println!(
        "2 x {stores} stores against {} punches in {:.2?}; the longest store took {:.2?}; {:?}",
        outcome.punches,
        outcome.took,
        outcome.longest,
        world.pager().stats(),
    );
    assert!(outcome.done, "a writer did not finish in {:?}", outcome.took);
    assert!(outcome.punches > 100, "nobody punched: {}", outcome.punches);
}
