//! The real core (reader, workers, resolve, space, control, unmap, shutdown) under the schedule checker shuttle, on the
//! fake page table. `make model` runs it; `docs/models.md` says what it shows and what it does not.

mod findings;
#[path = "../common/guard.rs"]
mod guard;
mod hunt;
mod scenarios;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use daxpager::{Allocation, MapOptions, Resolve, Tracking};
use hunt::{How, unbroken};
use scenarios::{AGAIN, ALL, REFUSED, Scenario, named};
use shuttle::scheduler::{ReplayScheduler, RoundRobinScheduler};
use world::{with_allocation, with_options};

/// Schedules of each scenario for each scheduler, unless `MODEL_SCHEDULES` says otherwise.
const SCHEDULES: usize = 3000;
const SEED: u64 = 0x5eed;

fn schedules() -> usize {
    std::env::var("MODEL_SCHEDULES").map_or(SCHEDULES, |text| text.parse().expect("MODEL_SCHEDULES is a number"))
}

/// With every rule kept, no schedule fails: every value is one that may be there, no page table shows what the
/// extents do not have, and every thread ends.
#[test]
fn every_schedule_is_fine() {
    every_scenario(ALL, MapOptions::new(), schedules());
}

/// All scenarios but the two that are about messages.
fn without_messages() -> impl Iterator<Item = &'static Scenario> {
    ALL.iter().filter(|scenario| !["moved", "slow reader"].contains(&scenario.name))
}

/// The same where threads resolve their own faults, with stores tracked in each way. Not the two scenarios that are about
/// messages.
#[test]
fn every_schedule_is_fine_in_the_faulting_thread() {
    let options = MapOptions::new().resolve(Resolve::FaultingThread);
    every_scenario(without_messages(), options, schedules());
    for tracking in [Tracking::Coarse, Tracking::Asynchronous] {
        every_scenario(without_messages(), options.tracking(tracking), schedules() / 5);
    }
}

/// And where the pager resolves them, with the other ways to track stores.
#[test]
fn every_schedule_is_fine_with_other_tracking() {
    for tracking in [Tracking::Coarse, Tracking::Asynchronous] {
        every_scenario(without_messages(), MapOptions::new().tracking(tracking), schedules() / 5);
    }
}

/// Where files have windows: in both threads, with neighbours that are writable, and where the kernel tracks.
#[test]
fn every_schedule_is_fine_in_windows() {
    with_allocation(Allocation::Windows, || {
        every_scenario(ALL, MapOptions::new(), schedules() / 4);
        every_scenario(without_messages(), MapOptions::new().resolve(Resolve::FaultingThread), schedules() / 4);
        every_scenario(without_messages(), MapOptions::new().tracking(Tracking::Coarse), schedules() / 10);
        let asynchronous = MapOptions::new().tracking(Tracking::Asynchronous);
        every_scenario(ALL, asynchronous, schedules() / 10);
        every_scenario(without_messages(), asynchronous.resolve(Resolve::FaultingThread), schedules() / 10);
    });
}

fn every_scenario(scenarios: impl IntoIterator<Item = &'static Scenario>, options: MapOptions, schedules: usize) {
    let (start, mut total) = (Instant::now(), 0);
    println!("{options:?}");
    for scenario in scenarios {
        let runs = [How::Random, How::Pct].map(|how| {
            let start = Instant::now();
            total += with_options(options, || unbroken(how.scheduler(SEED, schedules), scenario));
            format!("{how:?} {:.1?}", start.elapsed())
        });
        println!("{:12} {}", scenario.name, runs.join(", "));
    }
    println!("{total} schedules in {:.1?}", start.elapsed());
}

/// How often something comes up that a scenario counts, in 1,000 schedules of each scheduler: more than `least` times.
fn comes_up(scenario: &str, counter: &AtomicU64, least: u64) {
    for how in [How::Random, How::Pct] {
        let before = counter.load(Ordering::Relaxed);
        unbroken(how.scheduler(SEED, 1000), named(scenario));
        let count = counter.load(Ordering::Relaxed) - before;
        println!("{how:?}: {count} in 1000 schedules");
        assert!(count > least, "{how:?}: {count}");
    }
}

/// The page table's own EAGAIN, for an event that nobody has read or whose thread has not run again, is met by installs
/// and protects. In every other scenario it never is: re-points keep installs away (`World::end`).
#[test]
fn unread_events_refuse_installs() {
    comes_up("moved", &REFUSED, 0);
}

/// A mapping that has gone and the next one are at one address in most schedules: what is said of that is said of something.
#[test]
fn an_address_is_used_again() {
    comes_up("unmap", &AGAIN, 500);
}

/// Under a scheduler that lets every thread have its turn, a thread that stores and loads gets there against one
/// that punches its page in a loop. Anything else would exceed the limit of steps.
#[test]
fn a_writer_gets_there_against_a_puncher() {
    assert_eq!(unbroken(Box::new(RoundRobinScheduler::new(1)), named("progress")), 1);
}

/// Runs one schedule, as a failure prints it: `MODEL_SCENARIO` is its scenario's name, `MODEL_SCHEDULE` the schedule.
#[test]
#[ignore = "needs a schedule"]
fn one_schedule() {
    let name = std::env::var("MODEL_SCENARIO").expect("MODEL_SCENARIO");
    let schedule = std::env::var("MODEL_SCHEDULE").expect("MODEL_SCHEDULE");
    unbroken(Box::new(ReplayScheduler::new_from_encoded(&schedule)), named(&name));
}
