//! The drawing of rates over time: one panel for each rate above a common axis of time.

use std::fmt::Write;

use crate::outcome::{Outcome, Sample};
use crate::svg::{Anchor, Area, Svg, WIDTH, number, step, time_label, time_step};
use crate::units::{counted, seconds, short};

const LEFT: f64 = 64.0;
const PANEL: f64 = 64.0;
const TITLE: f64 = 30.0;
const AXIS: f64 = 24.0;
/// Room above the first panel for the pointers of violations.
const TOP: f64 = 8.0;
/// A drawing has not many more points than this across.
const MOST: usize = 480;

const NAMES: [&str; 4] = ["accesses", "invalidations", "faults", "retries"];

/// The time between two samples, with rates in the order of `NAMES`.
struct Interval {
    from: f64,
    to: f64,
    rates: [f64; 4],
    violations: u64,
}

/// None if there is no time between samples. Also how many samples each step is the mean of.
pub(crate) fn draw(outcome: &Outcome) -> Option<(String, usize)> {
    let stride = outcome.samples.len().div_ceil(MOST).max(1);
    let intervals = intervals(&outcome.samples, stride);
    let start = intervals.first()?.from;
    // The run may have ended at a violation, with no sample after it.
    let times = outcome.violations.iter().map(|violation| violation.seconds).filter(|time| time.is_finite());
    let end = times.fold(intervals.last()?.to, f64::max);
    let x = |time: f64| LEFT + (WIDTH - LEFT - 24.0) * ((time - start) / (end - start)).clamp(0.0, 1.0);
    let mut svg = Svg::default();
    let all = Area { x: LEFT, y: TOP, width: WIDTH - LEFT - 24.0, height: (PANEL + TITLE) * 4.0 };
    let time_step = time_step(end - start, 10.0);
    let ticks = (0..=20).map(|index| (start / time_step).ceil() * time_step + f64::from(index) * time_step);
    for time in ticks.take_while(|time| *time <= end + time_step * 1e-6) {
        for panel in 0..NAMES.len() {
            let plot = plot(panel);
            svg.line("grid", (x(time), plot.y), (x(time), plot.bottom()));
        }
        svg.text("tick", (x(time), all.bottom() + 16.0), Anchor::Middle, &time_label(time, time_step));
    }
    for panel in 0..NAMES.len() {
        draw_panel(&mut svg, &intervals, panel, x);
    }
    for interval in &intervals {
        let area = Area { x: x(interval.from), width: x(interval.to) - x(interval.from), ..all };
        svg.rect("hover", area, &hint(interval));
    }
    draw_violations(&mut svg, outcome, &intervals, all, x);
    Some((svg.finish(all.bottom() + AXIS, "Rates over time"), stride))
}

fn plot(panel: usize) -> Area {
    let y = TOP + (PANEL + TITLE) * panel as f64 + TITLE;
    Area { x: LEFT, y, width: WIDTH - LEFT - 24.0, height: PANEL }
}

/// From each `stride`-th sample to the next. A clock that stands still, or goes back, is passed over.
fn intervals(samples: &[Sample], stride: usize) -> Vec<Interval> {
    let mut intervals = Vec::new();
    let zero = Sample::default();
    let last = samples.len().saturating_sub(1);
    let picked = samples.iter().enumerate().filter(|(index, _)| index % stride == 0 || *index == last);
    // Counts begin at zero, so that a single sample makes an interval, too.
    let mut previous = &zero;
    for (_, sample) in picked {
        let took = sample.seconds - previous.seconds;
        if !(took.is_finite() && took > 1e-9) {
            continue;
        }
        let counts = |of: fn(&Sample) -> u64| of(sample).saturating_sub(of(previous)) as f64 / took;
        intervals.push(Interval {
            from: previous.seconds,
            to: sample.seconds,
            rates: [
                counts(|it| it.accesses),
                counts(|it| it.invalidations),
                counts(|it| it.faults),
                counts(|it| it.retries),
            ],
            violations: sample.violations.saturating_sub(previous.violations),
        });
        previous = sample;
    }
    intervals
}

