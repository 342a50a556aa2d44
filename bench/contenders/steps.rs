//! What the library and the kernel are asked for in the same steps, beyond the laps.

use std::time::Instant;

use anyhow::Context;

use crate::case::{Case, Outcome, Sample};
use crate::machine::{bytes_of, memory_available};
use crate::raw::{PAGE, View};

/// How far apart holes are loaded: what one page of page tables maps.
pub(super) const FAR: u64 = 2 << 20;

/// Memory that the kernel counts as this process's: page tables, and the pages that they show.
pub(super) fn taken() -> anyhow::Result<u64> {
    ["VmPTE:", "RssShmem:", "RssAnon:"].into_iter().map(status).sum()
}

pub(super) fn status(name: &str) -> anyhow::Result<u64> {
    bytes_of("/proc/self/status", name).with_context(|| format!("/proc/self/status has no {name}"))
}

/// Where there is enough memory for loads far apart.
pub(super) fn with_memory(case: &Case, measure: impl Fn() -> anyhow::Result<Sample>) -> anyhow::Result<Outcome> {
    // Each takes a page, and one of page tables. And a quarter: this machine does other things besides.
    let needed = case.pages * 2 * PAGE * 5 / 4;
    match memory_available() {
        Some(available) if available < needed => {
            Ok(Outcome::Skipped(format!("{} loads take {} MiB of memory", case.pages, needed >> 20)))
        }
        _ => measure().map(Outcome::Measured),
    }
}

/// Loads a page in each 2 MiB, and says what memory that has taken.
pub(super) fn load_far(view: View<'_>, loads: u64) -> anyhow::Result<Sample> {
    let before = taken()?;
    let start = Instant::now();
    (0..loads).for_each(|nth| view.load(nth * (FAR / PAGE)));
    let ns = start.elapsed().as_nanos() as f64;
    let grown = taken()? as f64 - before as f64;
    let mut sample = Sample { ns_per_page: ns / loads as f64, laps: 1, pages: loads, ..Sample::default() };
    sample.figures.insert("taken MiB".into(), grown / (1u64 << 20) as f64);
    Ok(sample)
}
