//! What the library and the kernel are asked for in the same steps, beyond the laps.

use std::ops::Range;
use std::time::Instant;

use anyhow::Context;

use crate::case::{Case, Outcome, Sample};
use crate::laps::median;
use crate::machine::{bytes_of, memory_available};
use crate::raw::{PAGE, View};

/// How far apart holes are loaded: what one page of page tables maps.
pub(super) const FAR: u64 = 2 << 20;
/// Pages of a small mapping.
pub(super) const SMALL: u64 = 4;
/// Steps that are gone through before the clock runs.
const WARM: u64 = 16;

/// Runs of pages that make up all of them.
pub(super) fn runs(pages: u64, run: u64) -> impl Iterator<Item = Range<u64>> {
    (0..pages).step_by(run as usize).map(move |first| first..(first + run).min(pages))
}

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

/// Writes a page of a small mapping, has the mapping show it, and punches it, so many times. The time is that of the write and the
/// punch, of which there is the median: whatever else runs is in the others.
pub(super) fn write_and_punch(
    view: View<'_>,
    times: u64,
    write: impl Fn(u64) -> anyhow::Result<()>,
    punch: impl Fn(u64) -> anyhow::Result<()>,
) -> anyhow::Result<Sample> {
    let (mut both, mut punches) = (Vec::new(), Vec::new());
    for nth in 0..WARM + times {
        let page = nth % view.pages();
        let start = Instant::now();
        write(page)?;
        let written = start.elapsed();
        view.load(page);
        let start = Instant::now();
        punch(page)?;
        let punched = start.elapsed();
        if nth >= WARM {
            both.push((written + punched).as_nanos() as f64);
            punches.push(punched.as_nanos() as f64);
        }
    }
    let mut sample = Sample { ns_per_page: median(&mut both), laps: 1, pages: times, ..Sample::default() };
    sample.figures.insert("punch ns".into(), median(&mut punches));
    Ok(sample)
}
