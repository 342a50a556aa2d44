//! What the project wants to reach, and whether it does.

mod bar;
mod windows;

use bar::{Bar, Cases, Figure, Limit, OURS, ratio, times};

use crate::case::{Case, Contender, Outcome, Regime, Sample, Tracking, Work};
use crate::results::{Results, Spread};
use crate::scale::Scale;

/// What came of a bar.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Verdict {
    pub(crate) name: String,
    pub(crate) figure: Option<Spread>,
    pub(crate) bar: String,
    pub(crate) unit: &'static str,
    /// "ok", "short", or why there is no figure.
    pub(crate) verdict: String,
    pub(crate) reason: Option<String>,
    /// System calls and context switches per fault, of the one that is judged.
    pub(crate) calls_per_fault: Option<f64>,
    pub(crate) switches_per_fault: Option<f64>,
}

impl Verdict {
    pub(crate) fn is_ok(&self) -> bool {
        self.verdict == "ok"
    }
}

fn bars(scale: &Scale) -> Vec<Bar> {
    let mut bars = round_trips(scale);
    bars.extend(many_pages(scale));
    bars.extend(in_windows(scale));
    bars.extend(windows::bars(scale));
    bars.extend(tracking(scale));
    bars.extend(the_rest(scale));
    bars
}

fn round_trips(scale: &Scale) -> Vec<Bar> {
    use Limit::{AtLeast, AtMost};
    let pinned = Cases { scale, regime: Regime::Pinned, threads: 1 };
    let free = Cases { scale, regime: Regime::Free, threads: 1 };
    let two = Cases { scale, regime: Regime::Free, threads: 2 };
    let (read, mkwrite) = (Work::RandomRead, Work::WriteAfterProtect);
    let (here, there) = (OURS.one_page().in_faulting_thread(), OURS.one_page());
    vec![
        times(
            "minor fault, pager thread, against the bare loop",
            pinned.dax(read, there),
            pinned.case(read, Contender::BareLoop),
            AtMost(1.10),
        ),
        times(
            "minor fault, faulting thread, against the bare handler",
            pinned.dax(read, here),
            pinned.case(read, Contender::BareHandler),
            AtMost(1.15),
        ),
        times(
            "minor fault, faulting thread, against the pager thread, free",
            free.dax(read, here),
            free.dax(read, there),
            AtMost(0.10),
        ),
        ratio(
            "faults per second of two threads, faulting thread, against one",
            (two.dax(read, here), Figure::Rate),
            (free.dax(read, here), Figure::Rate),
            AtLeast(1.5),
        ),
        times(
            "mkwrite, pager thread, against the bare loop",
            pinned.dax(mkwrite, there),
            pinned.case(mkwrite, Contender::BareLoop),
            AtMost(1.10),
        ),
        times(
            "mkwrite, faulting thread, against the bare handler",
            pinned.dax(mkwrite, here),
            pinned.case(mkwrite, Contender::BareHandler),
            AtMost(1.15),
        ),
    ]
}

fn many_pages(scale: &Scale) -> Vec<Bar> {
    let mut bars = Vec::new();
    let coarse = OURS.tracking(Tracking::Coarse);
    for regime in Regime::ALL {
        let cases = Cases { scale, regime, threads: 1 };
        let mut add = |what: &str, work, options, most| {
            let name = format!("{what}, {}", regime.name());
            let (of, to) = (cases.dax(work, options), cases.case(work, Contender::Kernel));
            bars.push(times(name, of, to, Limit::AtMost(most)));
        };
        add("sequential read, against the kernel", Work::SequentialRead, OURS, 1.10);
        add("sequential write (coarse), against the kernel", Work::SequentialWrite, coarse, 0.30);
        add("sequential hole write (coarse), against the kernel", Work::HoleWrite, coarse, 0.80);
        let sparse = Work::SparseRead { file_pages: scale.sparse_file_pages };
        let name = format!("random read of a large file, against no fault-around, {}", regime.name());
        let (of, to) = (cases.dax(sparse, OURS), cases.dax(sparse, OURS.one_page()));
        bars.push(times(name, of, to, Limit::AtMost(1.15)));
    }
    bars
}

