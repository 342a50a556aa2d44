//! Programs of other people's. Nothing of theirs is here: they are given by `--other NAME=PATH`.
//!
//! Such a program is run as
//!
//! ```text
//! PATH PATTERN PAGES THREADS REGIME
//! ```
//!
//! with PATTERN one of `random-read`, `random-write`, `sequential-read`, `sequential-write`, `write-after-protect`, `hole-write`,
//! and REGIME `pinned`, `free` or `apart`; but for `free` it is on one CPU already, and for `apart` it has to put the threads
//! that fault on another. It maps PAGES pages of 4 KiB that
//! are in memory, touches each once with THREADS threads, and prints one line of JSON:
//!
//! ```text
//! {"ns_per_page": 3210.5}
//! ```
//!
//! from the moment at which all threads go to that at which the last is through. It may add `"laps"`, `"pages"`, `"faults"`,
//! `"calls"` (system calls for those faults), `"switches"` (context switches) and `"latency"`, a list of pairs of
//! nanoseconds and how many accesses took that long. A program that cannot do a pattern exits with 77.

use anyhow::{Context, bail};

use crate::case::{Case, Outcome, Sample};
use crate::ends;

const CANNOT: i32 = 77;

pub(crate) fn measure(case: &Case, path: &str) -> anyhow::Result<Outcome> {
    let Some(word) = case.work.word() else {
        return Ok(Outcome::NotAvailable("only the six patterns are asked of other programs".into()));
    };
    // Not straight away: it is to end with this process, however that ends.
    let output = ends::this_program()?
        .args(["become", path, word, &case.pages.to_string(), &case.threads.to_string(), case.regime.name()])
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {path}"))?;
    match output.status.code() {
        Some(0) => {}
        Some(CANNOT) => return Ok(Outcome::NotAvailable(format!("{path} does not do {word}"))),
        _ => bail!("{path} {word} ended with {}", output.status),
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    let sample: Sample = serde_json::from_str(line).with_context(|| format!("{path} printed {line:?}"))?;
    if !(sample.ns_per_page.is_finite() && sample.ns_per_page > 0.0) {
        bail!("{path} printed no \"ns_per_page\"");
    }
    Ok(Outcome::Measured(sample))
}
