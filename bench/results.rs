//! What the contenders have said, side by side.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;

use crate::case::{Case, Outcome, Sample};
use crate::laps::median;

/// What came of each case in each round. A case that is in two groups has a place in each.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) groups: Vec<Group>,
    /// The signal before which this is what was measured.
    pub(crate) ended_by: Option<Signal>,
}

/// Cases that are compared with each other.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) cases: BTreeMap<Case, Vec<Outcome>>,
    /// In the order of the plan.
    pub(crate) order: Vec<Case>,
}

/// A median and how far apart the rounds were.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        let median = median(&mut values);
        Some(Self { median, min: *values.first()?, max: *values.last()? })
    }
}

impl Group {
    fn samples(&self, case: &Case) -> impl Iterator<Item = Option<&Sample>> {
        self.cases.get(case).into_iter().flatten().map(Outcome::sample)
    }

    /// A figure of a case, over the rounds.
    pub(crate) fn figure(&self, case: &Case, figure: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.samples(case).flatten().filter_map(figure))
    }

    /// A figure of one case as a share of the other's, in the same round.
    pub(crate) fn ratio(
        &self,
        (of, over): (&Case, impl Fn(&Sample) -> Option<f64>),
        (to, under): (&Case, impl Fn(&Sample) -> Option<f64>),
    ) -> Option<Spread> {
        let pairs = self.samples(of).zip(self.samples(to));
        Spread::of(pairs.filter_map(|(a, b)| Some(over(a?)? / under(b?)?)))
    }

    /// Why there is nothing of a case.
    pub(crate) fn lack(&self, case: &Case) -> Option<&Outcome> {
        self.cases.get(case)?.iter().find(|outcome| outcome.sample().is_none())
    }

    /// The latencies of all rounds together.
    pub(crate) fn latency(&self, case: &Case) -> Vec<(u64, u64)> {
        let mut all = BTreeMap::new();
        for (ns, count) in self.samples(case).flatten().flat_map(|sample| &sample.latency) {
            *all.entry(*ns).or_insert(0) += count;
        }
        all.into_iter().collect()
    }
}

impl Results {
    /// The group in which all of these are.
    pub(crate) fn group_with(&self, cases: &[&Case]) -> Option<&Group> {
        self.groups.iter().find(|group| cases.iter().all(|case| group.cases.contains_key(case)))
    }
}
