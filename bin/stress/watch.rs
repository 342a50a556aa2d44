//! Whoever watches the threads: finds those that hang, takes samples, draws the progress bar, sends signals.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::Signal;

use crate::config::Config;
use crate::op::Op;
use crate::oracle::trace::EVENTS;
use crate::oracle::{Evidence, Kind, Oracle};
use crate::outcome::{PageLook, PageMap, PageRow, Sample};
use crate::terminal::say_line;
use crate::work::{Worker, pthread_of};
use crate::world::World;

/// How often threads are looked after.
const EVERY: Duration = Duration::from_millis(10);
/// Samples, and columns of the map: when there are as many, every second one is dropped and as many more fit.
const SAMPLES_MAX: usize = 600;
const COLUMNS_MAX: usize = 240;
const ROWS_MAX: u64 = 48;
/// Pages above and below a violation that the map shows.
const AROUND: u64 = 12;

/// What the threads came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Came {
    ToTheirEnd,
    /// One has waited for longer than the limit. It cannot be joined.
    ToNothing,
}

pub(crate) struct Watch {
    start: Instant,
    length: Duration,
    hang_after: Duration,
    change_limit: Duration,
    signals: bool,
    bar: Option<ProgressBar>,
    /// What the worlds before this one have counted.
    base: Sample,
    pub(crate) samples: Vec<Sample>,
    sample_every: Duration,
    columns: Vec<(f64, Vec<PageLook>)>,
    column_every: Duration,
    last_column: Instant,
    last_drawn: Option<Sample>,
}

