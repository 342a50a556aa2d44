//! The real core (reader, workers, resolve, space, control, unmap, shutdown) under the schedule checker shuttle, on the
//! fake page table. Runs with `make model`.

mod hunt;
mod scenarios;
mod world;

use std::time::Instant;

use hunt::{How, hunt, replay, unbroken};
use scenarios::{ALL, named};

/// Schedules of each scenario for each scheduler, unless `MODEL_SCHEDULES` says otherwise.
const SCHEDULES: usize = 500;

fn schedules() -> usize {
    std::env::var("MODEL_SCHEDULES").map_or(SCHEDULES, |text| text.parse().expect("MODEL_SCHEDULES is a number"))
}

/// With every rule kept, no schedule fails: every value is one that may be there, no page table shows what the
/// extents do not have, and every thread ends.
#[test]
fn every_schedule_is_fine() {
    for scenario in ALL {
        for how in [How::Random, How::Pct] {
            let start = Instant::now();
            let run = unbroken(how.scheduler(0x5eed, schedules()), scenario);
            println!("{:12} {how:?}: {run} schedules in {:.1?}", scenario.name, start.elapsed());
        }
    }
}
