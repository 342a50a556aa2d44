//! Runs the contenders, in turns, and keeps what they say.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdout, Stdio};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::args::Args;
use crate::case::{Case, Outcome, Sample};
use crate::ends;
use crate::laps::median;
use crate::plan::Plan;

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

fn progress(turns: usize, quiet: bool) -> ProgressBar {
    // Drawn only where stderr is a terminal.
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(turns as u64), target);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}, {eta} left: {wide_msg}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// All rounds, or as much of them as there was before a signal.
pub(crate) fn run(plan: &Plan, args: &Args) -> anyhow::Result<Results> {
    let rounds = args.rounds();
    let group = |cases: &Vec<Case>| Group { cases: BTreeMap::new(), order: cases.clone() };
    let mut groups: Vec<Group> = plan.groups.iter().map(group).collect();
    let bar = progress(plan.groups.iter().map(Vec::len).sum::<usize>() * rounds, args.quiet);
    'all: for round in 0..rounds {
        for group in &mut groups {
            let count = group.order.len();
            for turn in 0..count {
                // Whoever comes first in one round does not in the next.
                let case = group.order[(turn + round) % count].clone();
                bar.set_message(format!("{}, {}", case.work.name(), case.contender.name()));
                let known = group.lack(&case).cloned();
                // What cannot be done is not tried again.
                let Some(outcome) = known.map_or_else(|| contend(&case), |known| Ok(Some(known)))? else { break 'all };
                group.cases.entry(case).or_default().push(outcome);
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    Ok(Results { groups, ended_by: ends::asked() })
}

/// One contender's turn, in a process of its own; nothing if a signal asks this one to end meanwhile.
fn contend(case: &Case) -> anyhow::Result<Option<Outcome>> {
    if ends::asked().is_some() {
        return Ok(None);
    }
    let mut child = ends::this_program()
        .context("this program's path")?
        .args(["contender", &serde_json::to_string(case)?])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot start a contender")?;
    let text = until_closed(child.stdout.take().context("a contender without a stdout")?);
    if matches!(text, Ok(None)) || text.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().context("cannot wait for a contender")?;
    let Some(text) = text.context("cannot read what a contender says")? else { return Ok(None) };
    let what = || format!("{}, {}, {}", case.contender.name(), case.work.name(), case.regime.name());
    if !status.success() {
        // A signal to the whole process group reaches the contender first.
        if status.signal().is_some() && ends::asked().is_some() {
            return Ok(None);
        }
        bail!("{}: ended with {status}", what());
    }
    serde_json::from_str(text.trim()).map(Some).with_context(|| format!("{}: said {text:?}", what()))
}

/// What a child says until it has ended; nothing if a signal asks this process to end meanwhile. Sleeps all the time: nothing else
/// of the bench is to run while a contender does.
fn until_closed(mut from: ChildStdout) -> anyhow::Result<Option<String>> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let for_reading = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let asked = ends::readable_when_asked();
        let mut fds = [for_reading(from.as_fd()), for_reading(asked.unwrap_or(from.as_fd()))];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if ends::asked().is_some() {
            return Ok(None);
        }
        if fds[0].revents().is_none_or(|events| events.is_empty()) {
            continue;
        }
        match from.read(&mut buffer)? {
            0 => return Ok(Some(String::from_utf8_lossy(&text).into_owned())),
            bytes => text.extend(&buffer[..bytes]),
        }
    }
}
