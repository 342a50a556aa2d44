//! What a report is made of.

use nix::sys::signal::Signal;
use serde::Serialize;

use crate::args::Args;
use crate::bars::Verdict;
use crate::machine::kernel;
use crate::results::Results;

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
            kernel: kernel(),
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
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
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
