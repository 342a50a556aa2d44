//! The page: everything about a run in one file that needs no other.

use std::fmt::Write;

use super::{latency, map, rates, tables};
use crate::html::{escape, push_end, push_facts, push_head, push_heading, push_note, push_table};
use crate::outcome::{Outcome, Violation};
use crate::units::{counted, seconds, thousands};

const STYLE: &str = include_str!("page.css");

pub(crate) fn page(outcome: &Outcome) -> String {
    let mut out = String::new();
    head(&mut out, outcome);
    violations(&mut out, outcome);
    pages(&mut out, outcome);
    over_time(&mut out, outcome);
    latencies(&mut out, outcome);
    numbers(&mut out, outcome);
    push_end(&mut out);
    out
}

fn head(out: &mut String, outcome: &Outcome) {
    let title = format!("daxpager-stress: {}, seed {}", outcome.verdict, outcome.seed);
    push_head(out, &title, STYLE);
    out.push_str("<h1>daxpager-stress</h1>\n");
    let class = if tables::is_ok(outcome) { "good" } else { "bad" };
    let _ = writeln!(out, "<p class=\"verdict {class}\">{}</p>", escape(&tables::verdict(outcome)));
    let cpus = if outcome.cpus > 0 { outcome.cpus.to_string() } else { String::new() };
    let longest = tables::longest_wait(outcome).unwrap_or_default();
    let facts = [
        ("seed", outcome.seed.to_string()),
        ("scenario", outcome.scenario.clone()),
        ("duration", format!("{}, {}", seconds(outcome.seconds), counted(outcome.rounds, "round"))),
        ("kernel", outcome.kernel.clone()),
        ("CPUs", cpus),
        ("version", outcome.version.clone()),
        ("rules broken", outcome.sabotage.join(", ")),
        ("faults put in", outcome.inject.join(", ")),
        ("oracle", tables::oracle(outcome)),
        ("longest wait", longest),
    ];
    push_facts(out, &facts);
    if !outcome.again.is_empty() {
        let _ = writeln!(out, "<p class=\"note\">To run it again:</p>\n<pre>{}</pre>", escape(&outcome.again));
    }
    if !outcome.options.is_empty() {
        out.push_str("<h3>Options</h3>\n<ul class=\"options\">\n");
        for (name, value) in &outcome.options {
            let _ = writeln!(out, "<li><span>{}</span> <b>{}</b></li>", escape(name), escape(value));
        }
        out.push_str("</ul>\n");
    }
}

fn violations(out: &mut String, outcome: &Outcome) {
    let count = tables::violation_count(outcome);
    if count == 0 {
        return;
    }
    push_heading(out, "Violations");
    for (index, violation) in outcome.violations.iter().enumerate() {
        push_violation(out, outcome, index, violation);
    }
    match count - outcome.violations.len() as u64 {
        0 => {}
        more => push_note(out, &format!("and {}, of which only the number is known.", counted(more, "more violation"))),
    }
}

/// The first one is what to look at, the others are often its consequences: they are shown when clicked at.
fn push_violation(out: &mut String, outcome: &Outcome, index: usize, violation: &Violation) {
    let (number, count) = (index + 1, thousands(tables::violation_count(outcome)));
    let (kind, what) = (escape(&violation.kind), escape(&violation.what));
    let open = if index == 0 { " open" } else { "" };
    let summary = format!("<summary><b>{number} of {count}: {kind}</b> {what}</summary>");
    let _ = writeln!(out, "<details class=\"violation-box\"{open}>{summary}");
    push_facts(out, &tables::facts(outcome, violation));
    let events = tables::events(violation);
    if !events.rows.is_empty() {
        let _ = writeln!(out, "<h3>{}</h3>", events.title);
        push_table(out, &events, |_| None);
    }
    if let Some(pager) = &violation.pager {
        let _ = writeln!(out, "<h3>The pager</h3>\n<pre>{}</pre>", escape(pager));
    }
    out.push_str("</details>\n");
}

fn pages(out: &mut String, outcome: &Outcome) {
    push_heading(out, "Pages over time");
    let Some((map, svg)) = outcome.map.as_ref().and_then(|map| Some((map, map::draw(map)?))) else {
        return push_note(out, "No pages have been recorded.");
    };
    let times = match map.mark {
        Some(_) => "Times are those before and after the violation, which is marked in red.",
        None => "Times are those since the start of the run.",
    };
    let file = if map.file.is_empty() { String::new() } else { format!("Of {}. ", map.file) };
    push_note(out, &format!("{file}Each column is one moment; they need not be equally far apart. {times}"));
    out.push_str(&map::legend());
    out.push_str(&svg);
}

fn over_time(out: &mut String, outcome: &Outcome) {
    push_heading(out, "Rates over time");
    let Some((svg, samples)) = rates::draw(outcome) else {
        return push_note(out, "Too few samples for a drawing.");
    };
    let mut text = String::from("Time is since the start of the run.");
    if tables::violation_count(outcome) > 0 {
        text.push_str(" Violations are marked in red.");
    }
    if samples > 1 {
        let _ = write!(text, " Each step is the mean over {}.", counted(samples as u64, "sample"));
    }
    push_note(out, &text);
    out.push_str(&svg);
}

