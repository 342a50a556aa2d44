//! A page of HTML that needs no other file: its head, text in it, facts and tables.
#![allow(dead_code, reason = "each program uses its part")]

use std::fmt::Write;

use crate::table::Table;

/// What every page looks like. Colours are variables of its own style.
const STYLE: &str = include_str!("page.css");

/// Everything up to the first line of the body.
pub(crate) fn push_head(out: &mut String, title: &str, style: &str) {
    let title = escape(title);
    // The policy is a promise that the browser keeps: whatever a name contains, nothing is loaded and no script run.
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}{style}</style>\n</head>\n<body>\n"
    );
}

pub(crate) fn push_end(out: &mut String) {
    out.push_str("</body>\n</html>\n");
}

pub(crate) fn push_heading(out: &mut String, text: &str) {
    let _ = writeln!(out, "<h2>{}</h2>", escape(text));
}

pub(crate) fn push_note(out: &mut String, text: &str) {
    let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(text));
}

/// Names and values; those without a value are left out.
pub(crate) fn push_facts(out: &mut String, facts: &[(&str, String)]) {
    out.push_str("<dl>\n");
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        let class = if matches!(*name, "address" | "bytes") { " class=\"mono\"" } else { "" };
        let _ = writeln!(out, "<dt>{}</dt><dd{class}>{}</dd>", escape(name), escape(value));
    }
    out.push_str("</dl>\n");
}

/// `class_of` may say that a cell is something else than its column is.
pub(crate) fn push_table(out: &mut String, table: &Table, class_of: fn(&str) -> Option<&'static str>) {
    let classes: Vec<&str> = table.columns.iter().map(|column| if column.is_text { "text" } else { "" }).collect();
    let attribute = |class: &str| if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    out.push_str("<div class=\"scroll\"><table>\n<tr>");
    for (column, class) in table.columns.iter().zip(&classes) {
        let _ = write!(out, "<th{}>{}</th>", attribute(class), escape(&column.name));
    }
    out.push_str("</tr>\n");
    for row in &table.rows {
        out.push_str("<tr>");
        for (cell, class) in row.iter().zip(&classes) {
            let _ = write!(out, "<td{}>{}</td>", attribute(class_of(cell).unwrap_or(class)), escape(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

/// Makes text safe between tags and in quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // HTML has no way to write these.
            '\0'..='\x08' | '\x0b'..='\x1f' | '\x7f' => safe.push('\u{fffd}'),
            char => safe.push(char),
        }
    }
    safe
}
