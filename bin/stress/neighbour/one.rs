//! One neighbour, and what it goes by.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use daxpager::sabotage::Rule;
use fastrand::Rng;

use crate::op::Op;
use crate::oracle::Kind;
use crate::work::REST;
use crate::world::World;

/// What every neighbour has that is a thread.
pub(crate) struct Neighbour {
    pub(super) world: Arc<World>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) rng: Rng,
    /// Held while address ranges are scarce, and while a thread is started: one that finds no room for its stacks is a panic of
    /// the standard library's, and nothing to learn from.
    pub(super) room: Arc<Mutex<()>>,
    /// What is broken in processes beside this one, too.
    pub(super) rules: Vec<Rule>,
    pub(super) hang_after: Duration,
}

impl Neighbour {
    pub(super) fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Sleeps for some milliseconds, or until it is to end.
    pub(super) fn pause(&mut self, ms: std::ops::Range<u64>) {
        let end = Instant::now() + Duration::from_millis(self.rng.u64(ms));
        while self.goes_on() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1).min(end.saturating_duration_since(Instant::now())));
        }
    }

    pub(super) fn report(&self, kind: Kind, expected: &str, found: String) {
        self.world.oracle.report_text(kind, Op::Inspect, REST, expected, found);
    }
}
