//! The drawing of how long faults took: one panel for each kind, all with the same axes.

use crate::outcome::{FaultKind, Outcome};
use crate::svg::{Anchor, Area, Svg, WIDTH};
use crate::units::{counted, duration, short, thousands};

/// What the axis shows. Shorter and longer times are at its ends.
const SHORTEST_NS: f64 = 100.0;
const DECADES: i32 = 7;
const LEFT: f64 = 64.0;
const PANEL: f64 = 74.0;
/// Of a panel, for the names of the marks.
const NAMES: f64 = 13.0;
const TITLE: f64 = 34.0;
const AXIS: f64 = 24.0;
/// Narrower bars are merged: nobody could see or point at them.
const NARROWEST: f64 = 3.0;
/// The height of a bar that stands for one fault, in decades.
const ONE: f64 = 0.25;

/// Neighbouring buckets.
struct Bar {
    from_ns: u64,
    to_ns: u64,
    faults: u64,
}

/// None if there was no fault.
pub(crate) fn draw(outcome: &Outcome) -> Option<String> {
    let kinds: Vec<(&FaultKind, Vec<Bar>)> =
        outcome.faults.iter().map(|kind| (kind, bars(kind))).filter(|(_, bars)| !bars.is_empty()).collect();
    let most = kinds.iter().flat_map(|(_, bars)| bars).map(|bar| bar.faults).max()?;
    let decades = (most as f64).log10().ceil().max(1.0);
    let mut svg = Svg::default();
    for (index, (kind, bars)) in kinds.iter().enumerate() {
        let y = (PANEL + TITLE) * index as f64 + TITLE;
        let plot = Area { x: LEFT, y, width: WIDTH - LEFT - 24.0, height: PANEL };
        title(&mut svg, kind, plot);
        grid(&mut svg, plot, decades);
        for bar in bars {
            let (left, right) = (x(bar.from_ns, plot), x(bar.to_ns, plot));
            // A bar beyond either end would have no width.
            let left = left.min(plot.right() - NARROWEST);
            let height = ((bar.faults as f64).log10() + ONE) / (decades + ONE) * (plot.height - NAMES);
            let area = Area { x: left, y: plot.bottom() - height, width: (right - left).max(NARROWEST) - 0.4, height };
            let times = format!("{} … {}", duration(bar.from_ns), duration(bar.to_ns));
            svg.rect("bar", area, &format!("{times}: {}", counted(bar.faults, "fault")));
        }
        marks(&mut svg, kind, plot);
    }
    let bottom = (PANEL + TITLE) * kinds.len() as f64;
    for decade in 0..=DECADES {
        let ns = SHORTEST_NS as u64 * 10u64.pow(decade.unsigned_abs());
        let x = LEFT + (WIDTH - LEFT - 24.0) * f64::from(decade) / f64::from(DECADES);
        svg.text("tick", (x, bottom + 16.0), Anchor::Middle, &whole(ns));
    }
    Some(svg.finish(bottom + AXIS, "How long faults took, by kind"))
}

/// A power of ten without its decimals.
fn whole(ns: u64) -> String {
    duration(ns).replace(".00 ", " ").replace(".0 ", " ")
}

fn x(ns: u64, plot: Area) -> f64 {
    let decades = (ns.max(1) as f64 / SHORTEST_NS).log10();
    plot.x + plot.width * (decades / f64::from(DECADES)).clamp(0.0, 1.0)
}