impl Watch {
    pub(crate) fn new(config: &Config, start: Instant, signals: bool) -> Self {
        let Config { length, hang_after, change_limit, quiet, .. } = *config;
        let bar = (std::io::stderr().is_terminal() && !quiet).then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos} of {len} s  {msg}");
            ProgressBar::new(length.as_secs()).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let share = |parts: u32| (length / parts).max(Duration::from_millis(20));
        Self {
            start,
            length,
            hang_after,
            change_limit: change_limit.unwrap_or(hang_after),
            signals,
            bar,
            base: Sample::default(),
            samples: vec![Sample::default()],
            sample_every: share(200),
            columns: Vec::new(),
            column_every: share(COLUMNS_MAX as u32),
            last_column: start,
            last_drawn: None,
        }
    }

    /// Looks after threads until all have ended. `stopping` is asked again and again whether they are to end by now: from then
    /// on they may take as long as two operations.
    pub(crate) fn until_ended(
        &mut self,
        world: &World,
        workers: &[Worker],
        mut stopping: impl FnMut() -> bool,
    ) -> Came {
        let mut stopping_since = None;
        while let Some(late) = workers.iter().find(|worker| !worker.thread.is_finished()) {
            std::thread::sleep(EVERY);
            if stopping() {
                let since = *stopping_since.get_or_insert_with(Instant::now);
                if since.elapsed() > 2 * self.hang_after {
                    self.report_hang(world, workers, late, since.elapsed());
                    return Came::ToNothing;
                }
            }
            self.sample(world);
            if self.signals {
                self.send_signals(workers);
            }
            if self.find_hang(world, workers) {
                return Came::ToNothing;
            }
        }
        Came::ToTheirEnd
    }

    /// What one world counts begins where the last one's ended.
    pub(crate) fn next_world(&mut self, world: &World) {
        self.base = self.moment(world);
    }

    fn moment(&self, world: &World) -> Sample {
        let (oracle, stats) = (&world.oracle, world.pager.stats());
        let of = |of: fn(Op) -> bool| oracle.tallies.sum(of);
        Sample {
            seconds: self.start.elapsed().as_secs_f64(),
            accesses: self.base.accesses + of(Op::is_access),
            invalidations: self.base.invalidations + of(Op::is_invalidation),
            faults: self.base.faults + stats.all_faults(),
            retries: self.base.retries + stats.retries,
            violations: self.base.violations + oracle.violation_count.load(Ordering::Relaxed),
        }
    }

    fn sample(&mut self, world: &World) {
        let now = self.start.elapsed();
        let last = self.samples.last().map_or(0.0, |sample| sample.seconds);
        if now.as_secs_f64() >= last + self.sample_every.as_secs_f64() {
            let sample = self.moment(world);
            self.draw(&sample, world.mix.seed);
            self.samples.push(sample);
            if self.samples.len() >= SAMPLES_MAX {
                halve(&mut self.samples);
                self.sample_every *= 2;
            }
        }
        if self.last_column.elapsed() >= self.column_every {
            self.last_column = Instant::now();
            self.columns.push((now.as_secs_f64(), looks(world)));
            if self.columns.len() >= COLUMNS_MAX {
                halve(&mut self.columns);
                self.column_every *= 2;
            }
        }
    }

    fn draw(&mut self, sample: &Sample, seed: u64) {
        let Some(bar) = &self.bar else { return };
        let last = self.last_drawn.replace(sample.clone()).unwrap_or_default();
        let seconds = (sample.seconds - last.seconds).max(0.001);
        let rate = |now: u64, then: u64| ((now.saturating_sub(then)) as f64 / seconds) as u64;
        bar.set_position((sample.seconds as u64).min(self.length.as_secs()));
        bar.set_message(format!(
            "seed {seed}  per second: {} accesses, {} invalidations, {} faults  violations: {}",
            rate(sample.accesses, last.accesses),
            rate(sample.invalidations, last.invalidations),
            rate(sample.faults, last.faults),
            sample.violations
        ));
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Prints a line without breaking the bar.
    pub(crate) fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say_line(text)),
            None => say_line(text),
        }
    }

    fn send_signals(&self, workers: &[Worker]) {
        for worker in workers {
            // A thread that is not joined is still known, also if it has just ended.
            if let Some(thread) = pthread_of(&worker.beat)
                && !worker.thread.is_finished()
            {
                let _ = pthread_kill(thread, Signal::SIGUSR1);
            }
        }
    }

    fn limit(&self, worker: &Worker) -> Duration {
        if worker.beat.role == "change" { self.change_limit } else { self.hang_after }
    }

    fn find_hang(&self, world: &World, workers: &[Worker]) -> bool {
        let now = world.oracle.ns();
        let waits = |worker: &&Worker| match worker.beat.since_ns.load(Ordering::Acquire) {
            0 => None,
            since => Some(Duration::from_nanos(now.saturating_sub(since))).filter(|time| *time > self.limit(worker)),
        };
        let hangs = workers.iter().find_map(|worker| Some((worker, waits(&worker)?)));
        if let Some((worker, time)) = hangs {
            self.report_hang(world, workers, worker, time);
        }
        hangs.is_some()
    }

    fn report_hang(&self, world: &World, workers: &[Worker], worker: &Worker, time: Duration) {
        let access = worker.beat.access();
        let evidence = Evidence::Text {
            expected: format!("an end within {} s", self.limit(worker).as_secs()),
            found: format!("{} of a thread ({}) for {:.1} s", access.op.name(), worker.beat.role, time.as_secs_f64()),
        };
        let mut violation = world.oracle.violation(&access, Kind::Hang, evidence);
        violation.pager = Some(format!("{}\n{}", world.pager.describe(), threads(workers, world.oracle.ns())));
        world.oracle.keep(violation);
    }

    /// Pages over time: around the first violation, or of the first file.
    pub(crate) fn map(&self, oracle: &Oracle) -> Option<PageMap> {
        let violations = oracle.violations();
        let around = violations.first().filter(|violation| violation.file.starts_with("file-"));
        match around {
            Some(violation) => {
                let file = violation.file.strip_prefix("file-").and_then(|number| number.parse().ok())?;
                map_around(oracle, file, violation.page)
            }
            None => self.map_of_run(),
        }
    }

    fn map_of_run(&self) -> Option<PageMap> {
        let rows = self.columns.iter().map(|(_, looks)| looks.len()).max()?;
        let look = |row: usize| {
            self.columns.iter().map(|(_, looks)| looks.get(row).copied().unwrap_or(PageLook::Sigbus)).collect()
        };
        Some(PageMap {
            file: "file-0".to_owned(),
            times: self.columns.iter().map(|(seconds, _)| *seconds).collect(),
            rows: (0..rows).map(|row| PageRow { page: row as u64, looks: look(row) }).collect(),
            mark: None,
        })
    }
}

