//! The end of a run, on a terminal or in a log.

use std::fmt::Write;

use super::tables;
use crate::outcome::{Outcome, Violation};
use crate::units::counted;

/// How many violations are printed in full: the first has broken what the later ones found.
const SHOWN: usize = 3;
const LABEL: usize = 14;

pub(crate) fn render(outcome: &Outcome, colours: bool) -> String {
    let mut out = String::new();
    for table in tables::all(outcome) {
        heading(&mut out, &table.title);
        out.push_str(&table.aligned(""));
    }
    heading(&mut out, "Result");
    push_fact(&mut out, "", "oracle", &tables::oracle(outcome));
    if let Some(longest) = tables::longest_wait(outcome) {
        push_fact(&mut out, "", "longest wait", &longest);
    }
    push_fact(&mut out, "", "verdict", &coloured(outcome, colours));
    if tables::is_ok(outcome) {
        return out;
    }
    for (index, violation) in outcome.violations.iter().take(SHOWN).enumerate() {
        push_violation(&mut out, outcome, index + 1, violation);
    }
    let shown = outcome.violations.len().min(SHOWN) as u64;
    match tables::violation_count(outcome) - shown {
        0 => {}
        more => _ = writeln!(out, "\nand {}", counted(more, "more violation")),
    }
    if !outcome.again.is_empty() {
        let _ = writeln!(out, "\nTo run it again:\n\n    {}", outcome.again);
    }
    out
}

fn coloured(outcome: &Outcome, colours: bool) -> String {
    let verdict = tables::verdict(outcome);
    match (colours, tables::is_ok(outcome)) {
        (false, _) => verdict,
        (true, true) => format!("\x1b[1;32m{verdict}\x1b[0m"),
        (true, false) => format!("\x1b[1;31m{verdict}\x1b[0m"),
    }
}

fn heading(out: &mut String, text: &str) {
    let _ = writeln!(out, "\n{text}\n{}", "=".repeat(text.chars().count()));
}

fn push_fact(out: &mut String, indent: &str, name: &str, value: &str) {
    for (index, line) in value.lines().enumerate() {
        let name = if index == 0 { name } else { "" };
        push_line(out, &format!("{indent}{name:<LABEL$} {line}"));
    }
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line.trim_end());
    out.push('\n');
}

fn push_violation(out: &mut String, outcome: &Outcome, number: usize, violation: &Violation) {
    heading(out, &format!("Violation {number} of {}: {}", tables::violation_count(outcome), violation.kind));
    push_line(out, &violation.what);
    out.push('\n');
    for (name, value) in tables::facts(outcome, violation) {
        push_fact(out, "  ", name, &value);
    }
    let events = tables::events(violation);
    if !events.rows.is_empty() {
        let _ = writeln!(out, "\n  {}:\n", events.title);
        out.push_str(&events.aligned("    "));
    }
    if let Some(pager) = &violation.pager {
        let _ = writeln!(out, "\n  The pager:\n");
        pager.lines().for_each(|line| push_line(out, &format!("    {line}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    #[test]
    fn columns_are_aligned() {
        let text = render(&example::rich(), false);
        let lines: Vec<&str> = text.lines().skip_while(|line| *line != "Operations").skip(2).collect();
        let table: Vec<&&str> = lines.iter().take_while(|line| !line.is_empty()).collect();
        let width = table[0].chars().count();
        assert!(table.len() > 3 && table.iter().all(|line| line.chars().count() == width), "{table:#?}");
        assert!(text.lines().all(|line| !line.ends_with(' ')));
    }

    #[test]
    fn a_violation_has_all_that_is_known() {
        let outcome = example::rich();
        let text = render(&outcome, false);
        let first = &outcome.violations[0];
        let address = format!("{:#x}", first.address.unwrap());
        let seed = outcome.seed.to_string();
        let all = [&first.kind, &first.what, &first.operation, &first.thread, &first.file, &first.expected];
        for part in all.into_iter().chain([&first.found, &first.found_bytes, &address, &seed, &outcome.again]) {
            assert!(text.contains(part.as_str()), "{part} is missing in\n{text}");
        }
        let last = first.events.last().unwrap();
        assert!(text.contains(&format!("{:.6}", last.seconds)) && text.contains(&last.what));
        assert!(text.contains("    queue: 3 faults\n"));
        assert!(text.contains("Violation 3 of 21") && !text.contains("Violation 4 of"));
        assert!(text.contains("and 18 more violations\n"));
    }

    #[test]
    fn colours_only_where_wanted() {
        let mut outcome = example::rich();
        assert!(!render(&outcome, false).contains('\x1b'));
        assert!(render(&outcome, true).contains("\x1b[1;31mviolation: 21 violations"));
        (outcome.verdict, outcome.violation_count) = ("ok".to_owned(), 0);
        outcome.violations.clear();
        assert!(render(&outcome, true).contains("\x1b[1;32mok: no violation"));
    }

    #[test]
    fn degenerate_outcomes_have_a_verdict() {
        for outcome in example::degenerate() {
            let text = render(&outcome, false);
            assert!(text.contains("verdict"), "{text}");
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
    }
}
