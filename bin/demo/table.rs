//! How the demo prints: headings, two columns, tables, and the list of checks.

use std::fmt::Display;
use std::io::Write;
use std::time::Duration;

use daxpager::{Kind, Pager, Stats};
use nix::sys::signal::Signal;

const WIDTH: usize = 92;
const COLUMN: usize = 44;

/// Prints a line. A program whose output nobody can read has shown nothing, so it ends there, as failed.
pub(crate) fn say(line: impl Display) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(1);
    }
}

/// A numbered heading.
pub(crate) fn heading(text: &str) {
    say(format_args!("\n{text}\n{}", "=".repeat(text.chars().count())));
}

/// A heading below that.
pub(crate) fn subheading(text: &str) {
    say(format_args!("\n{text}\n{}", "-".repeat(text.chars().count())));
}

/// A paragraph, broken into lines.
pub(crate) fn paragraph(text: &str) {
    wrap(text, WIDTH).iter().for_each(say);
}

/// Breaks `text` into lines of at most `width` characters. Lines after the first keep its indentation, and two more.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let indent = text.len() - text.trim_start().len();
    let mut lines = Vec::new();
    let mut line = " ".repeat(indent);
    let mut is_empty = true;
    let hang = if indent > 0 { indent + 2 } else { 0 };
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, " ".repeat(hang)));
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push(line);
    lines
}

/// Two threads of events side by side, as in the mail.
pub(crate) struct Columns;

impl Columns {
    pub(crate) fn new(left: &str, right: &str) -> Self {
        say("");
        say(format_args!("{left:<COLUMN$} | {right}"));
        say(format_args!("{}-+-{}", "-".repeat(COLUMN), "-".repeat(COLUMN)));
        Self
    }

    pub(crate) fn left(&self, text: &str) {
        wrap(text, COLUMN).iter().for_each(|line| say(format_args!("{line:<COLUMN$} |")));
    }

    pub(crate) fn right(&self, text: &str) {
        wrap(text, COLUMN).iter().for_each(|line| say(format_args!("{:<COLUMN$} | {line}", "")));
    }
}

/// Bytes as hexdump -C shows them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let text: String = bytes.iter().map(|byte| if (0x20..0x7f).contains(byte) { *byte as char } else { '.' }).collect();
    format!("{}  |{text}|", digits.join(" "))
}

/// A number of bytes for a reader.
pub(crate) fn bytes(count: u64) -> String {
    match count {
        0..=9_999 => format!("{count} bytes"),
        10_000..=9_999_999 => format!("{:.1} KiB", count as f64 / 1024.0),
        _ => format!("{:.1} MiB", count as f64 / (1 << 20) as f64),
    }
}

/// What has been verified, in order.
#[derive(Default)]
pub(crate) struct Checks {
    list: Vec<(String, Option<String>)>,
}

impl Checks {
    /// Notes whether `name` holds; `seen` says what was seen instead.
    pub(crate) fn check(&mut self, name: &str, holds: bool, seen: impl FnOnce() -> String) {
        self.list.push((name.to_owned(), (!holds).then(seen)));
    }

    /// Notes whether two values that should be the same are.
    pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(&mut self, name: &str, got: T, want: T) {
        self.check(name, got == want, || format!("{got:?}, and should be {want:?}"));
    }

    /// The same where a signal has ended the demo before all of it was shown.
    pub(crate) fn finish_early(&self, signal: Signal) -> bool {
        say(format_args!("\nended early by {signal}: these checks were made until then"));
        self.finish()
    }

    /// Prints them all, and whether all hold.
    pub(crate) fn finish(&self) -> bool {
        heading("The checks");
        for (name, failure) in &self.list {
            match failure {
                None => say(format_args!("      ok  {name}")),
                Some(seen) => say(format_args!("  FAILED  {name}\n          {seen}")),
            }
        }
        let (all, failed) = (self.list.len(), self.list.iter().filter(|(_, failure)| failure.is_some()).count());
        match failed {
            0 => say(format_args!("\nall {all} checks held")),
            _ => say(format_args!("\n{failed} of {all} checks FAILED")),
        }
        failed == 0
    }
}

/// How long faults took, by kind.
pub(crate) fn latencies(pager: &Pager) {
    say(format_args!("{:<18} {:>10} {:>10} {:>10} {:>10}", "fault", "count", "p50 µs", "p99 µs", "max µs"));
    let micros = |ns: u64| format!("{:.1}", Duration::from_nanos(ns).as_secs_f64() * 1e6);
    for kind in Kind::ALL {
        let Some(time) = pager.latency(kind) else { continue };
        let (p50, p99, max) = match time.faults {
            0 => ("-".to_owned(), "-".to_owned(), "-".to_owned()),
            _ => (micros(time.p50_ns), micros(time.p99_ns), micros(time.max_ns)),
        };
        say(format_args!("{:<18} {:>10} {p50:>10} {p99:>10} {max:>10}", kind.name(), time.faults));
    }
}

/// What the pager has done, each number with what it means.
pub(crate) fn counters(stats: &Stats, invalidations: u64) {
    let rows = [
        ("faults", stats.all_faults(), "messages read from the userfaultfd"),
        ("invalidations", invalidations, "truncates and hole punches of the load"),
        ("installs", stats.installs, "pages of files put into the page table"),
        ("zeros", stats.zeros, "pages of zeros put there, for loads from holes"),
        ("unprotects", stats.unprotects, "write-protected pages opened for stores"),
        ("allocations", stats.allocations, "holes that a store has filled"),
        ("re-points", stats.repoints, "address ranges pointed elsewhere, or armed"),
        ("retries", stats.retries, "faults answered by a wake alone: their page was gone"),
        ("SIGBUS", stats.sigbus, "faults past the end of the file"),
        ("handed over", stats.handed_over, "faults that the reader gave to a worker"),
        ("rounds", stats.rounds, "looks that workers took at them"),
        ("graces", stats.graces, "times that punches were held off a page that kept losing"),
    ];
    for (name, count, meaning) in rows {
        say(format_args!("{name:<18} {count:>10}   {meaning}"));
    }
}