fn draw_panel(svg: &mut Svg, intervals: &[Interval], panel: usize, x: impl Fn(f64) -> f64) {
    let plot = plot(panel);
    let rate = |interval: &Interval| interval.rates[panel];
    let most = intervals.iter().map(rate).fold(0.0, f64::max);
    let took: f64 = intervals.iter().map(|interval| interval.to - interval.from).sum();
    let mean = intervals.iter().map(|interval| rate(interval) * (interval.to - interval.from)).sum::<f64>() / took;
    let step = step(most, 3.0);
    let top = (most / step).ceil().max(1.0) * step;
    let y = |value: f64| plot.bottom() - plot.height * value / top;
    let mut tick = 0.0;
    while tick <= top * 1.000_001 {
        svg.line("grid", (plot.x, y(tick)), (plot.right(), y(tick)));
        svg.text("tick", (plot.x - 6.0, y(tick) + 4.0), Anchor::End, &short(tick));
        tick += step;
    }
    let mut path = String::new();
    for interval in intervals {
        let command = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{command}{} {}", number(x(interval.from)), number(y(rate(interval))));
        let _ = write!(path, "H{}", number(x(interval.to)));
    }
    let (left, right, bottom) =
        (number(plot.x), number(x(intervals.last().map_or(0.0, |interval| interval.to))), number(plot.bottom()));
    svg.path(&format!("area series{panel}"), &format!("{path}L{right} {bottom}H{left}z"));
    svg.path(&format!("curve series{panel}"), &path);
    svg.line("axis", (plot.x, plot.bottom()), (plot.right(), plot.bottom()));
    svg.text("name", (plot.x, plot.y - 8.0), Anchor::Start, &format!("{}, per second", NAMES[panel]));
    let note = format!("mean {}/s, most {}/s", short(mean), short(most));
    svg.text("note", (plot.right(), plot.y - 8.0), Anchor::End, &note);
}

fn hint(interval: &Interval) -> String {
    let mut text = format!("{} … {}", seconds(interval.from), seconds(interval.to));
    for (name, rate) in NAMES.iter().zip(interval.rates) {
        let _ = write!(text, "\n{name}: {}/s", short(rate));
    }
    text
}

/// Those that are known in full are where they happened; the others where they were counted.
fn draw_violations(svg: &mut Svg, outcome: &Outcome, intervals: &[Interval], all: Area, x: impl Fn(f64) -> f64) {
    let mut marks: Vec<(f64, String)> = Vec::new();
    for violation in outcome.violations.iter().filter(|violation| violation.seconds.is_finite()) {
        marks.push((violation.seconds, format!("{:.6} s: {}\n{}", violation.seconds, violation.kind, violation.what)));
    }
    for interval in intervals {
        let known = outcome.violations.iter().filter(|it| interval.from < it.seconds && it.seconds <= interval.to);
        match interval.violations.saturating_sub(known.count() as u64) {
            0 => {}
            more => marks.push((interval.to, format!("{} until {}", counted(more, "violation"), seconds(interval.to)))),
        }
    }
    for (time, title) in marks {
        let x = x(time);
        svg.pointer("violation", (x, all.y + 2.0));
        for plot in (0..NAMES.len()).map(plot) {
            svg.line("violation", (x, plot.y), (x, plot.bottom()));
        }
        svg.rect("hover", Area { x: x - 4.0, y: 0.0, width: 8.0, height: all.bottom() }, &title);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seconds: f64, accesses: u64) -> Sample {
        Sample { seconds, accesses, ..Sample::default() }
    }

    fn drawing(samples: Vec<Sample>) -> Option<String> {
        let (svg, _) = draw(&Outcome { samples, ..Outcome::default() })?;
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        Some(svg)
    }

    #[test]
    fn rates_come_from_differences() {
        let intervals = intervals(&[sample(0.0, 0), sample(2.0, 10), sample(2.0, 10), sample(3.0, 40)], 1);
        let rates: Vec<f64> = intervals.iter().map(|interval| interval.rates[0]).collect();
        assert_eq!(rates, [5.0, 30.0]);
    }

    #[test]
    fn few_samples_or_none() {
        assert!(drawing(Vec::new()).is_none());
        assert!(drawing(vec![sample(0.0, 0)]).is_none());
        assert!(drawing(vec![sample(f64::NAN, 3)]).is_none());
        assert!(drawing(vec![sample(1.0, 3)]).is_some());
        assert!(drawing(vec![sample(1.0, u64::MAX), sample(2.0, 0)]).is_some());
    }

    #[test]
    fn many_samples_are_merged_and_none_lost() {
        let samples: Vec<Sample> = (0..=2000).map(|index| sample(index as f64, index * 7)).collect();
        let intervals = intervals(&samples, 5);
        assert!((400..=401).contains(&intervals.len()), "{}", intervals.len());
        assert_eq!(intervals.last().unwrap().to, 2000.0);
        assert!(intervals.iter().all(|interval| interval.rates[0] == 7.0));
    }
}
