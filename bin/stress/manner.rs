//! How mappings are made: who resolves their faults, how stores are noticed, how much a fault installs. Each mapping draws its
//! own, from what its mix has drawn to draw from.

use daxpager::{Allocation, MapOptions, Resolve, Tracking};
use fastrand::Rng;

/// What `take_dirty` may give besides the pages that were stored to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Surplus {
    Nothing,
    /// Pages whose entries were lost may be among them.
    Lost,
    Neighbours,
}

/// Each value by its name on the command line. One line is all that a new one needs.
const RESOLVES: &[(&str, Resolve)] = &[("pager", Resolve::PagerThread), ("faulting", Resolve::FaultingThread)];
const TRACKINGS: &[(&str, (Tracking, Surplus))] = &[
    (EXACT, (Tracking::Exact, Surplus::Nothing)),
    ("coarse", (Tracking::Coarse, Surplus::Neighbours)),
    (ASYNCHRONOUS, (Tracking::Asynchronous, Surplus::Lost)),
    (UNTRACKED, (Tracking::Off, Surplus::Neighbours)),
];
const ALLOCATIONS: &[(&str, Allocation)] = &[(BLOCKS, Allocation::Blocks), (WINDOWS, Allocation::Windows)];
const AROUNDS: &[(&str, u64)] = &[("off", 0), ("small", 16 << 10), ("default", 2 << 20)];

/// Where the pages of a volume lie on single blocks, and one that has been freed is the next one handed out.
pub(crate) const BLOCKS: &str = "blocks";
/// Each at its place.
pub(crate) const WINDOWS: &str = "windows";
/// Each store is noticed.
pub(crate) const EXACT: &str = "exact";
/// The kernel lets each store through.
pub(crate) const ASYNCHRONOUS: &str = "asynchronous";
/// Nobody can ask what has been stored to.
const UNTRACKED: &str = "untracked";
/// The first of them.
pub(crate) const PAGER: &str = RESOLVES[0].0;
/// On the command line: every value, one for each mapping.
pub(crate) const MIXED: &str = "mixed";

/// The values of one option that mappings draw from, by their places in its list. Not empty.
type Drawn = Vec<usize>;

/// What the command line says of each option.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins {
    pub(crate) resolve: Option<String>,
    pub(crate) tracking: Option<String>,
    pub(crate) fault_around: Option<String>,
    pub(crate) allocation: Option<String>,
}

impl Pins {
    /// Where the pages of files lie, of a mix that has drawn `drawn`.
    pub(crate) fn allocation(&self, drawn: Allocation) -> Allocation {
        let pin = self.allocation.as_deref();
        ALLOCATIONS.iter().find(|(name, _)| Some(*name) == pin).map_or(drawn, |(_, allocation)| *allocation)
    }

    /// As they stand on the command line.
    pub(crate) fn given(&self) -> impl Iterator<Item = (&'static str, String)> {
        let all = [
            ("resolve", &self.resolve),
            ("tracking", &self.tracking),
            ("fault-around", &self.fault_around),
            ("allocation", &self.allocation),
        ];
        all.map(|(name, value)| value.clone().map(|value| (name, value))).into_iter().flatten()
    }

    /// Whether any mapping may have faults that are messages to the pager.
    pub(crate) fn allow_messages(&self) -> bool {
        self.resolve.as_deref().is_none_or(|pin| pin == PAGER || pin == MIXED)
    }
}

fn names<T>(list: &[(&'static str, T)]) -> Vec<&'static str> {
    list.iter().map(|(name, _)| *name).chain([MIXED]).collect()
}

pub(crate) fn resolve_names() -> Vec<&'static str> {
    names(RESOLVES)
}

pub(crate) fn tracking_names() -> Vec<&'static str> {
    names(TRACKINGS)
}

pub(crate) fn allocation_names() -> Vec<&'static str> {
    names(ALLOCATIONS)
}

/// Drawn for each mix.
pub(crate) fn draw_allocation(rng: &mut Rng) -> Allocation {
    ALLOCATIONS[rng.usize(0..ALLOCATIONS.len())].1
}

pub(crate) fn allocation_name(allocation: Allocation) -> &'static str {
    ALLOCATIONS.iter().find(|(_, other)| *other == allocation).map_or("?", |(name, _)| *name)
}

pub(crate) fn around_names() -> Vec<&'static str> {
    names(AROUNDS)
}

/// What the mappings of a mix draw from.
#[derive(Clone, Debug)]
pub(crate) struct Manners {
    resolve: Drawn,
    tracking: Drawn,
    around: Drawn,
}

/// How one mapping is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Manner {
    resolve: usize,
    tracking: usize,
    around: usize,
}

/// Each value is left out in one of three mixes, as operations are.
fn some(rng: &mut Rng, count: usize) -> Drawn {
    let drawn: Drawn = (0..count).filter(|_| rng.u32(0..3) > 0).collect();
    if drawn.is_empty() { vec![rng.usize(0..count)] } else { drawn }
}

