//! Drawings of curves on two axes. Colours are classes of the page's style sheet.

use std::fmt::Write;

use super::escape::escape;

const WIDTH: f64 = 960.0;
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
            let raw = (self.to - self.from) / 8.0;
            let power = 10f64.powf(raw.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| raw <= factor * power).unwrap_or(10.0) * power;
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
    let mut body = String::new();
    for tick in across.ticks() {
        let at = at_x(tick);
        line(&mut body, "grid", (at, TOP), (at, bottom));
        text(&mut body, "tick", (at, bottom + 16.0), "middle", &(x.label)(tick));
    }
    for tick in up.ticks() {
        let at = at_y(tick);
        line(&mut body, "grid", (LEFT, at), (right, at));
        text(&mut body, "tick", (LEFT - 6.0, at + 4.0), "end", &(y.label)(tick));
    }
    line(&mut body, "axis", (LEFT, bottom), (right, bottom));
    text(&mut body, "note", ((LEFT + right) / 2.0, HEIGHT - 8.0), "middle", x.name);
    text(&mut body, "note", (LEFT, TOP - 4.0), "start", y.name);
    for (index, curve) in curves.iter().enumerate() {
        let class = index % COLOURS;
        let place = |point: &(f64, f64)| (at_x(point.0), at_y(point.1));
        let path = path(curve.points.iter().map(place));
        if !path.is_empty() {
            let dashes = if index >= COLOURS { " dashed" } else { "" };
            let title = escape(&curve.name);
            let _ =
                write!(body, "\n<path class=\"curve s{class}{dashes}\" d=\"M{}\"><title>{title}</title></path>", path);
        }
        for (x, y) in curve.points.iter().filter(|_| curve.marked).map(place) {
            let _ = write!(body, r#"<circle class="dot s{class}" cx="{x:.1}" cy="{y:.1}" r="3"/>"#);
        }
        let y = TOP + 10.0 + index as f64 * 18.0;
        line(&mut body, &format!("curve s{class}"), (right + 14.0, y - 4.0), (right + 34.0, y - 4.0));
        text(&mut body, "tick", (right + 40.0, y), "start", &curve.name);
    }
    let height = HEIGHT.max(TOP + 20.0 + curves.len() as f64 * 18.0);
    format!("<svg role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {WIDTH} {height}\">{body}</svg>\n", escape(label))
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
    kept.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect::<Vec<_>>().join("L")
}

fn line(out: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let _ = write!(
        out,
        "\n<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(out: &mut String, class: &str, at: (f64, f64), anchor: &str, text: &str) {
    let (x, y, text) = (at.0, at.1, escape(text));
    let _ = write!(out, r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
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