fn latencies(out: &mut String, outcome: &Outcome) {
    push_heading(out, "How long faults took");
    let Some(svg) = latency::draw(outcome) else {
        return push_note(out, "No fault has been timed.");
    };
    push_note(out, "From the message to the answer. Bars count faults; both axes are logarithmic.");
    out.push_str(&svg);
}

fn numbers(out: &mut String, outcome: &Outcome) {
    push_heading(out, "Numbers");
    let tables = tables::all(outcome);
    if tables.is_empty() {
        return push_note(out, "Nothing has been counted.");
    }
    out.push_str("<div class=\"tables\">\n");
    for table in &tables {
        let _ = writeln!(out, "<div><h3>{}</h3>", table.title);
        push_table(out, table, |_| None);
        out.push_str("</div>\n");
    }
    out.push_str("</div>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{PageLook, PageMap, PageRow, Sample};
    use crate::report::example;

    /// Enough of a look to notice a tag that is not closed, or a string that opened one.
    fn check(page: &str) {
        for tag in ["summary", "svg", "table", "div", "dl", "ul", "details", "pre", "p", "text", "rect", "title"] {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            let closed = page.matches(&format!("</{tag}>")).count();
            let empty = if tag == "rect" { page.matches("<rect ").count() - closed } else { 0 };
            assert_eq!(opened, closed + empty, "{tag}");
        }
        assert!(!page.contains("NaN") && !page.contains("\"inf") && !page.contains("\"-inf"));
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("<script"));
    }

    #[test]
    fn a_rich_page() {
        let outcome = example::rich();
        let page = page(&outcome);
        check(&page);
        assert_eq!(page.matches("<svg").count(), 3);
        assert_eq!(page.matches("class=\"violation-box\"").count(), outcome.violations.len());
        assert!(page.contains("verdict bad") && page.contains(&escape(&outcome.again)));
        assert!(page.contains("&lt;b&gt; &amp; not"), "the example's scenario has a tag in it");
    }

    #[test]
    fn degenerate_pages() {
        for outcome in example::degenerate() {
            check(&page(&outcome));
        }
        let page = page(&Outcome { verdict: "ok".to_owned(), ..Outcome::default() });
        assert!(page.contains("verdict good") && !page.contains("<svg") && !page.contains("Violations</h2>"));
    }

    #[test]
    fn all_strings_are_escaped() {
        let text = serde_json::to_string(&example::rich()).unwrap();
        let evil = "<img src=x onerror='1'>";
        let mut outcome = example::rich();
        outcome.verdict = evil.to_owned();
        outcome.version = evil.to_owned();
        outcome.kernel = evil.to_owned();
        outcome.again = evil.to_owned();
        outcome.sabotage = vec![evil.to_owned()];
        outcome.inject = vec![evil.to_owned()];
        outcome.options = vec![(evil.to_owned(), evil.to_owned())];
        outcome.counters = vec![(evil.to_owned(), 1)];
        outcome.operations[0].name = evil.to_owned();
        outcome.faults[0].name = evil.to_owned();
        outcome.map.as_mut().unwrap().file = evil.to_owned();
        let violation = &mut outcome.violations[0];
        violation.kind = evil.to_owned();
        violation.what = evil.to_owned();
        violation.found_bytes = evil.to_owned();
        violation.pager = Some(evil.to_owned());
        violation.events[0].thread = evil.to_owned();
        violation.events[0].what = evil.to_owned();
        assert_ne!(text, serde_json::to_string(&outcome).unwrap());
        let page = page(&outcome);
        check(&page);
        assert!(!page.contains("<img") && page.contains("&lt;img src=x onerror=&#39;1&#39;&gt;"));
    }

    #[test]
    fn a_long_run_is_a_page_of_bearable_size() {
        let mut outcome = example::rich();
        outcome.samples = (0..2000u64)
            .map(|index| {
                let (accesses, faults) = (index * index * 1_234_567, index * 45_678);
                let seconds = index as f64 * 0.9;
                Sample { seconds, accesses, invalidations: faults, faults, retries: faults, violations: index / 100 }
            })
            .collect();
        let looks =
            |page: usize| (0..240).map(|index| [PageLook::Clean, PageLook::Dirty][(page + index) % 2]).collect();
        let rows = (0..64).map(|page| PageRow { page: page as u64, looks: looks(page) }).collect();
        outcome.violations = std::iter::repeat_n(outcome.violations[0].clone(), 16).collect();
        let events = outcome.violations[0].events.clone();
        outcome.violations.iter_mut().for_each(|it| it.events = events.iter().cycle().take(64).cloned().collect());
        let times = (0..240).map(|index| 1000.0 + f64::from(index) * 1e-6).collect();
        outcome.map = Some(PageMap { file: "file0".to_owned(), times, rows, mark: Some((30, 200)) });
        let size = page(&outcome).len();
        assert!(size < 900_000, "{size}");
    }
}
