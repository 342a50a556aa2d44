//! The page: everything in one file that needs no other.

use std::fmt::Write;

use super::escape::escape;
use super::tables::{self, Table};
use super::{Summary, plots};

const STYLE: &str = include_str!("page.css");

pub(crate) fn page(summary: &Summary<'_>) -> String {
    let mut out = String::new();
    // The policy is a promise that the browser keeps: nothing is loaded, and no script run.
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>daxpager: what a fault costs</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>daxpager: what a fault costs</h1>\n<dl>\n"
    );
    for (name, value) in summary.facts.lines() {
        let _ = writeln!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(&value));
    }
    out.push_str("</dl>\n");
    if !summary.verdicts.is_empty() {
        bars(&mut out, summary);
    }
    section(&mut out, "What the cost depends on", plots::dependencies(summary.results), true);
    out.push_str("<h2>Tables</h2>\n");
    note(
        &mut out,
        "Medians over the rounds; ratios are of neighbours in one round, with the smallest and the largest.",
    );
    for table in tables::all(summary.results) {
        let _ = writeln!(out, "<h3>{}</h3>", escape(&table.title));
        push_table(&mut out, &table);
    }
    let latencies = plots::latencies(summary.results);
    section(&mut out, "How long accesses took", latencies, false);
    out.push_str("</body>\n</html>\n");
    out
}

fn note(out: &mut String, text: &str) {
    let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(text));
}

fn bars(out: &mut String, summary: &Summary<'_>) {
    let table = tables::bars(summary.verdicts);
    let _ = writeln!(out, "<h2>{}</h2>", escape(&table.title));
    push_table(out, &table);
    for verdict in summary.verdicts {
        if let Some(reason) = &verdict.reason {
            note(out, &format!("{}: {}: {reason}", verdict.name, verdict.verdict));
        }
    }
}

fn section(out: &mut String, title: &str, plots: Vec<plots::Plot>, open: bool) {
    if plots.is_empty() {
        return;
    }
    let _ = writeln!(out, "<h2>{}</h2>", escape(title));
    let open = if open { " open" } else { "" };
    for plot in plots {
        let _ = writeln!(out, "<details{open}><summary>{}</summary>\n{}</details>", escape(&plot.title), plot.svg);
    }
}

fn push_table(out: &mut String, table: &Table) {
    out.push_str("<div class=\"scroll\"><table>\n<tr>");
    let class = |index: usize| if index == 0 || table.columns[index].is_empty() { " class=\"text\"" } else { "" };
    for (index, column) in table.columns.iter().enumerate() {
        let _ = write!(out, "<th{}>{}</th>", class(index), escape(column));
    }
    out.push_str("</tr>\n");
    for row in &table.rows {
        out.push_str("<tr>");
        for (index, cell) in row.iter().enumerate() {
            let class = match cell.as_str() {
                "ok" => " class=\"text good\"",
                "short" | "not available" | "skipped" | "not measured" => " class=\"text bad\"",
                _ => class(index),
            };
            let _ = write!(out, "<td{class}>{}</td>", escape(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}
