//! What was measured, as rows and columns.

use crate::bars::Verdict;
use crate::case::{Case, Contender, Outcome, Sample, Work, quantile};
use crate::results::{Group, Results, Spread};
use crate::table::{self, Table};
use crate::units::thousands;

/// One table for each thing that was done, and what to look at in it.
pub(crate) fn all(results: &Results) -> Vec<(Table, &'static str)> {
    let mut tables = Vec::new();
    for group in &results.groups {
        let mut left: Vec<&Case> = group.order.iter().collect();
        while let Some(first) = left.first().copied() {
            let is_same = |case: &&Case| {
                (case.work, case.threads, case.regime, case.pages)
                    == (first.work, first.threads, first.regime, first.pages)
            };
            let (same, others): (Vec<&Case>, Vec<&Case>) = left.into_iter().partition(is_same);
            tables.push((table(group, &same), see(first)));
            left = others;
        }
    }
    tables
}

fn see(case: &Case) -> &'static str {
    match case.work {
        Work::RandomRead if case.threads > 1 => {
            "Two threads should take little longer than one for as many pages each."
        }
        Work::RandomRead => "One fault a page: how close the library comes to the bare loop, and to the bare handler.",
        Work::RandomWrite => "The first store to each page: one fault, which marks the page dirty as well.",
        Work::WriteAfterProtect => "A store to a page that is there and protected: what it costs to be told of it.",
        Work::SequentialRead => "Fault-around: how far below one fault a page the library gets.",
        Work::SequentialWrite => "Coarse and asynchronous tracking beside exact, which is a fault for each page.",
        Work::HoleWrite => "Blocks as well as entries: what is allocated ahead of the stores is what is saved.",
        Work::RandomHoleWrite => "The same where nobody can allocate ahead: with windows a fault and a call a page.",
        Work::RandomHoleRead => "A page of zeros for each hole that is looked at.",
        Work::HoleRead => "The same in order, where pages of zeros can be put in ahead of the loads.",
        Work::SparseHoleWrite { .. } => "Nothing is to be taken ahead where the neighbours are never stored to.",
        Work::SparseRead { .. } => "Fault-around must not cost where the next page is never the neighbour.",
        Work::Collect => "Taking the dirty pages and protecting them again, a page.",
        Work::Punch | Work::Truncate => {
            "A page that is taken away, beside the kernel's taking away of its entry alone."
        }
        Work::ReadCalls | Work::WriteCalls => {
            "A call of the library's beside the kernel's: one copy, and one system call."
        }
        Work::PunchPages | Work::PunchRuns { .. } => {
            "With windows the memory goes back as it is punched: what that costs beside the kernel's own punch."
        }
        Work::PunchAmong { .. } => "A punch should not cost more for mappings that do not show the page.",
        Work::HoleReadFar => "Zeros are taken back: only the page tables grow with the holes that are loaded.",
        Work::StoreThenLoad => "The time is that of the loads; in which order stores came must not split the mapping.",
        Work::WriteThenLoad => "Each page is to count once in this process's memory.",
        Work::ManyFiles => "The time is that of a creation: the last file should cost what the first does.",
        Work::Extents { .. } => "A million extents should cost what ten do.",
        Work::MapSparse => "The time and the memory that a mapping takes, however long it is.",
        Work::HugeRead => "One fault for each 2 MiB.",
        Work::ReadBesidePuncher => "The tail: who waits, and how long, while another thread punches.",
    }
}

/// The columns of ratios: what others are compared with.
fn references<'a>(cases: &[&'a Case]) -> Vec<&'a Case> {
    let is_reference = |case: &&&Case| {
        use Contender::{BareHandler, BareLoop, Kernel, KernelArmed, KernelAsync};
        matches!(case.contender, Kernel | KernelAsync | KernelArmed | BareLoop | BareHandler)
    };
    if cases.len() < 2 {
        return Vec::new();
    }
    cases.iter().filter(is_reference).copied().collect()
}

pub(crate) fn title(case: &Case) -> String {
    let threads = if case.threads == 1 { "1 thread".into() } else { format!("{} threads", case.threads) };
    format!("{}, {threads}, {}, {} pages", case.work.name(), case.regime.name(), case.pages)
}

