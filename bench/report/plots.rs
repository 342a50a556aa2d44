//! The plots of the page.

use std::collections::BTreeMap;

use super::axes::{Axis, Curve, draw};
use super::tables::{number, title};
use crate::case::{Case, Contender, Regime, Work};
use crate::results::{Group, Results};
use crate::units::trimmed;

/// A drawing under its title.
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) svg: String,
}

/// How long accesses took, one drawing for each thing that was done.
pub(crate) fn latencies(results: &Results) -> Vec<Plot> {
    let mut plots = Vec::new();
    for group in &results.groups {
        let mut by_work: BTreeMap<_, Vec<&Case>> = BTreeMap::new();
        for case in &group.order {
            by_work.entry((case.work, case.threads, case.regime, case.pages)).or_default().push(case);
        }
        let is_pattern = |key: &(Work, usize, _, u64)| !matches!(key.0, Work::Extents { .. });
        let drawn = by_work.into_iter().filter(|(key, _)| is_pattern(key));
        plots.extend(drawn.filter_map(|(_, cases)| distribution(group, &cases)));
    }
    plots
}

/// For each time, the share of accesses that took longer: straight lines down are good, steps are ways to be served.
fn distribution(group: &Group, cases: &[&Case]) -> Option<Plot> {
    let curves: Vec<Curve> = cases.iter().filter_map(|case| slower_than(group, case)).collect();
    let first = curves.first()?;
    let end = first.points.last()?.0;
    let x = Axis {
        name: "time that an access took at least, the clock included",
        logarithmic: true,
        within: Some((20.0, end)),
        label: ns_label,
    };
    let y = Axis { name: "share of accesses", logarithmic: true, within: Some((1e-4, 1.0)), label: share_label };
    let title = title(cases[0]);
    let svg = draw(&title, &curves, &x, &y);
    Some(Plot { title, svg })
}

fn slower_than(group: &Group, case: &Case) -> Option<Curve> {
    let latency = group.latency(case);
    let all: u64 = latency.iter().map(|(_, count)| count).sum();
    if all == 0 {
        return None;
    }
    let mut left = all;
    let mut points = Vec::new();
    for (ns, count) in latency {
        points.push((ns as f64, left as f64 / all as f64));
        left -= count;
    }
    Some(Curve { name: case.contender.name(), points, marked: false })
}

/// What the cost of a page depends on: the window of fault-around, the size of a mapping, the number of extents.
pub(crate) fn dependencies(results: &Results) -> Vec<Plot> {
    let mut around = BTreeMap::new();
    let mut windows = BTreeMap::new();
    let mut extents = BTreeMap::new();
    for group in &results.groups {
        for case in &group.order {
            let Some(ns) = group.figure(case, |sample| Some(sample.ns_per_page)) else { continue };
            let add = |curves: &mut BTreeMap<String, Vec<(f64, f64)>>, name: String, x: u64| {
                curves.entry(name).or_default().push((x as f64, ns.median));
            };
            match (&case.contender, case.work) {
                (Contender::Dax(options), Work::SequentialRead) if case.threads == 1 => {
                    let Some(bytes) = options.around else { continue };
                    let name = format!("daxpager, {}", case.regime.name());
                    add(&mut around, name, bytes.max(4096) >> 10);
                }
                // The same whatever daxpager does: a line to compare with.
                (Contender::Kernel, Work::SequentialRead) if (case.threads, case.regime) == (1, Regime::Pinned) => {
                    [4, 2048].into_iter().for_each(|kib| add(&mut around, "kernel, pinned".into(), kib));
                }
                (contender, Work::RandomRead) if case.threads == 1 => {
                    let name = format!("{}, {}", contender.name(), case.regime.name());
                    add(&mut windows, name, case.pages << 2);
                }
                (_, Work::Extents { extents: count, .. }) => add(&mut extents, "daxpager, pinned".into(), count),
                _ => {}
            }
        }
    }
    [
        ("Cost per page against the window of fault-around", around, "KiB that one fault may install: sequential read"),
        ("Cost per page against the size of the mapping", windows, "KiB mapped: random read"),
        ("Cost per fault against the number of extents", extents, "extents: random read, address ranges in place"),
    ]
    .into_iter()
    .filter_map(|(title, curves, x)| dependency(title, curves, x))
    .collect()
}

fn dependency(title: &str, curves: BTreeMap<String, Vec<(f64, f64)>>, x: &'static str) -> Option<Plot> {
    let curve = |(name, mut points): (String, Vec<(f64, f64)>)| {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.dedup_by_key(|point| point.0);
        (points.len() > 1).then_some(Curve { name, points, marked: true })
    };
    let curves: Vec<Curve> = curves.into_iter().filter_map(curve).collect();
    if curves.is_empty() {
        return None;
    }
    let across = Axis { name: x, logarithmic: true, within: None, label: count_label };
    let times = || curves.iter().flat_map(|curve| &curve.points).map(|point| point.1.max(1.0).log10());
    let (low, high) = (times().fold(f64::MAX, f64::min).floor(), times().fold(0.0, f64::max).ceil());
    // Whole powers of ten: a wobble is not to look like a mountain.
    let within = Some((10f64.powf(low), 10f64.powf(high)));
    let up = Axis { name: "ns per page", logarithmic: true, within, label: count_label };
    let svg = draw(title, &curves, &across, &up);
    Some(Plot { title: title.into(), svg })
}

fn ns_label(ns: f64) -> String {
    match ns {
        ns if ns >= 1e9 => format!("{} s", short(ns / 1e9)),
        ns if ns >= 1e6 => format!("{} ms", short(ns / 1e6)),
        ns if ns >= 1e3 => format!("{} µs", short(ns / 1e3)),
        ns => format!("{} ns", short(ns)),
    }
}

fn share_label(share: f64) -> String {
    format!("{}%", short(share * 100.0))
}

fn count_label(count: f64) -> String {
    if count < 100.0 { short(count) } else { number(count) }
}

fn short(value: f64) -> String {
    trimmed(&format!("{value:.2}")).to_owned()
}
