//! Touches pages and times it. Every contender's memory is new in each lap, and its first page has been touched
//! before the clock runs: what a mapping costs once is not what a fault costs.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::case::{Case, Regime, Sample, Work};
use crate::raw::{self, Cpu, View};

/// As many laps as fit in this, but at least one and at most so many.
const TIME: Duration = Duration::from_millis(250);
const LAPS_MAX: usize = 25;
/// Accesses of the lap in which each is timed.
const TIMED_MAX: usize = 20_000;

/// What a contender has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) faults: u64,
    pub(crate) calls: u64,
}

/// Whoever has the pages put in, within this process.
pub(crate) trait Contestant {
    /// Memory on which the work can be done once.
    fn ground(&mut self) -> anyhow::Result<Box<dyn Ground + '_>>;
}

/// Memory to be touched.
pub(crate) trait Ground {
    fn view(&self) -> View<'_>;
    /// `None` where the kernel is the contender: its faults are counted by the kernel, and it makes no calls.
    fn counts(&self) -> Option<Counts> {
        None
    }
    /// What else there is to say, by name, once so many pages have been touched.
    fn figures(&self, _touched: u64) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}

impl Ground for raw::Mapped {
    fn view(&self) -> View<'_> {
        raw::Mapped::view(self)
    }
}

/// The pages that each thread touches, in order. The same for every contender.
pub(crate) fn orders(case: &Case) -> Vec<Vec<u64>> {
    let file_pages = case.file_pages();
    // The first page is touched before.
    let mut pages: Vec<u64> = match case.work {
        // Anywhere in its part of the file: always the first page of it would be a stream to whoever looks for strides.
        Work::SparseHoleWrite { apart } => {
            let mut random = fastrand::Rng::with_seed(7);
            (apart..file_pages).step_by(apart as usize).map(|first| first + random.u64(..apart)).collect()
        }
        _ => (1..file_pages).collect(),
    };
    if case.work.is_random() {
        fastrand::Rng::with_seed(42).shuffle(&mut pages);
    }
    pages.truncate((case.pages as usize).saturating_sub(1));
    let part = pages.len().div_ceil(case.threads.max(1)).max(1);
    pages.chunks(part).map(<[u64]>::to_vec).collect()
}

#[inline(always)]
fn touch(view: View<'_>, page: u64, store: bool) {
    if store {
        view.store(page);
    } else {
        view.load(page);
    }
}

fn pass(view: View<'_>, order: &[u64], store: bool) {
    // Two loops: the choice is not what is measured.
    match store {
        true => order.iter().for_each(|page| view.store(*page)),
        false => order.iter().for_each(|page| view.load(*page)),
    }
}

/// Nanoseconds from the moment at which all threads go to that at which the last is through.
fn lap(view: View<'_>, orders: &[Vec<u64>], store: bool) -> f64 {
    if let [order] = orders {
        let start = Instant::now();
        pass(view, order, store);
        return start.elapsed().as_nanos() as f64;
    }
    let barrier = Barrier::new(orders.len());
    let time = |order: &Vec<u64>| {
        barrier.wait();
        let start = Instant::now();
        pass(view, order, store);
        (start, Instant::now())
    };
    let times: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let threads: Vec<_> = orders.iter().map(|order| scope.spawn(|| time(order))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread that touches pages")).collect()
    });
    let start = times.iter().map(|time| time.0).min();
    let end = times.iter().map(|time| time.1).max();
    start.zip(end).map_or(0.0, |(start, end)| (end - start).as_nanos() as f64)
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("valid bounds")
}

/// The time of each access, the clock's own included.
fn timed_lap(view: View<'_>, orders: &[Vec<u64>], store: bool) -> Vec<(u64, u64)> {
    let time = |order: &Vec<u64>| {
        let mut times = new_histogram();
        let mut last = Instant::now();
        for page in &order[..order.len().min(TIMED_MAX)] {
            touch(view, *page, store);
            let now = Instant::now();
            times.saturating_record((now - last).as_nanos() as u64);
            // Recording is not the next access.
            last = Instant::now();
        }
        times
    };
    // One thread: this one, as in the laps. The scheduler may treat a new one otherwise.
    let all: Vec<Histogram<u64>> = match orders {
        [order] => vec![time(order)],
        _ => std::thread::scope(|scope| {
            let threads: Vec<_> = orders.iter().map(|order| scope.spawn(|| time(order))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread that touches pages")).collect()
        }),
    };
    let mut sum = new_histogram();
    all.iter().for_each(|times| sum.add(times).expect("the same bounds"));
    buckets(&sum)
}

/// The buckets of a histogram that are not empty.
fn buckets(times: &Histogram<u64>) -> Vec<(u64, u64)> {
    times.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value())).collect()
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

/// What has been counted at one moment.
struct Moment {
    counts: Counts,
    usage: raw::Usage,
}

impl Moment {
    fn of(ground: &dyn Ground) -> Self {
        let usage = raw::usage();
        let kernel = Counts { faults: usage.minor_faults, calls: 0 };
        Self { counts: ground.counts().unwrap_or(kernel), usage }
    }

    fn add_since(&self, before: &Moment, sample: &mut Sample) {
        sample.faults += self.counts.faults - before.counts.faults;
        sample.calls += self.counts.calls - before.counts.calls;
        sample.switches += self.usage.voluntary - before.usage.voluntary;
        sample.preemptions += self.usage.involuntary - before.usage.involuntary;
    }
}

/// All laps of a case, and one more in which each access is timed.
pub(crate) fn run(case: &Case, contestant: &mut dyn Contestant) -> anyhow::Result<Sample> {
    run_on(case, &orders(case), contestant)
}

/// The same with pages of the caller's choice. The first page of the memory is touched before the clock runs.
pub(crate) fn run_on(case: &Case, orders: &[Vec<u64>], contestant: &mut dyn Contestant) -> anyhow::Result<Sample> {
    let store = case.work.is_store();
    if case.regime == Regime::Apart {
        // The contender's threads are there by now, and stay where they are.
        raw::pin(Cpu::First)?;
    }

    let touched: u64 = orders.iter().map(|order| order.len() as u64).sum();
    anyhow::ensure!(touched > 0, "too few pages");
    let mut sample = Sample::default();
    let mut times = Vec::new();
    let mut spent = Duration::ZERO;
    while times.is_empty() || spent < TIME && times.len() < LAPS_MAX {
        let ground = contestant.ground()?;
        touch(ground.view(), 0, store);
        let before = Moment::of(&*ground);
        let ns = lap(ground.view(), orders, store);
        Moment::of(&*ground).add_since(&before, &mut sample);
        // Those of the last lap are kept. The first page has been touched as well.
        sample.figures.extend(ground.figures(touched + 1).into_iter().map(|(name, figure)| (name.into(), figure)));
        sample.pages += touched;
        times.push(ns / touched as f64);
        spent += Duration::from_nanos(ns as u64);
    }
    sample.laps = times.len() as u64;
    sample.ns_per_page = median(&mut times);
    let ground = contestant.ground()?;
    touch(ground.view(), 0, store);
    sample.latency = timed_lap(ground.view(), orders, store);
    Ok(sample)
}
