//! What a bar is: two cases side by side, a figure of each, and what their ratio is to be.

use crate::case::{Case, Contender, Options, Regime, Sample, Work};
use crate::scale::Scale;

/// What is compared.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Figure {
    Time,
    /// The reciprocal: faults per second.
    Rate,
    Median,
    /// 999 of 1000.
    Tail,
    Named(&'static str),
}

impl Figure {
    pub(super) fn of(self, sample: &Sample) -> Option<f64> {
        match self {
            Figure::Time => Some(sample.ns_per_page),
            Figure::Rate => Some(1.0 / sample.ns_per_page),
            Figure::Median => sample.quantile(0.5),
            Figure::Tail => sample.quantile(0.999),
            Figure::Named(name) => sample.figures.get(name).copied(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Limit {
    pub(super) fn is_met(self, figure: f64) -> bool {
        match self {
            Limit::AtMost(most) => figure <= most,
            Limit::AtLeast(least) => figure >= least,
        }
    }

    pub(crate) fn text(self, unit: &str) -> String {
        match self {
            Limit::AtMost(most) => format!("≤ {most:.2}{unit}"),
            Limit::AtLeast(least) => format!("≥ {least:.2}{unit}"),
        }
    }
}

/// One line of the issue, or a part of one.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) of: (Case, Figure),
    /// Nothing: the figure itself is wanted.
    pub(super) to: Option<(Case, Figure)>,
    pub(super) limit: Limit,
    pub(super) unit: &'static str,
}

pub(super) const OURS: Options = Options::DEFAULT;

/// Cases with these threads, in this regime.
pub(super) struct Cases<'a> {
    pub(super) scale: &'a Scale,
    pub(super) regime: Regime,
    pub(super) threads: usize,
}

impl Cases<'_> {
    pub(super) fn case(&self, work: Work, contender: Contender) -> Case {
        Case { work, threads: self.threads, regime: self.regime, pages: self.scale.pages, contender }
    }

    pub(super) fn dax(&self, work: Work, options: Options) -> Case {
        self.case(work, Contender::Dax(options))
    }
}

pub(super) fn ratio(name: impl Into<String>, of: (Case, Figure), to: (Case, Figure), limit: Limit) -> Bar {
    Bar { name: name.into(), of, to: Some(to), limit, unit: " ×" }
}

/// Of times per page.
pub(super) fn times(name: impl Into<String>, of: Case, to: Case, limit: Limit) -> Bar {
    ratio(name, (of, Figure::Time), (to, Figure::Time), limit)
}