fn time(sample: &Sample) -> Option<f64> {
    Some(sample.ns_per_page)
}

fn table(group: &Group, cases: &[&Case]) -> Table {
    let references = references(cases);
    let mut columns = vec![table::text(""), table::number("ns/page"), table::number("min..max")];
    columns.extend(references.iter().map(|case| table::number(format!("× {}", case.contender.name()))));
    columns.extend(["p50", "p99", "p99.9", "faults/page", "calls/fault", "switches/fault"].map(table::number));
    let rows = cases.iter().map(|case| row(group, case, &references)).collect();
    Table { title: title(cases[0]), columns, rows }
}

fn row(group: &Group, case: &Case, references: &[&Case]) -> Vec<String> {
    let mut cells = vec![case.contender.name()];
    let Some(ns) = group.figure(case, time) else {
        cells.push(lack(group.lack(case)).into());
        cells.resize(references.len() + 9, String::new());
        return cells;
    };
    cells.push(number(ns.median));
    cells.push(format!("{}..{}", number(ns.min), number(ns.max)));
    for reference in references {
        let ratio = group.ratio((case, time), (reference, time));
        cells.push(ratio.map_or_else(String::new, |ratio| spread(&ratio)));
    }
    let latency = group.latency(case);
    for share in [0.5, 0.99, 0.999] {
        cells.push(quantile(&latency, share).map_or_else(String::new, number));
    }
    let share = |over: fn(&Sample) -> u64, under: fn(&Sample) -> u64| {
        let share = |sample: &Sample| (under(sample) > 0).then(|| over(sample) as f64 / under(sample) as f64);
        // Where no fault was counted nothing was: these are zeros of nobody's.
        let counted = |sample: &Sample| share(sample).filter(|_| sample.faults > 0);
        group.figure(case, counted).map_or_else(String::new, |share| format!("{:.3}", share.median))
    };
    cells.push(share(|sample| sample.faults, |sample| sample.pages));
    cells.push(share(|sample| sample.calls, |sample| sample.faults));
    cells.push(share(Sample::all_switches, |sample| sample.faults));
    cells
}

fn lack(outcome: Option<&Outcome>) -> &'static str {
    match outcome {
        Some(Outcome::NotAvailable(_)) => "not available",
        Some(Outcome::Skipped(_)) => "skipped",
        Some(Outcome::Measured(_)) | None => "not measured",
    }
}

/// The bars, a line each.
pub(crate) fn bars(verdicts: &[Verdict]) -> Table {
    let mut columns = vec![table::text("bar")];
    columns.extend(["figure", "min..max", "wanted", "calls/fault", "switches/fault"].map(table::number));
    columns.push(table::text(""));
    let optional = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
    let row = |verdict: &Verdict| {
        vec![
            verdict.name.clone(),
            verdict.figure.map_or("-".into(), |figure| format!("{:.2}{}", figure.median, verdict.unit)),
            verdict.figure.map_or("-".into(), |figure| format!("{:.2}..{:.2}", figure.min, figure.max)),
            verdict.bar.clone(),
            optional(verdict.calls_per_fault),
            optional(verdict.switches_per_fault),
            verdict.verdict.clone(),
        ]
    };
    Table { title: "What is to be reached".into(), columns, rows: verdicts.iter().map(row).collect() }
}

fn spread(ratio: &Spread) -> String {
    format!("{:.2} ({:.2}..{:.2})", ratio.median, ratio.min, ratio.max)
}

/// Nanoseconds, with commas.
pub(crate) fn number(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}");
    }
    thousands(value.round_ties_even() as u64)
}

/// The verdicts in colour, for a terminal.
pub(crate) fn coloured(text: &str, colours: bool) -> String {
    if !colours {
        return text.to_owned();
    }
    let line = |line: &str| match line.rsplit_once("  ") {
        Some((rest, "ok")) => format!("{rest}  \x1b[32mok\x1b[0m\n"),
        Some((rest, "short")) => format!("{rest}  \x1b[31mshort\x1b[0m\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_commas() {
        assert_eq!([0.0, 99.94, 100.4, 1234.0, 1_234_567.0].map(number), ["0.0", "99.9", "100", "1,234", "1,234,567"]);
    }
}