/// Files with windows: what is done to holes.
fn in_windows(scale: &Scale) -> Vec<Bar> {
    use Limit::AtMost;
    let pinned = Cases { scale, regime: Regime::Pinned, threads: 1 };
    let there = OURS.in_windows();
    let here = there.in_faulting_thread();
    let mut bars = Vec::new();
    for (order, work) in [("in order", Work::HoleWrite), ("at random", Work::RandomHoleWrite)] {
        let mut add = |who: &str, options, contender, most| {
            let name = format!("store into holes (windows) {order}, {who}");
            bars.push(times(name, pinned.dax(work, options), pinned.case(work, contender), AtMost(most)));
        };
        add("pager thread, against the bare loop", there, Contender::BareLoop, 1.15);
        add("faulting thread, against the bare handler", here, Contender::BareHandler, 1.15);
        add("faulting thread, against the kernel", here, Contender::Kernel, 2.6);
    }
    let load = Work::RandomHoleRead;
    for (name, options, contender) in [
        ("load of holes (windows) at random, pager thread, against the bare loop", there, Contender::BareLoop),
        ("load of holes (windows) at random, faulting thread, against the bare handler", here, Contender::BareHandler),
    ] {
        bars.push(times(name, pinned.dax(load, options), pinned.case(load, contender), AtMost(1.10)));
    }
    // What is there and was stored to in no order: the kernel installs it.
    let read = Work::RandomRead;
    for (who, options) in [("pager thread", there), ("faulting thread", here)] {
        let name = format!("first loads (windows) at random, {who}, against the kernel's own, armed");
        bars.push(times(name, pinned.dax(read, options), pinned.case(read, Contender::KernelArmed), AtMost(1.15)));
    }
    let name = "first loads (windows) in order, against the kernel";
    let read = Work::SequentialRead;
    bars.push(times(name, pinned.dax(read, there), pinned.case(read, Contender::Kernel), AtMost(1.15)));
    let untracked = there.tracking(Tracking::Off);
    for (order, work) in [("in order", Work::SequentialRead), ("at random", Work::RandomRead)] {
        let name = format!("first loads (windows, untracked) {order}, against the kernel");
        bars.push(times(name, pinned.dax(work, untracked), pinned.case(work, Contender::Kernel), AtMost(1.05)));
    }
    let name = "first loads (windows) of one page in 64, faulting thread, against the kernel";
    let sparse = Work::SparseRead { file_pages: scale.sparse_file_pages };
    let few = |contender| Case { pages: scale.sparse_file_pages / 64, ..pinned.case(sparse, contender) };
    bars.push(times(name, few(Contender::Dax(here)), few(Contender::Kernel), AtMost(1.5)));
    for (name, work) in [("read_at", Work::ReadCalls), ("write_at", Work::WriteCalls)] {
        let name = format!("{name} of a page (windows), against pread and pwrite");
        bars.push(times(name, pinned.dax(work, there), pinned.case(work, Contender::Kernel), AtMost(1.10)));
    }
    let (name, punch) = ("punch and give back a page (windows), against PUNCH_HOLE", Work::PunchPages);
    bars.push(times(name, pinned.dax(punch, there), pinned.case(punch, Contender::Kernel), AtMost(1.15)));
    bars
}

fn tracking(scale: &Scale) -> Vec<Bar> {
    let cases = Cases { scale, regime: Regime::Pinned, threads: 1 };
    let mkwrite = Work::WriteAfterProtect;
    let asynchronous = OURS.tracking(Tracking::Asynchronous);
    let scan = cases.case(Work::Collect, Contender::KernelAsync);
    vec![
        times(
            "first store, asynchronous, against the kernel's own",
            cases.dax(mkwrite, asynchronous),
            cases.case(mkwrite, Contender::KernelAsync),
            Limit::AtMost(1.15),
        ),
        ratio(
            "first store, asynchronous: how much faster than exact",
            (cases.dax(mkwrite, asynchronous), Figure::Rate),
            (cases.dax(mkwrite, OURS), Figure::Rate),
            Limit::AtLeast(3.0),
        ),
        times(
            "collect and protect (asynchronous), against PAGEMAP_SCAN",
            cases.dax(Work::Collect, asynchronous),
            scan.clone(),
            Limit::AtMost(2.0),
        ),
        times(
            "collect and protect (exact), against PAGEMAP_SCAN",
            cases.dax(Work::Collect, OURS),
            scan,
            Limit::AtMost(2.0),
        ),
    ]
}

/// Numbers of extents that the plot has. The bar compares the first and the last.
pub(crate) fn extent_counts(scale: &Scale) -> impl Iterator<Item = u64> {
    let most = scale.extents_max;
    std::iter::successors(Some(10), move |count| (count * 10 <= most).then_some(count * 10))
}

pub(crate) fn extents_case(scale: &Scale, extents: u64) -> Case {
    Case {
        work: Work::Extents { extents, blocks: scale.extents_max },
        threads: 1,
        regime: Regime::Pinned,
        pages: scale.extent_pages,
        contender: Contender::Dax(OURS.one_page()),
    }
}

