//! What a process does around the library while the threads of a mix are at work: it is stopped, it forks, it runs out of address
//! ranges, it locks its memory, it ends other pagers; and, in processes beside it, what is for the whole of one. Some of what is its own has known content, which must be as it was.
//!
//! All of it begins with a round and has ended before everything is compared.

mod beside;
mod forks;
pub(crate) mod guards;
mod one;
mod ranges;
mod shutdown;
pub(crate) mod stops;

use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::mman::{MlockAllFlags, mlockall, munlockall};

use crate::config::Config;
use crate::inject::{Inject, Put};
use crate::machine::mask_of;
use crate::op::Op;
use crate::oracle::{Kind, Oracle};
use crate::work::REST;
use crate::world::World;
use guards::Guards;
use one::Neighbour;

/// What one of them does until it is to end.
type Body = fn(&mut Neighbour);

/// The neighbours of one round.
pub(crate) struct Neighbours {
    stop: Arc<AtomicBool>,
    threads: Vec<(&'static str, JoinHandle<()>)>,
    stopper: Option<Child>,
    guards: Option<Guards>,
    /// How long one of them may take to end.
    limit: Duration,
}

/// Whether memory may be locked without a limit: else whoever maps some would be refused, and that may be anybody.
fn may_lock() -> bool {
    const CAP_IPC_LOCK: u64 = 14;
    mask_of("CapEff:") >> CAP_IPC_LOCK & 1 == 1
}

/// What was asked for and can't be done here.
pub(crate) fn lacking(put: &Put) -> Vec<&'static str> {
    let memlock = put.has(Inject::Memlock) && !may_lock();
    let made_up = put.has(Inject::MadeUp) && !cfg!(feature = "fake");
    let memlock = memlock.then_some("memlock is left out but for its processes beside: it takes CAP_IPC_LOCK");
    memlock.into_iter().chain(made_up.then_some("made-up is left out: it takes the feature fake")).collect()
}

fn locks(neighbour: &mut Neighbour) {
    while neighbour.goes_on() {
        if mlockall(MlockAllFlags::MCL_FUTURE).is_err() {
            return;
        }
        neighbour.pause(1..100);
        let _ = munlockall();
        neighbour.pause(1..50);
    }
}

impl Neighbours {
    pub(crate) fn start(config: &Config, world: &Arc<World>, round: u64) -> anyhow::Result<Self> {
        let (put, hang_after) = (&config.put, config.hang_after);
        let stop = Arc::new(AtomicBool::new(false));
        let guards = put.has_neighbours().then(|| Guards::new(round));
        let limit = hang_after + beside::limit(hang_after);
        let mut this = Self { stop, threads: Vec::new(), stopper: None, guards, limit };
        let mut bodies: Vec<(&'static str, Body)> = Vec::new();
        let mut add = |kind, name, body: Body| {
            if put.has(kind) {
                bodies.push((name, body));
            }
        };
        add(Inject::Forks, "forks", forks::run);
        add(Inject::Scarcity, "scarcity", ranges::run);
        add(Inject::Shutdown, "shutdown", shutdown::run);
        add(Inject::Exhaustion, "exhaustion", beside::exhaustion);
        add(Inject::Memlock, "memlock, beside", beside::locked);
        add(Inject::Panics, "panics", beside::panics);
        if cfg!(feature = "fake") {
            add(Inject::MadeUp, "made-up", beside::made_up);
        }
        if may_lock() {
            add(Inject::Memlock, "memlock", locks);
        }
        let room: Arc<Mutex<()>> = Arc::default();
        for (number, (name, body)) in bodies.into_iter().enumerate() {
            let rng = Rng::with_seed(world.mix.seed ^ round << 16 ^ number as u64);
            let (world, stop, room) = (world.clone(), this.stop.clone(), room.clone());
            let rules = config.rules.clone();
            let mut neighbour = Neighbour { world, stop, rng, room, rules, hang_after };
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || body(&mut neighbour))?;
            this.threads.push((name, thread));
        }
        if put.has(Inject::Stops) {
            this.stopper = Some(stops::start()?);
        }
        Ok(this)
    }

    /// Ends them all; `false` if one of them does not end, and can't be joined.
    pub(crate) fn end(mut self, oracle: &Oracle) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        self.end_stopper();
        let start = Instant::now();
        for (name, thread) in std::mem::take(&mut self.threads) {
            while !thread.is_finished() {
                if start.elapsed() > self.limit {
                    let found = format!("{name} goes on");
                    oracle.report_text(Kind::Hang, Op::Inspect, REST, "an end of all neighbours", found);
                    return false;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.join().is_err() {
                let found = format!("a panic of {name}, which is printed above");
                oracle.report_text(Kind::Error, Op::Inspect, REST, "no panic", found);
            }
        }
        if let Some(harm) = self.guards.take().and_then(|guards| guards.harm()) {
            oracle.report_text(Kind::Harm, Op::Inspect, REST, "bytes that nobody has written to", harm);
        }
        true
    }

    /// Lets it come to its end, which is after it has let this process go on.
    fn end_stopper(&mut self) {
        if let Some(mut stopper) = self.stopper.take() {
            drop(stopper.stdin.take());
            let _ = stopper.wait();
        }
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.end_stopper();
    }
}