fn halve<T>(list: &mut Vec<T>) {
    let mut keep = false;
    list.retain(|_| {
        keep = !keep;
        keep
    });
}

/// What each thread does, and where the kernel says that it is.
fn threads(workers: &[Worker], now: u64) -> String {
    let mut text = String::from("threads:");
    for worker in workers {
        let beat = &worker.beat;
        let (since, tid) = (beat.since_ns.load(Ordering::Acquire), beat.tid.load(Ordering::SeqCst));
        let access = beat.access();
        let what = match since {
            0 => "between operations".to_owned(),
            _ => format!(
                "{} at file {} page {} for {:.3} s",
                access.op.name(),
                access.file,
                access.page,
                now.saturating_sub(since) as f64 / 1e9
            ),
        };
        let file = |name: &str| std::fs::read_to_string(format!("/proc/self/task/{tid}/{name}")).unwrap_or_default();
        let line = format!("\n  thread {} ({}): {what}; in the kernel: {}", beat.id, beat.role, file("wchan").trim());
        text.push_str(&line);
    }
    text
}

/// What the pages of the first file look like now, as far as the oracle knows: the pager is not asked, as it may
/// hang.
fn looks(world: &World) -> Vec<PageLook> {
    let record = &world.oracle.files[0];
    let end = record.size_now().div_ceil(world.oracle.page_bytes);
    let look = |page: u64| match record.page(page).trace.look {
        _ if page >= end => PageLook::Sigbus,
        PageLook::Sigbus => PageLook::Hole,
        look => look,
    };
    (0..record.pages().min(ROWS_MAX)).map(look).collect()
}

/// What the pages around one looked like, as their traces tell.
fn map_around(oracle: &Oracle, file: u8, page: u64) -> Option<PageMap> {
    let record = oracle.files.get(file as usize)?;
    let pages = page.saturating_sub(AROUND)..(page + AROUND + 1).min(record.pages());
    let traces: Vec<_> = pages.clone().map(|page| record.page(page).trace.in_order()).collect();
    let mut times: Vec<u64> = traces.iter().flatten().map(|entry| entry.ns).collect();
    times.sort_unstable();
    times.dedup();
    let from = times.len().saturating_sub(4 * EVENTS.min(COLUMNS_MAX));
    let times = times.split_off(from);
    let row = |trace: &Vec<crate::oracle::trace::Entry>| {
        let mut look = PageLook::Clean;
        let mut entries = trace.iter().peekable();
        let at = |time: &u64| {
            while let Some(entry) = entries.next_if(|entry| entry.ns <= *time) {
                look = entry.look(look);
            }
            look
        };
        times.iter().map(at).collect()
    };
    let rows = pages.zip(&traces).map(|(page, trace)| PageRow { page, looks: row(trace) }).collect();
    let last = record.page(page).trace.in_order().last().map_or(0, |entry| entry.ns);
    let mark = times.iter().position(|time| *time >= last).unwrap_or(times.len().saturating_sub(1));
    Some(PageMap {
        file: format!("file-{file}"),
        times: times.iter().map(|time| *time as f64 / 1e9).collect(),
        rows,
        mark: Some((page, mark)),
    })
}

/// Has SIGUSR1 interrupt a thread, and do nothing else.
pub(crate) fn take_signals() -> anyhow::Result<()> {
    let flag = Arc::new(std::sync::atomic::AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, flag)?;
    Ok(())
}
