//! What was measured, for people and programs.

#[path = "../../bin/common/html.rs"]
mod escape;
mod html;
#[path = "../../bin/common/output.rs"]
mod output;
mod plots;
#[path = "axes.rs"]
mod svg;
mod tables;

use nix::sys::signal::Signal;
use serde::Serialize;

use crate::args::Args;
use crate::bars::Verdict;
use crate::case::{Case, Outcome};
use crate::run::Results;

pub(crate) use html::page;
pub(crate) use output::Output;

/// Everything that a report is made of.
pub(crate) struct Summary<'a> {
    pub(crate) results: &'a Results,
    pub(crate) verdicts: &'a [Verdict],
    pub(crate) facts: Facts,
}

/// Where and how it was measured.
#[derive(Serialize)]
pub(crate) struct Facts {
    version: &'static str,
    kernel: String,
    cpus: usize,
    cpu: String,
    load: String,
    rounds: usize,
    pages: u64,
    quick: bool,
    /// The signal that ended it before all was measured.
    ended_by: Option<&'static str>,
}

fn line_of(path: &str, name: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.rsplit(':').next().unwrap_or_default().trim().to_owned()
}

impl Facts {
    fn new(args: &Args, ended_by: Option<Signal>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            kernel: line_of("/proc/sys/kernel/osrelease", ""),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: line_of("/proc/cpuinfo", "model name"),
            load: line_of("/proc/loadavg", ""),
            rounds: args.rounds(),
            pages: args.pages(),
            quick: args.quick,
            ended_by: ended_by.map(Signal::as_str),
        }
    }

    /// Names and values, for people.
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("version", self.version.to_owned()),
            ("kernel", self.kernel.clone()),
            ("CPUs", format!("{} ({})", self.cpus, self.cpu)),
            ("load at the end", self.load.clone()),
            ("rounds", self.rounds.to_string()),
            ("pages", self.pages.to_string()),
        ];
        if self.quick {
            lines.push(("note", "a quick run: the figures mean little".into()));
        }
        if let Some(signal) = self.ended_by {
            lines.push(("note", format!("ended by {signal} before all was measured: this is what was, until then")));
        }
        lines
    }
}

impl<'a> Summary<'a> {
    pub(crate) fn new(args: &Args, results: &'a Results, verdicts: &'a [Verdict]) -> Self {
        Self { results, verdicts, facts: Facts::new(args, results.ended_by) }
    }
}

/// The whole of it, for programs.
#[derive(Serialize)]
pub(crate) struct Document<'a> {
    facts: &'a Facts,
    bars: &'a [Verdict],
    cases: Vec<Measured<'a>>,
}

#[derive(Serialize)]
struct Measured<'a> {
    /// Cases of one group were measured side by side: only those are to be compared.
    group: usize,
    name: String,
    contender: String,
    case: &'a Case,
    rounds: &'a [Outcome],
}

impl<'a> Document<'a> {
    pub(crate) fn new(summary: &'a Summary<'a>) -> Self {
        let mut cases = Vec::new();
        for (index, group) in summary.results.groups.iter().enumerate() {
            cases.extend(group.cases.iter().map(|(case, rounds)| Measured {
                group: index,
                name: case.work.name(),
                contender: case.contender.name(),
                case,
                rounds,
            }));
        }
        Self { facts: &summary.facts, bars: summary.verdicts, cases }
    }
}

/// Everything as text, the bars last.
pub(crate) fn print(summary: &Summary<'_>, colours: bool) {
    use std::io::Write;
    let mut out = String::new();
    for (name, value) in summary.facts.lines() {
        out.push_str(&format!("{name}: {value}\n"));
    }
    for table in tables::all(summary.results) {
        out.push_str(&format!("\n{}\n{}", table.title, tables::aligned(&table)));
    }
    if !summary.verdicts.is_empty() {
        out.push('\n');
        for verdict in summary.verdicts {
            if let Some(reason) = &verdict.reason {
                out.push_str(&format!("{}: {}: {reason}\n", verdict.name, verdict.verdict));
            }
        }
        out.push('\n');
        out.push_str(&tables::coloured(&tables::aligned(&tables::bars(summary.verdicts)), colours));
    }
    // A reader that has left is no reason to panic.
    let _ = std::io::stdout().write_all(out.as_bytes());
}