fn the_rest(scale: &Scale) -> Vec<Bar> {
    use Limit::AtMost;
    let pinned = Cases { scale, regime: Regime::Pinned, threads: 1 };
    let free = Cases { scale, regime: Regime::Free, threads: 1 };
    let mut bars = Vec::new();
    for (name, work) in [("punch", Work::Punch), ("truncate", Work::Truncate)] {
        let name = format!("{name} of mapped pages, against MADV_DONTNEED");
        bars.push(times(name, pinned.dax(work, OURS), pinned.case(work, Contender::Kernel), AtMost(1.25)));
    }
    let most = scale.extents_max;
    let name = format!("fault with {most} extents, against 10");
    bars.push(times(name, extents_case(scale, most), extents_case(scale, 10), AtMost(1.25)));
    let terabyte = Case { pages: scale.terabyte_pages, ..pinned.dax(Work::MapSparse, OURS) };
    for (name, figure, most, unit) in [
        ("mapping 1 TiB: time", "map ms", 5.0, " ms"),
        ("mapping 1 TiB: memory", "map KiB", 1024.0, " KiB"),
        ("memory per GiB of resident pages", "KiB per GiB", 64.0, " KiB"),
    ] {
        let of = (terabyte.clone(), Figure::Named(figure));
        bars.push(Bar { name: name.into(), of, to: None, limit: AtMost(most), unit });
    }
    let huge = |contender| Case { pages: scale.huge_pages, ..pinned.case(Work::HugeRead, contender) };
    let (of, to) = (huge(Contender::Dax(OURS)), huge(Contender::Kernel));
    bars.push(times("sequential read of huge pages, against the kernel's small ones", of, to, AtMost(0.35)));
    for (name, options) in
        [("pager thread", OURS.one_page()), ("faulting thread", OURS.one_page().in_faulting_thread())]
    {
        let name = format!("p99.9 beside a puncher, {name}, against the median without");
        let of = (free.dax(Work::ReadBesidePuncher, options), Figure::Tail);
        bars.push(ratio(name, of, (free.dax(Work::RandomRead, options), Figure::Median), AtMost(4.0)));
    }
    bars
}

/// What has to be measured: each bar's cases side by side.
pub(crate) fn groups(scale: &Scale) -> Vec<Vec<Case>> {
    let mut groups: Vec<Vec<Case>> = Vec::new();
    for bar in bars(scale) {
        let cases: Vec<Case> = std::iter::once(bar.of.0).chain(bar.to.map(|to| to.0)).collect();
        // Bars that share a case are measured together, so that they do not contradict each other.
        match groups.iter_mut().find(|group| cases.iter().any(|case| group.contains(case))) {
            Some(group) => group.extend(cases),
            None => groups.push(cases),
        }
    }
    groups
}

/// What came of each bar.
pub(crate) fn verdicts(scale: &Scale, results: &Results) -> Vec<Verdict> {
    bars(scale).iter().map(|bar| verdict(bar, results)).collect()
}

fn verdict(bar: &Bar, results: &Results) -> Verdict {
    let cases: Vec<&Case> = std::iter::once(&bar.of.0).chain(bar.to.iter().map(|to| &to.0)).collect();
    let group = results.group_with(&cases);
    let over = |sample: &Sample| bar.of.1.of(sample);
    let figure = group.and_then(|group| match &bar.to {
        Some((to, under)) => group.ratio((&bar.of.0, over), (to, |sample: &Sample| under.of(sample))),
        None => group.figure(&bar.of.0, over),
    });
    let lack = group.and_then(|group| cases.iter().find_map(|case| group.lack(case)));
    let (verdict, reason) = match (figure, lack) {
        (_, Some(Outcome::NotAvailable(reason))) => ("not available", Some(reason.clone())),
        (_, Some(Outcome::Skipped(reason))) => ("skipped", Some(reason.clone())),
        (Some(figure), _) if bar.limit.is_met(figure.median) => ("ok", None),
        (Some(_), _) => ("short", None),
        (None, _) => ("not measured", None),
    };
    let per_fault = |count: fn(&Sample) -> u64| {
        let share = |sample: &Sample| (sample.faults > 0).then(|| count(sample) as f64 / sample.faults as f64);
        Some(group?.figure(&bar.of.0, share)?.median)
    };
    Verdict {
        name: bar.name.clone(),
        figure,
        bar: bar.limit.text(bar.unit),
        unit: bar.unit,
        verdict: verdict.into(),
        reason,
        calls_per_fault: per_fault(|sample| sample.calls),
        switches_per_fault: per_fault(Sample::all_switches),
    }
}
