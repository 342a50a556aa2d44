//! The command line.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

use crate::case::{Regime, Work};
use crate::output::Output;

/// Measures what a page fault costs.
///
/// The same pages of memory are touched in the same order through the kernel's own mmap, through the smallest loop
/// and the smallest signal handler that could answer a userfaultfd, and through daxpager with its options. Each
/// contender is a process of its own; they take turns, and so often as --rounds says. A ratio is that
/// of two neighbours in one round, and what is printed is the median of the rounds' ratios, and
/// their spread.
///
/// "pinned" means all threads of a contender on one CPU, "free" where the scheduler puts them: which may be the
/// same one, if the others are busy. "apart" keeps the threads that fault away from those that serve
/// them; it is measured only if it is asked for.
///
/// Unless --bars is given, every pattern is measured, and the table of each says how long a page
/// took beside the kernel's. With it, what the project wants to reach: one line per bar at the end.
#[derive(Parser, Debug)]
#[command(
    name = "daxpager-bench",
    version,
    verbatim_doc_comment,
    after_help = "Exit status:\n   0  measured; with --bars: every bar is reached\n   1  with --bars: some bar is short\n   \
                  2  bad arguments, or it could not run\n  77  no userfaultfd, or not all of it that is needed\n\
                  A SIGINT, SIGTERM or SIGHUP ends the contender that runs; what was measured is shown, and it ends by that signal.\n\n\
                  Examples:\n  daxpager-bench --bars\n  daxpager-bench --html bench.html --json bench.json\n  \
                  daxpager-bench --work random-read --regime pinned --threads 1 --rounds 9\n  \
                  daxpager-bench --other umap=./umap-adapter\n\n\
                  Another pager takes part through a program that is run as\n  PATH PATTERN PAGES THREADS REGIME\n\
                  with PATTERN one of the words of --work and REGIME pinned, free or apart. It touches PAGES pages of 4 KiB that\n\
                  are in memory, each once, and prints one line of JSON: {\"ns_per_page\": 3210.5}, and if it likes\n\
                  \"pages\", \"faults\", \"calls\", \"switches\", and \"latency\" as pairs of nanoseconds and counts. What it cannot\n\
                  do ends with exit status 77."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Measures what is wanted, and says what is reached
    #[arg(long)]
    pub(crate) bars: bool,
    /// A short run that shows whether everything works, not how fast
    #[arg(long)]
    pub(crate) quick: bool,
    /// How often each contender has its turn [default: 5, or 1 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: Option<u64>,
    /// Pages that each contender touches [default: 8192, or 512 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(64..=4_194_304))]
    pages: Option<u64>,
    /// Only this, with commas between: random-read, random-write, sequential-read, sequential-write,
    /// write-after-protect, hole-write
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', value_parser = pattern, conflicts_with = "bars")]
    pub(crate) work: Vec<Work>,
    /// Only this regime
    #[arg(long, value_name = "NAME", value_parser = regime, conflicts_with = "bars")]
    pub(crate) regime: Option<Regime>,
    /// Only so many faulting threads [default: 1 and 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64), conflicts_with = "bars")]
    pub(crate) threads: Option<u64>,
    /// Another pager, by a program that speaks the protocol below; may be given again
    #[arg(long, value_name = "NAME=PATH", value_parser = other)]
    pub(crate) other: Vec<(String, String)>,
    /// Writes everything that was measured to FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Writes a page to look at to FILE: distributions, and what the cost depends on
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Shows no progress
    #[arg(long)]
    pub(crate) quiet: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// What the bench runs itself as.
    #[command(hide = true)]
    Contender { case: String },
    /// What a contender runs somebody else's program as.
    #[command(hide = true)]
    Become { path: String, args: Vec<String> },
}

impl Args {
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 5 }) as usize
    }

    pub(crate) fn pages(&self) -> u64 {
        self.pages.unwrap_or(if self.quick { 512 } else { 8192 })
    }

    /// What clap cannot see, and where the reports go: JSON and HTML. Those are tried now, not when there is something to lose.
    pub(crate) fn check(&self) -> anyhow::Result<[Option<Output>; 2]> {
        if self.json.is_some() && self.json == self.html {
            bail!("--json and --html name the same file");
        }
        for (name, path) in &self.other {
            std::fs::metadata(path).with_context(|| format!("--other {name}: cannot find {path}"))?;
        }
        let output = |path: &Option<PathBuf>| path.as_deref().map(Output::check).transpose();
        Ok([output(&self.json)?, output(&self.html)?])
    }
}

fn pattern(text: &str) -> Result<Work, String> {
    let words: Vec<&str> = Work::PATTERNS.iter().filter_map(|work| work.word()).collect();
    let found = Work::PATTERNS.into_iter().find(|work| work.word() == Some(text));
    found.ok_or_else(|| format!("there are: {}", words.join(", ")))
}

fn regime(text: &str) -> Result<Regime, String> {
    let found = [Regime::Pinned, Regime::Free, Regime::Apart].into_iter().find(|regime| regime.name() == text);
    found.ok_or_else(|| "there are: pinned, free, apart".into())
}

fn other(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.into(), path.into())),
        _ => Err("it is NAME=PATH".into()),
    }
}
