//! The tables and sentences that the text and the page have in common.

use crate::outcome::{Outcome, Violation};
use crate::table::{Table, number, text};
use crate::units::{counted, duration, per, seconds, thousands, total};

/// Those that have something in them.
pub(crate) fn all(outcome: &Outcome) -> Vec<Table> {
    let tables = [
        operations(outcome),
        faults(outcome),
        per_fault(outcome, "Counters", "counter", &outcome.counters),
        per_fault(outcome, "System calls", "call", &outcome.calls),
    ];
    tables.into_iter().filter(|table| !table.rows.is_empty()).collect()
}

fn operations(outcome: &Outcome) -> Table {
    let row = |name: &str, done: u64, refused: u64, longest: u64| {
        let longest = if done == 0 && refused == 0 { "-".to_owned() } else { duration(longest) };
        vec![name.to_owned(), thousands(done), per(done, outcome.seconds), thousands(refused), longest]
    };
    let list = &outcome.operations;
    let mut rows: Vec<_> = list.iter().map(|it| row(&it.name, it.done, it.refused, it.longest_ns)).collect();
    if list.len() > 1 {
        let refused = total(list.iter().map(|it| it.refused));
        rows.push(row("all", all_operations(outcome), refused, list.iter().map(|it| it.longest_ns).max().unwrap_or(0)));
    }
    let columns = vec![text("operation"), number("count"), number("per second"), number("refused"), number("longest")];
    Table { title: "Operations".to_owned(), columns, rows }
}

fn faults(outcome: &Outcome) -> Table {
    let rows = outcome.faults.iter().map(|kind| {
        let times = [kind.p50_ns, kind.p99_ns, kind.p999_ns, kind.max_ns];
        let times = times.map(|ns| if kind.faults == 0 { "-".to_owned() } else { duration(ns) });
        [kind.name.clone(), thousands(kind.faults)].into_iter().chain(times).collect()
    });
    let columns =
        vec![text("fault"), number("count"), number("p50"), number("p99"), number("p99.9"), number("longest")];
    Table { title: "Faults".to_owned(), rows: rows.collect(), columns }
}

fn per_fault(outcome: &Outcome, title: &str, what: &str, list: &[(String, u64)]) -> Table {
    let faults = all_faults(outcome) as f64;
    let rows = list.iter().map(|(name, count)| vec![name.clone(), thousands(*count), per(*count, faults)]);
    Table {
        title: title.to_owned(),
        rows: rows.collect(),
        columns: vec![text(what), number("count"), number("per fault")],
    }
}

/// A page's last events, oldest first.
pub(crate) fn events(violation: &Violation) -> Table {
    let rows = violation.events.iter().map(|event| {
        let time = format!("{:.6}", event.seconds);
        vec![thousands(event.ticket), time, event.thread.clone(), event.what.clone()]
    });
    let columns = vec![number("ticket"), number("seconds"), text("thread"), text("what")];
    Table { title: "The page's last events".to_owned(), rows: rows.collect(), columns }
}

pub(crate) fn all_faults(outcome: &Outcome) -> u64 {
    total(outcome.faults.iter().map(|kind| kind.faults))
}

fn all_operations(outcome: &Outcome) -> u64 {
    total(outcome.operations.iter().map(|kind| kind.done))
}

/// What the oracle has looked at.
pub(crate) fn oracle(outcome: &Outcome) -> String {
    format!(
        "{} judged, {} left unjudged, {} allowed as parts of copies; {} compared at rest, in {}",
        counted(outcome.judged, "word"),
        thousands(outcome.unjudged),
        thousands(outcome.parts),
        counted(outcome.compared_at_rest, "word"),
        counted(outcome.rounds, "round"),
    )
}

pub(crate) fn longest_wait(outcome: &Outcome) -> Option<String> {
    let longest = outcome.longest_wait.as_ref()?;
    Some(format!("{}: {}, thread {}", duration(longest.ns), longest.operation, longest.thread))
}

/// Whatever the verdict is called, something found is something found.
pub(crate) fn is_ok(outcome: &Outcome) -> bool {
    outcome.verdict == "ok" && violation_count(outcome) == 0
}

pub(crate) fn violation_count(outcome: &Outcome) -> u64 {
    outcome.violation_count.max(outcome.violations.len() as u64)
}

/// The verdict in one line.
pub(crate) fn verdict(outcome: &Outcome) -> String {
    let found = match violation_count(outcome) {
        0 => "no violation".to_owned(),
        count => counted(count, "violation"),
    };
    let (operations, took) = (counted(all_operations(outcome), "operation"), seconds(outcome.seconds));
    let verdict = match outcome.verdict.as_str() {
        "ok" if !is_ok(outcome) => "violation",
        "" => "no verdict",
        verdict => verdict,
    };
    let early = outcome.ended_by.map_or(String::new(), |signal| format!(", ended early by {signal}"));
    format!("{verdict}: {found} in {operations} and {took}, seed {}{early}", outcome.seed)
}

/// Everything about a violation but its sentence, its events and the pager's state.
pub(crate) fn facts(outcome: &Outcome, violation: &Violation) -> Vec<(&'static str, String)> {
    let place = format!("{}, page {}", violation.file, thousands(violation.page));
    let when = format!("{:.6} s, after {}", violation.seconds, counted(violation.operations, "operation"));
    let mut facts = vec![
        ("seed", outcome.seed.to_string()),
        ("time", when),
        ("operation", violation.operation.clone()),
        ("thread", violation.thread.clone()),
        ("place", place),
    ];
    if let Some(address) = violation.address {
        facts.push(("address", format!("{address:#x}")));
    }
    facts.extend(violation.mapping.clone().map(|mapping| ("mapping", mapping)));
    facts.push(("expected", violation.expected.clone()));
    facts.push(("found", violation.found.clone()));
    facts.push(("bytes", violation.found_bytes.clone()));
    facts.retain(|(_, value)| !value.is_empty());
    facts
}
