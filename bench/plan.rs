//! What is measured in which order.

use std::collections::BTreeSet;

use crate::args::Args;
use crate::bars;
use crate::case::{Case, Contender, Options, Regime, Tracking, Work};
use crate::scale::Scale;

/// Cases in groups: those of one group are compared, and run one after the other.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) scale: Scale,
    pub(crate) groups: Vec<Vec<Case>>,
}

pub(crate) fn plan(args: &Args) -> Plan {
    let scale = Scale::new(args);
    let mut groups = if args.bars { bars::groups(&scale) } else { patterns(args, &scale) };
    let mut seen = BTreeSet::new();
    for group in &mut groups {
        // Who takes part in two groups is measured in each: a ratio is of neighbours.
        let mut own = BTreeSet::new();
        group.retain(|case| own.insert(case.clone()));
        seen.extend(own);
    }
    groups.retain(|group| !group.is_empty());
    Plan { scale, groups }
}

fn patterns(args: &Args, scale: &Scale) -> Vec<Vec<Case>> {
    let works = if args.work.is_empty() { Work::PATTERNS.to_vec() } else { args.work.clone() };
    let regimes = args.regime.map_or(Regime::ALL.to_vec(), |regime| vec![regime]);
    let threads = args.threads.map_or(vec![1, 2], |threads| vec![threads as usize]);
    let mut groups = Vec::new();
    for work in &works {
        for regime in &regimes {
            for threads in &threads {
                let case =
                    |contender| Case { work: *work, threads: *threads, regime: *regime, pages: scale.pages, contender };
                groups.push(contenders(*work, *regime, args).into_iter().map(case).collect());
            }
        }
    }
    if args.work.is_empty() && args.regime.is_none() && args.threads.is_none() {
        groups.extend(curves(scale));
    }
    groups
}

fn contenders(work: Work, regime: Regime, args: &Args) -> Vec<Contender> {
    let mut list = match work {
        Work::WriteAfterProtect => vec![Contender::KernelAsync],
        _ => vec![Contender::Kernel, Contender::KernelOnePage],
    };
    list.extend([Contender::BareLoop, Contender::BareHandler]);
    let ours = Options::DEFAULT;
    list.extend(
        [ours, ours.one_page(), ours.in_faulting_thread(), ours.in_faulting_thread().one_page()].map(Contender::Dax),
    );
    if regime == Regime::Free {
        // On one CPU it would be in its own way.
        list.push(Contender::Dax(ours.one_page().busy()));
    }
    if work.is_store() {
        list.extend([Tracking::Coarse, Tracking::Asynchronous].map(|tracking| Contender::Dax(ours.tracking(tracking))));
    }
    list.extend(args.other.iter().map(|(name, path)| Contender::Other(name.clone(), path.clone())));
    list
}

/// What the cost depends on.
fn curves(scale: &Scale) -> Vec<Vec<Case>> {
    let case = |work, pages, contender| Case { work, threads: 1, regime: Regime::Pinned, pages, contender };
    let ours = Options::DEFAULT;
    let mut groups = vec![bytes_around().map(|bytes| around(scale.pages, bytes)).collect::<Vec<_>>()];
    groups[0].insert(0, case(Work::SequentialRead, scale.pages, Contender::Kernel));
    for pages in windows(scale) {
        let list = [Contender::Kernel, Contender::BareLoop, Contender::Dax(ours), Contender::Dax(ours.one_page())];
        groups.push(list.map(|contender| case(Work::RandomRead, pages, contender)).to_vec());
    }
    let list = bars::extent_counts(scale).map(|extents| bars::extents_case(scale, extents));
    groups.push(list.collect());
    groups
}

/// Bytes that one fault may install, for a curve.
pub(crate) fn bytes_around() -> impl Iterator<Item = u64> {
    [0, 16, 64, 256, 512, 1024, 2048].into_iter().map(|kib: u64| kib << 10)
}

pub(crate) fn around(pages: u64, bytes: u64) -> Case {
    let contender = Contender::Dax(Options::DEFAULT.around(bytes));
    Case { work: Work::SequentialRead, threads: 1, regime: Regime::Pinned, pages, contender }
}

/// Sizes of a mapping in pages, for a curve.
pub(crate) fn windows(scale: &Scale) -> impl Iterator<Item = u64> {
    let most = scale.sparse_file_pages;
    (8..20).step_by(2).map(|power| 1u64 << power).filter(move |pages| *pages <= most)
}
