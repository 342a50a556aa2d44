//! Files with windows: what asynchronous tracking does to holes, what is held in memory, and what many of something cost.

use super::bar::{Bar, Cases, Figure, Limit, OURS, ratio, times};
use crate::case::{Case, Contender, Options, Regime, Tracking, Work};
use crate::scale::Scale;

/// Pages of one punch.
const RUN: u64 = 256;
/// So many times the pages of other bars: of few it would be the arming of a new mapping that is measured, which one worker does.
const MANY: u64 = 8;
/// Of so many pages one is stored to: too few for a chunk of 2 MiB to count as dense.
const APART: u64 = 64;

pub(super) fn bars(scale: &Scale) -> Vec<Bar> {
    let mut bars = holes(scale);
    bars.extend(two_threads(scale));
    bars.extend(memory(scale));
    bars.extend(punches(scale));
    bars.extend(files(scale));
    bars
}

fn asynchronous() -> Options {
    OURS.in_windows().tracking(Tracking::Asynchronous)
}

/// A figure itself, with nothing beside it.
fn alone(name: &str, case: &Case, figure: &'static str, most: f64, unit: &'static str) -> Bar {
    let of = (case.clone(), Figure::Named(figure));
    Bar { name: name.into(), of, to: None, limit: Limit::AtMost(most), unit }
}

fn holes(scale: &Scale) -> Vec<Bar> {
    let pinned = Cases { scale, regime: Regime::Pinned, threads: 1 };
    let against_tmpfs = |name: &str, work, options, most| {
        let name = format!("{name}, against tmpfs");
        times(name, pinned.dax(work, options), pinned.case(work, Contender::Kernel), Limit::AtMost(most))
    };
    let sparse = Work::SparseHoleWrite { apart: APART };
    let (there, here) = (asynchronous(), asynchronous().in_faulting_thread());
    vec![
        against_tmpfs("store into holes (windows, async) in order, pager thread", Work::HoleWrite, there, 1.05),
        against_tmpfs("store into holes (windows, async) at random, pager thread", Work::RandomHoleWrite, there, 1.15),
        against_tmpfs("store into one hole in 64 (windows, async), faulting thread", sparse, here, 2.6),
        alone(
            "memory of one hole in 64 (windows, async), by what was stored to",
            &pinned.dax(sparse, here),
            "device ×",
            1.1,
            " ×",
        ),
        against_tmpfs("load of holes (windows, async) in order, pager thread", Work::HoleRead, there, 1.2),
        against_tmpfs("load of holes (windows) in order, pager thread", Work::HoleRead, OURS.in_windows(), 1.2),
    ]
}

/// What two threads do beside one, each resolving its own faults.
fn two_threads(scale: &Scale) -> Vec<Bar> {
    let one = Cases { scale, regime: Regime::Free, threads: 1 };
    let two = Cases { scale, regime: Regime::Free, threads: 2 };
    let bar = |(what, work, options): (&str, Work, Options)| {
        let name = format!("{what} per second of two threads, faulting thread, against one");
        let rate = |cases: &Cases| {
            let case = cases.dax(work, options.in_faulting_thread());
            (Case { pages: MANY * case.pages, ..case }, Figure::Rate)
        };
        ratio(name, rate(&two), rate(&one), Limit::AtLeast(1.7))
    };
    let loads = ("first loads (windows)", Work::RandomRead, OURS.in_windows());
    let stores = ("stores into holes (windows, async)", Work::RandomHoleWrite, asynchronous());
    [loads, stores].map(bar).into()
}

/// What is held: memory, and address ranges.
fn memory(scale: &Scale) -> Vec<Bar> {
    let pinned = Cases { scale, regime: Regime::Pinned, threads: 1 };
    let exact = OURS.in_windows();
    let ranges = |name: &str, options| {
        let name = format!("address ranges after stores, then loads, at random ({name})");
        alone(&name, &pinned.dax(Work::StoreThenLoad, options), "address ranges", 16.0, "")
    };
    let far = |contender| Case { pages: scale.holes_far, ..pinned.case(Work::HoleReadFar, contender) };
    let (ours, tmpfs) = (far(Contender::Dax(exact)), far(Contender::Kernel));
    let far_apart = format!("a hole in each 2 MiB of {} GiB loaded (windows)", scale.holes_far / 512);
    let taken = Figure::Named("taken MiB");
    vec![
        ranges("windows", exact),
        ranges("windows, async", asynchronous()),
        // The zeros that a volume keeps unless told, and a twentieth.
        alone(&format!("{far_apart}: the device"), &ours, "device MiB", 64.0 * 1.05, " MiB"),
        ratio(
            format!("{far_apart}: memory of the process, against tmpfs"),
            (ours.clone(), taken),
            (tmpfs, taken),
            Limit::AtMost(0.6),
        ),
        alone(&format!("{far_apart}: address ranges"), &ours, "address ranges", 64.0, ""),
        alone(
            "RssShmem of pages written and loaded once (windows), by their bytes",
            &pinned.dax(Work::WriteThenLoad, exact),
            "RssShmem ×",
            1.05,
            " ×",
        ),
    ]
}

/// Punches of many pages, and among many mappings.
fn punches(scale: &Scale) -> Vec<Bar> {
    let pinned = Cases { scale, regime: Regime::Pinned, threads: 1 };
    let exact = OURS.in_windows();
    let runs = Work::PunchRuns { run: RUN };
    let among = |mappings, own_files, contender| {
        let work = Work::PunchAmong { mappings, own_files };
        Case { pages: scale.punches, ..pinned.case(work, contender) }
    };
    let (ours, many) = (Contender::Dax(exact), scale.mappings);
    let punch = |mappings| (among(mappings, true, ours.clone()), Figure::Named("punch ns"));
    vec![
        times(
            format!("punch and give back {RUN} pages at a time (windows), against PUNCH_HOLE"),
            pinned.dax(runs, exact),
            pinned.case(runs, Contender::Kernel),
            Limit::AtMost(1.15),
        ),
        times(
            format!("write and punch a page that one of {many} mappings shows (windows), against tmpfs"),
            among(many, false, ours.clone()),
            among(many, false, Contender::Kernel),
            Limit::AtMost(1.15),
        ),
        ratio(
            format!("punch of a page with {many} files mapped (windows), against one"),
            punch(many),
            punch(1),
            Limit::AtMost(1.1),
        ),
    ]
}

fn files(scale: &Scale) -> Vec<Bar> {
    let pinned = Cases { scale, regime: Regime::Pinned, threads: 1 };
    let case = Case { pages: scale.files, ..pinned.dax(Work::ManyFiles, OURS.in_windows()) };
    let name = |what| format!("{} files (windows): {what}", scale.files);
    vec![
        alone(&name("the last tenth created, against the first"), &case, "last ×", 1.2, " ×"),
        alone(&name("memory of one"), &case, "KiB per file", 1.0, " KiB"),
    ]
}
