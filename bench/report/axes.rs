//! Drawings of curves on two axes. Colours are classes of the page's style sheet.

use crate::svg::{Anchor, Svg, WIDTH, number, step};

const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 200.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
/// Colours that the style sheet has.
const COLOURS: usize = 8;

pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    /// A mark at each point.
    pub(crate) marked: bool,
}

pub(crate) struct Axis {
    pub(crate) name: &'static str,
    pub(crate) logarithmic: bool,
    /// Where its ends must lie at least.
    pub(crate) within: Option<(f64, f64)>,
    /// What a tick is called.
    pub(crate) label: fn(f64) -> String,
}

/// Where a value is, as a share of the axis.
struct Scale {
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Scale {
    fn new(axis: &Axis, values: impl Iterator<Item = f64>) -> Self {
        let is_good = |value: &f64| value.is_finite() && (!axis.logarithmic || *value > 0.0);
        let values: Vec<f64> =
            values.filter(is_good).chain(axis.within.iter().flat_map(|ends| [ends.0, ends.1])).collect();
        let (mut from, mut to) =
            values.iter().fold((f64::MAX, f64::MIN), |ends, value| (ends.0.min(*value), ends.1.max(*value)));
        if values.is_empty() {
            (from, to) = (1.0, 10.0);
        }
        if axis.logarithmic {
            from = from.log10();
            to = to.log10();
        }
        if to - from < 1e-9 {
            to = from + 1.0;
        }
        Self { from, to, logarithmic: axis.logarithmic }
    }

    fn share(&self, value: f64) -> f64 {
        let value = if self.logarithmic { value.max(1e-12).log10() } else { value };
        ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            let step = step(self.to - self.from, 8.0);
            let first = (self.from / step).ceil() as i64;
            return (first..).map(|index| index as f64 * step).take_while(|tick| *tick <= self.to + 1e-9).collect();
        }
        let factors: &[f64] = if self.to - self.from > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let powers = self.from.floor() as i32..=self.to.ceil() as i32;
        let all = powers.flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
        all.filter(|tick| (self.from - 1e-9..=self.to + 1e-9).contains(&tick.log10())).collect()
    }
}

/// The curves on two axes, with their names beside them.
pub(crate) fn draw(label: &str, curves: &[Curve], x: &Axis, y: &Axis) -> String {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let across = Scale::new(x, points().map(|point| point.0));
    let up = Scale::new(y, points().map(|point| point.1));
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let at_x = |value: f64| LEFT + across.share(value) * (right - LEFT);
    let at_y = |value: f64| bottom - up.share(value) * (bottom - TOP);
    let mut svg = Svg::default();
    for tick in across.ticks() {
        let at = at_x(tick);
        svg.line("grid", (at, TOP), (at, bottom));
        svg.text("tick", (at, bottom + 16.0), Anchor::Middle, &(x.label)(tick));
    }
    for tick in up.ticks() {
        let at = at_y(tick);
        svg.line("grid", (LEFT, at), (right, at));
        svg.text("tick", (LEFT - 6.0, at + 4.0), Anchor::End, &(y.label)(tick));
    }
    svg.line("axis", (LEFT, bottom), (right, bottom));
    svg.text("note", ((LEFT + right) / 2.0, HEIGHT - 8.0), Anchor::Middle, x.name);
    svg.text("note", (LEFT, TOP - 4.0), Anchor::Start, y.name);
    for (index, curve) in curves.iter().enumerate() {
        let class = index % COLOURS;
        let place = |point: &(f64, f64)| (at_x(point.0), at_y(point.1));
        let path = path(curve.points.iter().map(place));
        let dashes = if index >= COLOURS { " dashed" } else { "" };
        svg.titled_path(&format!("curve s{class}{dashes}"), &path, &curve.name);
        curve.points.iter().filter(|_| curve.marked).for_each(|point| svg.dot(&format!("dot s{class}"), place(point)));
        let y = TOP + 10.0 + index as f64 * 18.0;
        svg.line(&format!("curve s{class}"), (right + 14.0, y - 4.0), (right + 34.0, y - 4.0));
        svg.text("tick", (right + 40.0, y), Anchor::Start, &curve.name);
    }
    let height = HEIGHT.max(TOP + 20.0 + curves.len() as f64 * 18.0);
    svg.finish(height, label)
}

/// Points that nobody could tell apart are left out, but for the last.
fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut kept: Vec<(f64, f64)> = Vec::new();
    let mut points = points.peekable();
    while let Some(point) = points.next() {
        let is_far = kept.last().is_none_or(|last| (last.0 - point.0).abs() + (last.1 - point.1).abs() > 1.0);
        if is_far || points.peek().is_none() {
            kept.push(point);
        }
    }
    let places: Vec<String> = kept.iter().map(|(x, y)| format!("{} {}", number(*x), number(*y))).collect();
    if places.is_empty() { String::new() } else { format!("M{}", places.join("L")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_escapes() {
        let curve = Curve { name: "<script>".into(), points: vec![(1.0, 2.0), (f64::NAN, 0.0)], marked: true };
        let axis = |logarithmic| Axis { name: "ns", logarithmic, within: None, label: |value| value.to_string() };
        let svg = draw("\"", &[curve], &axis(true), &axis(false));
        assert!(!svg.contains("<script>") && svg.contains("&lt;script&gt;") && !svg.contains("NaN"), "{svg}");
    }
}
