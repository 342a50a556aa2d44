//! What was measured, for people and programs.

mod axes;
mod html;
mod picture;
mod plots;
mod summary;
mod tables;

use serde::Serialize;

use crate::bars::Verdict;
use crate::case::{Case, Outcome};
use crate::terminal::has_colours;
use summary::Facts;

pub(crate) use html::page;
pub(crate) use summary::Summary;

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

/// In front of each line of a table.
const INDENT: &str = "  ";

/// Everything as text, the bars last.
pub(crate) fn print(summary: &Summary<'_>) {
    use std::io::Write;
    let mut out = String::new();
    for (name, value) in summary.facts.lines() {
        out.push_str(&format!("{name}: {value}\n"));
    }
    for (table, _) in tables::all(summary.results) {
        out.push_str(&format!("\n{}\n{}", table.title, table.aligned(INDENT)));
    }
    if !summary.verdicts.is_empty() {
        out.push('\n');
        for verdict in summary.verdicts {
            if let Some(reason) = &verdict.reason {
                out.push_str(&format!("{}: {}: {reason}\n", verdict.name, verdict.verdict));
            }
        }
        out.push('\n');
        out.push_str(&tables::coloured(&tables::bars(summary.verdicts).aligned(INDENT), has_colours()));
    }
    // A reader that has left is no reason to panic.
    let _ = std::io::stdout().write_all(out.as_bytes());
}
