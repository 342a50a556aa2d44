//! Faults put in: what the kernel may answer any day, and what a busy machine does to timing.

use clap::ValueEnum;
use daxpager::PagerBuilder;
use daxpager::probe::Point;

/// A fault that can be put in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Inject {
    /// The kernel answers EAGAIN
    Again,
    /// The kernel answers EEXIST: the entry is there, and nobody has been woken
    Exist,
    /// The kernel answers ENOMEM
    Nomem,
    /// The kernel does half of a range
    Partial,
    /// Messages arrive late
    Late,
    /// Messages arrive twice
    Twice,
    /// A quarter of the threads look awake in each of their faults
    Awake,
    /// Threads are held at every named point, now and then
    Delays,
    /// Signals go to the threads that fault
    Signals,
    /// All of these
    All,
    /// The process is stopped and goes on, again and again
    Stops,
    /// Every second thread has all signals blocked
    Masked,
    /// Children of fork(2) call what they have inherited
    Forks,
    /// The process has next to no address ranges left, for moments
    Scarcity,
    /// The process locks what it maps (mlockall; needs CAP_IPC_LOCK); in one beside, next to nothing may be locked
    Memlock,
    /// Other pagers end under threads that load, store, copy and wait in calls
    Shutdown,
    /// In a process beside, not one address range, or no address space, is left
    Exhaustion,
    /// In a process beside, an observer panics
    Panics,
    /// In a process beside, guards lie at the addresses of the fake page table (needs the feature fake)
    MadeUp,
    /// All that a process does around the library: from stops to made-up
    Neighbour,
}

/// What "neighbour" stands for; "all" is what comes before.
const NEIGHBOURS: [Inject; 9] = [
    Inject::Stops,
    Inject::Masked,
    Inject::Forks,
    Inject::Scarcity,
    Inject::Memlock,
    Inject::Shutdown,
    Inject::Exhaustion,
    Inject::Panics,
    Inject::MadeUp,
];

/// How often a thread is held at a point, and how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delay {
    pub(crate) ppm: u32,
    pub(crate) us_max: u32,
}

/// What is put in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Put {
    kinds: Vec<Inject>,
    /// Points with a delay of their own: gates that widen one window.
    gates: Vec<(Point, Delay)>,
}

/// Rare enough that most operations meet none, often enough that each is met many times in a second.
const OFTEN_PPM: u32 = 30_000;
const SELDOM_PPM: u32 = 3_000;
/// Of the threads.
const AWAKE_PPM: u32 = 250_000;
const DELAY: Delay = Delay { ppm: 5_000, us_max: 500 };

impl Put {
    pub(crate) fn new(kinds: &[Inject], gates: &[(Point, Delay)]) -> Self {
        Self { kinds: kinds.to_vec(), gates: gates.to_vec() }
    }

    pub(crate) fn has(&self, kind: Inject) -> bool {
        let all = if NEIGHBOURS.contains(&kind) { Inject::Neighbour } else { Inject::All };
        self.kinds.contains(&kind) || self.kinds.contains(&all)
    }

    /// Whether any of those is asked for.
    pub(crate) fn has_neighbours(&self) -> bool {
        NEIGHBOURS.into_iter().any(|kind| self.has(kind))
    }

    /// Whether anything is asked for that only a library with the feature `sabotage` does.
    pub(crate) fn needs_feature(&self) -> bool {
        let kernel =
            [Inject::Again, Inject::Exist, Inject::Nomem, Inject::Partial, Inject::Late, Inject::Twice, Inject::Awake];
        kernel.into_iter().any(|kind| self.has(kind))
    }

    pub(crate) fn delay_at(&self, point: Point) -> Option<Delay> {
        let gate = self.gates.iter().find(|(gate, _)| *gate == point).map(|(_, delay)| *delay);
        gate.or_else(|| self.has(Inject::Delays).then_some(DELAY))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let name = |kind: &Inject| kind.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
        let gate = |(point, delay): &(Point, Delay)| {
            format!("gate at {point:?}, {} %, up to {} us", f64::from(delay.ppm) / 10_000.0, delay.us_max)
        };
        self.kinds.iter().map(name).chain(self.gates.iter().map(gate)).collect()
    }

    #[cfg(feature = "sabotage")]
    pub(crate) fn configure(&self, builder: PagerBuilder, seed: u64) -> PagerBuilder {
        if !self.needs_feature() {
            return builder;
        }
        let often = |kind| if self.has(kind) { OFTEN_PPM } else { 0 };
        builder.inject(daxpager::Injection {
            seed,
            again_ppm: often(Inject::Again),
            exist_ppm: often(Inject::Exist),
            nomem_ppm: if self.has(Inject::Nomem) { SELDOM_PPM } else { 0 },
            partial_ppm: often(Inject::Partial),
            delay_ppm: often(Inject::Late),
            duplicate_ppm: often(Inject::Twice),
            awake_ppm: if self.has(Inject::Awake) { AWAKE_PPM } else { 0 },
        })
    }

    #[cfg(not(feature = "sabotage"))]
    pub(crate) fn configure(&self, builder: PagerBuilder, _seed: u64) -> PagerBuilder {
        let _ = (OFTEN_PPM, SELDOM_PPM, AWAKE_PPM);
        builder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_and_neighbour_are_halves() {
        let groups = [Inject::All, Inject::Neighbour];
        for kind in Inject::value_variants().iter().filter(|kind| !groups.contains(kind)) {
            let has = groups.map(|group| Put::new(&[group], &[]).has(*kind));
            assert_ne!(has[0], has[1], "{kind:?}");
            assert!(Put::new(&groups, &[]).has(*kind));
        }
        assert!(!Put::new(&[Inject::All], &[]).has_neighbours() && Put::new(&[Inject::Forks], &[]).has_neighbours());
    }
}