/// The histogram's buckets, each with the lower border that it probably has.
fn bars(kind: &FaultKind) -> Vec<Bar> {
    let unit = Area { x: 0.0, y: 0.0, width: WIDTH - LEFT - 24.0, height: 0.0 };
    let mut bars: Vec<Bar> = Vec::new();
    for &(to_ns, faults) in kind.histogram.iter().filter(|(_, faults)| *faults > 0) {
        let previous = bars.last_mut();
        // The pager's buckets are an eighth wide at most, and those between this and the previous one were empty.
        let from_ns = (to_ns - to_ns / 9).max(previous.as_ref().map_or(0, |bar| bar.to_ns));
        match previous {
            Some(bar) if x(to_ns, unit) - x(bar.from_ns, unit) < NARROWEST => {
                bar.to_ns = to_ns;
                bar.faults = bar.faults.saturating_add(faults);
            }
            _ => bars.push(Bar { from_ns, to_ns, faults }),
        }
    }
    bars
}

fn title(svg: &mut Svg, kind: &FaultKind, plot: Area) {
    svg.text("name", (plot.x, plot.y - 8.0), Anchor::Start, &kind.name);
    let quantiles = [("p50", kind.p50_ns), ("p99", kind.p99_ns), ("p99.9", kind.p999_ns), ("longest", kind.max_ns)];
    let quantiles: Vec<String> = quantiles.iter().map(|(name, ns)| format!("{name} {}", duration(*ns))).collect();
    let text = format!("{}; {}", counted(kind.faults, "fault"), quantiles.join(", "));
    svg.text("note", (plot.right(), plot.y - 8.0), Anchor::End, &text);
}

fn grid(svg: &mut Svg, plot: Area, decades: f64) {
    for decade in 0..=DECADES {
        let x = plot.x + plot.width * f64::from(decade) / f64::from(DECADES);
        svg.line("grid", (x, plot.y), (x, plot.bottom()));
    }
    let step = (decades / 3.0).ceil().max(1.0);
    let mut decade = 0.0;
    while decade <= decades {
        let y = plot.bottom() - (decade + ONE) / (decades + ONE) * (plot.height - NAMES);
        svg.line("grid", (plot.x, y), (plot.right(), y));
        svg.text("tick", (plot.x - 6.0, y + 4.0), Anchor::End, &short(10f64.powf(decade)));
        decade += step;
    }
    svg.line("axis", (plot.x, plot.bottom()), (plot.right(), plot.bottom()));
}

/// p50 to the left of its line and p99 to the right, so that they cannot collide.
fn marks(svg: &mut Svg, kind: &FaultKind, plot: Area) {
    for (name, ns, side, anchor) in [("p50", kind.p50_ns, -4.0, Anchor::End), ("p99", kind.p99_ns, 4.0, Anchor::Start)]
    {
        let x = x(ns, plot);
        svg.line("mark", (x, plot.y), (x, plot.bottom()));
        svg.text("tick halo", (x + side, plot.y + 10.0), anchor, name);
        let area = Area { x: x - 3.0, width: 6.0, ..plot };
        svg.rect("hover", area, &format!("{}: {name} {} ({} ns)", kind.name, duration(ns), thousands(ns)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(histogram: &[(u64, u64)]) -> FaultKind {
        FaultKind { histogram: histogram.to_vec(), ..FaultKind::default() }
    }

    #[test]
    fn no_fault_is_lost_when_bars_are_merged() {
        let fine: Vec<(u64, u64)> = (1..5000).map(|index| (index * 100, index)).collect();
        let bars = bars(&kind(&fine));
        assert!(bars.len() < 400, "{}", bars.len());
        assert_eq!(bars.iter().map(|bar| bar.faults).sum::<u64>(), (1..5000).sum::<u64>());
        assert!(bars.windows(2).all(|pair| pair[0].to_ns <= pair[1].from_ns));
    }

    #[test]
    fn times_beyond_the_axis_are_inside_the_drawing() {
        let outcome = Outcome { faults: vec![kind(&[(0, 1), (1, 0), (7, 2), (u64::MAX, 1)])], ..Outcome::default() };
        let svg = draw(&outcome).unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(draw(&Outcome::default()).is_none());
        assert!(draw(&Outcome { faults: vec![kind(&[])], ..Outcome::default() }).is_none());
    }
}
