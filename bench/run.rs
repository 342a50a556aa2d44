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

use crate::args::Args;
use crate::case::{Case, Outcome};
use crate::ends;
use crate::plan::Plan;
use crate::results::{Group, Results};

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
