//! What the load does each second: one line that changes on a terminal, a table of lines elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use daxpager::{Kind, Pager, Stats};
use indicatif::{ProgressBar, ProgressStyle};

use crate::ends;
use crate::table::say;
use crate::tally::Tally;

/// How often the line on a terminal changes.
const LIVE_EVERY: Duration = Duration::from_millis(250);
/// How often it is asked whether a signal has come.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Lines of the table at most, however long the load.
const ROWS: u64 = 20;

const HEADER: &str = " second   missing    minor  wr-prot   installs     zeros  retries   SIGBUS  invalidations";

pub(crate) struct Live<'a> {
    pager: &'a Pager,
    start: Instant,
    length: Duration,
}

/// One moment.
struct Moment {
    at: Instant,
    stats: Stats,
    invalidations: u64,
}

/// What happened between two moments, each per second.
struct Rates {
    missing: u64,
    minor: u64,
    protect: u64,
    installs: u64,
    zeros: u64,
    retries: u64,
    sigbus: u64,
    invalidations: u64,
}

impl<'a> Live<'a> {
    pub(crate) fn new(pager: &'a Pager, seconds: u64) -> Self {
        Self { pager, start: Instant::now(), length: Duration::from_secs(seconds) }
    }

    /// Shows what goes on until the time is over.
    pub(crate) fn watch(&self, tally: &Tally) -> anyhow::Result<()> {
        let start = self.moment(tally);
        if std::io::stderr().is_terminal() {
            self.watch_on_terminal(tally)?;
            say(HEADER);
        } else {
            say(HEADER);
            let every = Duration::from_secs(self.length.as_secs().div_ceil(ROWS));
            self.each(every, tally, |second, rates| rates.row(&second.to_string()));
        }
        start.rates(&self.moment(tally)).row("all");
        Ok(())
    }

    fn watch_on_terminal(&self, tally: &Tally) -> anyhow::Result<()> {
        let bar = ProgressBar::new(self.length.as_secs());
        bar.set_style(ProgressStyle::with_template("{pos} of {len} s, per second: {prefix}\n    {msg}")?);
        self.each(LIVE_EVERY, tally, |second, rates| {
            bar.set_position(second);
            let Rates { missing, minor, protect, installs, zeros, retries, sigbus, invalidations } = rates;
            bar.set_prefix(format!("{missing} missing, {minor} minor, {protect} write-protect faults"));
            bar.set_message(format!(
                "{installs} installs, {zeros} zeros, {retries} retries, {sigbus} SIGBUS, {invalidations} invalidations"
            ));
        });
        bar.finish_and_clear();
        Ok(())
    }

    fn each(&self, every: Duration, tally: &Tally, mut show: impl FnMut(u64, Rates)) {
        let mut last = self.moment(tally);
        while self.start.elapsed() < self.length && ends::asked().is_none() {
            let end = (self.start.elapsed() + every).min(self.length);
            while self.start.elapsed() < end && ends::asked().is_none() {
                std::thread::sleep(ASK_EVERY.min(end.saturating_sub(self.start.elapsed())));
            }
            let now = self.moment(tally);
            show(self.start.elapsed().as_secs(), last.rates(&now));
            last = now;
        }
    }

    fn moment(&self, tally: &Tally) -> Moment {
        let invalidations = tally.invalidations.load(Ordering::Relaxed);
        Moment { at: Instant::now(), stats: self.pager.stats(), invalidations }
    }
}

impl Moment {
    fn rates(&self, later: &Moment) -> Rates {
        let seconds = (later.at - self.at).as_secs_f64().max(1e-3);
        let rate = |before: u64, after: u64| (after.saturating_sub(before) as f64 / seconds).round() as u64;
        let of = |count: fn(&Stats) -> u64| rate(count(&self.stats), count(&later.stats));
        Rates {
            missing: of(|stats| stats.faults_of(Kind::MissingLoad) + stats.faults_of(Kind::MissingStore)),
            minor: of(|stats| stats.faults_of(Kind::MinorLoad) + stats.faults_of(Kind::MinorStore)),
            protect: of(|stats| stats.faults_of(Kind::WriteProtect)),
            installs: of(|stats| stats.installs),
            zeros: of(|stats| stats.zeros),
            retries: of(|stats| stats.retries),
            sigbus: of(|stats| stats.sigbus),
            invalidations: rate(self.invalidations, later.invalidations),
        }
    }
}

impl Rates {
    /// A line of the table.
    fn row(&self, second: &str) {
        let Self { missing, minor, protect, installs, zeros, retries, sigbus, invalidations } = self;
        say(format_args!(
            "{second:>7} {missing:>9} {minor:>8} {protect:>8} {installs:>10} {zeros:>9} {retries:>8} {sigbus:>8} \
             {invalidations:>14}"
        ));
    }
}
