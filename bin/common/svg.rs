//! Drawings inside of a page. Colours are classes of its style sheet, so that they follow its light or dark.
#![allow(dead_code, reason = "each program uses its part")]

use std::fmt::Write;

use crate::html::escape;

/// The width of every drawing, in its own units; the page scales it.
pub(crate) const WIDTH: f64 = 960.0;

/// Where a rectangle is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

impl Area {
    pub(crate) fn right(self) -> f64 {
        self.x + self.width
    }

    pub(crate) fn bottom(self) -> f64 {
        self.y + self.height
    }
}

/// Which end of a text its place is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// A drawing under way.
#[derive(Default)]
pub(crate) struct Svg {
    body: String,
}

impl Svg {
    pub(crate) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(number);
        let _ = write!(self.body, r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#);
    }

    pub(crate) fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        let (x, y, text) = (number(at.0), number(at.1), escape(text));
        let _ = write!(self.body, r#"<text class="{class}" x="{x}" y="{y}"{anchor}>{text}</text>"#);
    }

    /// A rectangle that shows `title` under the pointer, if there is one.
    pub(crate) fn rect(&mut self, class: &str, area: Area, title: &str) {
        let [x, y, width, height] = [area.x, area.y, area.width.max(0.0), area.height.max(0.0)].map(number);
        let _ = write!(self.body, r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}""#);
        let _ = match title {
            "" => write!(self.body, "/>"),
            title => write!(self.body, "><title>{}</title></rect>", escape(title)),
        };
    }

    pub(crate) fn path(&mut self, class: &str, path: &str) {
        if !path.is_empty() {
            let _ = write!(self.body, r#"<path class="{class}" d="{path}"/>"#);
        }
    }

    /// A path that shows `title` under the pointer.
    pub(crate) fn titled_path(&mut self, class: &str, path: &str, title: &str) {
        if !path.is_empty() {
            let _ = write!(self.body, r#"<path class="{class}" d="{path}"><title>{}</title></path>"#, escape(title));
        }
    }

    pub(crate) fn dot(&mut self, class: &str, at: (f64, f64)) {
        let (x, y) = (number(at.0), number(at.1));
        let _ = write!(self.body, r#"<circle class="{class}" cx="{x}" cy="{y}" r="3"/>"#);
    }

    /// A triangle that points down at `tip`.
    pub(crate) fn pointer(&mut self, class: &str, tip: (f64, f64)) {
        let (x, y) = (number(tip.0 - 5.0), number(tip.1 - 8.0));
        self.path(class, &format!("M{x} {y}h10l-5 8z"));
    }

    pub(crate) fn finish(self, height: f64, label: &str) -> String {
        let (width, height, label) = (number(WIDTH), number(height), escape(label));
        format!(
            "<svg role=\"img\" aria-label=\"{label}\" viewBox=\"0 0 {width} {height}\">{}</svg>\n",
            // Browsers read any length of line, but people look at the source, too.
            self.body.replace("<line ", "\n<line ").replace("<path ", "\n<path ")
        )
    }
}

/// A coordinate to a tenth. What is no number is 0: a drawing with a flaw is better than none.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "0".to_owned();
    }
    let text = format!("{value:.1}");
    match text.strip_suffix(".0") {
        Some("-0") => "0".to_owned(),
        Some(whole) => whole.to_owned(),
        None => text,
    }
}

/// The step of 1, 2 or 5 times a power of ten that divides `span` into at most `most` parts.
pub(crate) fn step(span: f64, most: f64) -> f64 {
    let raw = span / most;
    if !(raw.is_finite() && raw > 0.0) {
        return 1.0;
    }
    let power = 10f64.powf(raw.log10().floor());
    // A hair's breadth too much is no reason for the next larger step.
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| raw <= factor * power * 1.000_001);
    step.unwrap_or(10.0) * power
}

/// The same for seconds, which come in minutes and hours.
pub(crate) fn time_step(span: f64, most: f64) -> f64 {
    const STEPS: [f64; 15] = [
        10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 10_800.0, 21_600.0, 43_200.0,
        86_400.0,
    ];
    match step(span, most) {
        short if short < 10.0 => short,
        long => STEPS.into_iter().find(|step| span / step <= most).unwrap_or((long / 3600.0).ceil() * 3600.0),
    }
}

/// `seconds` on an axis that has a tick each `step`.
pub(crate) fn time_label(seconds: f64, step: f64) -> String {
    let decimals = if step < 1.0 { (-step.log10()).ceil().clamp(0.0, 9.0) as usize } else { 0 };
    match seconds {
        0.0 => "0".to_owned(),
        _ if !seconds.is_finite() => "-".to_owned(),
        _ if step >= 3600.0 => format!("{:.0} h", seconds / 3600.0),
        _ if step >= 60.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{seconds:.decimals$} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_escapes() {
        assert_eq!(escape("<b a=\"1\" c='2'>&amp;\0"), "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;amp;\u{fffd}");
        assert_eq!(escape("plain, µs\n"), "plain, µs\n");
        let mut svg = Svg::default();
        svg.text("a", (0.0, 0.0), Anchor::Start, "<script>");
        svg.rect("a", Area { x: 0.0, y: 0.0, width: 1.0, height: 1.0 }, "</title>");
        let svg = svg.finish(1.0, "\"");
        assert!(!svg.contains("<script>") && svg.contains("&lt;/title&gt;") && svg.contains("&quot;"));
    }

    #[test]
    fn coordinates_are_numbers() {
        assert_eq!([1.0, 1.25, -0.01, 1e3].map(number), ["1", "1.2", "0", "1000"]);
        assert_eq!([f64::NAN, f64::INFINITY].map(number), ["0", "0"]);
    }

    #[test]
    fn steps_are_round() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < b * 1e-9, "{a} {b}");
        close(step(10.0, 5.0), 2.0);
        close(step(0.7, 5.0), 0.2);
        close(step(123.0, 4.0), 50.0);
        close(step(0.0, 4.0), 1.0);
        close(step(f64::NAN, 4.0), 1.0);
        close(time_step(60.0, 10.0), 10.0);
        close(time_step(1800.0, 10.0), 300.0);
        close(time_step(86_400.0, 10.0), 10_800.0);
        assert!(time_step(1e9, 10.0).is_finite());
        assert_eq!(time_label(600.0, 300.0), "10 min");
        assert_eq!(time_label(0.25, 0.05), "0.25 s");
        assert_eq!(time_label(7200.0, 3600.0), "2 h");
    }
}
