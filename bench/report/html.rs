//! The page: everything in one file that needs no other.

use std::fmt::Write;

use super::summary::Summary;
use super::{picture, plots, tables};
use crate::html::{escape, push_end, push_facts, push_head, push_heading, push_note, push_table};

const TITLE: &str = "daxpager: what a fault costs";
const STYLE: &str = include_str!("page.css");

pub(crate) fn page(summary: &Summary<'_>) -> String {
    let mut out = String::new();
    push_head(&mut out, TITLE, STYLE);
    let _ = writeln!(out, "<h1>{TITLE}</h1>");
    push_facts(&mut out, &summary.facts.lines());
    if let Some(picture) = picture::picture(summary.results) {
        push_heading(&mut out, &picture.title);
        push_note(
            &mut out,
            "Within a pattern the bars are to scale. The floor is the smallest program that could serve the faults.",
        );
        out.push_str(&picture.svg);
    }
    if !summary.verdicts.is_empty() {
        bars(&mut out, summary);
    }
    section(&mut out, "What the cost depends on", plots::dependencies(summary.results), true);
    push_heading(&mut out, "Tables");
    push_note(
        &mut out,
        "Medians over the rounds; ratios are of neighbours in one round, with the smallest and the largest.",
    );
    for (table, see) in tables::all(summary.results) {
        let _ = writeln!(out, "<h3>{}</h3>", escape(&table.title));
        push_note(&mut out, see);
        push_table(&mut out, &table, class_of);
    }
    let latencies = plots::latencies(summary.results);
    section(&mut out, "How long accesses took", latencies, false);
    push_end(&mut out);
    out
}

fn bars(out: &mut String, summary: &Summary<'_>) {
    let table = tables::bars(summary.verdicts);
    push_heading(out, &table.title);
    push_table(out, &table, class_of);
    for verdict in summary.verdicts {
        if let Some(reason) = &verdict.reason {
            push_note(out, &format!("{}: {}: {reason}", verdict.name, verdict.verdict));
        }
    }
}

fn section(out: &mut String, title: &str, plots: Vec<plots::Plot>, open: bool) {
    if plots.is_empty() {
        return;
    }
    push_heading(out, title);
    let open = if open { " open" } else { "" };
    for plot in plots {
        let _ = writeln!(out, "<details{open}><summary>{}</summary>\n{}</details>", escape(&plot.title), plot.svg);
    }
}

/// Verdicts, and why there is no figure.
fn class_of(cell: &str) -> Option<&'static str> {
    match cell {
        "ok" => Some("text good"),
        "short" | "not available" | "skipped" | "not measured" => Some("text bad"),
        _ => None,
    }
}