fn pinned<T>(list: &[(&str, T)], pin: &Option<String>, drawn: &mut Drawn) {
    if let Some(pin) = pin {
        *drawn = (0..list.len()).filter(|at| pin == MIXED || list[*at].0 == pin).collect();
    }
}

impl Manners {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        // The library refuses faults in the faulting thread on other machines; whoever pins them is told so.
        let resolves = if cfg!(target_arch = "x86_64") { RESOLVES.len() } else { 1 };
        let resolve = some(rng, resolves);
        let tracked = TRACKINGS.len() - 1;
        Self { resolve, tracking: some(rng, tracked), around: some(rng, AROUNDS.len()) }
    }

    /// Some mappings are not tracked, either.
    pub(crate) fn leave_some_untracked(&mut self) {
        self.tracking.push(TRACKINGS.len() - 1);
    }

    /// Whether some mapping lets stores through to what is present in a file with windows: a load of a hole takes a page there.
    pub(crate) fn let_stores_through(&self) -> bool {
        self.tracking.iter().any(|at| matches!(TRACKINGS[*at].1.0, Tracking::Asynchronous | Tracking::Off))
    }

    pub(crate) fn pin(&mut self, pins: &Pins) {
        pinned(RESOLVES, &pins.resolve, &mut self.resolve);
        pinned(TRACKINGS, &pins.tracking, &mut self.tracking);
        pinned(AROUNDS, &pins.fault_around, &mut self.around);
    }

    /// The next mapping's.
    pub(crate) fn next(&self, rng: &mut Rng) -> Manner {
        let mut of = |drawn: &Drawn| drawn[rng.usize(0..drawn.len())];
        Manner { resolve: of(&self.resolve), tracking: of(&self.tracking), around: of(&self.around) }
    }

    /// Whether the faults of some mapping are messages to the pager.
    pub(crate) fn have_messages(&self) -> bool {
        self.resolve.iter().any(|at| RESOLVES[*at].1 != Resolve::FaultingThread)
    }

    /// Whether some mapping may allocate more than what is stored to.
    pub(crate) fn allocates_ahead(&self) -> bool {
        self.tracking.iter().any(|at| TRACKINGS[*at].1.1 == Surplus::Neighbours)
    }

    pub(crate) fn text(&self) -> String {
        fn of<T>(list: &[(&'static str, T)], drawn: &Drawn) -> String {
            drawn.iter().map(|at| list[*at].0).collect::<Vec<_>>().join(" or ")
        }
        format!(
            "resolve {}, tracking {}, fault-around {}",
            of(RESOLVES, &self.resolve),
            of(TRACKINGS, &self.tracking),
            of(AROUNDS, &self.around)
        )
    }
}

impl Manner {
    pub(crate) fn options(self) -> MapOptions {
        let (tracking, _) = TRACKINGS[self.tracking].1;
        MapOptions::new().resolve(RESOLVES[self.resolve].1).tracking(tracking).fault_around(AROUNDS[self.around].1)
    }

    /// Threads resolve their own faults: nobody serves those of system calls, and no fault is served late.
    pub(crate) fn is_direct(self) -> bool {
        RESOLVES[self.resolve].1 == Resolve::FaultingThread
    }

    /// Nobody can ask it what has been stored to.
    pub(crate) fn is_untracked(self) -> bool {
        TRACKINGS[self.tracking].0 == UNTRACKED
    }

    pub(crate) fn surplus(self) -> Surplus {
        TRACKINGS[self.tracking].1.1
    }

    pub(crate) fn text(self) -> String {
        let Self { resolve, tracking, around } = self;
        format!("{}, {}, fault-around {}", RESOLVES[resolve].0, TRACKINGS[tracking].0, AROUNDS[around].0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pinned_is_what_every_mapping_gets() {
        let pin = |value: &str| Some(value.to_owned());
        let pins = Pins {
            resolve: pin("faulting"),
            tracking: pin("coarse"),
            fault_around: pin(MIXED),
            allocation: pin(BLOCKS),
        };
        assert_eq!(pins.allocation(Allocation::Windows), Allocation::Blocks);
        assert_eq!(Pins::default().allocation(Allocation::Windows), Allocation::Windows);
        let mut rng = Rng::with_seed(7);
        let mut manners = Manners::draw(&mut rng);
        manners.pin(&pins);
        let drawn: Vec<Manner> = (0..200).map(|_| manners.next(&mut rng)).collect();
        assert!(drawn.iter().all(|manner| manner.is_direct() && manner.surplus() == Surplus::Neighbours));
        assert!(AROUNDS.iter().all(|(name, _)| drawn.iter().any(|manner| manner.text().ends_with(name))));
        assert_eq!(manners.text(), "resolve faulting, tracking coarse, fault-around off or small or default");
    }
}
